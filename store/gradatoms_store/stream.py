"""Streaming: chunks are read ahead in the background, checked, and cut to batches of float32."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import float32, int64
from numpy.typing import NDArray

from gradatoms_store.encoding import directions_to_float32
from gradatoms_store.errors import StoreFormatError
from gradatoms_store.layout import segment_rows
from gradatoms_store.order import Chunk, Extent, Piece
from gradatoms_store.schema import GradientBatch
from gradatoms_store.shard import DAMAGED, Shard, segment_hash

OPEN_FILES = 64
Checked = tuple[int, tuple[str, ...], int, int]
"""A shard's number, datasets, first row, and row after the last, whose hashes were found right."""


def extents(shards: Sequence[Shard]) -> list[Extent]:
    """What the order of a pass needs to know of the shards."""
    return [Extent(s.start, s.sidecar.rows, s.sidecar.segment_rows or segment_rows(s.header)) for s in shards]


@dataclass(frozen=True)
class LoadedChunk:
    """A chunk in memory, n rows in the order in which they are to be used."""

    stored: NDArray[Any]
    """Directions in the dtype on disk, shape (n, d), in the order in which they were read."""
    norms: NDArray[float32]
    rows: dict[str, NDArray[Any]]
    index: NDArray[int64]
    order: NDArray[int64] | None
    """Permutation to apply to all of the above, shape (n,)."""

    def __len__(self) -> int:
        return len(self.index)


class ChunkLoader:
    """Reads chunks of one hook, each into the memory of the one before the last; keeps some files open, and checks each
    segment the first time it is read."""

    def __init__(self, shards: Sequence[Shard], hook: str, fields: Sequence[str], checked: set[Checked]) -> None:
        """
        Args:
            shards: the open store's.
            hook: whose gradients.
            fields: row fields to read too.
            checked: what was found right before; added to.
        """
        self._shards = shards
        self._blocks = (f"gradients/{hook}", f"norms/{hook}", *(f"rows/{field}" for field in fields))
        self._fields = fields
        self._checked = checked
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()
        self._memory: list[list[NDArray[Any]]] = [[], []]

    def load(self, chunk: Chunk) -> LoadedChunk:
        """Read a chunk; it stays whole until the one after the next is read.

        Raises:
            StoreFormatError: bytes are not those that were committed; names the shard, the dataset and the rows.
        """
        n = sum(map(len, chunk.pieces))
        arrays = [array[:n] for array in self._room(n, self._shards[chunk.pieces[0].shard])]
        for piece in chunk.pieces:  # all at once, so that the disk has more than one to fetch at a time
            shard = self._shards[piece.shard]
            shard.will_need(self._file(piece.shard), self._blocks[0], piece.low, piece.high)
        index = np.empty(n, np.int64)
        start = 0
        for piece in chunk.pieces:
            stop = start + len(piece)
            self._read(piece, [array[start:stop] for array in arrays])
            first = self._shards[piece.shard].start
            index[start:stop] = np.arange(piece.low, piece.high) if piece.rows is None else piece.rows
            index[start:stop] += first
            start = stop
        rows = dict(zip(self._fields, arrays[2:], strict=True))
        return LoadedChunk(arrays[0], arrays[1], rows, index, chunk.order)

    def _room(self, n: int, shard: Shard) -> list[NDArray[Any]]:
        """Arrays for n rows, one a dataset; two sets take turns."""
        self._memory.reverse()
        held = self._memory[0]
        if not held or len(held[0]) < n:
            places = [shard.places[block] for block in self._blocks]
            held[:] = [np.empty((n, *place.shape[1:]), place.dtype) for place in places]
        return held

    def _read(self, piece: Piece, out: list[NDArray[Any]]) -> None:
        """Read the datasets' rows of a piece; whole segments, so that they can be checked."""
        shard, file = self._shards[piece.shard], self._file(piece.shard)
        key = (piece.shard, self._blocks, piece.low, piece.high)
        check = shard.sidecar.segment_rows is not None and key not in self._checked
        for block, array in zip(self._blocks, out, strict=True):
            whole = array
            if piece.rows is not None:
                whole = np.empty((piece.high - piece.low, *array.shape[1:]), array.dtype)
            shard.read_into(file, block, piece.low, whole)
            if check:
                _check(shard, block, piece.low, whole)
            if piece.rows is not None:
                np.take(whole, piece.rows - piece.low, axis=0, out=array, mode="clip")
            if block == "rows/example":
                array += shard.example_offset
        if check:
            self._checked.add(key)

    def _file(self, number: int) -> io.FileIO:
        if number not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[number] = self._shards[number].open()
        self._files.move_to_end(number)
        return self._files[number]

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()


def _check(shard: Shard, block: str, low: int, rows: NDArray[Any]) -> None:
    """Check rows `low` and following, which are whole segments, against their hashes."""
    step = shard.sidecar.segment_rows or len(rows)
    hashes = shard.sidecar.segments[block]
    for start in range(0, len(rows), step):
        digit = 16 * ((low + start) // step)
        expected, found = hashes[digit : digit + 16], segment_hash(rows[start : start + step])
        if found != expected:
            last = low + min(start + step, len(rows)) - 1
            message = f"{shard.path}: dataset {block}, rows {low + start} to {last}"
            raise StoreFormatError(f"{message}: expected hash {expected}, got {found}; {DAMAGED}")


@dataclass(frozen=True)
class Cut:
    """How a pass is cut to batches, and which of them are wanted."""

    total: int
    """Rows of the pass."""
    size: int
    """Rows of a batch; the last one may be smaller."""
    first: int
    """Number of the pass's first batch, counted over all passes."""
    worker: int
    workers: int
    """Batches whose number is `worker` modulo `workers` are wanted."""

    def wants(self, batch: int) -> bool:
        """Whether batch number `batch` of the pass is wanted."""
        return (self.first + batch) % self.workers == self.worker

    def wants_any(self, low: int, high: int) -> bool:
        """Whether any of rows `low` to `high` - 1 of the pass is in a wanted batch."""
        batches = range(low // self.size, -(-high // self.size))
        return len(batches) >= self.workers or any(map(self.wants, batches))


def read_ahead(loader: ChunkLoader, planned: Iterable[Chunk], cut: Cut) -> Iterator[tuple[int, LoadedChunk]]:
    """Load the chunks that hold wanted rows, one ahead of the one in use.

    Yields:
        The chunk's first row in the pass, and the chunk.
    """

    def wanted() -> Iterator[tuple[int, Chunk]]:
        low = 0
        for chunk in planned:
            high = low + sum(map(len, chunk.pieces))
            if cut.wants_any(low, high):
                yield low, chunk
            low = high

    with ThreadPoolExecutor(1, "gradatoms-store-reader") as thread:
        waiting = None
        for low, chunk in wanted():
            coming = (low, thread.submit(loader.load, chunk))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def batches(loaded: Iterable[tuple[int, LoadedChunk]], dtype: str, cut: Cut) -> Iterator[GradientBatch]:
    """Cut loaded chunks to the wanted batches.

    Args:
        loaded: first row in the pass, and chunk, ascending.
        dtype: of the stored directions.
        cut: where to cut.
    """
    batch: GradientBatch | None = None
    for start, chunk in loaded:
        low = 0
        while low < len(chunk):
            number, offset = divmod(start + low, cut.size)
            length = min(cut.size, cut.total - number * cut.size)
            taken = min(length - offset, len(chunk) - low)
            if cut.wants(number):
                if batch is None:
                    batch = _empty(length, chunk)
                _fill(batch, offset, chunk, low, taken, dtype)
                if offset + taken == length:
                    yield batch
                    batch = None
            low += taken


def _empty(n: int, like: LoadedChunk) -> GradientBatch:
    fields = {field: np.empty(n, values.dtype) for field, values in like.rows.items()}
    gradients = np.empty((n, like.stored.shape[1]), np.float32)
    return GradientBatch(gradients, np.empty(n, np.float32), fields, np.empty(n, np.int64))


def _fill(batch: GradientBatch, offset: int, chunk: LoadedChunk, low: int, n: int, dtype: str) -> None:
    """Rows `low` to `low + n` - 1 of a chunk become rows `offset` and following of a batch."""
    to, place = slice(offset, offset + n), slice(low, low + n)
    if chunk.order is None:
        directions_to_float32(chunk.stored[place], dtype, batch.gradients[to])
    else:
        directions_to_float32(chunk.stored, dtype, batch.gradients[to], chunk.order[place])
    source = place if chunk.order is None else chunk.order[place]
    batch.norms[to] = chunk.norms[source]
    batch.index[to] = chunk.index[source]
    for field, values in chunk.rows.items():
        batch.rows[field][to] = values[source]
