"""Superblock and object headers (II.A, IV.A.1.b), and the checksum of both."""

from __future__ import annotations

import io
import os
import struct
from typing import NamedTuple

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = 2**64 - 1
"""The address of what is not there."""

_HEAD_BYTES = 2**16
_PARTS = 64
"""Most parts of one object header."""


class Unsound(ValueError):
    """What was read is not what it should be."""

    def __init__(self, expected: str, got: str) -> None:
        """What should be there, and what is."""
        super().__init__(f"expected {expected}, got {got}")


class Message(NamedTuple):
    """One message of an object header."""

    kind: int
    body: bytes


class Kind:
    """Types of messages (IV.A.2)."""

    PADDING, SHAPE, LINK_INFO, DTYPE, OLD_FILL, FILL, LINK, EXTERNAL, LAYOUT = range(9)
    GROUP_INFO, FILTERS, ATTRIBUTE, OLD_TIME, CONTINUATION, TIME, ATTRIBUTE_INFO, LINKS = 10, 11, 12, 14, 16, 18, 21, 22


class Metadata:
    """The structures of a file: so many bytes of them are read and no more."""

    def __init__(self, file: io.FileIO, limit_bytes: int, *, checksums: bool = True) -> None:
        """
        Args:
            file: open for reading, at its start.
            limit_bytes: most bytes to be read.
            checksums: check the checksum of each structure.
        """
        self.size_bytes = os.fstat(file.fileno()).st_size
        self.checksums = checksums
        self.ranges: list[tuple[int, int]] = []
        """First byte of each structure read, and the one behind its last."""
        self._file, self._limit, self._read = file, limit_bytes, 0
        self._head = file.read(_HEAD_BYTES)

    def read(self, address: int, length: int) -> bytes:
        """Bytes of the file.

        Raises:
            Unsound: they are not inside the file, or too many.
        """
        end = address + length
        self._read += length
        if self._read > self._limit:
            raise Unsound(f"at most {self._limit} bytes of structures", "more")
        if end > self.size_bytes:
            raise Unsound("structures inside the file", f"one of {length} bytes at {address}")
        self.ranges.append((address, end))
        if end <= len(self._head):
            return self._head[address:end]
        self._file.seek(address)
        found = self._file.read(length)
        if len(found) < length:
            raise Unsound(f"{length} bytes at {address}", f"{len(found)}")
        return found

    def block(self, address: int, length: int, signature: bytes) -> bytes:
        """A structure without the checksum at its end.

        Args:
            address: where it is.
            length: its bytes, with its checksum.
            signature: how it begins.

        Raises:
            Unsound: it is another, or its checksum is wrong.
        """
        found = self.read(address, length)
        if found[:4] != signature:
            raise Unsound(f"a structure {signature.decode()} at {address}", f"{found[:4]!r}")
        body = found[:-4]
        if self.checksums and lookup3(body) != int.from_bytes(found[-4:], "little"):
            raise Unsound(f"the right checksum of the structure at {address}", "another")
        return body

    def root(self) -> int:
        """Address of the root group.

        Raises:
            Unsound: there is a user block, a superblock extension, a writer at work, or no such superblock at all.
        """
        head = self.read(0, min(48, self.size_bytes))
        if len(head) < 48 or head[:8] != SIGNATURE or head[8] not in (2, 3) or head[9:11] != b"\x08\x08":
            raise Unsound("an HDF5 file of the version bounds v110 from its first byte on", ascii(bytes(head[:11])))
        base, extension, end, root = struct.unpack("<4Q", head[12:44])
        if self.checksums and lookup3(head[:44]) != int.from_bytes(head[44:], "little"):
            raise Unsound("the right checksum of the superblock", "another")
        if base or extension != NOWHERE or head[11]:
            raise Unsound("no user block, no superblock extension and no open writer", "one of them")
        if end != self.size_bytes:
            raise Unsound(f"a file of {end} bytes, as its superblock says", f"{self.size_bytes}")
        return int(root)

    def header(self, address: int) -> list[Message]:
        """The messages of the object header at an address, padding left out.

        Raises:
            Unsound: it is of another version, shares something with other objects, or is out of bounds.
        """
        start = self.read(address, 6)
        flags = start[5]
        if start[:5] != b"OHDR\x02" or flags & 0xC0:
            raise Unsound("an object header of version 2", f"{bytes(start)!a} at {address}")
        before = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        length = int.from_bytes(self.read(address + before, width), "little")
        found = self.block(address, before + width + length + 4, b"OHDR")[before + width :]
        out: list[Message] = []
        more = _messages(found, flags, out)
        for number, (continued, length) in enumerate(more):  # `more` grows as parts name further parts
            if number >= _PARTS or length < 8:
                raise Unsound(f"an object header of at most {_PARTS} parts", "more, or an empty one")
            more += _messages(self.block(continued, length, b"OCHK")[4:], flags, out)
        return out


def _messages(part: bytes, flags: int, out: list[Message]) -> list[tuple[int, int]]:
    """Add the messages in a part of a header to `out`; gives address and length of the parts that continue it."""
    more: list[tuple[int, int]] = []
    at, size = 0, 6 if flags & 4 else 4
    while at + size <= len(part):
        kind, length, shared = struct.unpack_from("<BHB", part, at)
        at += size
        body = part[at : at + length]
        at += length
        if len(body) < length:
            raise Unsound("messages inside their header", "one that is longer")
        if shared & 2:
            raise Unsound("objects that share nothing", f"a shared message of type {kind}")
        if kind == Kind.CONTINUATION:
            more.append(struct.unpack_from("<QQ", body))
        elif kind != Kind.PADDING:
            out.append(Message(kind, body))
    return more


def lookup3(data: bytes) -> int:
    """HDF5's checksum of a structure: Bob Jenkins' lookup3 (`hashlittle`, start value 0)."""
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    words = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + bytes(-len(data) % 12))
    last = len(words) - 3
    for at in range(0, len(words), 3):
        a, b, c = (a + words[at]) & 0xFFFFFFFF, (b + words[at + 1]) & 0xFFFFFFFF, (c + words[at + 2]) & 0xFFFFFFFF
        if at < last:
            for turn in (4, 6, 8, 16, 19, 4):
                a = (a - c & 0xFFFFFFFF) ^ (c << turn & 0xFFFFFFFF | c >> 32 - turn)
                a, b, c = b, c + b & 0xFFFFFFFF, a
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << turn & 0xFFFFFFFF | b >> 32 - turn) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
