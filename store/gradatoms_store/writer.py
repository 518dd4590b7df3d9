"""Writing a store: units are buffered in memory and committed as immutable shards.

A commit runs: permute the buffered rows by seed -> write `NNNNN.h5.partial` once -> close -> fsync -> rename -> fsync
the folder -> the same for the sidecar `NNNNN.json`. The sidecar's rename is the commit: whatever a kill leaves before
it is no part of the store and is removed by `StoreWriter.resume`. A committed file is never opened for writing again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gradatoms_store.errors import StoreError, StoreExistsError, StoreMismatchError, StoreNotFoundError, StoreValueError
from gradatoms_store.files import PARTIAL, fsync_path, lock_folder, publish, write_text
from gradatoms_store.intake import unit_rows
from gradatoms_store.layout import UnitRows, expected_blocks, shard_arrays
from gradatoms_store.schema import STORE_FILE, ExampleRecord, GradientBlock, StoreHeader, read_header
from gradatoms_store.shard import write_shard
from gradatoms_store.sidecar import SHARDS, NormSummary, Sidecar, read_sidecars, remove_leftovers, shard_stem

SPACE_FACTOR = 1.1
"""Free space asked for before a shard is written, in shards."""

_OVERHEAD_BYTES = 65536
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pending:
    """A shard whose content is settled, kept until it is committed, so that an interrupted commit can be redone."""

    number: int
    units: tuple[UnitRows, ...]

    @property
    def n(self) -> int:
        return sum(unit.n for unit in self.units)


class StoreWriter:
    """Appends work units to a store; made by `create` or `resume`, used as a context manager.

    Leaving the context commits the complete units that are buffered, also on KeyboardInterrupt or an exception of the
    caller's own; after an exception raised by the writer itself nothing more is written. Memory holds the buffered
    rows in stored form plus one dataset more. One writer a store at a time: a second one is refused.
    """

    def __init__(self, path: Path, header: StoreHeader, rows_per_shard: int, lock: int) -> None:
        """Internal: use `create` or `resume`."""
        self.path = path
        self.header = header
        self._shards = path / SHARDS
        self._rows_per_shard = rows_per_shard
        self._unlock = weakref.finalize(self, os.close, lock)
        self._done: set[int] = set()
        self._next_number = 0
        self._buffer: list[UnitRows] = []
        self._buffered_examples: set[int] = set()
        self._pending: _Pending | None = None
        self._own_error: BaseException | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: StoreHeader, *, rows_per_shard: int = 65536) -> StoreWriter:
        """Make a new store.

        Args:
            path: folder to make, `NAME.gstore`; its parent must exist.
            header: what all rows have in common.
            rows_per_shard: a shard is committed when this many rows are buffered; a unit is never split, so a shard
                may be larger by less than one unit.

        Raises:
            StoreExistsError: the path exists.
            StoreNotFoundError: its parent does not.
            StoreError: the folder cannot be written.
        """
        folder = _checked(path, rows_per_shard)
        if not folder.parent.is_dir():
            raise StoreNotFoundError(f"{folder}: expected the folder {folder.parent}, found none; make it first")
        try:
            folder.mkdir()
        except FileExistsError:
            message = f"{folder}: expected a path for a new store, found that it exists"
            raise StoreExistsError(f"{message}; resume it, or choose another path") from None
        except OSError as error:
            raise _disk_error(folder, error) from error
        writer = cls(folder, header, rows_per_shard, lock_folder(folder))
        try:
            (folder / SHARDS).mkdir()
            write_text(folder / STORE_FILE, header.to_json())
            fsync_path(folder.parent)
        except OSError as error:
            writer._unlock()
            raise _disk_error(folder, error) from error
        return writer

    @classmethod
    def resume(cls, path: str | os.PathLike[str], header: StoreHeader, *, rows_per_shard: int = 65536) -> StoreWriter:
        """Go on writing a store; `done_units` tells what it holds. Leftovers of uncommitted shards are removed.

        Args:
            path: the store's folder.
            header: must equal the header on disk.
            rows_per_shard: as for `create`; need not be the earlier value.

        Raises:
            StoreNotFoundError: there is no store.
            StoreMismatchError: the header differs; lists each differing field with both values.
            StoreFormatError: the store is damaged.
            StoreError: another writer is at work.
        """
        folder = _checked(path, rows_per_shard)
        on_disk = read_header(folder)
        differences = on_disk.differences(header)
        if differences:
            message = f"{folder}: expected the header of this store, got another: {'; '.join(differences)}"
            raise StoreMismatchError(
                f"{message} (here = on disk, there = given); resume with the store's settings or use a new path"
            )
        writer = cls(folder, on_disk, rows_per_shard, lock_folder(folder))
        try:
            sidecars = read_sidecars(folder, on_disk)
            remove_leftovers(folder, sidecars)
        except StoreError:
            writer._unlock()
            raise
        except OSError as error:
            writer._unlock()
            raise _disk_error(folder, error) from error
        writer._done = {unit for sidecar in sidecars.values() for unit in sidecar.units}
        writer._next_number = max(sidecars, default=-1) + 1
        return writer

    @property
    def done_units(self) -> frozenset[int]:
        """Units in committed shards; a buffered unit is not yet among them."""
        return frozenset(self._done)

    def append(self, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        """Buffer one complete work unit; commits a shard when `rows_per_shard` rows are buffered.

        Args:
            unit: number of the unit, 0 to n_units - 1, not done yet.
            block: its rows, which may be none; copied.
            examples: its examples, each with its own id; an example belongs to one unit.

        Raises:
            StoreValueError: NaN or Inf (names hook and example), wrong shapes, unknown hook; nothing was buffered.
            StoreError: the shard could not be written; committed shards are intact.
        """
        try:
            self._append(unit, block, examples)
        except StoreError as error:
            self._own_error = error
            raise

    def flush(self) -> None:
        """Commit what is buffered.

        Raises:
            StoreError: the shard could not be written; committed shards are intact, the rows stay buffered.
        """
        try:
            self._flush()
        except StoreError as error:
            self._own_error = error
            raise

    def close(self) -> None:
        """Commit what is buffered and let the store go; closing twice is harmless.

        Raises:
            StoreError: as for `flush`; the writer stays open.
        """
        if self._unlock.alive:
            self.flush()
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            if error is not self._own_error and self._unlock.alive:
                self.flush()
        except StoreError as second:
            error.add_note(f"gradatoms_store: what was buffered is lost: {second}")
        finally:
            self._unlock()

    def _append(self, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        if not self._unlock.alive:
            raise StoreError(f"{self.path}: expected an open writer, got a closed one; resume the store")
        buffered = [*(self._pending.units if self._pending else ()), *self._buffer]
        if unit in self._done or any(entry.unit == unit for entry in buffered):
            raise StoreValueError(f"unit {unit} expected to be new, it was appended before; skip the done_units")
        entry = unit_rows(unit, block, examples, self.header)
        ids = {example.id for example in entry.examples}
        twice = sorted(ids & self._buffered_examples)
        if twice:
            message = f"examples of unit {unit} expected ids of no other unit, got {twice[:10]} again"
            raise StoreValueError(f"{message}; lay out the plan so that an example belongs to one unit")
        self._buffer.append(entry)
        self._buffered_examples |= ids
        if sum(buffered.n for buffered in self._buffer) >= self._rows_per_shard:
            self._flush()

    def _flush(self) -> None:
        if self._pending is not None:  # an earlier commit was interrupted: finish exactly that shard first
            self._commit(self._pending)
        if self._buffer:
            # An interrupt between these two lines leaves the units in both; the commit drops them from the buffer.
            self._pending = _Pending(self._next_number, tuple(self._buffer))
            self._commit(self._pending)

    def _commit(self, pending: _Pending) -> None:
        stem = shard_stem(pending.number)
        shard, sidecar = self._shards / f"{stem}.h5", self._shards / f"{stem}.json"
        try:
            if sidecar.exists():  # an interrupt came between its rename and the lines below: it is committed
                fsync_path(self._shards)
            else:
                self._write(pending, shard, sidecar)
        except (OSError, RuntimeError) as error:
            if isinstance(error, StoreError):
                raise
            with contextlib.suppress(OSError):
                shard.with_name(shard.name + PARTIAL).unlink(missing_ok=True)
            raise _disk_error(shard, error) from error
        units = {entry.unit for entry in pending.units}
        self._done |= units
        self._buffer = [entry for entry in self._buffer if entry.unit not in units]
        self._next_number = pending.number + 1
        self._buffered_examples = {example.id for entry in self._buffer for example in entry.examples}
        self._pending = None

    def _write(self, pending: _Pending, shard: Path, sidecar: Path) -> None:
        self._check_space(pending, shard)
        header, n = self.header, pending.n
        examples = [example for entry in pending.units for example in entry.examples]
        permutation = np.random.default_rng([header.seed, pending.number]).permutation(n)
        partial = shard.with_name(shard.name + PARTIAL)
        arrays = shard_arrays(pending.units, header, permutation)
        hashes = write_shard(partial, arrays, expected_blocks(header, n, len(examples)))
        size_bytes = partial.stat().st_size
        publish(partial, shard)
        concept = {example.id: example.concept for example in examples}
        named = (concept[id_] for entry in pending.units for id_ in entry.rows["example"].tolist())
        content = Sidecar(
            file=shard.name,
            fingerprint=header.fingerprint,
            rows=n,
            examples=len(examples),
            bytes=size_bytes,
            units=tuple(sorted(entry.unit for entry in pending.units)),
            blocks=hashes,
            norms={
                hook.name: NormSummary.of(np.concatenate([entry.norms[hook.name] for entry in pending.units]))
                for hook in header.hooks
            },
            concepts=dict(sorted(Counter(name for name in named if name is not None).items())),
        )
        write_text(sidecar, content.to_json())
        _log.debug("committed %s: %d rows, %d bytes", shard, n, size_bytes)

    def _check_space(self, pending: _Pending, shard: Path) -> None:
        size = sum(entry.size_bytes for entry in pending.units)
        needed, free = int(SPACE_FACTOR * (size + _OVERHEAD_BYTES)), shutil.disk_usage(self._shards).free
        if free < needed:
            message = f"{shard}: expected {needed} bytes of free space, found {free}"
            raise StoreError(f"{message}; committed shards are intact: free space, then resume")


def _checked(path: str | os.PathLike[str], rows_per_shard: int) -> Path:
    if rows_per_shard < 1:
        raise StoreValueError(f"rows_per_shard expected 1 or more, got {rows_per_shard}; give the rows of a shard")
    return Path(path)


def _disk_error(path: Path, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())
    message = f"{path}: expected to write it, got {type(error).__name__} ({reason:.200})"
    return StoreError(f"{message}; committed shards are intact: check space and rights, then resume")
