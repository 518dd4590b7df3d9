"""The order of a pass over a store: which segments are read together, and in which order their rows are used.

A pass is a sequence of chunks. A chunk is some segments' worth of rows that fit the buffer; its rows are used in a random
order. Shards come in random order, a window of them at a time; the segments of a window are mixed. As rows are permuted
inside each shard when it is written, a segment is itself a random sample of its shard. Everything here is row numbers;
nothing depends on who reads, so any number of workers derive the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

WINDOW_SHARDS = 8
WINDOW_CHUNKS = 4
"""Shards mixed at a time: at least WINDOW_SHARDS, and as many as fill WINDOW_CHUNKS chunks."""


@dataclass(frozen=True)
class Piece:
    """The rows that a pass takes from one segment, or from several neighbours whole."""

    shard: int
    """Number of the shard in the open store."""
    low: int
    """First row of the segment, or of the first, in its shard."""
    high: int
    """Row after the last of the segment, or of the last, in its shard."""
    rows: NDArray[int64] | None
    """Rows taken, in their shard, ascending, repeats included; None for all of the segment."""

    def __len__(self) -> int:
        return self.high - self.low if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Chunk:
    """Pieces that are in memory together."""

    pieces: tuple[Piece, ...]
    order: NDArray[int64] | None
    """Permutation of the pieces' rows laid end to end, shape (rows,); None for the order as it is."""


@dataclass(frozen=True)
class Extent:
    """One shard, as far as the order needs it."""

    start: int
    """Its first row in the open store."""
    rows: int
    segment_rows: int


def weighted_rows(
    selected: NDArray[int64] | None, weights: NDArray[float64], rng: np.random.Generator
) -> NDArray[int64]:
    """Rows drawn in proportion to their weights, by systematic resampling, ascending with repeats.

    With m rows to choose from, row i comes floor(c_i + u) - floor(c_{i-1} + u) times, where c is the running sum of
    m w_i / sum(w) and u is uniform on [0, 1): m w_i / sum(w) times on average, never off by one or more, m in all.

    Args:
        selected: row numbers, ascending, shape (m,); None for all.
        weights: one for each row of the store, >= 0, not all zero among the selected.
        rng: source of u.
    """
    chosen = weights if selected is None else weights[selected]
    total = np.cumsum(chosen, dtype=np.float64)
    marks = np.floor(total * (len(chosen) / total[-1]) + rng.random()).astype(int64)
    marks[-1] = min(marks[-1], len(chosen))
    counts = np.diff(marks, prepend=0)
    numbers = np.repeat(np.arange(len(chosen)), counts)
    return numbers if selected is None else selected[numbers]


def chunks(
    extents: Sequence[Extent], selected: NDArray[int64] | None, rng: np.random.Generator | None, chunk_rows: int
) -> Iterator[Chunk]:
    """One pass: every selected row as often as it is selected.

    Args:
        extents: the shards.
        selected: row numbers in the open store, ascending, repeats allowed; None for all.
        rng: source of the order; None for ascending rows.
        chunk_rows: rows that fit the buffer; a chunk holds more only when a single segment does.
    """
    numbers = [number for number, extent in enumerate(extents) if extent.rows]
    if rng is None:
        ascending = (piece for n in numbers for piece in _pieces(n, extents[n], selected, chunk_rows, True))
        yield from _grouped(ascending, None, chunk_rows)
        return
    for window in _windows([numbers[i] for i in rng.permutation(len(numbers))], extents, chunk_rows):
        pieces = [piece for n in window for piece in _pieces(n, extents[n], selected, chunk_rows)]
        mixed = (pieces[i] for i in rng.permutation(len(pieces)).tolist())
        yield from _grouped(mixed, rng, chunk_rows)


def _windows(numbers: list[int], extents: Sequence[Extent], chunk_rows: int) -> Iterator[list[int]]:
    window: list[int] = []
    rows = 0
    for number in numbers:
        window.append(number)
        rows += extents[number].rows
        if len(window) >= WINDOW_SHARDS and rows >= WINDOW_CHUNKS * chunk_rows:
            yield window
            window, rows = [], 0
    if window:
        yield window


def _pieces(
    number: int, extent: Extent, selected: NDArray[int64] | None, chunk_rows: int, neighbours: bool = False
) -> Iterator[Piece]:
    """The pieces of one shard; with `neighbours`, segments that are taken whole may share one."""
    step = extent.segment_rows
    if selected is None:
        step *= max(1, chunk_rows // step) if neighbours else 1
        for low in range(0, extent.rows, step):
            yield Piece(number, low, min(low + step, extent.rows), None)
        return
    first, last = np.searchsorted(selected, [extent.start, extent.start + extent.rows])
    inside = selected[first:last] - extent.start
    bounds = np.searchsorted(inside, np.arange(0, extent.rows + step, step))
    for segment in np.flatnonzero(np.diff(bounds)).tolist():
        low = segment * step
        taken = inside[bounds[segment] : bounds[segment + 1]]
        for start in range(0, len(taken), chunk_rows):  # a row of large weight may be taken more often than fits
            yield Piece(number, low, min(low + step, extent.rows), taken[start : start + chunk_rows])


def _grouped(pieces: Iterator[Piece], rng: np.random.Generator | None, chunk_rows: int) -> Iterator[Chunk]:
    held: list[Piece] = []
    rows = 0
    for piece in pieces:
        if held and rows + len(piece) > chunk_rows:
            yield _chunk(held, rows, rng)
            held, rows = [], 0
        held.append(piece)
        rows += len(piece)
    if held:
        yield _chunk(held, rows, rng)


def _chunk(pieces: list[Piece], rows: int, rng: np.random.Generator | None) -> Chunk:
    return Chunk(tuple(pieces), None if rng is None else rng.permutation(rows))
