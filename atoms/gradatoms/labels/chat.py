"""Ask a chat model for answers of a fixed form, whatever serves it.

An answer is one JSON object that obeys the question's schema, with at most a ``json`` fence around it. Any other text is
malformed: the question is asked again with one line that says what was wrong, twice at most.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradatoms.labels.label import FailureKind
from gradatoms.labels.schema import MalformedAnswerError, check, one_line, shown

TRIES = 3
"""How often a question is asked before a malformed answer is final."""
LONGEST = 20_000
"""Characters of the longest text that is read as an answer."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)\n?```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One request for a JSON object."""

    system: str
    user: str
    schema: dict[str, Any]
    """JSON schema of the answer."""
    max_tokens: int = 160

    def again(self, tries: int, error: str) -> Question:
        """The question after ``tries`` malformed answers, with one line about the last one.

        The line counts the tries, so no two requests are equal, not even after the same mistake.
        """
        line = f"(Try {tries + 1} of {TRIES}. Your last answer was not accepted: {one_line(error)}. Answer with the JSON object only.)"
        return replace(self, user=f"{self.user}\n\n{line}")


@dataclass(frozen=True)
class Answer:
    """An object that obeys the schema."""

    value: dict[str, Any]


@dataclass(frozen=True)
class NoAnswer:
    """Why there is none, after two more tries where the answer was malformed."""

    kind: FailureKind
    reason: str


class Chat(ABC):
    """A chat model."""

    name: str
    """As labels record it, such as ``local:smollm2``."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer | NoAnswer]]:
        """(question, answer) as they come, each question once, in any order."""


def parse_answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The object in ``text``: JSON alone, or JSON in one fence; nothing more lenient.

    Raises:
        MalformedAnswerError: no JSON, not an object, or not as the schema says.
    """
    if len(text) > LONGEST:
        raise MalformedAnswerError(f"expected at most {LONGEST} characters, got {len(text)}")
    body = text.strip()
    if not body:
        raise MalformedAnswerError("expected a JSON object, got an empty answer")
    fenced = _FENCE.fullmatch(body)
    try:
        value = json.loads(fenced[1] if fenced else body, object_pairs_hook=_once, parse_constant=_refuse)
    except MalformedAnswerError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"expected one JSON object and nothing else, got {shown(body)}") from error
    if not isinstance(value, dict):
        raise MalformedAnswerError(f"expected a JSON object, got {shown(body)}")
    check(value, schema)
    return value


def settle(text: str, question: Question, tries: int) -> Answer | NoAnswer | str:
    """What the answer of try number ``tries`` (from 1) comes to: an answer, a failure, or the error to ask again with."""
    try:
        return Answer(parse_answer(text, question.schema))
    except MalformedAnswerError as error:
        return str(error) if tries < TRIES else NoAnswer("malformed", f"after {TRIES} tries: {error}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedAnswerError("expected each field once, got one twice")
    return found


def _refuse(constant: str) -> Any:
    raise MalformedAnswerError(f"expected JSON, which has no {constant}")
