"""The datasets of a shard: which there are, with which dtype and shape, and how buffered units become them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import float32, int64
from numpy.typing import NDArray

from gradatoms_store.encoding import DISK_DTYPE, pack_texts
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, StoreHeader

TEXT_FIELDS = ("prompt", "target", "foil", "concept", "meta")
OPTIONAL_FIELDS = ("foil", "concept")
"""Example texts that may be None; they carry a `present` array."""


@dataclass(frozen=True)
class BlockSpec:
    """One dataset that a shard must hold."""

    dtype: str
    """numpy dtype on disk."""
    shape: tuple[int | None, ...]
    """Shape; None is any length (the bytes of a text field)."""
    dtype_attribute: str | None = None
    """Value of the attribute `dtype`, set on bfloat16 directions only."""


SEGMENT_BYTES = 2**21
SEGMENT_ROWS = (16, 8192)
"""Fewest and most rows of a segment."""


def row_bytes(header: StoreHeader) -> int:
    """Bytes of one row in a shard: its directions, norms and fields, without its example's texts."""
    directions = sum(hook.d for hook in header.hooks) * np.dtype(DISK_DTYPE[header.dtype]).itemsize
    return directions + 4 * len(header.hooks) + sum(np.dtype(dtype).itemsize for dtype in ROW_FIELDS.values())


def segment_rows(header: StoreHeader) -> int:
    """Rows of a segment, the unit in which rows are read and hashed.

    A power of two, as many rows of the widest hook as fit SEGMENT_BYTES, within SEGMENT_ROWS. Only the writer of a shard
    asks; a reader takes the number from the sidecar.
    """
    fitting = SEGMENT_BYTES // (max(hook.d for hook in header.hooks) * np.dtype(DISK_DTYPE[header.dtype]).itemsize)
    low, high = SEGMENT_ROWS
    return min(high, max(low, 1 << max(0, fitting.bit_length() - 1)))


def segmented(header: StoreHeader) -> list[str]:
    """Paths of the datasets that have one entry a row."""
    hooks = [hook.name for hook in header.hooks]
    return [*(f"gradients/{h}" for h in hooks), *(f"norms/{h}" for h in hooks), *(f"rows/{f}" for f in ROW_FIELDS)]


def expected_blocks(
    header: StoreHeader, rows: int, examples: int, text_bytes: Mapping[str, int] | None = None
) -> dict[str, BlockSpec]:
    """Dataset path to its spec, for a shard of `rows` rows and `examples` examples; a shard holds exactly these.

    Args:
        header: header of the store.
        rows: n.
        examples: m.
        text_bytes: field of TEXT_FIELDS to the length of its `data`; None leaves the lengths open.
    """
    attribute = "bfloat16" if header.dtype == "bfloat16" else None
    out: dict[str, BlockSpec] = {}
    for hook in header.hooks:
        out[f"gradients/{hook.name}"] = BlockSpec(DISK_DTYPE[header.dtype], (rows, hook.d), attribute)
        out[f"norms/{hook.name}"] = BlockSpec("<f4", (rows,))
    out |= {f"rows/{field}": BlockSpec(dtype, (rows,)) for field, dtype in ROW_FIELDS.items()}
    out["examples/id"] = BlockSpec("<i8", (examples,))
    for field in TEXT_FIELDS:
        out[f"examples/{field}/data"] = BlockSpec("|u1", (text_bytes[field] if text_bytes else None,))
        out[f"examples/{field}/offsets"] = BlockSpec("<i8", (examples + 1,))
        if field in OPTIONAL_FIELDS:
            out[f"examples/{field}/present"] = BlockSpec("|u1", (examples,))
    return out


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """One buffered work unit, already in stored form: n rows."""

    unit: int
    directions: dict[str, NDArray[Any]]
    """Hook name to stored directions, shape (n, d)."""
    norms: dict[str, NDArray[float32]]
    """Hook name to norms, shape (n,)."""
    rows: dict[str, NDArray[Any]]
    """Row fields, each of shape (n,)."""
    examples: tuple[ExampleRecord, ...]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows["example"])

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in a shard, without HDF5's own."""
        arrays = [array for part in (self.directions, self.norms, self.rows) for array in part.values()]
        texts = [getattr(example, field) or "" for example in self.examples for field in TEXT_FIELDS]
        per_example = 8 + 8 * len(TEXT_FIELDS) + len(OPTIONAL_FIELDS)
        return sum(array.nbytes for array in arrays) + sum(map(_utf8_bytes, texts)) + per_example * len(self.examples)


def _utf8_bytes(text: str) -> int:
    return len(text.encode())


def row_arrays(
    units: Sequence[UnitRows], header: StoreHeader, permutation: NDArray[int64]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The datasets of a shard's rows, one at a time so that memory stays at the buffer plus one dataset.

    Args:
        units: the buffered units, n rows in all.
        header: header of the store.
        permutation: shape (n,); row i of the shard is buffered row `permutation[i]`.

    Yields:
        Dataset path and array, in the order of `expected_blocks`.
    """
    for hook in header.hooks:
        name = hook.name
        yield f"gradients/{name}", _joined([unit.directions[name] for unit in units], permutation)
        yield f"norms/{name}", _joined([unit.norms[name] for unit in units], permutation)
    for field in ROW_FIELDS:
        yield f"rows/{field}", _joined([unit.rows[field] for unit in units], permutation)


def example_arrays(examples: Sequence[ExampleRecord]) -> dict[str, NDArray[Any]]:
    """The datasets of a shard's examples, dataset path to array, in the order of `expected_blocks`."""
    out: dict[str, NDArray[Any]] = {"examples/id": np.array([example.id for example in examples], "<i8")}
    for field in TEXT_FIELDS:
        packed = pack_texts([getattr(example, field) for example in examples])
        if field not in OPTIONAL_FIELDS:
            del packed["present"]
        out |= {f"examples/{field}/{part}": array for part, array in packed.items()}
    return out


def _joined(parts: Sequence[NDArray[Any]], permutation: NDArray[int64]) -> NDArray[Any]:
    """Concatenate along the rows and permute, without the intermediate copy."""
    out = np.empty((len(permutation), *parts[0].shape[1:]), parts[0].dtype)
    place = np.empty_like(permutation)
    place[permutation] = np.arange(len(permutation))
    start = 0
    for part in parts:
        out[place[start : start + len(part)]] = part
        start += len(part)
    return out
