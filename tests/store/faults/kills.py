"""SIGKILL at every stage and at random times, of one to three writers, of recoveries, of a first moment, of a repair."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from check import Finding, inspect, inspect_complete
from children import Child, Job, Say, die, run, write_together
from content import Content, contents, fill
from damage import flip
from stages import COMMIT, Stages
from tally import Bench, Tally

from gradatoms_store import StoreExistsError, StoreNotFoundError, StoreWriter, repair_store

UNITS = 60
SHARD_ROWS = (10, 20, 30, 45, 200)
TRIES = 4
"""At most so many trials for each kill that is asked for: a kill at a late stage may find the work done."""


def stages_of_a_run(folder: Path, content: Content) -> Counter[str]:
    """How often one writer reaches each stage.

    Raises:
        RuntimeError: a stage that every commit must have was not seen, so that this harness is out of date.
    """
    path = fill(folder / "stages.gstore", content.header, content.units, [], 20)
    child = run(Job(path, content, 0, count=True), folder / "stages.log")
    counts = Counter(child.stages)
    missing = [stage for stage in COMMIT if not counts[stage]]
    if missing:
        raise RuntimeError(f"stages not seen in a run: {missing}; bring stages.py up to date")
    return counts


def at_stages(bench: Bench, tally: Tally, writers: int) -> None:
    """Kill some or all of the writers, each at one stage."""
    give = contents(bench.folder, UNITS)
    counts = stages_of_a_run(bench.folder, give(0))
    names = np.random.default_rng([bench.seed, writers]).permutation(sorted(counts)).tolist()

    def aim(rng: np.random.Generator, number: int) -> tuple[str | None, int]:
        name = names[number % len(names)]
        return name, int(rng.integers(1, max(2, counts[name] // writers + 1)))

    _kill_writers(bench, tally, writers, give, aim)


def at_random_times(bench: Bench, tally: Tally, writers: int) -> None:
    """Kill some or all of the writers from outside, after random times."""
    _kill_writers(bench, tally, writers, contents(bench.folder, UNITS), None)


Aim = Callable[[np.random.Generator, int], tuple[str | None, int]]


def _kill_writers(bench: Bench, tally: Tally, writers: int, give: Callable[[int], Content], aim: Aim | None) -> None:
    while tally.kills < bench.n and tally.trials < TRIES * bench.n:
        for rng, folder, where in bench.trial(tally):
            content = give(tally.trials)
            path = fill(folder / "s.gstore", content.header, content.units, [], 20)
            victims = set(rng.permutation(writers)[: rng.integers(1, writers + 1)].tolist())
            jobs = []
            for number in range(writers):
                at = aim(rng, tally.trials + number) if aim and number in victims else None
                jobs.append(Job(path, content, int(rng.integers(2**31)), int(rng.choice(SHARD_ROWS)), at))
            children = write_together(jobs, folder, "victim")
            if aim is None:
                _kill_in_turn(children, {victim: rng.uniform(0, 0.4) for victim in victims})
            before = after_kills(tally, path, content, children, victims, where)
            finish(tally, path, content, rng, folder, before, where)


def _kill_in_turn(children: list[Child], times: dict[int, float]) -> None:
    """Kill each child at its time, in seconds from now."""
    started = time.monotonic()
    for number, moment in sorted(times.items(), key=lambda item: item[1]):
        time.sleep(max(0.0, started + moment - time.monotonic()))
        children[number].kill()


def after_kills(
    tally: Tally,
    path: Path,
    content: Content,
    children: list[Child],
    victims: set[int],
    where: str,
    before: Finding | None = None,
) -> Finding:
    """Wait for the writers, and look at the store as a reader finds it then."""
    committed: set[int] = set()
    for number, child in enumerate(children):
        struck = child.killed
        tally.kills += struck
        tally.stages.update(child.struck)
        fine = child.status == 0 or (struck and number in victims)
        tally.fail_if(not fine, f"{where}: writer {number} ended with {child.status}: {child.error}")
        committed |= child.committed
    found = inspect(path, content, committed, before)
    tally.rows += found.rows
    tally.take(found, f"{where}, after the kill")
    return found


def finish(
    tally: Tally, path: Path, content: Content, rng: np.random.Generator, folder: Path, before: Finding, where: str
) -> None:
    """Resume with one to three writers, to the end, and compare everything."""
    jobs = [
        Job(path, content, int(rng.integers(2**31)), int(rng.choice(SHARD_ROWS))) for _ in range(rng.integers(1, 4))
    ]
    for child in write_together(jobs, folder, "finisher"):
        tally.fail_if(child.wait() != 0, f"{where}: a resumed writer ended with {child.status}: {child.error}")
    tally.take(inspect_complete(path, content, before), f"{where}, at the end")


def in_recovery(bench: Bench, tally: Tally) -> None:
    """Kill a writer, then a resume of the store, then the next resume; finish with the one after."""
    give = contents(bench.folder, UNITS)
    counts = stages_of_a_run(bench.folder, give(0))
    while tally.kills < bench.n and tally.trials < TRIES * bench.n:
        for rng, folder, where in bench.trial(tally):
            content = give(tally.trials)
            path = fill(folder / "s.gstore", content.header, content.units, range(4), 20)
            name = COMMIT[tally.trials % len(COMMIT)]
            job = Job(path, content, 1, 20, (name, int(rng.integers(1, max(2, counts[name] // 2)))))
            found = after_kills(tally, path, content, [run(job, folder / "victim.log")], {0}, where)
            for recovery in range(2):
                copy = Path(shutil.copytree(path, folder / f"copy-{recovery}.gstore"))
                rehearsal = run(Job(copy, content, 1, count=True, only_resume=True), folder / f"copy-{recovery}.log")
                last = len(rehearsal.stages)
                job = Job(path, content, 1, 20, (None, int(rng.integers(1, last + 1))), only_resume=True)
                child = run(job, folder / f"recovery-{recovery}.log")
                found = after_kills(tally, path, content, [child], {0}, f"{where}, recovery {recovery}", found)
            finish(tally, path, content, rng, folder, found, where)


def in_creation(bench: Bench, tally: Tally) -> None:
    """Kill a writer while it makes the store: there is a store then, or a clear refusal."""
    content = contents(bench.folder, UNITS)(0)
    rehearsal = run(
        Job(bench.folder / "new.gstore", content, 0, count=True, create=True, only_resume=True),
        bench.folder / "new.log",
    )
    last = len(rehearsal.stages)
    while tally.kills < bench.n and tally.trials < TRIES * bench.n:
        for rng, folder, where in bench.trial(tally):
            path = folder / "s.gstore"
            job = Job(path, content, 1, kill_at=(None, 1 + tally.trials % last), create=True, only_resume=True)
            child = run(job, folder / "victim.log")
            tally.kills += child.killed
            tally.stages.update(child.struck)
            if (path / "store.json").exists():
                finish(tally, path, content, rng, folder, inspect(path, content), where)
            elif path.exists():
                tally.expect(_refuses_half_made(path, content), f"{where}: a half-made store is not refused clearly")


def _refuses_half_made(path: Path, content: Content) -> bool:
    try:
        StoreWriter.resume(path, content.header).close()
    except StoreNotFoundError as error:
        try:
            StoreWriter.create(path, content.header).close()
        except StoreExistsError:
            return "choose another path" in str(error)
    return False


def in_repair(bench: Bench, tally: Tally) -> None:
    """Kill the repair of a store with bad shards, twice; the third one and a resume bring all rows back."""
    give = contents(bench.folder, UNITS)
    while tally.kills < bench.n and tally.trials < TRIES * bench.n:
        for rng, folder, where in bench.trial(tally):
            content = give(tally.trials)
            path = fill(folder / "s.gstore", content.header, content.units, range(50), 20)
            before = inspect(path, content)
            bad = {f"{number:05d}" for number in rng.permutation(25)[:3]}
            before.units -= {unit for unit in before.units if f"{unit // 2:05d}" in bad}
            before.files = {name: digest for name, digest in before.files.items() if name.split(".")[0] not in bad}
            for stem in bad:
                flip(path / "shards" / f"{stem}.h5", rng)
            copy = Path(shutil.copytree(path, folder / "copy.gstore"))
            order = run(_repair(copy, 0), folder / "copy.log").stages
            first = 0 if tally.trials % 4 == 0 else order.index("mkdir aside")  # what comes before only reads
            for attempt in range(2):
                child = run(_repair(path, int(rng.integers(first, len(order))) + 1), folder / f"repair-{attempt}.log")
                tally.kills += child.killed
                tally.stages.update(child.struck)
                tally.fail_if(not child.killed and child.status, f"{where}: repair: {child.error}")
            repair_store(path)
            found = inspect(path, content, (), before)
            tally.rows += found.rows
            tally.take(found, f"{where}, after the repair")
            child = run(Job(path, content, 1), folder / "finisher.log")
            tally.fail_if(child.status, f"{where}: a resumed writer ended with {child.status}: {child.error}")
            tally.take(inspect_complete(path, content, found, aside=True), f"{where}, at the end")


def _repair(path: Path, kill_at: int) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        stages = Stages(path, None, kill_at, die(say), fatal=True)
        stages.install()
        repair_store(path)
        say("stages", order=stages.order)

    return work
