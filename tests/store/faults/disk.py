"""Disks that are full, limited, read-only, or of two parts."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from check import Finding, inspect, inspect_complete
from children import REFUSED, Child, Job, Say, end_all, run, write_together
from content import Content, contents, fill
from damage import flip
from kills import finish, stages_of_a_run
from stages import Stages
from tally import Bench, Skip, Tally

from gradatoms_store import StoreError, StoreWriter, repair_store, verify_store

UNITS = 24
SIZE = 2**20
NOBODY = 65534


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB on a folder, which is made if need be.

    Raises:
        Skip: it cannot be mounted.
    """
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        end_all()
        subprocess.run(["umount", str(folder)], check=False)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Skip(f"no mount command: {error}") from None
    if done.returncode:
        raise Skip(f"mounting needs root: {done.stderr.strip().split(chr(10))[0]}")


def unmount_all(folder: Path) -> None:
    """Unmount what a stopped run left mounted inside a folder."""
    mounts = Path("/proc/mounts")
    for line in reversed(mounts.read_text().splitlines() if mounts.exists() else []):
        if line.split()[1].startswith(f"{folder}{os.sep}"):
            subprocess.run(["umount", line.split()[1]], check=False)


def full_before(bench: Bench, tally: Tally) -> None:
    """A disk that has room for some shards only, or for none."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        with small_disk(folder / "disk") as room:
            content = give(tally.trials)
            path = fill(room / "s.gstore", content.header, content.units, [], 20)
            _fill_up(room, int(rng.integers(0, SIZE // 2)) if tally.trials % 4 else int(rng.integers(0, 3)) * 4096)
            child = run(Job(path, content, tally.trials, 10), folder / "full.log")
            found = _after_error(tally, path, content, child, where)
            (room / "filler").unlink()
            finish(tally, path, content, rng, folder, found, where)


def _fill_up(room: Path, leave: int) -> None:
    """Fill a small disk but for so many bytes."""
    filler = os.open(room / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(filler, bytes(4096)):
            pass
    except OSError:
        os.ftruncate(filler, max(0, os.fstat(filler).st_size - leave))
    os.close(filler)


def full_at_stages(bench: Bench, tally: Tally) -> None:
    """Something else takes the rest of the disk at a stage; one of two writers waits for space and goes on."""

    def act(room: Path, rng: np.random.Generator) -> tuple[Callable[[], None], Callable[[], None]]:
        leave = int(rng.integers(0, 4)) * 4096
        return lambda: _fill_up(room, leave), lambda: (room / "filler").unlink(missing_ok=True)

    _at_stages(bench, tally, act, small_disk)


def limited_at_stages(bench: Bench, tally: Tally) -> None:
    """The size of files is limited from a stage on; one of two writers has it lifted and goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def act(room: Path, rng: np.random.Generator) -> tuple[Callable[[], None], Callable[[], None]]:
        limit = int(rng.choice([0, rng.integers(1, 3000), rng.integers(3000, 16000)]))
        return (
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
        )

    @contextlib.contextmanager
    def plain(folder: Path) -> Iterator[Path]:
        folder.mkdir()
        yield folder

    _at_stages(bench, tally, act, plain)


Act = Callable[[Path, np.random.Generator], tuple[Callable[[], None], Callable[[], None]]]


def _at_stages(
    bench: Bench, tally: Tally, act: Act, disk: Callable[[Path], contextlib.AbstractContextManager[Path]]
) -> None:
    give = contents(bench.folder, UNITS)
    counts = stages_of_a_run(bench.folder, give(0))
    names = sorted(name for name in counts if not name.startswith("read "))
    for rng, folder, where in bench.trials(tally, bench.n):
        with disk(folder / "disk") as room:
            content, name = give(tally.trials), names[tally.trials % len(names)]
            where = f"{where} ({name})"
            path = fill(room / "s.gstore", content.header, content.units, [], 20)
            work = _patient_writer(path, content, name, int(rng.integers(1, counts[name] // 3 + 2)), act(room, rng))
            child = run(lambda say, work=work, go_on=tally.trials % 2: work(say, bool(go_on)), folder / "full.log")
            tally.stages.update(child.struck)
            found = _after_error(tally, path, content, child, where)
            act(room, rng)[1]()
            finish(tally, path, content, rng, folder, found, where)


def _patient_writer(
    path: Path, content: Content, name: str, occurrence: int, fault: tuple[Callable[[], None], Callable[[], None]]
) -> Callable[[Say, bool], None]:
    """A writer whose disk fails at a stage; it may lift the fault, commit what it has buffered and go on."""
    strike, lift = fault

    def work(say: Say, go_on: bool) -> None:
        struck: list[str] = []
        Stages(path, name, occurrence, lambda stage: (struck.append(stage), strike())).install()
        appended: list[int] = []
        try:
            with StoreWriter.resume(path, content.header, rows_per_shard=20) as writer:
                for unit in writer.units():
                    for attempt in range(2):
                        try:
                            if unit not in appended:
                                appended.append(unit)
                                writer.append(unit, *content.units[unit])
                            writer.flush()
                            break
                        except StoreError as error:
                            lift()
                            say("caught", text=str(error))
                            if attempt or not go_on:
                                raise
        finally:
            committed = [unit for unit in appended if unit in writer.done_units] if appended else []
            lift()
            for stage in struck:
                say("struck", stage=stage)
            say("committed", units=committed)

    return work


def _after_error(tally: Tally, path: Path, content: Content, child: Child, where: str) -> Finding:
    """The writer ended well or with one clear line, and what was committed is there."""
    child.wait()
    for line in [each["text"] for each in child.said("caught")] or [child.error] * (child.status == REFUSED):
        clear = "\n" not in line and (str(path) in line) and ("space" in line or "intact" in line)
        tally.expect(clear, f"{where}: the error is not one line that says what to do: {line}")
    tally.fail_if(child.status not in (0, REFUSED), f"{where}: the writer ended with {child.status}: {child.error}")
    found = inspect(path, content, child.committed)
    tally.rows += found.rows
    tally.take(found, f"{where}, after the error")
    return found


def read_only_mount(bench: Bench, tally: Tally) -> None:
    """A disk that is mounted read-only: reading works, writing is refused."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        with small_disk(folder / "disk") as room:
            content = give(tally.trials)
            path = fill(room / "s.gstore", content.header, content.units, range(10), 20)
            _mount("-o", "remount,ro", str(room))
            child = run(_use_read_only(path, content), folder / "user.log")
            _mount("-o", "remount,rw", str(room))
            _after_use(tally, child, path, content, rng, folder, where)


def read_only_rights(bench: Bench, tally: Tally) -> None:
    """A folder that its user may only read."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, range(10), 20)
        for each in (folder, path, *path.rglob("*")):
            each.chmod(0o555 if each.is_dir() else 0o444)
        log = folder.with_name("user.log")
        log.touch()
        log.chmod(0o666)
        child = run(_use_read_only(path, content, as_nobody=os.geteuid() == 0), log)
        for each in (folder, path, *path.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
        if child.said("unreachable"):
            reason = child.said("unreachable")[0]["text"]
            raise Skip(f"root cannot become another user who reaches the folder ({reason}); try another --work")
        _after_use(tally, child, path, content, rng, folder, where)
        log.unlink()


def _use_read_only(path: Path, content: Content, as_nobody: bool = False) -> Callable[[Say], None]:
    def work(say: Say) -> None:
        if as_nobody:
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                (path / "store.json").read_bytes()
            except PermissionError as error:
                say("unreachable", text=str(error))
                return
        found = inspect(path, content, range(10))
        say("read", complaints=[*found.complaints, *map(str, verify_store(path).problems)])
        for name, use in {
            "resume": lambda: StoreWriter.resume(path, content.header),
            "create": lambda: StoreWriter.create(path.with_name("new.gstore"), content.header),
            "repair": lambda: repair_store(path),
        }.items():
            try:
                use()
                say("used", name=name, met=False, text="nothing was refused")
            except StoreError as error:
                say("used", name=name, met="\n" not in str(error), text=str(error))

    return work


def _after_use(
    tally: Tally, child: Child, path: Path, content: Content, rng: np.random.Generator, folder: Path, where: str
) -> None:
    tally.fail_if(child.status, f"{where}: {child.error}")
    for line in child.said("read"):
        tally.expect(not line["complaints"], f"{where}: reading: {line['complaints']}")
    for line in child.said("used"):
        tally.expect(line["met"], f"{where}: {line['name']} was not refused in one line: {line['text']}")
    found = inspect(path, content, range(10))
    tally.rows += found.rows
    tally.take(found, where)
    finish(tally, path, content, rng, folder, found, where)


def other_device(bench: Bench, tally: Tally) -> None:
    """The shards are on another file system than the store's folder: no file may be renamed from one to the other."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, [], 20)
        with small_disk(path / "shards"):
            jobs = [Job(path, content, number, 20, (None, 60) if number else None) for number in range(2)]
            for child in write_together(jobs, folder, "writer"):
                tally.fail_if(child.wait() and not child.killed, f"{where}: {child.error}")
            found = inspect(path, content)
            tally.rows += found.rows
            tally.take(found, where)
            finish(tally, path, content, rng, folder, found, where)
            shard = sorted((path / "shards").glob("*.h5"))[1]
            flip(shard, rng)
            try:
                tally.expect(len(repair_store(path).set_aside) == 2, f"{where}: repair did not set {shard.name} aside")
            except StoreError as error:
                tally.expect(False, f"{where}: repair refused: {error}")
                continue
            child = run(Job(path, content, 0), folder / "resumed.log")
            tally.fail_if(child.status, f"{where}: {child.error}")
            tally.take(inspect_complete(path, content, aside=True), f"{where}, after the repair")
