"""What writers do while they are at work, seen from outside: their locks, and the moments at which files appear."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradatoms_store.testing.suite import demand

if sys.platform != "win32":
    import fcntl

PATIENCE_SECONDS = 5.0


@contextlib.contextmanager
def flocked(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Try to take the `flock` of a file or folder, which is held meanwhile; gives whether it could be taken."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        taken = True
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                taken = False
        yield taken
    finally:
        os.close(descriptor)


def is_free(path: Path, *, shared: bool = False) -> bool:
    """Whether a lock can be taken, now or in a moment: locks that are held for moments are waited for."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with flocked(path, shared=shared) as taken:
            if taken:
                return True
        time.sleep(0.01)
    return False


def claims(path: Path) -> dict[str, dict[str, Any]]:
    """The claims of writers that live, by file name; checks their form.

    Raises:
        RuleBrokenError: a claim is not as the format demands.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((path / "writers").glob("*.json")):
        with flocked(file) as taken:
            if taken:
                continue
            claim = json.loads(file.read_text("utf-8"))
        demand(set(claim) == {"units", "shard"}, f"{file}: keys units and shard")
        demand(all(type(unit) is int for unit in claim["units"]), f"{file}: units are integers")
        demand(claim["shard"] is None or type(claim["shard"]) is int, f"{file}: shard is a number or null")
        found[file.name] = claim
    return found


class Watch:
    """Looks again and again at a store that is being written, and keeps each file as it was when it was first seen."""

    def __init__(self, path: Path) -> None:
        """`path`: the store's folder, which need not be there yet."""
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: dict[str, bytes] = {}
        """Path inside the store to the content of the file when it had its name first."""
        self.early: list[str] = []
        """Sidecars that were there before their shards."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        last = False
        while not last:
            last = self._end.is_set()
            for file in [self._path / "store.json", *(self._path / "shards").glob("*")]:
                name = str(file.relative_to(self._path))
                if name in self.seen or file.suffix not in (".h5", ".json"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    self.seen[name] = file.read_bytes()
                    if file.parent.name == "shards" and not file.with_suffix(".h5").exists():
                        self.early.append(name)
            time.sleep(0.0002)
