"""Values on disk: unit directions in three dtypes, and texts as bytes with offsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError

DISK_DTYPE = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
"""Header dtype to the HDF5 dtype of `/gradients`; bfloat16 is the upper half of a float32, kept as uint16."""

_CHUNK_ROWS = 2048


def split_norm(gradients: NDArray[float32], dtype: str) -> tuple[NDArray[Any], NDArray[float32]]:
    """Unit directions in the stored dtype, and norms: g = norm * direction.

    The norm is summed in float64, so neither 1e-30 nor 1e30 under- or overflows. A zero gradient gives norm 0 and a
    direction of zeros; a NaN or Inf anywhere in a row gives a norm that is not finite, which the caller refuses.

    Args:
        gradients: raw gradients, shape (n, d).
        dtype: stored dtype of the directions.

    Returns:
        Directions of shape (n, d), norms of shape (n,) in the gradients' unit (nats per unit of the hook).
    """
    n = len(gradients)
    norms = np.empty(n, np.float32)
    directions = np.empty(gradients.shape, DISK_DTYPE[dtype])
    for start in range(0, n, _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        exact = gradients[rows].astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", exact, exact))
        with np.errstate(over="ignore"):
            norms[rows] = length
        if not np.isfinite(norms[rows]).all():
            continue
        exact /= np.where(length == 0, 1.0, length)[:, None]
        directions[rows] = _to_bfloat16(exact.astype(np.float32)) if dtype == "bfloat16" else exact
    return directions, norms


def directions_to_float32(stored: NDArray[Any], dtype: str) -> NDArray[float32]:
    """Stored directions of shape (n, d) as float32."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _to_bfloat16(values: NDArray[float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even, as the upper 16 bits."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def pack_texts(texts: Sequence[str | None]) -> dict[str, NDArray[Any]]:
    """Texts as one blob: `data` uint8, `offsets` int64 of shape (m + 1,), `present` uint8 of shape (m,)."""
    encoded = [(text or "").encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, "<i8")
    np.cumsum([len(item) for item in encoded], out=offsets[1:])
    present = np.array([text is not None for text in texts], np.uint8)
    return {"data": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets, "present": present}


def unpack_texts(
    data: NDArray[np.uint8], offsets: NDArray[Any], present: NDArray[np.uint8] | None, where: str
) -> list[str | None]:
    """Inverse of `pack_texts`; without `present` no text is None.

    Raises:
        StoreFormatError: offsets do not fit the data, or bytes that are not UTF-8; `where` names file and field.
    """
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        message = f"{where}: offsets expected to rise from 0 to {len(data)}, got others"
        raise StoreFormatError(f"{message}; the shard is damaged: restore it from a copy")
    blob = data.tobytes()
    bounds = offsets.tolist()
    try:
        texts = [blob[start:stop].decode() for start, stop in pairwise(bounds)]
    except UnicodeDecodeError as error:
        message = f"{where}: expected UTF-8, got other bytes ({error.reason})"
        raise StoreFormatError(f"{message}; the shard is damaged: restore it from a copy") from None
    if present is None:
        return list(texts)
    return [text if flag else None for text, flag in zip(texts, present.tolist(), strict=True)]
