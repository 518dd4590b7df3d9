"""Rows waiting for the disk, in stored form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy import float32, int64
from numpy.typing import NDArray

from gradatoms_store.encoding import DISK_DTYPE, split_norm
from gradatoms_store.intake import checked_rows, refuse_non_finite
from gradatoms_store.layout import OPTIONAL_FIELDS, TEXT_FIELDS, row_bytes
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBlock, StoreHeader

FIRST_ROWS = 4096
"""Rows that a new buffer has room for; it doubles as needed and is used again for later shards."""


MAX_UNITS = 2**16
MAX_TEXT_BYTES = 2**27
MAX_CONCEPT_BYTES = 2**21
"""Units, bytes of texts, and bytes of distinct concepts as JSON, at which a buffer is full however few rows it holds: so
memory and the sidecar (at most 16 MiB) stay bounded."""


class RowBuffer:
    """Complete work units, n rows in all, in arrays that grow."""

    def __init__(self, header: StoreHeader) -> None:
        """`header`: of the store."""
        self._header = header
        self._room = 0
        self._arrays: dict[str, NDArray[Any]] = {}
        self.n = 0
        """Rows held."""
        self.units: list[int] = []
        self.examples: list[ExampleRecord] = []
        self._text_bytes = 0
        self._concepts: set[str] = set()
        self._concept_bytes = 0

    def add(self, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        """Check one unit and take it in; its memory is not shared.

        Raises:
            StoreValueError: NaN or Inf (names hook and example), wrong shapes or dtypes, hooks or examples that do not
                fit; nothing was taken.
        """
        rows = checked_rows(unit, block, examples, self._header)
        low, high = self.n, self.n + len(rows["example"])
        self._make_room(high)
        for hook in self._header.hooks:
            norms = self._arrays[f"norms/{hook.name}"][low:high]
            gradients = np.asarray(block.gradients[hook.name])
            split_norm(gradients, self._header.dtype, self._arrays[f"gradients/{hook.name}"][low:high], norms)
            refuse_non_finite(hook.name, norms, rows["example"])
        for field, values in rows.items():
            self._arrays[f"rows/{field}"][low:high] = values
        self.n = high
        self.units.append(unit)
        self.examples += examples
        texts = (getattr(example, field) or "" for example in examples for field in TEXT_FIELDS)
        self._text_bytes += sum(len(text.encode()) for text in texts)
        new = {example.concept for example in examples if example.concept is not None} - self._concepts
        self._concepts |= new
        self._concept_bytes += sum(len(json.dumps(concept)) + 12 for concept in new)

    def clear(self) -> None:
        """Empty it, keeping its room."""
        self.n, self.units, self.examples, self._text_bytes = 0, [], [], 0
        self._concepts, self._concept_bytes = set(), 0

    def is_full(self, rows: int) -> bool:
        """Whether it is to be committed: `rows` rows are held, or more of something else than a shard should have."""
        crowded = self._text_bytes >= MAX_TEXT_BYTES or self._concept_bytes >= MAX_CONCEPT_BYTES
        return self.n >= rows or len(self.units) >= MAX_UNITS or crowded

    @property
    def size_bytes(self) -> int:
        """Bytes that the units take in a shard, without HDF5's own."""
        per_example = 8 + 8 * len(TEXT_FIELDS) + len(OPTIONAL_FIELDS)
        return self.n * row_bytes(self._header) + self._text_bytes + per_example * len(self.examples)

    def rows(self, field: str) -> NDArray[Any]:
        """One row field, shape (n,)."""
        return self._array(f"rows/{field}")

    def norms(self, hook: str) -> NDArray[float32]:
        """Norms at a hook, shape (n,)."""
        return self._array(f"norms/{hook}")

    def pieces(self, order: NDArray[int64], piece_rows: int) -> Iterator[tuple[str, NDArray[Any]]]:
        """The datasets of the rows, in the order of `expected_blocks`, so many rows at a time.

        Args:
            order: shape (n,); row i of the shard is buffered row `order[i]`.
            piece_rows: rows of a piece.

        Yields:
            Dataset path, and the next rows of it; valid until the next one is asked for.
        """
        blocks = [block for hook in self._header.hooks for block in (f"gradients/{hook.name}", f"norms/{hook.name}")]
        for block in [*blocks, *(f"rows/{field}" for field in ROW_FIELDS)]:
            array = self._array(block)
            piece = np.empty((min(piece_rows, self.n), *array.shape[1:]), array.dtype)
            for low in range(0, self.n, piece_rows):
                part = piece[: min(piece_rows, self.n - low)]
                np.take(array, order[low : low + piece_rows], axis=0, out=part, mode="clip")
                yield block, part

    def _array(self, block: str) -> NDArray[Any]:
        if block not in self._arrays:
            self._make_room(1)
        return self._arrays[block][: self.n]

    def _make_room(self, rows: int) -> None:
        if rows <= self._room and self._arrays:
            return
        self._room = max(FIRST_ROWS, 2 * self._room, rows)
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for hook in self._header.hooks:
            shapes[f"gradients/{hook.name}"] = ((self._room, hook.d), DISK_DTYPE[self._header.dtype])
            shapes[f"norms/{hook.name}"] = ((self._room,), "<f4")
        shapes |= {f"rows/{field}": ((self._room,), dtype) for field, dtype in ROW_FIELDS.items()}
        for block, (shape, dtype) in shapes.items():
            larger = np.empty(shape, dtype)
            if block in self._arrays:
                larger[: self.n] = self._arrays[block][: self.n]
            self._arrays[block] = larger
