"""``dose.jsonl`` in an atoms folder: one curve a line, or why there is none; the newest line of an atom counts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from gradatoms.dose.records import Curve, Unmeasured
from gradatoms.errors import AtomsFormatError

FILE = "dose.jsonl"


def append_curve(folder: Path, result: Curve | Unmeasured) -> None:
    """Add a line; lines that are there are never changed."""
    line = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False) + "\n"
    with (folder / FILE).open("a+b") as file:
        if file.tell():  # a line that was cut off must not swallow this one
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode("utf-8", "replace"))


def load_results(folder: Path) -> dict[int, Curve | Unmeasured]:
    """The newest line of each atom; lines that were cut off are left out.

    Raises:
        AtomsFormatError: a damaged line.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    found: dict[int, Curve | Unmeasured] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            result = Unmeasured(**value) if "failure" in value else Curve.from_dict(value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if line.startswith("{") and not line.rstrip().endswith("}"):
                continue
            raise AtomsFormatError(f"{path}, line {number}: expected a curve, got {error}; remove the line") from error
        found[result.atom] = result
    return found


def load_curves(folder: str | Path) -> dict[int, Curve]:
    """The newest curve of each atom that has one, by atom; empty where none was measured.

    Args:
        folder: an atoms folder.

    Raises:
        AtomsFormatError: a damaged line in ``dose.jsonl``.
    """
    return {atom: found for atom, found in load_results(Path(folder)).items() if isinstance(found, Curve)}
