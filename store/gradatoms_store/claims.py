"""Who writes what: several processes share the work units of one store.

The folder `writers/` holds `lock`, which a process holds for the moments in which it claims, commits or clears up, and
one file a writer, `<id>.json`, which the writer holds locked as long as it lives and which lists the units and the shard
number that are its own. The system drops a lock when its process ends, so a file that can be locked belongs to a dead
writer, and whoever finds it removes it. Nothing here is part of a store's content; readers never look.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gradatoms_store.errors import StoreError, StoreFormatError
from gradatoms_store.files import try_lock, try_share, unlock

WRITERS = "writers"
"""Folder of locks and claims inside a store."""

LOCK_FILE = "lock"
PATIENCE_SECONDS = 60.0
"""How long to wait for the lock that others hold for moments."""


@dataclass(frozen=True)
class Claim:
    """What a writer has for itself."""

    units: frozenset[int] = frozenset()
    """Work units that it has claimed and not committed."""
    shard: int | None = None
    """Number of the shard that it is writing."""


class Claims:
    """One process's hold on a store's `writers/` folder.

    A writer calls `enter` and `join` once, `hold_units` and `hold_shard` for what it takes or gives up, and `leave`;
    `exclusive` is for all.
    """

    def __init__(self, path: Path) -> None:
        """`path`: the store's folder."""
        self._folder = path / WRITERS
        self._store = path
        self._file = self._folder / f"{uuid.uuid4().hex[:16]}.json"
        self.own = Claim()
        """What is this writer's now."""
        self._descriptor: int | None = None
        self._folder_lock: int | None = None
        self._lock: int | None = None
        self._depth = 0
        self._threads = threading.RLock()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store's lock; no other process claims, commits or clears up meanwhile. May be nested.

        Raises:
            StoreError: others held it all the time that there is patience for.
        """
        with self._threads:
            if self._depth == 0:
                self._lock = self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._lock is not None:
                    unlock(self._lock)
                    self._lock = None

    def _acquire(self) -> int:
        if self._folder.is_symlink():
            raise StoreFormatError(f"{self._folder}: expected a folder, found a link; remove it, it holds no data")
        self._folder.mkdir(exist_ok=True)
        descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not try_lock(descriptor):
                if time.monotonic() > deadline:
                    message = f"{self._store}: expected its lock within {PATIENCE_SECONDS:.0f} s, others still hold it"
                    raise StoreError(f"{message}; look for a stopped process that uses this store")
                time.sleep(0.005)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def enter(self) -> None:
        """Keep writers of format version 1 out; within `exclusive`.

        Raises:
            StoreError: one is at work, which shares with nobody.
        """
        self._folder_lock = os.open(self._store, os.O_RDONLY)
        if not try_share(self._folder_lock):
            self.leave()
            message = f"{self._store}: expected no writer that wants the store for itself, found one at work"
            raise StoreError(f"{message}; wait for it or stop it")

    def join(self) -> None:
        """Become one of the store's writers; within `exclusive`, after `enter`."""
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        if not try_lock(self._descriptor):
            raise StoreError(f"{self._file}: expected a lock on a new file, got none; the file system has no locks")
        self._write(self.own)

    def hold_units(self, units: frozenset[int]) -> None:
        """These units, and no others, are this writer's from now on; within `exclusive`."""
        self._write(replace(self.own, units=units))

    def hold_shard(self, number: int | None) -> None:
        """This shard number is this writer's from now on, or none is; within `exclusive`."""
        self._write(replace(self.own, shard=number))

    def _write(self, claim: Claim) -> None:
        """Let others see a claim; when the disk has no room for it, they see the one before."""
        if self._descriptor is None:
            raise StoreError(f"{self._store}: expected an open writer, got a closed one; resume the store")
        try:
            self._overwrite(claim)
        except OSError:
            self._overwrite(self.own)
            raise
        self.own = claim

    def _overwrite(self, claim: Claim) -> None:
        assert self._descriptor is not None
        data = json.dumps({"units": sorted(claim.units), "shard": claim.shard}).encode()
        if os.pwrite(self._descriptor, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
        os.ftruncate(self._descriptor, len(data))

    def holds(self) -> bool:
        """Whether this writer's file is still the one that others see."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._file))
        except FileNotFoundError:
            return False

    def others(self) -> list[Claim]:
        """Claims of the other writers that live; the files of dead ones are removed. Within `exclusive`."""
        found: list[Claim] = []
        for file in sorted(self._folder.glob("*.json")):
            if file == self._file or file.is_symlink():
                continue
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:  # its writer has just left
                continue
            try:
                if try_lock(descriptor):
                    file.unlink(missing_ok=True)
                else:
                    found.append(_parsed(os.pread(descriptor, os.fstat(descriptor).st_size, 0), file))
            finally:
                os.close(descriptor)
        return found

    def leave(self) -> None:
        """Give up all claims and locks; harmless twice."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None


def _parsed(text: bytes, file: Path) -> Claim:
    """A living writer's claim, which is whole: it is only read and written under the store's lock."""
    try:
        data = json.loads(text)
        return Claim(frozenset(data["units"]), data["shard"])
    except (ValueError, TypeError, KeyError):
        message = f"{file}: expected the claim of a writer at work, found {text[:80]!r}"
        raise StoreError(f"{message}; stop the other writers, then resume") from None
