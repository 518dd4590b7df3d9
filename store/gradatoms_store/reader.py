"""Reading a store: info from sidecars, streams of unit gradients from memory maps, random access."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from gradatoms_store.encoding import directions_to_float32, unpack_texts
from gradatoms_store.errors import StoreFormatError, StoreValueError
from gradatoms_store.layout import OPTIONAL_FIELDS, TEXT_FIELDS
from gradatoms_store.order import chunk_rows, shuffled_chunks
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBatch, StoreHeader, read_header
from gradatoms_store.shard import Shard
from gradatoms_store.sidecar import SHARDS, read_sidecars


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store holds, from its sidecars alone."""

    rows: int
    bytes: int
    """Size of all shard files."""
    hooks: tuple[str, ...]
    d: int | None
    """Width of a gradient, when all hooks share one; else None, and `header.hooks` has each."""
    examples: int
    complete: bool
    """Whether every work unit of the plan is committed."""
    header: StoreHeader


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a gradient store for reading; what is committed later is not seen until it is opened again.

    Args:
        path: the store's folder, `NAME.gstore`.

    Raises:
        StoreNotFoundError: no store there.
        StoreFormatError: a file is damaged, foreign, not to be trusted, or of a future version; names it.
    """
    folder = Path(path)
    header = read_header(folder)
    shards: list[Shard] = []
    start = 0
    for sidecar in read_sidecars(folder, header).values():
        shards.append(Shard.open(folder / SHARDS / sidecar.file, sidecar, header, start))
        start += sidecar.rows
    return Store(folder, header, shards)


class Store:
    """An open store; made by `open_store`. Rows are numbered globally from 0 in shard order."""

    def __init__(self, path: Path, header: StoreHeader, shards: list[Shard]) -> None:
        """Internal: use `open_store`."""
        self.path = path
        self.header = header
        self.hooks: tuple[str, ...] = tuple(hook.name for hook in header.hooks)
        self._shards = shards
        self._starts = np.cumsum([0, *(shard.sidecar.rows for shard in shards)]).astype(int64)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, rows={self.n_rows}, hooks={list(self.hooks)})"

    @property
    def n_rows(self) -> int:
        """Number of committed rows."""
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """Hex digest of model, hooks, objective, positions, dtype, space and plan."""
        return self.header.fingerprint

    @property
    def info(self) -> StoreInfo:
        """What the store holds; reads no shard."""
        widths = {hook.d for hook in self.header.hooks}
        sidecars = [shard.sidecar for shard in self._shards]
        return StoreInfo(
            rows=self.n_rows,
            bytes=sum(sidecar.bytes for sidecar in sidecars),
            hooks=self.hooks,
            d=widths.pop() if len(widths) == 1 else None,
            examples=sum(sidecar.examples for sidecar in sidecars),
            complete=sum(len(sidecar.units) for sidecar in sidecars) == self.header.n_units,
            header=self.header,
        )

    @cached_property
    def rows(self) -> dict[str, NDArray[Any]]:
        """All row fields (example, position, token, target, loss), each of shape (n_rows,), hash checked.

        Raises:
            StoreFormatError: a shard's bytes are not those that were committed; names shard and dataset.
        """
        return {
            field: np.concatenate([np.empty(0, dtype), *(shard.load(f"rows/{field}") for shard in self._shards)])
            for field, dtype in ROW_FIELDS.items()
        }

    @cached_property
    def examples(self) -> list[ExampleRecord]:
        """All examples, ascending by id, hash checked.

        Raises:
            StoreFormatError: damaged bytes, or two different examples of one id; names the shard.
        """
        found: dict[int, ExampleRecord] = {}
        for shard in self._shards:
            for example in _examples(shard):
                if found.setdefault(example.id, example) != example:
                    message = f"{shard.path}: examples/id expected one example for id {example.id}, found two"
                    raise StoreFormatError(f"{message}; the shards are not of one harvest: harvest again")
        return [found[id_] for id_ in sorted(found)]

    def batches(
        self,
        hook: str,
        size: int,
        *,
        shuffle: int | None = None,
        epochs: int = 1,
        rows: NDArray[Any] | None = None,
    ) -> Iterator[GradientBatch]:
        """Stream unit gradients with their norms and row fields, in bounded memory.

        Args:
            hook: one of `hooks`.
            size: rows of a batch; the last batch of an epoch may be smaller.
            shuffle: seed of the order; None gives rows 0, 1, 2, ..., or `rows` in the order given. The same seed
                gives the same order whatever the batch size; each epoch has its own order.
            epochs: passes over the rows.
            rows: global row numbers, shape (m,), or a mask, bool of shape (n_rows,); None for all.

        Raises:
            StoreValueError: unknown hook (names the valid ones), rows that are not there, wrong numbers.
        """
        d = self.header.hook(hook).d
        if size < 1 or epochs < 0:
            raise StoreValueError(
                f"size expected 1 or more and epochs 0 or more, got {size} and {epochs}; correct them"
            )
        if shuffle is not None and (isinstance(shuffle, bool) or shuffle < 0):
            raise StoreValueError(f"shuffle expected a seed of 0 or more, or None, got {shuffle!r}; give a number")
        selected = None if rows is None else self._row_numbers(rows)

        def stream() -> Iterator[GradientBatch]:
            for epoch in range(epochs):
                if shuffle is None:
                    yield from (self._gather(hook, index) for index in self._sequential(selected, size))
                else:
                    rng = np.random.default_rng([shuffle, epoch])
                    ascending = None if selected is None else np.sort(selected)
                    chunks = shuffled_chunks(self._starts, ascending, rng, chunk_rows(d))
                    yield from _cut((self._gather(hook, index) for index in chunks), size)

        return stream()

    def read(self, hook: str, rows: NDArray[Any]) -> GradientBatch:
        """Rows in the order given, repeats included.

        Args:
            hook: one of `hooks`.
            rows: global row numbers, shape (m,), or a mask, bool of shape (n_rows,).

        Raises:
            StoreValueError: unknown hook (names the valid ones), or rows that are not there.
        """
        self.header.hook(hook)
        return self._gather(hook, self._row_numbers(rows))

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

    def _sequential(self, selected: NDArray[int64] | None, size: int) -> Iterator[NDArray[int64]]:
        n = self.n_rows if selected is None else len(selected)
        for low in range(0, n, size):
            high = min(low + size, n)
            yield np.arange(low, high) if selected is None else selected[low:high]

    def _gather(self, hook: str, index: NDArray[int64]) -> GradientBatch:
        """Rows in the order of `index`; each shard is touched once, its rows ascending."""
        n, d = len(index), self.header.hook(hook).d
        gradients, norms = np.empty((n, d), np.float32), np.empty(n, np.float32)
        fields: dict[str, NDArray[Any]] = {field: np.empty(n, dtype) for field, dtype in ROW_FIELDS.items()}
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        bounds = np.searchsorted(ordered, self._starts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            shard, part = self._shards[number], slice(int(bounds[number]), int(bounds[number + 1]))
            source, target = _selector(ordered[part] - shard.start), _selector(order[part])
            mapped = shard.map()
            stored = shard.view(mapped, f"gradients/{hook}")[source]
            gradients[target] = directions_to_float32(stored, self.header.dtype)
            norms[target] = shard.view(mapped, f"norms/{hook}")[source]
            for field, values in fields.items():
                values[target] = shard.view(mapped, f"rows/{field}")[source]
        return GradientBatch(gradients, norms, fields, index)


def _selector(numbers: NDArray[int64]) -> NDArray[int64] | slice:
    """A slice when the numbers rise by one (a copy at memory speed), else the numbers."""
    first, last = int(numbers[0]), int(numbers[-1])
    neighbours = last - first + 1 == len(numbers) and bool((np.diff(numbers) == 1).all())
    return slice(first, last + 1) if neighbours else numbers


def _cut(pieces: Iterator[GradientBatch], size: int) -> Iterator[GradientBatch]:
    """Cut a stream of pieces of any length to batches of `size` rows; the last may be smaller."""
    rest: list[GradientBatch] = []
    for piece in pieces:
        rest.append(piece)
        if sum(len(part.index) for part in rest) < size:
            continue
        whole = _join(rest)
        cut = len(whole.index) // size * size
        for low in range(0, cut, size):
            yield _part(whole, low, low + size)
        rest = [_part(whole, cut, len(whole.index))] if cut < len(whole.index) else []
    if rest:
        yield _join(rest)


def _part(batch: GradientBatch, low: int, high: int) -> GradientBatch:
    rows = {field: values[low:high] for field, values in batch.rows.items()}
    return GradientBatch(batch.gradients[low:high], batch.norms[low:high], rows, batch.index[low:high])


def _join(parts: list[GradientBatch]) -> GradientBatch:
    if len(parts) == 1:
        return parts[0]
    return GradientBatch(
        np.concatenate([part.gradients for part in parts]),
        np.concatenate([part.norms for part in parts]),
        {field: np.concatenate([part.rows[field] for part in parts]) for field in ROW_FIELDS},
        np.concatenate([part.index for part in parts]),
    )


def _examples(shard: Shard) -> Iterator[ExampleRecord]:
    """The examples of one shard."""
    columns: dict[str, list[Any]] = {}
    for field in TEXT_FIELDS:
        block = f"examples/{field}"
        present = shard.load(f"{block}/present") if field in OPTIONAL_FIELDS else None
        columns[field] = unpack_texts(
            shard.load(f"{block}/data"), shard.load(f"{block}/offsets"), present, f"{shard.path}: {block}"
        )
    for number, id_ in enumerate(shard.load("examples/id").tolist()):
        yield ExampleRecord(id=id_, **{field: values[number] for field, values in columns.items()})
