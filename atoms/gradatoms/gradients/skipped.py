"""Examples that could not be used and rows that were dropped: a list beside the shards, so that nothing is lost unseen.

``skipped.jsonl`` in the store's folder has one object a line: ``example`` (its number, from 0), ``position`` (null for a
whole example), ``reason``, ``detail``. Several processes append to it, and a resume may repeat a line; repeated lines
count once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gradatoms.gradients.sequences import Unusable

FILE = "skipped.jsonl"


@dataclass(frozen=True)
class Skipped:
    """One line of the list."""

    example: int
    position: int | None
    reason: str
    detail: str

    @classmethod
    def of(cls, unusable: Unusable) -> Skipped:
        return cls(unusable.example, None, unusable.reason, unusable.detail)


def list_skipped(store: Path, skipped: Iterable[Skipped]) -> None:
    """Append to the list of the store at this path what is not in it yet."""
    known = set(read_skipped(store))
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in skipped if item not in known]
    if lines:
        with (store / FILE).open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def read_skipped(store: str | Path) -> list[Skipped]:
    """The list of a store, each item once; a line that a kill cut short is left out."""
    path = Path(store) / FILE
    if not path.is_file():
        return []
    found: dict[Skipped, None] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found[Skipped(**json.loads(line))] = None
        except (ValueError, TypeError):
            continue
    return list(found)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason is given, most frequent first."""
    return dict(Counter(reasons).most_common())
