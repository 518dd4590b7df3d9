"""Processes that meet: readers and writers, writers that want one unit, resumes at one moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from check import inspect, inspect_complete
from children import Child, Gate, Job, Say, fork, run, write_together
from content import Content, contents, fill
from kills import SHARD_ROWS
from stages import Stages
from tally import Bench, Tally

from gradatoms_store import StoreValueError, StoreWriter, verify_store

UNITS = 60


def readers(bench: Bench, tally: Tally) -> None:
    """One process opens and reads the store all the time, and another verifies it, while two write."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, [], 20)
        end = folder / "end"
        watchers = [fork(work(path, content, end), folder / f"{work.__name__}.log") for work in (_read, _verify)]
        jobs = [Job(path, content, int(rng.integers(2**31)), int(rng.choice(SHARD_ROWS[:3]))) for _ in range(2)]
        for child in write_together(jobs, folder, "writer"):
            tally.fail_if(child.wait(), f"{where}: a writer ended with {child.status}: {child.error}")
        end.touch()
        for child in watchers:
            tally.fail_if(child.wait(), f"{where}: a reader ended with {child.status}: {child.error}")
            for line in child.said("read"):
                tally.rows += line["rows"]
                tally.unreadable += line["unreadable"]
                tally.expect(not line["complaints"], f"{where}: {line['complaints']}")
        tally.take(inspect_complete(path, content), f"{where}, at the end")


def _read(path: Path, content: Content, end: Path) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        before = None
        while True:
            last = end.exists()
            found = inspect(path, content, (), before, moving=True)
            complaints = [*found.complaints, *([f"{found.lost} rows lost"] if found.lost else [])]
            say("read", rows=found.rows, unreadable=found.unreadable, complaints=complaints)
            before = found
            if last:
                break

    return work


def _verify(path: Path, content: Content, end: Path) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        while not end.exists():
            report = verify_store(path)
            say("read", rows=report.rows, unreadable=0, complaints=[f"verify: {each}" for each in report.problems])

    return work


def one_unit(bench: Bench, tally: Tally) -> None:
    """Three writers want every unit, each in its own order: each unit is given to one, the others are refused."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, [], 20)
        gate = Gate()
        children = [
            fork(_grab(path, content, int(rng.integers(2**31))), folder / f"writer-{number}.log", gate)
            for number in range(3)
        ]
        gate.open()
        taken: list[int] = []
        for child in children:
            tally.fail_if(child.wait(), f"{where}: a writer ended with {child.status}: {child.error}")
            taken += child.committed
            for line in child.said("refused"):
                tally.expect(f"unit {line['unit']} " in line["text"], f"{where}: unclear: {line['text']}")
        tally.rows += 10 * len(taken)
        tally.duplicated += 10 * (len(taken) - len(set(taken)))
        tally.fail_if(sorted(taken) != list(range(UNITS)), f"{where}: units taken: {sorted(taken)}")
        tally.take(inspect_complete(path, content), f"{where}, at the end")


def _grab(path: Path, content: Content, seed: int) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        rng, mine = np.random.default_rng(seed), []
        with StoreWriter.resume(path, content.header, rows_per_shard=30) as writer:
            for unit in rng.permutation(UNITS).tolist():
                try:
                    writer.append(unit, *content.units[unit])
                    mine.append(unit)
                except StoreValueError as error:
                    say("refused", unit=unit, text=str(error))
                if rng.random() < 0.2:
                    writer.flush()
        say("committed", units=mine)

    return work


def resumes(bench: Bench, tally: Tally) -> None:
    """After a kill, two to four processes resume at one moment; some come and go all the time."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, range(5), 20)
        victim = run(Job(path, content, 1, 20, ("open N.json.partial", 3)), folder / "victim.log")
        tally.kills += victim.killed
        before = inspect(path, content, victim.committed)
        tally.rows += before.rows
        gate = Gate()
        children: list[Child] = []
        for number in range(int(rng.integers(2, 5))):
            seed = int(rng.integers(2**31))
            work = _come_and_go(path, content) if tally.trials % 2 else Job(path, content, seed)
            children.append(fork(work, folder / f"writer-{number}.log", gate))
        gate.open()
        committed: list[int] = []
        for child in children:
            tally.fail_if(child.wait(), f"{where}: a writer ended with {child.status}: {child.error}")
            committed += child.committed
        tally.duplicated += 10 * (len(committed) - len(set(committed)))
        found = inspect(path, content, committed, before)
        tally.take(found, where)
        child = run(Job(path, content, 0), folder / "last.log")  # units of one that left late may be left over
        tally.fail_if(child.wait(), f"{where}: the last resume: {child.error}")
        tally.take(inspect_complete(path, content, found), f"{where}, at the end")


def passers_by(bench: Bench, tally: Tally) -> None:
    """Eight processes resume and close without pause, while one writes: nobody trips over another's locks."""
    give = contents(bench.folder, UNITS)
    for _, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, [], 20)
        gate = Gate()
        children = [fork(_pass_by(path, content), folder / f"passer-{n}.log", gate) for n in range(8)]
        writer = fork(Job(path, content, 0, 10), folder / "writer.log", gate)
        gate.open()
        for child in (writer, *children):
            tally.expect(child.wait() == 0, f"{where}: a writer ended with {child.status}: {child.error}")
        found = inspect_complete(path, content)
        tally.rows += found.rows
        tally.take(found, f"{where}, at the end")


def _pass_by(path: Path, content: Content) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        for _ in range(40):
            with StoreWriter.resume(path, content.header) as writer:
                writer.claim(limit=0)

    return work


def forks(bench: Bench, tally: Tally) -> None:
    """A writer's process is forked while it holds the store's lock, as by a data loader, and the fork lives on."""
    give = contents(bench.folder, UNITS)
    for _, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        stage = ("rename N.h5.partial", "rename N.json.partial", "pwrite claim")[tally.trials % 3]
        path = fill(folder / "s.gstore", content.header, content.units, [], 20)
        read, write = os.pipe()
        child = run(_forked(path, content, stage, (read, write)), folder / "forked.log")
        tally.fail_if(child.status, f"{where} ({stage}): the writer ended with {child.status}: {child.error}")
        found = inspect(path, content, child.committed)
        tally.rows += found.rows
        tally.take(found, where)
        child = run(Job(path, content, 0), folder / "next.log")
        tally.expect(child.status == 0, f"{where} ({stage}): the next writer ended with {child.status}: {child.error}")
        os.close(write)  # the fork ends
        os.close(read)
        tally.take(inspect_complete(path, content, found), f"{where}, at the end")


def _forked(path: Path, content: Content, stage: str, pipe: tuple[int, int]) -> Callable[[Say], None]:
    def leave_a_fork(_: str) -> None:
        if os.fork() == 0:
            os.close(pipe[1])
            os.read(pipe[0], 1)
            os._exit(0)

    def work(say: Say) -> None:
        Stages(path, stage, 2, leave_a_fork).install()
        with StoreWriter.resume(path, content.header, rows_per_shard=10) as writer:
            for unit in writer.claim(limit=5):
                writer.append(unit, *content.units[unit])
        say("committed", units=list(range(5)))

    return work


def _come_and_go(path: Path, content: Content) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        done = False
        while not done:
            with StoreWriter.resume(path, content.header, rows_per_shard=10) as writer:
                units = writer.claim(limit=2)
                for unit in units:
                    writer.append(unit, *content.units[unit])
            say("committed", units=units)
            done = not units

    return work
