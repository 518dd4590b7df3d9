"""What a teacher answers: a label, or why there is none; and the history of both in ``labels.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gradatoms.errors import AtomsFormatError

MAX_WORDS = 8
"""Longest label, in words."""

Polarity = Literal["promotes", "suppresses", "mixed"]
POLARITIES: tuple[Polarity, ...] = ("promotes", "suppresses", "mixed")
Variant = Literal["both", "input", "output"]
VARIANTS: tuple[Variant, ...] = ("both", "input", "output")
"""What a teacher was shown: examples and lookahead, examples only, lookahead only."""
FailureKind = Literal["no evidence", "malformed", "refused", "timeout", "server", "budget"]
FILE = "labels.jsonl"
NULL = "labels.null.jsonl"
"""Labels of random directions, as ``labels.jsonl``; ``atom`` is the number of the direction."""
HUMAN = "human"
"""The teacher of labels that a person set; no machine's label replaces one."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name for an atom, of at most eight words, and how sure the teacher is."""

    atom: int
    label: str
    sentence: str = ""
    confidence: float = 1.0
    """0 to 1, the teacher's own; not calibrated."""
    polarity: Polarity = "promotes"
    """Whether the atom is best described by what it makes likelier, by what it makes less likely, or by both."""
    teacher: str
    """Such as ``rule-3``, ``local:smollm2``, ``openai:NAME`` or ``human``."""
    prompt: str = ""
    """Name and digest of the prompt file, where there was one."""
    variant: Variant = "both"
    at: str = ""
    """When, UTC."""


@dataclass(frozen=True, kw_only=True)
class LabelFailure:
    """Why an atom has no label; never shown as one."""

    atom: int
    failure: str
    kind: FailureKind
    teacher: str
    prompt: str = ""
    variant: Variant = "both"
    at: str = ""


Result = Label | LabelFailure


def append_results(folder: Path, results: Iterable[Result], name: str = FILE) -> None:
    """Add rows to ``labels.jsonl``; rows that are there are never changed."""
    lines = [json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results]
    path = folder / name
    with path.open("a+b") as file:
        if file.tell():  # a write that was cut off must not swallow the next row
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                lines.insert(0, "\n")
        file.write("".join(lines).encode("utf-8", "replace"))


def load_history(folder: Path, name: str = FILE) -> list[Result]:
    """Every row of ``labels.jsonl``, oldest first. Empty where nothing was labelled; a last line cut off is left out.

    Raises:
        AtomsFormatError: a damaged line.
    """
    path = folder / name
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_parsed(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number == len(lines) or _is_cut(line):
                continue
            raise AtomsFormatError(f"{path}, line {number}: expected a label, got {error}; remove the line") from error
    return found


def _is_cut(line: str) -> bool:
    return line.startswith("{") and not line.rstrip().endswith("}")


def _parsed(record: dict[str, Any]) -> Result:
    if "failure" in record:
        return LabelFailure(**({"kind": "no evidence"} | record))
    known = {f.name for f in fields(Label)}
    unknown = sorted(set(record) - known)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    return Label(**record)


def load_labels(folder: Path, name: str = FILE) -> dict[int, Label]:
    """The label of each atom: a person's newest, else the newest; failures are left out."""
    found: dict[int, Label] = {}
    for row in load_history(folder, name):
        if isinstance(row, Label):
            before = found.get(row.atom)
            if before is None or before.teacher != HUMAN or row.teacher == HUMAN:
                found[row.atom] = row
    return found


def label_texts(labels: dict[int, Label]) -> dict[int, str]:
    """Atom → label text."""
    return {atom: label.label for atom, label in labels.items()}


def distinct(text: str, taken: Collection[str]) -> str:
    """``text``, with a number behind it where that is taken; of at most eight words."""
    unique, serial = text, 2
    while unique in taken:
        unique, serial = f"{' '.join(text.split()[: MAX_WORDS - 1])} ({serial})", serial + 1
    return unique
