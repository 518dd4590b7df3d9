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

_CHUNK_VALUES = 65536
"""Values converted at a time, so that every pass after the first finds them in the processor's cache."""

_HALF_SCALE = 2.0**-112
"""Brings a float16's exponent range (bias 15) to the bottom of float32's (bias 127), where the two agree bit for bit,
subnormals included, but for 13 more bits of fraction."""


def split_norm(
    gradients: NDArray[Any], dtype: str, directions: NDArray[Any] | None = None, norms: NDArray[float32] | None = None
) -> tuple[NDArray[Any], NDArray[float32]]:
    """Unit directions in the stored dtype, and norms: g = norm * direction.

    The norm is summed in float64, so neither 1e-30 nor 1e30 under- or overflows; g/norm is taken in float64 or, where
    that changes no more than the last bit of a float32, in float32, and rounded to the nearest from there. A zero
    gradient gives norm 0 and a direction of zeros; a NaN or Inf anywhere in a row gives a norm that is not finite, which
    the caller refuses.

    Args:
        gradients: raw gradients, float, shape (n, d).
        dtype: stored dtype of the directions.
        directions: C-contiguous, to write to, shape (n, d) in the dtype on disk; made when None.
        norms: to write to, float32, shape (n,); made when None.

    Returns:
        Directions of shape (n, d), norms of shape (n,) in the gradients' unit (nats per unit of the hook).
    """
    n, d = gradients.shape
    directions = np.empty((n, d), DISK_DTYPE[dtype]) if directions is None else directions
    norms = np.empty(n, np.float32) if norms is None else norms
    step = _rows_at_once(d)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        exact = gradients[rows].astype(np.float64)
        length = np.sqrt(np.vecdot(exact, exact))
        with np.errstate(over="ignore"):
            norms[rows] = length
        if not np.isfinite(norms[rows]).all():
            continue
        scale = (_HALF_SCALE if dtype == "float16" else 1.0) / np.where(norms[rows] == 0, 1.0, length)
        unit = np.empty(exact.shape, np.float32)
        if dtype != "float32" and gradients.dtype == np.float32 and _in_float32(scale):
            np.multiply(gradients[rows], scale[:, None].astype(np.float32), out=unit)
        else:
            np.multiply(exact, scale[:, None], out=unit, casting="same_kind")
        _round(unit, dtype, directions[rows])
    return directions, norms


def directions_to_float32(
    stored: NDArray[Any],
    dtype: str,
    out: NDArray[float32] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[float32]:
    """Stored directions as float32, exactly, several times as fast as numpy's own cast from float16.

    A float16 is widened by moving its bits: sign to bit 31, exponent and fraction to bits 13 to 27, which reads as the
    number times 2^-112, subnormals included; a multiplication by 2^112 restores it. (Inf and NaN, which no store holds,
    would come out as large finite numbers.) A bfloat16 is the upper half of a float32.

    Args:
        stored: shape (n, d), in the dtype on disk.
        dtype: float16, bfloat16 or float32.
        out: C-contiguous float32 to write to, shape (n, d) or (m, d); made when None.
        rows: numbers of the rows wanted, in the order wanted, shape (m,); None for all.
    """
    n = len(stored) if rows is None else len(rows)
    if out is None:
        out = np.empty((n, stored.shape[1]), np.float32)
    if dtype == "float32":
        if rows is None:
            np.copyto(out, stored)
        else:
            np.take(stored, rows, axis=0, out=out, mode="clip")  # without "clip", numpy makes a copy of `out`
        return out
    source = stored.view(np.int16 if dtype == "float16" else np.uint16)
    bits = out.view(np.int32 if dtype == "float16" else np.uint32)
    step = _rows_at_once(stored.shape[1])
    for start in range(0, n, step):
        part = bits[start : start + step]
        taken = source[start : start + step] if rows is None else source[rows[start : start + step]]
        np.copyto(part, taken)  # int16 to int32 extends the sign over bits 28 to 31 of the shifted value
        if dtype == "bfloat16":
            np.left_shift(part, 16, out=part)
            continue
        np.left_shift(part, 13, out=part)
        np.bitwise_and(part, np.int32(-0x70002000), out=part)  # 0x8fffe000
        values = out[start : start + step]
        np.multiply(values, np.float32(2.0**112), out=values)
    return out


def _in_float32(scale: NDArray[np.float64]) -> bool:
    """Whether float32 holds these numbers to its full precision."""
    return bool(scale.min() > 1e-37 and scale.max() < 1e37)


def _rows_at_once(d: int) -> int:
    return max(1, _CHUNK_VALUES // d)


def _round(values: NDArray[float32], dtype: str, out: NDArray[Any]) -> None:
    """Round float32 to the nearest stored value, ties away from zero, by adding half of the last place kept.

    Args:
        values: of magnitude up to 1 (and a rounding more), times _HALF_SCALE for float16; shape (n, d). Overwritten.
        dtype: stored dtype.
        out: shape (n, d).
    """
    if dtype == "float32":
        np.copyto(out, values)
        return
    bits = values.view(np.uint32)
    if dtype == "bfloat16":
        bits += np.uint32(0x8000)
        bits >>= 16
    else:
        sign = bits >> 16
        sign &= 0x8000
        bits += np.uint32(0x1000)
        bits >>= 13
        bits |= sign  # the old sign, in bit 18 now, falls off
    np.copyto(out.view(np.uint16), bits, casting="unsafe")


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
        StoreFormatError: offsets do not fit the data, flags other than 0 and 1, an absent text with bytes, or bytes that
            are not UTF-8; `where` names file and field.
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
    if (present > 1).any() or np.diff(offsets)[present == 0].any():
        message = f"{where}: present expected 1, or 0 and no bytes of text, got others"
        raise StoreFormatError(f"{message}; the shard is damaged: restore it from a copy")
    return [text if flag else None for text, flag in zip(texts, present.tolist(), strict=True)]
