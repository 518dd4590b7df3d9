"""Reading a store: info from sidecars, streams of unit gradients, random access, rows by what they are."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import ArrayLike, NDArray

from gradatoms_store.encoding import DISK_DTYPE, directions_to_float32
from gradatoms_store.errors import StoreFormatError, StoreMismatchError, StoreValueError
from gradatoms_store.guard import inspect_view
from gradatoms_store.info import StoreInfo, summarise
from gradatoms_store.order import chunks, weighted_rows
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBatch, StoreHeader, read_header
from gradatoms_store.select import Filter, Range, matching_rows, shard_examples
from gradatoms_store.shard import Shard
from gradatoms_store.sidecar import SHARDS, read_sidecars
from gradatoms_store.stream import Checked, ChunkLoader, Cut, batches, extents, read_ahead

BUFFER_BYTES = 2**25
"""Rows that a stream holds in their dtype on disk, unless told otherwise."""

SEQUENTIAL_BYTES = 2**23
"""The same for a stream in order, which gains nothing from holding more than the processor's cache does."""

_CHUNKS_HELD = 2
_ANY = object()


def open_store(path: str | os.PathLike[str], *more: str | os.PathLike[str], lazy: bool = False) -> Store:
    """Open a gradient store, or several as one, for reading; what is committed later is not seen until then.

    Several stores are laid end to end when they hold rows of one kind: the same model, hooks, objective, positions, dtype
    and space. Stores of different plans (other examples) keep their examples apart: the ids of each store follow those of
    the one before. Stores of one plan (parts of one harvest) share their ids, and no unit may be in two of them.

    Args:
        path: the store's folder, `NAME.gstore`.
        more: further stores.
        lazy: look into a shard file when it is first read, not now; for stores of many thousand shards. Nothing is ever
            read from a shard that was not looked into.

    Raises:
        StoreNotFoundError: no store there.
        StoreFormatError: a file is damaged, foreign, not to be trusted, or of a future version; names it.
        StoreMismatchError: the stores are not of one kind (names each differing field), or share a unit.
    """
    store = open_unviewed([path, *more])
    if not lazy:
        for shard in store.shards:
            _ = shard.places
    for folder in store.paths:
        inspect_view(folder)
    return store


def open_unviewed(paths: Sequence[str | os.PathLike[str]]) -> Store:
    """`open_store`, without a look at the shards and at `view.h5`."""
    folders = [Path(each) for each in paths]
    headers = [read_header(folder) for folder in folders]
    shards: list[Shard] = []
    units: dict[tuple[str, int], Path] = {}
    start, offset = 0, 0
    offsets: dict[str, int] = {}
    for folder, header in zip(folders, headers, strict=True):
        _same_kind(folders[0], headers[0], folder, header)
        if header.plan not in offsets:
            offsets[header.plan], offset = offset, offset + header.n_examples
        for sidecar in read_sidecars(folder, header).values():
            for unit in sidecar.units:
                other = units.setdefault((header.plan, unit), folder)
                if other != folder:
                    message = f"{folder}: expected no unit of {other}, which is of the same plan, got unit {unit}"
                    raise StoreMismatchError(f"{message}; leave one of the two out")
            file = folder / SHARDS / sidecar.file
            shards.append(Shard(file, sidecar, header, start, offsets[header.plan] + sidecar.example_offset))
            start += sidecar.rows
    return Store(folders, headers, shards)


def store_info(path: str | os.PathLike[str]) -> StoreInfo:
    """What a store holds, from `store.json` and the sidecars alone; opens no shard.

    Raises:
        StoreNotFoundError, StoreFormatError: as for `open_store`.
    """
    header = read_header(Path(path))
    return summarise([header], list(read_sidecars(Path(path), header).values()))


class Store:
    """An open store; made by `open_store`. Rows are numbered globally from 0 in shard order."""

    def __init__(self, paths: Sequence[Path], headers: Sequence[StoreHeader], shards: list[Shard]) -> None:
        """Internal: use `open_store`."""
        self.paths = tuple(paths)
        self.path = paths[0]
        self.headers = tuple(headers)
        self.header = headers[0]
        self.hooks: tuple[str, ...] = tuple(hook.name for hook in self.header.hooks)
        self.shards = tuple(shards)
        """The committed shards; internal to this package."""
        self._starts = np.cumsum([0, *(shard.sidecar.rows for shard in shards)]).astype(int64)
        self._checked: set[Checked] = set()

    def __repr__(self) -> str:
        return f"Store({', '.join(repr(str(p)) for p in self.paths)}, rows={self.n_rows}, hooks={list(self.hooks)})"

    @property
    def n_rows(self) -> int:
        """Number of committed rows."""
        return int(self._starts[-1])

    @property
    def units(self) -> frozenset[int]:
        """Work units in committed shards, of all stores that are open."""
        return frozenset(unit for shard in self.shards for unit in shard.sidecar.units)

    @property
    def fingerprint(self) -> str:
        """Hex digest of model, hooks, objective, positions, dtype, space and plan; of several stores, of the first."""
        return self.header.fingerprint

    @property
    def info(self) -> StoreInfo:
        """What the store holds; reads no shard."""
        return summarise(self.headers, [shard.sidecar for shard in self.shards])

    @cached_property
    def rows(self) -> dict[str, NDArray[Any]]:
        """All row fields (example, position, token, target, loss), each of shape (n_rows,), hash checked.

        24 bytes a row; for stores of many million rows, ask `select` or stream them with `batches`.

        Raises:
            StoreFormatError: a shard's bytes are not those that were committed; names shard and dataset.
        """
        parts: dict[str, list[NDArray[Any]]] = {field: [np.empty(0, dtype)] for field, dtype in ROW_FIELDS.items()}
        for shard in self.shards:
            with shard.open() as file:
                for field, found in parts.items():
                    found.append(shard.load(f"rows/{field}", file))
            parts["example"][-1] += shard.example_offset
        return {field: np.concatenate(found) for field, found in parts.items()}

    @cached_property
    def examples(self) -> list[ExampleRecord]:
        """All examples, ascending by id, hash checked.

        Raises:
            StoreFormatError: damaged bytes, or two examples of one id; names the shard.
        """
        found: dict[int, ExampleRecord] = {}
        for example in self.iter_examples():
            if found.setdefault(example.id, example) is not example:
                message = f"{self.path}: examples/id expected one example for id {example.id}, found two"
                raise StoreFormatError(f"{message}; the shards are not of one harvest: harvest again")
        return [found[id_] for id_ in sorted(found)]

    def iter_examples(self) -> Iterator[ExampleRecord]:
        """The examples in shard order, hash checked; holds those of one shard at a time.

        Raises:
            StoreFormatError: damaged bytes; names the shard.
        """
        for shard in self.shards:
            yield from shard_examples(shard)

    def select(
        self,
        *,
        concept: str | Collection[str | None] | Any | None = _ANY,
        loss: Range | None = None,
        position: Range | int | None = None,
        norm: Range | None = None,
        hook: str | None = None,
    ) -> NDArray[int64]:
        """Numbers of the rows that meet every condition, ascending, for `batches` and `read`. Reads no gradient.

        Args:
            concept: a concept or several; None stands for rows whose example has none.
            loss: lowest and highest J in nats, both included; None leaves a side open. A NaN lies in no range.
            position: token position, or a range of them.
            norm: range of the gradient's norm at `hook`, in nats per unit of the hook.
            hook: whose norm; may be left out when there is one hook.

        Raises:
            StoreValueError: an unknown hook, or a range that is none.
            StoreFormatError: damaged bytes; names the shard.
        """
        if hook is not None:
            self.header.hook(hook)
        return matching_rows(self.shards, Filter.of(self.hooks, concept, concept is _ANY, loss, position, norm, hook))

    def batches(
        self,
        hook: str,
        size: int,
        *,
        shuffle: int | None = None,
        epochs: int = 1,
        rows: NDArray[Any] | None = None,
        weights: ArrayLike | None = None,
        fields: Collection[str] = tuple(ROW_FIELDS),
        worker: tuple[int, int] = (0, 1),
        buffer_bytes: int = BUFFER_BYTES,
    ) -> Iterator[GradientBatch]:
        """Stream unit gradients with their norms and row fields, in bounded memory, read ahead in the background.

        Segments are checked against their hashes the first time they are read (not in stores of format version 1, nor
        where `rows` are not ascending and not shuffled).

        Args:
            hook: one of `hooks`.
            size: rows of a batch; the last batch of an epoch may be smaller.
            shuffle: seed of the order; None gives rows 0, 1, 2, ..., or `rows` in the order given. The same seed and
                `buffer_bytes` give the same order, whatever the batch size and the number of workers; each epoch has
                its own order.
            epochs: passes over the rows.
            rows: global row numbers, shape (m,), or a mask, bool of shape (n_rows,); None for all.
            weights: relative frequencies, >= 0, shape (n_rows,), with `shuffle` only: an epoch then has as many rows as
                without, row i in proportion to its weight (at least floor and at most ceil of its expected number).
            fields: row fields that a batch carries.
            worker: (i, n) gives batches i, i + n, i + 2n, ... of the stream that (0, 1) gives, so that n processes
                together read each batch once; a torch DataLoader with n workers puts them in order again.
            buffer_bytes: bound on the rows that are held, in their dtype on disk, at the cost of less mixing when small.
                Beside them there are the batch itself, and one segment (2 MiB).

        Raises:
            StoreValueError: unknown hook (names the valid ones), rows that are not there, wrong numbers.
            StoreFormatError: while reading, bytes that are not those that were committed; names the shard and the rows.
        """
        d = self.header.hook(hook).d
        _check_stream(size, epochs, shuffle, fields, worker, buffer_bytes)
        selected = None if rows is None else self._row_numbers(rows)
        chosen = None if weights is None else self._weights(weights, shuffle, selected)
        wanted = [field for field in ROW_FIELDS if field in fields]
        if selected is not None and shuffle is None and (np.diff(selected) < 0).any():
            return self._in_given_order(hook, size, epochs, selected, wanted, worker)
        if selected is not None:
            selected = np.sort(selected)
        total = self.n_rows if selected is None else len(selected)
        row_bytes = d * np.dtype(DISK_DTYPE[self.header.dtype]).itemsize + 12
        row_bytes += sum(np.dtype(ROW_FIELDS[field]).itemsize for field in wanted)
        held_bytes = buffer_bytes if shuffle is not None else min(buffer_bytes, SEQUENTIAL_BYTES)
        chunk_rows = max(1, held_bytes // _CHUNKS_HELD // row_bytes)

        def stream() -> Iterator[GradientBatch]:
            loader = ChunkLoader(self.shards, hook, wanted, self._checked)
            try:
                for epoch in range(epochs):
                    rng = None if shuffle is None else np.random.default_rng([shuffle, epoch])
                    numbers = selected if chosen is None or rng is None else weighted_rows(selected, chosen, rng)
                    cut = Cut(total, size, epoch * -(-total // size), *worker)
                    planned = chunks(extents(self.shards), numbers, rng, chunk_rows)
                    yield from batches(read_ahead(loader, planned, cut), self.header.dtype, cut)
            finally:
                loader.close()

        return stream()

    def read(self, hook: str, rows: NDArray[Any], *, fields: Collection[str] = tuple(ROW_FIELDS)) -> GradientBatch:
        """Rows in the order given, repeats included. Gradients are not checked against their hashes: `verify` is.

        Args:
            hook: one of `hooks`.
            rows: global row numbers, shape (m,), or a mask, bool of shape (n_rows,).
            fields: row fields that the batch carries.

        Raises:
            StoreValueError: unknown hook (names the valid ones), or rows that are not there.
        """
        self.header.hook(hook)
        return self._gather(hook, self._row_numbers(rows), [field for field in ROW_FIELDS if field in fields])

    def _row_numbers(self, rows: NDArray[Any]) -> NDArray[int64]:
        array = np.asarray(rows)
        if array.ndim == 1 and array.dtype == bool and len(array) == self.n_rows:
            return np.flatnonzero(array)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
            message = f"rows expected row numbers of shape (m,) or a mask of shape ({self.n_rows},)"
            raise StoreValueError(f"{message}, got {array.dtype} of {array.shape}; convert them")
        if len(array) and (array.min() < 0 or array.max() >= self.n_rows):
            message = f"rows expected numbers from 0 to {self.n_rows - 1}, got {array.min()} to {array.max()}"
            raise StoreValueError(f"{message}; take them from this store's rows")
        return array.astype(int64)

    def _weights(self, weights: ArrayLike, shuffle: int | None, selected: NDArray[int64] | None) -> NDArray[np.float64]:
        array = np.asarray(weights, np.float64)
        if shuffle is None:
            raise StoreValueError("weights expected a shuffle seed beside them, got none; give shuffle=0")
        if array.shape != (self.n_rows,) or not (np.isfinite(array).all() and (array >= 0).all()):
            message = f"weights expected finite numbers of 0 or more, shape ({self.n_rows},)"
            raise StoreValueError(f"{message}, got others or shape {array.shape}; give one for each row")
        chosen = array if selected is None else array[selected]
        if len(chosen) and not chosen.any():
            raise StoreValueError("weights expected one above 0 among the rows, got none; select other rows")
        return array

    def _in_given_order(
        self, hook: str, size: int, epochs: int, selected: NDArray[int64], fields: list[str], worker: tuple[int, int]
    ) -> Iterator[GradientBatch]:
        number = 0
        for _ in range(epochs):
            for low in range(0, len(selected), size):
                if number % worker[1] == worker[0]:
                    yield self._gather(hook, selected[low : low + size], fields)
                number += 1

    def _gather(self, hook: str, index: NDArray[int64], fields: list[str]) -> GradientBatch:
        """Rows in the order of `index`, through memory maps; each shard is touched once."""
        n = len(index)
        gradients, norms = np.empty((n, self.header.hook(hook).d), np.float32), np.empty(n, np.float32)
        found: dict[str, NDArray[Any]] = {field: np.empty(n, ROW_FIELDS[field]) for field in fields}
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            shard, to = self.shards[number], order[bounds[number] : bounds[number + 1]]
            source = index[to] - shard.start
            mapped = shard.map()
            gradients[to] = directions_to_float32(
                shard.view(mapped, f"gradients/{hook}"), self.header.dtype, rows=source
            )
            norms[to] = shard.view(mapped, f"norms/{hook}")[source]
            for field, values in found.items():
                values[to] = shard.view(mapped, f"rows/{field}")[source]
            if "example" in found:
                found["example"][to] += shard.example_offset
        return GradientBatch(gradients, norms, found, index)


def _same_kind(first: Path, one: StoreHeader, second: Path, other: StoreHeader) -> None:
    differences = one.differences(other, plan=False)
    if differences:
        message = f"{second}: expected rows of the same kind as in {first}, got {'; '.join(differences)}"
        raise StoreMismatchError(f"{message} (here = {first}, there = {second}); open them apart")


def _check_stream(
    size: int, epochs: int, shuffle: int | None, fields: Collection[str], worker: tuple[int, int], buffer_bytes: int
) -> None:
    if size < 1 or epochs < 0 or buffer_bytes < 1:
        message = "size and buffer_bytes expected 1 or more and epochs 0 or more"
        raise StoreValueError(f"{message}, got {size}, {buffer_bytes} and {epochs}; correct them")
    if shuffle is not None and (isinstance(shuffle, bool) or shuffle < 0):
        raise StoreValueError(f"shuffle expected a seed of 0 or more, or None, got {shuffle!r}; give a number")
    unknown = sorted(set(fields) - set(ROW_FIELDS))
    if unknown:
        raise StoreValueError(f"fields expected some of {', '.join(ROW_FIELDS)}, got {unknown}; correct them")
    if len(worker) != 2 or not 0 <= worker[0] < worker[1]:
        raise StoreValueError(f"worker expected (i, n) with i from 0 to n - 1, got {worker}; correct it")
