"""The files that a virtual dataset takes its data from (III.F global heap, IV.A.2.i layout, VIII.B selections)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gradatoms_store.hdf5.metadata import Metadata, Unsound

_ALL, _BLOCKS = 3, 2
"""Kinds of selections: everything, or blocks."""


def source_files(metadata: Metadata, place: bytes) -> Iterator[bytes]:
    """The file of each source, in order.

    Args:
        metadata: of the file.
        place: what the dataset's layout message says after version and storage.

    Raises:
        Unsound: the list is not as libhdf5 writes it with the version bounds v110.
    """
    address, index = struct.unpack_from("<QI", place)
    data = _heap_object(metadata, address, index)
    version, count = struct.unpack_from("<BQ", data)
    if version != 0:
        raise Unsound("a list of sources of version 0", f"version {version}")
    at = 9
    for _ in range(count):
        end = data.find(b"\0", at)
        dataset_end = data.find(b"\0", end + 1)
        if end < 0 or dataset_end < 0:
            raise Unsound(f"{count} sources", "fewer")
        yield data[at:end]
        at = _after_selection(data, _after_selection(data, dataset_end + 1))
        if at + 4 > len(data):  # a checksum ends the list
            raise Unsound(f"{count} sources", "fewer")


def _heap_object(metadata: Metadata, address: int, index: int) -> bytes:
    """An object of a collection of the global heap."""
    signature, version, size = struct.unpack("<4sB3xQ", metadata.read(address, 16))
    if signature != b"GCOL" or version != 1:
        raise Unsound("a list of sources in the global heap", f"{signature!a} of version {version}")
    at, end = address + 16, address + size
    while at + 16 <= end:
        number, length = struct.unpack("<H6xQ", metadata.read(at, 16))
        if number == index:
            if at + 16 + length > end:
                break
            return metadata.read(at + 16, length)
        if number == 0:
            break
        at += 16 + (length + 7) // 8 * 8
    raise Unsound(f"object {index} in the global heap at {address}", "none")


def _after_selection(data: bytes, at: int) -> int:
    """Where a selection ends that begins at `at`."""
    kind, version = struct.unpack_from("<II", data, at)
    if kind == _ALL and version == 1:
        return at + 16
    if kind == _BLOCKS and version == 1:
        return at + 16 + int(struct.unpack_from("<I", data, at + 12)[0])
    if kind == _BLOCKS and version == 2 and data[at + 8] == 1:
        return at + 13 + int(struct.unpack_from("<I", data, at + 9)[0])
    if kind == _BLOCKS and version == 3 and data[at + 8] == 1 and data[at + 9] in (2, 4, 8):
        return at + 14 + 4 * data[at + 9] * int(struct.unpack_from("<I", data, at + 10)[0])
    raise Unsound("sources that are a block of a dataset", f"a selection of kind {kind}, version {version}")
