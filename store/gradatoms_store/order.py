"""The order of a shuffled pass: random, reproducible by seed, and close to sequential for the disk.

Shards come in random order, `MIX_SHARDS` of them open at a time; their blocks of `BLOCK_ROWS` neighbouring rows are
mixed; some blocks together make a chunk, whose rows are permuted. As rows are permuted inside each shard when it is
written, a block is itself a random sample of its shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy import int64
from numpy.typing import NDArray

BLOCK_ROWS = 512
MIX_SHARDS = 8
CHUNK_ROWS = 16384
CHUNK_BYTES = 64 * 2**20
"""Bound on the float32 bytes of one chunk of gradients."""


def chunk_rows(d: int) -> int:
    """Rows of one chunk for gradients of width d: whole blocks, at least one, at most CHUNK_ROWS and CHUNK_BYTES."""
    rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * d))
    return max(BLOCK_ROWS, rows // BLOCK_ROWS * BLOCK_ROWS)


def shuffled_chunks(
    starts: NDArray[int64], selected: NDArray[int64] | None, rng: np.random.Generator, rows: int
) -> Iterator[NDArray[int64]]:
    """One epoch: every selected row exactly once.

    Args:
        starts: first global row of each shard and, last, the number of rows; shape (n_shards + 1,).
        selected: global row numbers, ascending; None for all.
        rng: source of the order.
        rows: rows of a chunk, of about as many as this (`chunk_rows`).

    Yields:
        Global row numbers of one chunk in the order in which they are to be used, shape (at most rows + BLOCK_ROWS,).
    """
    bounds = starts if selected is None else np.searchsorted(selected, starts)
    shards = rng.permutation(np.flatnonzero(np.diff(bounds)))
    for first in range(0, len(shards), MIX_SHARDS):
        blocks = [
            (low, min(low + BLOCK_ROWS, int(bounds[shard + 1])))
            for shard in shards[first : first + MIX_SHARDS].tolist()
            for low in range(int(bounds[shard]), int(bounds[shard + 1]), BLOCK_ROWS)
        ]
        chunk: list[NDArray[int64]] = []
        for number in rng.permutation(len(blocks)).tolist():
            low, high = blocks[number]
            chunk.append(np.arange(low, high) if selected is None else selected[low:high])
            if sum(map(len, chunk)) >= rows:
                yield rng.permutation(np.concatenate(chunk))
                chunk = []
        if chunk:
            yield rng.permutation(np.concatenate(chunk))
