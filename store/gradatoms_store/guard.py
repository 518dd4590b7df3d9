"""The guard on the way in: a shard is hostile until every object in it is what the format allows.

It reads structures only, and without libhdf5: a dataset passes when it is reached by one hard link, holds its bytes
contiguously inside the file, without filters, external or virtual storage, and has exactly the dtype and shape that
header and sidecar demand. Data are then read as plain bytes at the place found here. So no filter is ever run, no link
followed, and no plugin looked for, whatever `HDF5_PLUGIN_PATH` says.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms_store.container import GAP_BYTES, GAP_BYTES_A_BLOCK
from gradatoms_store.errors import StoreFormatError
from gradatoms_store.files import open_regular
from gradatoms_store.hdf5.dataset import Dataset, Storage, describe, name_dtype, read_dataset, text_attribute
from gradatoms_store.hdf5.links import group_links
from gradatoms_store.hdf5.metadata import NOWHERE, Kind, Message, Metadata, Unsound
from gradatoms_store.hdf5.virtual import source_files
from gradatoms_store.layout import BlockSpec

VIEW_FILE = "view.h5"
VIEW_BYTES = 2**28
"""Largest file of a view."""
VIEW_SOURCES = 2**17
"""Most sources of all datasets of a view: one for each shard and dataset."""

_VIEW_STRUCTURE_BYTES = 2**26
_VIEW_DEPTH = 3
_SOURCE = re.compile(rb"shards/[0-9]{5,9}\.h5")
_ADVICE = "the shard is damaged or not to be trusted: do not use it, ask for a clean copy"
_VIEW_ADVICE = "the view is damaged or not to be trusted: delete it, then run `atoms store view`"
_COMMON = {Kind.ATTRIBUTE, Kind.ATTRIBUTE_INFO, Kind.TIME, Kind.OLD_TIME}
_DATASET = _COMMON | {Kind.SHAPE, Kind.DTYPE, Kind.FILL, Kind.OLD_FILL, Kind.LAYOUT}
_GROUP = _COMMON | {Kind.LINK_INFO, Kind.LINK, Kind.GROUP_INFO}
"""What the header of an object may hold."""


@dataclass(frozen=True)
class Place:
    """Where a dataset's bytes are in its file."""

    offset: int | None
    """Byte offset from the start of the file; None for a dataset without elements."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def length_bytes(self) -> int:
        """Bytes that the data take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> tuple[int, int]:
        """Byte offset and length."""
        return self.offset or 0, self.length_bytes


def inspect_shard(
    path: Path, blocks: Mapping[str, BlockSpec], size_bytes: int, *, sealed: bool = False
) -> dict[str, Place]:
    """Check a shard file's structure.

    Args:
        path: the HDF5 file.
        blocks: dataset path to what it must be; anything else in the file is refused.
        size_bytes: what the file's size must be.
        sealed: the caller checks the bytes outside the datasets against a hash, so that HDF5's own checksums need not be
            looked at.

    Returns:
        Dataset path to its place.

    Raises:
        StoreFormatError: the reason, with file and dataset.
    """
    limit_bytes = 2 * (GAP_BYTES + GAP_BYTES_A_BLOCK * len(blocks))
    with _opened(path, limit_bytes, not sealed, _ADVICE) as metadata:
        if metadata.size_bytes != size_bytes:
            raise Unsound(f"{size_bytes} bytes", f"{metadata.size_bytes}")
        return _Shard(metadata, blocks).places()


def inspect_view(path: Path) -> None:
    """Check `view.h5` of the store at `path`, if there is one: other tools will open it, this package never does.

    Every dataset must be plain, or virtual with committed shards of this store as its only sources.

    Raises:
        StoreFormatError: the reason, with file and dataset.
    """
    view = path / VIEW_FILE
    if os.path.lexists(view):
        with _opened(view, _VIEW_STRUCTURE_BYTES, True, _VIEW_ADVICE) as metadata:
            if metadata.size_bytes > VIEW_BYTES:
                raise Unsound(f"at most {VIEW_BYTES} bytes", f"{metadata.size_bytes}")
            _View(metadata, path).check()


@contextmanager
def _opened(path: Path, limit_bytes: int, checksums: bool, advice: str) -> Iterator[Metadata]:
    """Open an HDF5 file; what goes wrong in the body becomes a StoreFormatError."""
    try:
        with open_regular(path) as file:
            yield Metadata(file, limit_bytes, checksums=checksums)
    except Unsound as error:
        raise StoreFormatError(f"{path}: {error}; {advice}") from None
    except (OSError, struct.error, IndexError, OverflowError) as error:
        raise StoreFormatError(f"{path}: expected a sound HDF5 file, got an error ({error}); {advice}") from error


class _Walk:
    """A walk over the objects of a file, each of which must be plain and have one link to it."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self._seen: set[int] = set()

    def header(self, address: int, attributes: int) -> list[Message]:
        """The header of an object that has at most so many attributes."""
        if address in self._seen:
            raise Unsound("an object of its own", "another link to one that was seen before")
        self._seen.add(address)
        header = self.metadata.header(address)
        kinds = {message.kind for message in header}
        if Kind.FILTERS in kinds:
            raise Unsound("no filters", "some")
        if Kind.EXTERNAL in kinds:
            raise Unsound("storage inside the file", "external storage")
        if Kind.LINKS in kinds:
            raise Unsound("one link to each object", "more")
        is_group = bool(kinds & {Kind.LINK_INFO, Kind.LINK})
        unknown = kinds - (_GROUP if is_group else _DATASET)
        if unknown:
            raise Unsound("a plain group or dataset", f"an object with messages of type {sorted(unknown)[:5]}")
        found = sum(message.kind == Kind.ATTRIBUTE for message in header)
        if found > attributes or any(m.kind == Kind.ATTRIBUTE_INFO and _is_dense(m.body) for m in header):
            raise Unsound(f"at most {attributes} attributes", f"{found}, or a heap of them")
        return header


class _Shard(_Walk):
    """The walk over one shard."""

    def __init__(self, metadata: Metadata, blocks: Mapping[str, BlockSpec]) -> None:
        super().__init__(metadata)
        self._blocks = blocks
        self._children = _children(tuple(blocks))
        self._places: dict[str, Place] = {}

    def places(self) -> dict[str, Place]:
        """Dataset path to its place."""
        with _naming("/"):
            root = self.metadata.root()
        self._group("", root, attributes=2)
        extents = sorted(place.extent for place in self._places.values() if place.offset is not None)
        for (start, length), (after, _) in pairwise(extents):
            if start + length > after:
                raise Unsound("datasets side by side", f"two that both hold byte {after}")
        for (start, stop), (after, length) in _neighbours(self.metadata.ranges, extents):
            if start < after + length and after < stop:
                raise Unsound("structures beside the data", f"a dataset's bytes on top of those at {start}")
        return self._places

    def _group(self, path: str, address: int, attributes: int = 0) -> None:
        """Check a group and everything in it."""
        children = self._children[path]
        with _naming(path or "/"):
            header = self.header(address, attributes)
            links = _links(self.metadata, header, len(children))
        with _naming(path or "/"):
            wrong = links.keys() ^ children.keys()
            if wrong:
                names = ", ".join(_shown(name) for name in sorted(wrong)[:5])
                raise Unsound(f"exactly {len(children)} entries", f"others or fewer: {names}")
        for link, below in links.items():
            name = children[link]
            if name in self._blocks:
                with _naming(name):
                    self._places[name] = self._dataset(self._blocks[name], below)
            else:
                self._group(name, below)

    def _dataset(self, spec: BlockSpec, address: int) -> Place:
        """Check a dataset."""
        header = self.header(address, attributes=int(spec.dtype_attribute is not None))
        if any(message.kind == Kind.LINK_INFO for message in header):
            raise Unsound("a dataset", "a group")
        found = read_dataset(header)
        if found.storage != Storage.CONTIGUOUS:
            raise Unsound("contiguous storage", f"{found.storage.name.lower()} storage")
        if not _is_of(found, spec.dtype):
            raise Unsound(f"dtype {spec.dtype}", name_dtype(found.dtype))
        if spec.dtype_attribute is not None:
            values = [text_attribute(message.body, "dtype") for message in header if message.kind == Kind.ATTRIBUTE]
            if values != [spec.dtype_attribute.encode()]:
                raise Unsound(f"attribute dtype = {spec.dtype_attribute!r}", "none or another")
        shape = found.shape
        if len(shape) != len(spec.shape) or any(
            want not in (None, got) for want, got in zip(spec.shape, shape, strict=True)
        ):
            raise Unsound(f"shape {spec.shape}", f"{shape}")
        offset, stated_bytes = found.extent
        place = Place(offset, shape, np.dtype(spec.dtype))
        length_bytes = place.length_bytes  # of Python integers: an absurd shape cannot overflow
        if not length_bytes:
            return Place(None, shape, place.dtype)
        if offset is None or offset + length_bytes > self.metadata.size_bytes or stated_bytes != length_bytes:
            stated = "no bytes" if offset is None else f"{stated_bytes} bytes at {offset}"
            raise Unsound(f"{length_bytes} bytes inside a file of {self.metadata.size_bytes}", stated)
        return place


class _View(_Walk):
    """The walk over one view."""

    def __init__(self, metadata: Metadata, store: Path) -> None:
        super().__init__(metadata)
        self._store = store
        self._committed: set[bytes] = set()
        self._sources = 0

    def check(self) -> None:
        """Check everything."""
        with _naming("/"):
            root = self.metadata.root()
        self._object("", root)

    def _object(self, path: str, address: int) -> None:
        """Check a group with everything in it, or a dataset."""
        with _naming(path or "/"):
            header = self.header(address, attributes=4)
            is_group = any(message.kind == Kind.LINK_INFO for message in header)
            links = _links(self.metadata, header, VIEW_SOURCES) if is_group else {}
            if path.count("/") >= _VIEW_DEPTH:
                raise Unsound(f"groups at most {_VIEW_DEPTH} deep", "a deeper one")
            if not is_group:
                self._dataset(read_dataset(header))
        for link, below in links.items():
            self._object(f"{path}/{_shown(link)}" if path else _shown(link), below)

    def _dataset(self, dataset: Dataset) -> None:
        if not any(_is_of(dataset, dtype) for dtype in ("<f2", "<f4", "<u2", "<i4", "<i8", "|u1")):
            raise Unsound("numbers as in a shard", name_dtype(dataset.dtype))
        if dataset.storage == Storage.CONTIGUOUS:
            return
        if dataset.storage != Storage.VIRTUAL:
            raise Unsound("virtual or contiguous storage", f"{dataset.storage.name.lower()} storage")
        sources: set[bytes] = set()
        for source in source_files(self.metadata, dataset.place):
            self._sources += 1
            if self._sources > VIEW_SOURCES:
                raise Unsound(f"at most {VIEW_SOURCES} sources in all", "more")
            if source in sources:
                raise Unsound("each shard once", f"{_shown(source)} twice")
            sources.add(source)
            if source in self._committed:
                continue
            if not _SOURCE.fullmatch(source):
                raise Unsound("sources such as shards/00000.h5", _shown(source))
            if not (self._store / source.decode()).with_suffix(".json").is_file():
                raise Unsound("sources that are committed shards", _shown(source))
            self._committed.add(source)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which object something is wrong."""
    try:
        yield
    except Unsound as error:
        error.args = (f"{name} {error}",)
        raise
    except (struct.error, IndexError, OverflowError) as error:
        raise Unsound(f"{name} to be sound", f"an error ({error})") from error


def _shown(name: bytes) -> str:
    """A name from a file, fit for a terminal."""
    return ascii(name[:60])[2:-1]


def _is_of(dataset: Dataset, dtype: str) -> bool:
    """Whether a dataset's elements are of a numpy dtype; libhdf5 may describe it in version 1 or 3, which look alike."""
    description = dataset.dtype
    return description[:1] in (b"\x10", b"\x11", b"\x30", b"\x31") and (
        bytes([description[0] & 15 | 16]) + description[1:] == describe(dtype)
    )


def _is_dense(attribute_info: bytes) -> bool:
    """Whether an object's attributes are in a heap of their own, where nobody looks."""
    at = 4 if attribute_info[1] & 1 else 2
    return attribute_info[at : at + 8] != NOWHERE.to_bytes(8, "little")


def _links(metadata: Metadata, header: Sequence[Message], most: int) -> dict[bytes, int]:
    """Names in a group to addresses of their objects."""
    if not any(message.kind == Kind.LINK_INFO for message in header):
        raise Unsound("a group", "a dataset or another object")
    links = group_links(metadata, header, most)
    out: dict[bytes, int] = {}
    for name, address, kind in links:
        if address is None:
            raise Unsound("hard links", f"the {kind} link {_shown(name)}")
        out[name] = address
        if b"/" in name or b"\0" in name or name in (b"", b"."):  # libhdf5 takes such a name for a path
            raise Unsound("plain names", _shown(name))
    if len(links) > most or len(out) != len(links):
        raise Unsound(f"at most {most} entries, each once", "more, or one twice")
    return out


@lru_cache(maxsize=8)
def _children(names: tuple[str, ...]) -> dict[str, dict[bytes, str]]:
    """What is in each group of a shard with these datasets: group path to link to path; the root is the empty path."""
    out: dict[str, dict[bytes, str]] = {"": {}}
    for name in names:
        parent = ""
        for part in name.split("/"):
            path = f"{parent}/{part}" if parent else part
            out.setdefault(parent, {})[part.encode()] = path
            parent = path
    return out


def _neighbours(
    ranges: Sequence[tuple[int, int]], extents: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Each structure with the datasets that might overlap it: both sorted, the datasets side by side."""
    at = 0
    for start, stop in sorted(ranges):
        while at < len(extents) and sum(extents[at]) <= start:
            at += 1
        if at < len(extents):
            yield (start, stop), extents[at]
