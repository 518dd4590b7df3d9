"""The datasets of a shard: which there are, with which dtype and shape, and how big a piece of one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
"""Fewest and most rows of a segment that is written here."""
MAX_SEGMENT_BYTES = 2**26
"""A segment of more rows than the fewest is no larger in any store: readers take one whole into memory."""


def widest_bytes(header: StoreHeader) -> int:
    """Bytes of a row's direction at the widest hook."""
    return max(hook.d for hook in header.hooks) * np.dtype(DISK_DTYPE[header.dtype]).itemsize


def row_bytes(header: StoreHeader) -> int:
    """Bytes of one row in a shard: its directions, norms and fields, without its example's texts."""
    directions = sum(hook.d for hook in header.hooks) * np.dtype(DISK_DTYPE[header.dtype]).itemsize
    return directions + 4 * len(header.hooks) + sum(np.dtype(dtype).itemsize for dtype in ROW_FIELDS.values())


def segment_rows(header: StoreHeader) -> int:
    """Rows of a segment, the unit in which rows are read and hashed.

    A power of two, as many rows of the widest hook as fit SEGMENT_BYTES, within SEGMENT_ROWS. Only the writer of a shard
    asks; a reader takes the number from the sidecar.
    """
    fitting = SEGMENT_BYTES // widest_bytes(header)
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


def example_arrays(examples: Sequence[ExampleRecord]) -> dict[str, NDArray[Any]]:
    """The datasets of a shard's examples, dataset path to array, in the order of `expected_blocks`."""
    out: dict[str, NDArray[Any]] = {"examples/id": np.array([example.id for example in examples], "<i8")}
    for field in TEXT_FIELDS:
        packed = pack_texts([getattr(example, field) for example in examples])
        if field not in OPTIONAL_FIELDS:
            del packed["present"]
        out |= {f"examples/{field}/{part}": array for part, array in packed.items()}
    return out
