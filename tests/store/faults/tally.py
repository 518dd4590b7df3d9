"""Counts of the trials of each kind of fault, and the table of them."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from check import Finding

COLUMNS = ("fault", "trials", "kills", "rows before", "lost", "duplicated", "unreadable", "found", "seconds")


class Skip(Exception):
    """A kind of fault that cannot be caused here; says why."""


@dataclass
class Tally:
    """What came of the trials of one kind of fault."""

    kind: str
    trials: int = 0
    kills: int = 0
    """SIGKILLs that struck a process at work."""
    rows: int = 0
    """Rows that were committed when the fault struck."""
    lost: int = 0
    duplicated: int = 0
    unreadable: int = 0
    due: int = 0
    """Corruptions to be found, or misuses to be refused."""
    met: int = 0
    """Those that were, by the right name."""
    seconds: float = 0.0
    stages: Counter[str] = field(default_factory=Counter)
    """Stage at which a fault struck to how often."""
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def take(self, found: Finding, where: str) -> None:
        """Count what was found in a store."""
        self.lost += found.lost
        self.duplicated += found.duplicated
        self.unreadable += found.unreadable
        if not found.ok:
            counts = f"{found.lost} rows lost, {found.duplicated} duplicated"
            self.failures.append(f"{where}: {counts}; {'; '.join(found.complaints)}")

    def expect(self, met: bool, where: str) -> None:
        """Count a corruption that must be found, or a misuse that must be refused."""
        self.due += 1
        self.met += met
        if not met:
            self.failures.append(where)

    def fail_if(self, wrong: object, where: str) -> None:
        """Note a failure."""
        if wrong:
            self.failures.append(where)

    def row(self) -> tuple[str, ...]:
        """One line of the table."""
        found = f"{self.met}/{self.due}" if self.due else "-"
        numbers = [self.trials, self.kills, self.rows, self.lost, self.duplicated, self.unreadable]
        return (self.kind, *map(str, numbers), found, f"{self.seconds:.1f}")


@dataclass(frozen=True)
class Bench:
    """What a kind of fault is given to work with."""

    folder: Path
    """Where it may write."""
    seed: int
    n: int
    """How much of it is asked for."""
    tick: Callable[[], None]
    """Called after each trial."""
    keep: bool

    def trials(self, tally: Tally, count: int) -> Iterator[tuple[np.random.Generator, Path, str]]:
        """So many trials, each with its own seed, an empty folder, and how to call it in a message."""
        for _ in range(count):
            yield from self.trial(tally)

    def trial(self, tally: Tally) -> Iterator[tuple[np.random.Generator, Path, str]]:
        """One more trial; its folder is removed when it went well."""
        number, failures, started = tally.trials, len(tally.failures), time.monotonic()
        rng = np.random.default_rng([self.seed, zlib.crc32(tally.kind.encode()), number])
        folder = self.folder / f"{tally.kind.replace(' ', '-').replace(',', '')}-{number}"
        folder.mkdir()
        yield rng, folder, f"{tally.kind}, trial {number}"
        tally.trials += 1
        tally.seconds += time.monotonic() - started
        if not (self.keep and len(tally.failures) > failures):
            remove(folder)
        self.tick()


def remove(folder: Path) -> None:
    """Delete a folder and all in it, also where rights were taken away."""
    for each in [folder, *folder.rglob("*")]:
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o755)
    for each in sorted(folder.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() and not each.is_symlink() else each.unlink()
    folder.rmdir()


def table(tallies: list[Tally]) -> str:
    """The counts of all kinds, as text."""
    total = Tally("all")
    for name in ("trials", "kills", "rows", "lost", "duplicated", "unreadable", "due", "met", "seconds"):
        setattr(total, name, sum(getattr(tally, name) for tally in tallies))
    lines = [COLUMNS, *(tally.row() for tally in tallies if not tally.skipped), total.row()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    rule = "-" * len(text[0])
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def stage_table(tallies: list[Tally]) -> str:
    """How often a fault struck at each stage."""
    stages: Counter[str] = Counter()
    for tally in tallies:
        stages += tally.stages
    width = max(map(len, stages), default=0)
    return "\n".join(f"  {name.ljust(width)}  {count:5d}" for name, count in sorted(stages.items()))
