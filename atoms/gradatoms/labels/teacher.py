"""Teachers turn evidence into labels, behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.label import Result, Variant


class Teacher(ABC):
    """Something that words the shift an atom causes."""

    name: str
    """As labels record it: ``rule-3``, ``local:smollm2``, ``openai:NAME``."""

    def survey(self, evidence: Sequence[Evidence]) -> None:  # noqa: B027 - most teachers need nothing
        """Told of all atoms before any is labelled; for those who name an atom by what the others lack."""

    @abstractmethod
    def label(self, evidence: Sequence[Evidence], *, variant: Variant = "both") -> Iterator[Result]:
        """One label, or typed failure, for each atom, as they come and in any order.

        Args:
            variant: which part of the evidence the teacher is shown.
        """


def make_teacher(name: str, **options: object) -> Teacher:
    """The teacher called ``name``: ``rule``, ``local``, ``local:MODEL`` or ``openai:MODEL``.

    Args:
        options: for ``openai``: base_url, concurrency, budgets, prices, cache (``remote.RemoteChat``).

    Raises:
        ConfigError: no such teacher; the message lists them.
    """
    from gradatoms.labels.rule import RuleTeacher

    if name == "rule":
        require_no_options(name, options)
        return RuleTeacher()
    if name.partition(":")[0] in ("local", "openai"):
        from gradatoms.labels.chat_teacher import ChatTeacher, make_chat

        return ChatTeacher(make_chat(name, **options))
    raise ConfigError(f"expected a teacher of rule, local, local:MODEL, openai:MODEL, got {name!r}")


def require_no_options(name: str, options: Iterable[str]) -> None:
    """Raise a ConfigError where options of a server are given to something that has none."""
    given = ", ".join(options)
    if given:
        raise ConfigError(f"expected no option of a server with {name}, got {given}; leave them out")
