"""The HDF5 side of a shard: libhdf5 lays out the file in memory, this package writes the bytes.

libhdf5 can take the process down when a disk is full, and reads through mapped memory end in a signal when a disk
fails. So it never sees the disk here: it is asked for the file's layout (groups, datasets, where each dataset's bytes
will lie), which is a few kilobytes, and every byte goes to the disk through plain writes whose errors are exceptions.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.layout import BlockSpec

ALIGNMENT_BYTES = 64
GAP_BYTES = 65536
GAP_BYTES_A_BLOCK = 4096
"""Most bytes that a shard may have outside its datasets: GAP_BYTES, and so many more for each dataset."""


class Recorder(io.RawIOBase):
    """A file for libhdf5 that keeps what is written to it as parts, and holds nothing else."""

    def __init__(self) -> None:
        """An empty file."""
        super().__init__()
        self.parts: dict[int, bytes] = {}
        """Byte offset to what was written there last."""
        self.size_bytes = 0
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As a file's."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """As a file's."""
        return self._position

    def write(self, data: Any, /) -> int:
        """Keep a part; a part written at the same offset before is replaced, which is how libhdf5 updates."""
        part = bytes(data)
        before = self.parts.get(self._position, b"")
        self.parts[self._position] = part + before[len(part) :]
        self._position += len(part)
        self.size_bytes = max(self.size_bytes, self._position)
        return len(part)

    def readinto(self, buffer: Any, /) -> int:
        """Give back what one part holds; libhdf5 asks for nothing else."""
        for start, part in self.parts.items():
            if start <= self._position < start + len(part):
                found = part[self._position - start :][: len(buffer)]
                buffer[: len(found)] = found
                self._position += len(found)
                return len(found)
        return 0

    def truncate(self, size: int | None = None, /) -> int:
        """As a file's."""
        self.size_bytes = self._position if size is None else size
        return self.size_bytes


FLUSH_BYTES = 2**23
"""Bytes written before the disk is told to begin."""


@dataclass(frozen=True)
class Layout:
    """Where everything in an HDF5 file lies."""

    parts: dict[int, bytes]
    """Byte offset to the bytes of libhdf5's own structures there."""
    offsets: dict[str, int | None]
    """Dataset path to the byte offset of its data; None for one without elements."""
    size_bytes: int


def lay_out(blocks: Mapping[str, BlockSpec], attributes: Mapping[str, Any]) -> Layout:
    """The layout of a file (libver v110, contiguous, no filters) that holds exactly `blocks`.

    Structures come first, then the data in the order of `blocks`, each at a multiple of ALIGNMENT_BYTES.

    Args:
        blocks: dataset path to what it is; shapes without None.
        attributes: root attributes.
    """
    recorder = Recorder()
    options: dict[str, Any] = {
        "libver": ("v110", "v110"),
        "alignment_threshold": 1,
        "alignment_interval": ALIGNMENT_BYTES,
        "locking": False,
    }
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    datasets: dict[str, Any] = {}
    with h5py.File(recorder, "w", **options) as file:
        for key, value in attributes.items():
            file.attrs[key] = value
        for name, spec in blocks.items():
            kind = h5py.h5t.py_create(np.dtype(spec.dtype), logical=True)
            space = h5py.h5s.create_simple(spec.shape)
            datasets[name] = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation, lcpl=links)
            if spec.dtype_attribute is not None:
                file[name].attrs["dtype"] = np.bytes_(spec.dtype_attribute)
        file.flush()
        for name, spec in blocks.items():
            if 0 not in spec.shape:  # the first element written gives the dataset its place
                element = h5py.h5s.create_simple((1,) * len(spec.shape))
                space = h5py.h5s.create_simple(spec.shape)
                space.select_hyperslab((0,) * len(spec.shape), (1,) * len(spec.shape))
                datasets[name].write(element, space, np.zeros((1,) * len(spec.shape), spec.dtype))
        offsets = {name: dataset.get_offset() for name, dataset in datasets.items()}
    data = set(offsets.values())
    parts = {start: part for start, part in recorder.parts.items() if start not in data}
    return Layout(parts, offsets, recorder.size_bytes)


def write_container(
    path: Path, layout: Layout, pieces: Iterable[tuple[str, NDArray[Any]]], written: Callable[[str, NDArray[Any]], None]
) -> None:
    """Write a laid-out file with plain writes, and fsync it.

    Args:
        path: file to make; one that is there is replaced, so never the name of a committed shard.
        layout: from `lay_out`.
        pieces: dataset path, and C-contiguous array in the dtype on disk with the next rows of that dataset; all pieces
            of a dataset follow one another.
        written: called with each of them.

    Raises:
        OSError: no space, a limit, an error of the disk.
    """
    with open(path, "wb") as file:
        for start, part in layout.parts.items():
            file.seek(start)
            file.write(part)
        last = None
        begun = 0
        for name, piece in pieces:
            offset = layout.offsets[name]
            if offset is not None and name != last:
                file.seek(offset)
                last = name
            if piece.size:
                file.write(piece.reshape(-1).view(np.uint8).data)
            if file.tell() - begun >= FLUSH_BYTES:
                _begin_flush(file, begun, file.tell())
                begun = file.tell()
            written(name, piece)
        file.truncate(layout.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _begin_flush(file: BinaryIO, start: int, stop: int) -> None:
    """Let the system begin to write a range to the disk, so that less is left for the fsync.

    What is asked for is to forget the range; dirty pages are not forgotten but sent to the disk, without waiting.
    """
    if hasattr(os, "posix_fadvise"):
        file.flush()
        with contextlib.suppress(OSError):  # advice only
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def structure_hash(path: Path, extents: Iterable[tuple[int, int]]) -> str:
    """Hex xxh3_128 of a file's bytes outside its datasets, end to end.

    Args:
        path: the file.
        extents: byte offset and length of each dataset's data.

    Raises:
        StoreFormatError: datasets overlap, or more bytes lie outside them than any shard needs.
    """
    ordered = sorted(extents)
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        allowed, position = GAP_BYTES + GAP_BYTES_A_BLOCK * len(ordered), 0
        for start, length in [*ordered, (size_bytes, 0)]:
            allowed -= start - position
            if start < position or allowed < 0:
                fault = "datasets that overlap" if start < position else "many more bytes that belong to no dataset"
                message = f"{path}: expected datasets side by side, got {fault}"
                raise StoreFormatError(f"{message}; the shard is damaged or not to be trusted: ask for a clean copy")
            file.seek(position)
            digest.update(file.read(start - position))
            position = start + length
    return digest.hexdigest()
