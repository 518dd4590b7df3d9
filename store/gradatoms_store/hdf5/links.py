"""The links of an HDF5 group: in its header when they are few, in a heap with an index when they are many.

Sections IV.A.2.c (link info), IV.A.2.g (link), III.G (fractal heap), III.A.2 (B-tree, version 2).
The sizes of heap and index are those that libhdf5 gives every group.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradatoms_store.hdf5.metadata import NOWHERE, Kind, Message, Metadata, Unsound, lookup3

_HEAP_BLOCKS, _HEAP_ROWS, _FIRST_BLOCK, _LARGEST_BLOCK, _HEAP_BITS = 4, 9, 512, 65536, 32
"""Blocks of a row of the heap, and the most rows (which hold 512 KiB of links); bytes of a block in the first two rows, and
in the last; bits of an offset."""

_NODE, _RECORD, _DEPTH = 512, 11, 4
"""Bytes of a node of the index and of a record in it, and the most levels above the leaves."""


_KINDS = {0: "hard", 1: "soft", 64: "external"}


class Link(NamedTuple):
    """A link in a group."""

    name: bytes
    address: int | None
    """Where the object's header is; None for another link than a hard one."""
    kind: str
    """`hard`, `soft`, `external`, or `unknown`."""


def group_links(metadata: Metadata, header: Sequence[Message], most: int) -> list[Link]:
    """The links of a group, in no order.

    Args:
        metadata: of the file.
        header: the group's messages.
        most: when there are more links, one more than that is given.

    Raises:
        Unsound: they are not what libhdf5 writes.
    """
    found = [_link(message.body) for message in header if message.kind == Kind.LINK]
    for message in header:
        if message.kind == Kind.LINK_INFO:
            heap, index = struct.unpack_from("<QQ", message.body, 10 if message.body[1] & 1 else 2)
            if heap != NOWHERE:
                objects = _Heap(metadata, heap)
                for record in _records(metadata, index):
                    found.append(_link(objects.read(record[4:])))
                    if len(found) > most:
                        break
    return found[: most + 1]


def _link(body: bytes) -> Link:
    """A link message."""
    version, flags = body[0], body[1]
    if version != 1:
        raise Unsound("links of version 1", f"version {version}")
    at = 2 + (1 if flags & 8 else 0)
    kind = body[2] if flags & 8 else 0
    at += (8 if flags & 4 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    start = at + width
    end = start + int.from_bytes(body[at:start], "little")
    address = int.from_bytes(body[end : end + 8], "little") if kind == 0 else None
    if end + 8 > len(body) and kind == 0:
        raise Unsound("links with name and address", f"one of {len(body)} bytes")
    return Link(body[start:end], address, _KINDS.get(kind, "unknown"))


class _Heap:
    """The heap that holds the links of a group: blocks of 512 bytes, then 1024, and so on, four of each size."""

    def __init__(self, metadata: Metadata, address: int) -> None:
        self._metadata = metadata
        self._loaded: dict[int, bytes] = {}
        if metadata.read(address, 9)[7:] != b"\0\0":  # bytes of the description of filters
            raise Unsound("groups without filters", "one whose links are compressed or worse")
        header = metadata.block(address, 146, b"FRHP")
        version, id_bytes, flags = struct.unpack_from("<BH2xB", header, 4)
        width, first, largest, bits, _, root, rows = struct.unpack_from("<HQQHHQH", header, 110)
        shape = (version, id_bytes, flags, width, first, largest, bits)
        if shape != (0, 7, 2, _HEAP_BLOCKS, _FIRST_BLOCK, _LARGEST_BLOCK, _HEAP_BITS) or rows > _HEAP_ROWS:
            raise Unsound("a heap of links as libhdf5 makes it", f"another, {(*shape, rows)}")
        self._blocks = [root]
        if rows:
            count = rows * _HEAP_BLOCKS
            self._blocks = list(struct.unpack_from(f"<{count}Q", metadata.block(root, 21 + 8 * count, b"FHIB"), 17))

    def read(self, id_: bytes) -> bytes:
        """The object with a heap id: version and type, offset, length."""
        kind, offset, length = struct.unpack("<BIH", id_)
        start, size = 0, _FIRST_BLOCK
        for number, block in enumerate(self._blocks):
            if number >= 2 * _HEAP_BLOCKS and number % _HEAP_BLOCKS == 0:
                size *= 2
            if offset < start + size:
                if kind or block == NOWHERE or offset + length > start + size:
                    break
                return self._block(block, size)[offset - start : offset - start + length]
            start += size
        raise Unsound("links inside the heap of their group", f"one of type {kind}, {length} bytes at {offset}")

    def _block(self, address: int, size: int) -> bytes:
        """A whole block; its checksum, counted as zero, is in its own header of 21 bytes."""
        if address not in self._loaded:
            found = self._metadata.read(address, size)
            stated = int.from_bytes(found[17:21], "little")
            if found[:4] != b"FHDB" or (
                self._metadata.checksums and stated != lookup3(found[:17] + bytes(4) + found[21:])
            ):
                raise Unsound(f"a block of a heap at {address}, with the right checksum", "another")
            self._loaded[address] = found
        return self._loaded[address]


def _records(metadata: Metadata, address: int) -> Iterator[bytes]:
    """The records of a group's index by name."""
    header = metadata.block(address, 38, b"BTHD")
    version, kind, node, record, depth, _, _, root, count, _ = struct.unpack_from("<BBIHHBBQHQ", header, 4)
    if (version, kind, node, record) != (0, 5, _NODE, _RECORD) or depth > _DEPTH:
        raise Unsound("an index of links as libhdf5 makes it", f"another, {(version, kind, node, record, depth)}")
    counts = [(_NODE - 10) // _RECORD]  # the most records of a node, by level
    totals = [counts[0]]  # and of it with all below it
    for level in range(1, depth + 1):
        pointer = 8 + _width(counts[0]) + (_width(totals[-1]) if level > 1 else 0)
        counts.append((_NODE - 10 - pointer) // (_RECORD + pointer))
        totals.append((counts[-1] + 1) * totals[-1] + counts[-1])
    yield from _node(metadata, root, count, depth, _width(counts[0]), [_width(total) for total in totals])


def _node(
    metadata: Metadata, address: int, count: int, level: int, count_width: int, total_widths: list[int]
) -> Iterator[bytes]:
    """The records of a node of `count` records and of those below it."""
    if not count and level == 0:
        return
    pointer = 8 + count_width + (total_widths[level - 1] if level > 1 else 0)
    length = 6 + count * _RECORD + ((count + 1) * pointer if level else 0) + 4
    if length > _NODE or not count:
        raise Unsound("nodes of an index with 1 record or more", f"one of {count} records in {length} bytes")
    body = metadata.block(address, length, b"BTIN" if level else b"BTLF")
    for number in range(count):
        yield body[6 + number * _RECORD : 6 + (number + 1) * _RECORD]
    for number in range(count + 1 if level else 0):
        at = 6 + count * _RECORD + number * pointer
        below = int.from_bytes(body[at : at + 8], "little")
        below_count = int.from_bytes(body[at + 8 : at + 8 + count_width], "little")
        yield from _node(metadata, below, below_count, level - 1, count_width, total_widths)


def _width(number: int) -> int:
    """Bytes that libhdf5 takes to write numbers up to this one."""
    return (number.bit_length() - 1) // 8 + 1
