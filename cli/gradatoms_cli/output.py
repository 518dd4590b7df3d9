"""What every command prints: data on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gradatoms.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def emit(value: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print ``value`` as one JSON document, or ``text`` for a person.

    The end of the line is part of the write: unbuffered, as ``torchrun`` starts its ranks, ``print`` writes it by
    itself, and the lines of two ranks run together.
    """
    sys.stdout.write((json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) if as_json else text) + "\n")


def emit_line(value: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print one of many values on a line of its own: as JSON (together they are JSON Lines), or as text."""
    sys.stdout.write((json.dumps(value, ensure_ascii=False, allow_nan=False) if as_json else text) + "\n")
    sys.stdout.flush()


@contextmanager
def bars(*, hidden: bool = False) -> Iterator[Progress]:
    """A progress callback that draws one bar a stage on stderr, or nothing."""
    from tqdm import tqdm

    current: dict[str, tqdm[Any]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in current:
            for bar in current.values():
                bar.close()
            current.clear()
            current[stage] = tqdm(
                total=total, desc=stage, file=sys.stderr, disable=hidden or None, leave=False, dynamic_ncols=True
            )
        bar = current[stage]
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        for bar in current.values():
            bar.close()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, wide: int) -> str:
    """Columns of text that fit the terminal (80 columns if unknown); column ``wide`` is cut to what is left."""
    width = shutil.get_terminal_size((80, 24)).columns
    sizes = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    rest = width - sum(size for i, size in enumerate(sizes) if i != wide) - 2 * (len(header) - 1)
    sizes[wide] = max(8, min(sizes[wide], rest))
    lines = []
    for row in [header, *rows]:
        cells = [cut(str(cell), sizes[i]).ljust(sizes[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cut(text: str, width: int) -> str:
    """``text`` on one line, at most ``width`` characters."""
    line = printable(text)
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def printable(text: str) -> str:
    """``text`` with control characters shown, so that a token or label cannot move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def metrics_table(metrics: dict[str, Any]) -> str:
    """Metrics with their nulls, for a person."""
    rows = [
        [name, number(m["value"]), number(m["null"]), m["unit"], m["better"], str(m["n"])]
        for name, m in metrics.items()
    ]
    return table(["metric", "value", "null", "unit", "better", "n"], rows, wide=3)
