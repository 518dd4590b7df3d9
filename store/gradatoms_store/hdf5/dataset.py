"""What the header of a dataset says: shape, dtype, storage, short texts among its attributes (IV.A.2)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gradatoms_store.hdf5.metadata import NOWHERE, Kind, Message, Unsound

_FLOATS = {2: (16, 15, 10, 5, 10, 15), 4: (32, 31, 23, 8, 23, 127), 8: (64, 63, 52, 11, 52, 1023)}
"""Bytes to bits, place of the sign, place and bits of the exponent, bits of the mantissa, bias (IEEE 754)."""

_MAX_RANK = 32
_TEXT = 3
_MAX_TEXT_BYTES = 64


class Storage(enum.IntEnum):
    """Where the data are."""

    COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = range(4)


@dataclass(frozen=True)
class Dataset:
    """A dataset as its header describes it."""

    shape: tuple[int, ...]
    dtype: bytes
    """HDF5's description of the type of an element, to be compared with `describe`."""
    storage: Storage
    place: bytes
    """What follows in the layout message: address and bytes of contiguous data; the heap's object of virtual ones."""

    @property
    def extent(self) -> tuple[int | None, int]:
        """Byte offset of contiguous data (None when there are none yet) and their length."""
        if len(self.place) < 16:
            raise Unsound("address and length of the data", f"{len(self.place)} bytes")
        offset, length_bytes = struct.unpack_from("<QQ", self.place)
        return (None if offset == NOWHERE else offset), length_bytes


def read_dataset(header: Sequence[Message]) -> Dataset:
    """The dataset with an object header.

    Raises:
        Unsound: shape, dtype or layout is missing, there twice, or of another version.
    """
    shape, dtype, layout = (_only(header, kind) for kind in (Kind.SHAPE, Kind.DTYPE, Kind.LAYOUT))
    if layout[0] not in (3, 4) or layout[1] not in tuple(Storage):
        raise Unsound("a layout of version 3 or 4", ascii(layout[:2]))
    return Dataset(_shape(shape), dtype, Storage(layout[1]), layout[2:])


def _only(header: Sequence[Message], kind: int) -> bytes:
    found = [message.body for message in header if message.kind == kind]
    if len(found) != 1 or len(found[0]) < 4:
        raise Unsound(f"one message of type {kind}", f"{len(found)}")
    return found[0]


def _shape(body: bytes) -> tuple[int, ...]:
    version, rank, flags, kind = struct.unpack_from("<BBBB", body)
    if version != 2 or kind not in (0, 1) or rank > _MAX_RANK or (kind == 0 and rank) or flags & ~1:
        raise Unsound("a simple shape of version 2", ascii(body[:4]))
    if len(body) != 4 + rank * (16 if flags & 1 else 8):
        raise Unsound(f"a shape of {rank} axes", f"{len(body)} bytes")
    return struct.unpack_from(f"<{rank}Q", body, 4)


@lru_cache(maxsize=16)
def describe(dtype: str) -> bytes:
    """HDF5's description, in version 1, of a little-endian numpy dtype of integers or IEEE floats (IV.A.2.d)."""
    kind = np.dtype(dtype)
    size = kind.itemsize
    if kind.kind == "f":
        bits, sign, exponent, exponent_bits, mantissa_bits, bias = _FLOATS[size]
        numbers = (bits, exponent, exponent_bits, 0, mantissa_bits, bias)
        return struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, sign, 0, size, 0, *numbers)
    return struct.pack("<BBBBIHH", 0x10, 8 if kind.kind == "i" else 0, 0, 0, size, 0, 8 * size)


def name_dtype(description: bytes) -> str:
    """Words for a type, for messages."""
    kinds = ("integers", "floats", "times", "text", "bits", "opaque bytes", "records", "references", "names of numbers")
    number = description[0] & 15 if description else 15
    size = int.from_bytes(description[4:8], "little")
    return f"{(*kinds, 'variable-length data', 'arrays')[number] if number < 11 else 'something'} of {size} bytes"


def text_attribute(body: bytes, name: str) -> bytes | None:
    """The value of an attribute message when it has this name and is one short fixed-length text, else None."""
    version, flags, *lengths, _ = struct.unpack_from("<BBHHHB", body)
    if version != 3 or flags:
        return None
    parts, at = [], 9
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    found, dtype, space = parts
    size = int.from_bytes(dtype[4:8], "little")
    scalar = space[:2] == b"\2\0" and space[3:4] == b"\0"
    if found.rstrip(b"\0") != name.encode() or dtype[:1] != bytes([0x10 | _TEXT]) or not scalar:
        return None
    if size > _MAX_TEXT_BYTES or len(body) != at + size:
        return None
    return body[at:].rstrip(b"\0 ")
