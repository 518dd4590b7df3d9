"""Writing a store: units are buffered in memory and committed as immutable shards.

A commit runs: permute the buffered rows by seed -> write `NNNNN.h5.partial` once -> fsync -> close -> rename -> fsync
the folder -> the same for the sidecar `NNNNN.json`. The sidecar's rename is the commit: whatever a kill leaves before
it is no part of the store and is removed by `StoreWriter.resume`. A committed file is never opened for writing again.

Several processes may write one store: each claims units before it computes them (`claims.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gradatoms_store.buffer import RowBuffer
from gradatoms_store.claims import Claims
from gradatoms_store.commit import commit_shard, committed_units, remove_leftovers, shard_numbers
from gradatoms_store.errors import StoreError, StoreExistsError, StoreMismatchError, StoreNotFoundError, StoreValueError
from gradatoms_store.files import fsync_path, write_text
from gradatoms_store.layout import row_bytes
from gradatoms_store.schema import STORE_FILE, ExampleRecord, GradientBlock, StoreHeader, read_header
from gradatoms_store.sidecar import SHARDS, read_sidecars

SHARD_BYTES = 2**27
MAX_ROWS_PER_SHARD = 2**20
"""Unless told otherwise, a shard holds as many rows as fit SHARD_BYTES, at most MAX_ROWS_PER_SHARD."""


@dataclass
class _Job:
    """A shard on its way to the disk; kept until it is known to be there, so that an interruption loses nothing."""

    buffer: RowBuffer
    future: Future[None] | None = None


class StoreWriter:
    """Appends work units to a store; made by `create` or `resume`, used as a context manager.

    A full buffer is written in the background while the next one fills. Leaving the context commits the complete units
    that are buffered, also on KeyboardInterrupt or an exception of the caller's own; after an exception raised by the
    writer itself nothing more is written. Memory holds two buffers in stored form and a segment (2 MiB) more.
    """

    def __init__(self, path: Path, header: StoreHeader, rows_per_shard: int, claims: Claims) -> None:
        """Internal: use `create` or `resume`."""
        self.path = path
        self.header = header
        self._rows_per_shard = rows_per_shard
        self._claims = claims
        self._thread = ThreadPoolExecutor(1, "gradatoms-store-writer")
        self._let_go = weakref.finalize(self, _let_go, claims, self._thread)
        self._process = os.getpid()
        self._cursor = 0
        self._done: frozenset[int] = frozenset()
        self._read_sidecars: set[str] = set()
        self._buffer = RowBuffer(header)
        self._spare = RowBuffer(header)
        self._job: _Job | None = None
        self._own_error: BaseException | None = None

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], header: StoreHeader, *, rows_per_shard: int | None = None
    ) -> StoreWriter:
        """Make a new store.

        Args:
            path: folder to make, `NAME.gstore`; its parent must exist.
            header: what all rows have in common.
            rows_per_shard: a shard is committed when this many rows are buffered, or 65,536 units, or 128 MiB of texts; a
                unit is never split, so a shard may be larger by less than one unit. None: as many as fit SHARD_BYTES, at
                most MAX_ROWS_PER_SHARD.

        Raises:
            StoreExistsError: the path exists.
            StoreNotFoundError: its parent does not.
            StoreError: the folder cannot be written.
        """
        folder, rows = Path(path), _rows_per_shard(rows_per_shard, header)
        if not folder.parent.is_dir():
            raise StoreNotFoundError(f"{folder}: expected the folder {folder.parent}, found none; make it first")
        try:
            folder.mkdir()
        except FileExistsError:
            message = f"{folder}: expected a path for a new store, found that it exists"
            raise StoreExistsError(f"{message}; resume it, or choose another path") from None
        except OSError as error:
            raise disk_error(folder, error) from error
        claims = Claims(folder)
        try:
            with claims.exclusive():
                claims.enter()
                claims.join()
                (folder / SHARDS).mkdir()
                write_text(folder / STORE_FILE, header.to_json())
                fsync_path(folder.parent)
        except OSError as error:
            claims.leave()
            raise disk_error(folder, error) from error
        return cls(folder, header, rows, claims)

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], header: StoreHeader, *, rows_per_shard: int | None = None
    ) -> StoreWriter:
        """Go on writing a store, alone or beside other writers; `done_units` tells what it holds.

        What writers that died left of uncommitted shards is removed. A store of an older format version is continued
        in that version.

        Args:
            path: the store's folder.
            header: must equal the header on disk.
            rows_per_shard: as for `create`; need not be the earlier value.

        Raises:
            StoreNotFoundError: there is no store.
            StoreMismatchError: the header differs; lists each differing field with both values.
            StoreFormatError: the store is damaged.
            StoreError: it cannot be written, or a writer of format version 1 has it for itself.
        """
        folder = Path(path)
        on_disk = read_header(folder)
        rows = _rows_per_shard(rows_per_shard, on_disk)
        differences = on_disk.differences(header)
        if differences:
            message = f"{folder}: expected the header of this store, got another: {'; '.join(differences)}"
            raise StoreMismatchError(
                f"{message} (here = on disk, there = given); resume with the store's settings or use a new path"
            )
        claims = Claims(folder)
        try:
            with claims.exclusive():
                claims.enter()
                sidecars = read_sidecars(folder, on_disk)
                remove_leftovers(folder, sidecars, {claim.shard for claim in claims.others()})
                claims.join()
        except StoreError:
            claims.leave()
            raise
        except OSError as error:
            claims.leave()
            raise disk_error(folder, error) from error
        writer = cls(folder, on_disk, rows, claims)
        writer._done = frozenset(unit for sidecar in sidecars.values() for unit in sidecar.units)
        return writer

    @property
    def done_units(self) -> frozenset[int]:
        """Units in committed shards, those of other writers as of the last claim; a buffered unit is not among them."""
        return self._done

    def claim(self, units: Collection[int] | None = None, *, limit: int | None = None) -> list[int]:
        """Take units for this writer: those that are neither committed nor claimed by another writer that lives.

        Args:
            units: the units wanted; None for all of the plan.
            limit: take at most so many, the lowest first after those taken before.

        Returns:
            The units taken, which no other writer will be given until this one closes.
        """
        self._usable()
        with self._disk_errors(), self._claims.exclusive():
            self._done |= committed_units(self.path, self.header, self._read_sidecars)
            mine = self._claims.own.units
            taken = mine.union(*(claim.units for claim in self._claims.others()))
            n = self.header.n_units
            if units is None:
                start = self._cursor
                wanted: Iterator[int] = (unit % n for unit in range(start, start + n))
            else:
                wanted = iter(units)
            free = (unit for unit in wanted if 0 <= unit < n and unit not in self._done and unit not in taken)
            found = [unit for unit, _ in zip(free, range(n if limit is None else limit), strict=False)]
            if found:
                self._claims.hold_units(mine | set(found))
                self._cursor = found[-1] + 1 if units is None else self._cursor
        return found

    def units(self) -> Iterator[int]:
        """The units left to do, each claimed just before it is given; ends when none is free.

        Units that another writer has claimed and not committed are left to it; if it dies, resume once more.
        """
        while found := self.claim(limit=1):
            yield from found

    def append(self, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        """Buffer one complete work unit; when `rows_per_shard` rows are buffered, they are committed in the background.

        Args:
            unit: number of the unit, 0 to n_units - 1, not done yet; claimed here if it was not before.
            block: its rows, which may be none; copied.
            examples: its examples, each with its own id; an example belongs to one unit.

        Raises:
            StoreValueError: NaN or Inf (names hook and example), wrong shapes, unknown hook, a unit that is done or that
                another writer has; nothing was buffered.
            StoreError: the previous shard could not be written; committed shards are intact, this unit is buffered.
        """
        with self._own():
            self._usable()
            if self._job is not None and self._buffer is self._job.buffer:  # an interrupt struck inside `_start`
                self._buffer = self._spare
            self._refuse_known(unit, examples)
            if unit not in self._claims.own.units and 0 <= unit < self.header.n_units and not self.claim([unit]):
                message = f"unit {unit} expected to be free, got one that another writer has claimed or committed"
                raise StoreValueError(f"{message}; take the units that `units` gives")
            self._buffer.add(unit, block, examples)
            if self._buffer.is_full(self._rows_per_shard):
                self._start()

    def flush(self, *, wait: bool = True) -> None:
        """Commit what is buffered.

        Args:
            wait: until it is on the disk; else it is only begun, after what was begun before is on the disk.

        Raises:
            StoreError: the shard could not be written; committed shards are intact, the rows stay buffered.
        """
        with self._own():
            self._usable()
            self._start()
            if wait:
                self._finish()

    def close(self) -> None:
        """Commit what is buffered and let the store go; closing twice is harmless.

        Raises:
            StoreError: as for `flush`; the writer stays open.
        """
        if self._let_go.alive:
            self.flush()
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            if error is not self._own_error and self._let_go.alive:
                self.flush()
        except StoreError as second:
            error.add_note(f"gradatoms_store: what was buffered is lost: {second}")
        finally:
            self._let_go()

    def _refuse_known(self, unit: int, examples: Sequence[ExampleRecord]) -> None:
        unwritten = [self._buffer, *([self._job.buffer] if self._job else [])]
        if unit in self._done or any(unit in buffer.units for buffer in unwritten):
            raise StoreValueError(f"unit {unit} expected to be new, it was appended before; skip the done_units")
        before = {example.id for buffer in unwritten for example in buffer.examples}
        twice = sorted({example.id for example in examples} & before)
        if twice:
            message = f"examples of unit {unit} expected ids of no other unit, got {twice[:10]} again"
            raise StoreValueError(f"{message}; lay out the plan so that an example belongs to one unit")

    def _start(self) -> None:
        """Hand the buffer to the background, after the shard before it is on the disk."""
        self._finish()
        if self._buffer.units:
            # An interrupt may strike between any two lines here and in `_finish`; the job is then found and finished.
            self._job = _Job(self._buffer)
            self._buffer = self._spare
            self._job.future = self._thread.submit(self._commit, self._job.buffer)

    def _finish(self) -> None:
        """Wait until the shard that is being written is on the disk; one that failed before is tried again."""
        job = self._job
        if job is None:
            return
        if self._buffer is job.buffer:
            self._buffer = self._spare
        if job.future is None:
            job.future = self._thread.submit(self._commit, job.buffer)  # does nothing if it was committed
        error = job.future.exception()
        if error is not None:
            job.future = None
            raise error
        self._spare = job.buffer
        self._job = None
        self._spare.clear()

    def _commit(self, buffer: RowBuffer) -> None:
        units = frozenset(buffer.units)
        with self._disk_errors():
            with self._claims.exclusive():
                self._done |= committed_units(self.path, self.header, self._read_sidecars)
                if units <= self._done:  # the second time, or an error came after the sidecar's rename
                    self._claims.hold_units(self._claims.own.units - units)
                    return
                taken = {claim.shard for claim in self._claims.others()}
                number = max([-1, *shard_numbers(self.path), *(shard for shard in taken if shard is not None)]) + 1
                self._claims.hold_shard(number)
            self._check_space(buffer, number)
            commit_shard(self.path, self.header, number, buffer, self._claims)
            with self._claims.exclusive():
                self._done |= units
                self._claims.hold_shard(None)
                self._claims.hold_units(self._claims.own.units - units)

    def _check_space(self, buffer: RowBuffer, number: int) -> None:
        needed = SPACE_FACTOR * (buffer.size_bytes + OVERHEAD_BYTES)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            message = f"{self.path}: expected {needed:.0f} bytes of free space for shard {number}, found {free}"
            raise StoreError(f"{message}; committed shards are intact: free space, then resume")

    def _usable(self) -> None:
        if not self._let_go.alive:
            raise StoreError(f"{self.path}: expected an open writer, got a closed one; resume the store")
        if os.getpid() != self._process:
            message = f"{self.path}: expected the process that opened this writer, got a fork of it"
            raise StoreError(f"{message}; resume the store in each process")

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        """Remember an error of the writer's own, after which nothing more is written."""
        try:
            yield
        except StoreError as error:
            self._own_error = error
            raise

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise disk_error(self.path, error) from error


def discard_empty(path: str | os.PathLike[str]) -> bool:
    """Remove a store that holds no shard and that nobody is writing; whether it was removed.

    Raises:
        StoreError: the folder cannot be removed.
    """
    folder = Path(path)
    claims = Claims(folder)
    try:
        with claims.exclusive():
            if claims.others() or any((folder / SHARDS).glob("*.json")):
                return False
            shutil.rmtree(folder)
            return True
    except OSError as error:
        raise disk_error(folder, error) from error


SPACE_FACTOR = 1.1
"""Free space asked for before a shard is written, in shards."""

OVERHEAD_BYTES = 65536


def disk_error(path: Path, error: OSError) -> StoreError:
    """An error of the operating system, in one line that says what to do."""
    reason = " ".join(str(error).split())
    message = f"{path}: expected to write it, got {type(error).__name__} ({reason:.200})"
    return StoreError(f"{message}; committed shards are intact: check space and rights, then resume")


def _rows_per_shard(given: int | None, header: StoreHeader) -> int:
    if given is not None and given < 1:
        raise StoreValueError(f"rows_per_shard expected 1 or more, got {given}; give the rows of a shard")
    return given or max(1, min(MAX_ROWS_PER_SHARD, SHARD_BYTES // row_bytes(header)))


def _let_go(claims: Claims, thread: ThreadPoolExecutor) -> None:
    thread.shutdown()
    claims.leave()
