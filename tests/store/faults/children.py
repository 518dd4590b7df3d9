"""Processes that write a store: forked from this one, which has all libraries loaded, so that many are cheap."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from content import Content
from stages import Stages

from gradatoms_store import StoreError, StoreWriter

PATIENCE_SECONDS = 120.0
REFUSED, BROKEN = 3, 4
"""Exit status of a child that ended with a StoreError, and with any other error."""

Say = Callable[..., None]
_alive: set[int] = set()


@dataclass
class Child:
    """A forked process and its log."""

    pid: int
    log: Path
    status: int | None = None
    """0, REFUSED, BROKEN, or the signal that ended it, negative."""

    def wait(self) -> int:
        """Wait until it ends; one that hangs is killed and counts as BROKEN."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                _alive.discard(pid)
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                _alive.discard(self.pid)
                with open(self.log, "a") as log:
                    log.write(json.dumps({"what": "error", "text": f"hung for {PATIENCE_SECONDS:.0f} s"}) + "\n")
                self.status = BROKEN
            else:
                time.sleep(0.001)
        return self.status

    @property
    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                _alive.discard(pid)
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.wait() == -signal.SIGKILL

    def said(self, what: str) -> list[dict[str, Any]]:
        """What it said under one name, in order."""
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["what"] == what]

    @property
    def committed(self) -> set[int]:
        """Units that it knew to be committed."""
        return {unit for line in self.said("committed") for unit in line["units"]}

    @property
    def stages(self) -> list[str]:
        """The stages that it went through, when it was to count them."""
        if self.wait() != 0:
            raise RuntimeError(f"a run to count stages ended with {self.status}: {self.error}")
        order: list[str] = self.said("stages")[0]["order"]
        return order

    @property
    def struck(self) -> list[str]:
        """The stage at which its fault struck, if it did."""
        return [line["stage"] for line in self.said("struck")]

    @property
    def error(self) -> str:
        """The error that ended it, in words."""
        return " ".join(line["text"] for line in self.said("error"))


class Gate:
    """Holds children back until all are there."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def pass_through(self) -> None:
        """In a child: wait for `open`."""
        os.close(self._write)
        os.read(self._read, 1)

    def open(self) -> None:
        """In the parent."""
        os.close(self._write)
        os.close(self._read)


def fork(work: Callable[[Say], object], log: Path, gate: Gate | None = None) -> Child:
    """Run `work` in a process of its own; it is given a function that writes to the log at once."""
    assert threading.active_count() == 1, "a fork beside threads may hang"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _live(work, log, gate)
    _alive.add(pid)
    return Child(pid, log)


def _live(work: Callable[[Say], object], log: Path, gate: Gate | None) -> NoReturn:
    status = BROKEN
    try:
        _alive.clear()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

        def say(what: str, **values: Any) -> None:
            os.write(descriptor, (json.dumps({"what": what, **values}) + "\n").encode())

        if gate is not None:
            gate.pass_through()
        try:
            work(say)
            status = 0
        except StoreError as error:
            say("error", text=str(error), kind=type(error).__name__)
            status = REFUSED
        except BaseException:
            say("error", text=traceback.format_exc()[-1500:], kind="other")
    finally:
        os._exit(status)


def run(work: Callable[[Say], object], log: Path) -> Child:
    """`fork`, and wait for its end."""
    child = fork(work, log)
    child.wait()
    return child


def end_all() -> None:
    """Kill the children that still run, because the harness itself is stopped."""
    for pid in list(_alive):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _alive.discard(pid)


def die(say: Say) -> Callable[[str], None]:
    """Action at a stage: say which, then SIGKILL."""

    def act(stage: str) -> None:
        say("struck", stage=stage)
        os.kill(os.getpid(), signal.SIGKILL)

    return act


@dataclass(frozen=True)
class Job:
    """What a writing child does: resume the store, and take units until there are none."""

    path: Path
    content: Content
    seed: int
    rows_per_shard: int = 20
    kill_at: tuple[str | None, int] | None = None
    """Stage (None: any) and occurrence at which it kills itself."""
    count: bool = False
    """Say which stages were reached."""
    create: bool = False
    """Make the store instead of resuming it."""
    only_resume: bool = False

    def __call__(self, say: Say) -> None:
        """Do it."""
        name, occurrence = self.kill_at or (None, 0)
        stages = Stages(self.path, name, occurrence, die(say), fatal=True)
        if self.kill_at or self.count:
            stages.install()
        make = StoreWriter.create if self.create else StoreWriter.resume
        with make(self.path, self.content.header, rows_per_shard=self.rows_per_shard) as writer:
            say("resumed")
            if not self.only_resume:
                self._write(writer, say)
        if self.count:
            say("stages", order=stages.order)

    def _write(self, writer: StoreWriter, say: Say) -> None:
        rng, appended = np.random.default_rng(self.seed), []
        for unit in writer.units():
            writer.append(unit, *self.content.units[unit])
            appended.append(unit)
            if rng.random() < 0.3:
                writer.flush()
                say("committed", units=appended)
        writer.close()
        say("committed", units=appended)


def write_together(jobs: list[Job], folder: Path, name: str) -> list[Child]:
    """Run several writers on one store, begun at one moment; `folder` takes their logs."""
    gate = Gate()
    children = [fork(job, folder / f"{name}-{number}.log", gate) for number, job in enumerate(jobs)]
    gate.open()
    return children
