"""One shard file: written once, checked, then read at the places found."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gradatoms_store.container import lay_out, structure_hash, write_container
from gradatoms_store.errors import StoreFormatError
from gradatoms_store.guard import Place, inspect_shard
from gradatoms_store.layout import BlockSpec, expected_blocks
from gradatoms_store.schema import StoreHeader
from gradatoms_store.sidecar import SHARD_FORMAT, Sidecar

DAMAGED = "the shard is damaged: run `atoms store verify --repair`, then resume the harvest, or restore it from a copy"


@dataclass(frozen=True)
class ShardHashes:
    """What a sidecar says of a shard's bytes."""

    structure: str
    """Hex xxh3_128 of the bytes outside the datasets."""
    blocks: dict[str, str] = field(default_factory=dict)
    """Dataset path to hex xxh3_128 of its bytes."""
    segment_rows: int | None = None
    """Rows of a segment; None when there are none."""
    segments: dict[str, str] = field(default_factory=dict)
    """Path of each dataset with one entry a row to the hashes of its segments, end to end."""


def write_shard(
    path: Path,
    pieces: Iterable[tuple[str, NDArray[Any]]],
    blocks: dict[str, BlockSpec],
    segment_rows: int | None,
    schema_version: int,
) -> ShardHashes:
    """Write a new HDF5 file (libver v110, contiguous, no filters), fsync it and close it.

    Args:
        path: file to make; one that is there is replaced, so never the name of a committed shard.
        pieces: dataset path, and the next rows of it; all of a dataset follow one another, of those with an entry a row
            `segment_rows` at a time.
        blocks: what each dataset must be; shapes without None.
        segment_rows: rows of a segment; None for no hashes of segments.
        schema_version: the store's.

    Raises:
        OSError: no space, a limit, an error of the disk.
        StoreFormatError: this version of HDF5 lays files out otherwise than the format allows.
    """
    attributes = {"format": np.bytes_(SHARD_FORMAT), "schema_version": np.int64(schema_version)}
    layout = lay_out(blocks, attributes)
    digests = {name: xxhash.xxh3_128() for name in blocks}
    segments: dict[str, list[str]] = {}
    if segment_rows is not None:
        segments = {name: [] for name in blocks if not name.startswith("examples/")}

    def written(name: str, piece: NDArray[Any]) -> None:
        digests[name].update(piece.reshape(-1).view(np.uint8).data)
        if name in segments:
            segments[name].append(segment_hash(piece))

    write_container(path, layout, pieces, written)
    inspect_shard(path, blocks, layout.size_bytes)  # what readers would refuse is not committed
    lengths = {name: _length(spec.shape, np.dtype(spec.dtype)) for name, spec in blocks.items()}
    extents = [(start, lengths[name]) for name, start in layout.offsets.items() if start is not None]
    return ShardHashes(
        structure_hash(path, extents),
        {name: digest.hexdigest() for name, digest in digests.items()},
        segment_rows,
        {name: "".join(hashes) for name, hashes in segments.items()},
    )


def block_hash(array: NDArray[Any]) -> str:
    """Hex xxh3_128 of a C-contiguous array's bytes."""
    return xxhash.xxh3_128_hexdigest(array.reshape(-1).view(np.uint8).data)


def segment_hash(array: NDArray[Any]) -> str:
    """Hex xxh3_64 of a C-contiguous array's bytes."""
    return xxhash.xxh3_64_hexdigest(array.reshape(-1).view(np.uint8).data)


def _length(shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> int:
    length = dtype.itemsize
    for axis in shape:
        length *= axis or 0
    return length


@dataclass(frozen=True)
class Shard:
    """A committed shard."""

    path: Path
    sidecar: Sidecar
    header: StoreHeader
    start: int
    """Number of its first row among the rows of the open store."""
    example_offset: int
    """Added to its example ids to give those of the open store."""

    @cached_property
    def places(self) -> dict[str, Place]:
        """Dataset path to its place; found by checking the file against header and sidecar, before anything is read.

        Raises:
            StoreFormatError: it is damaged, hostile or does not agree; names file and dataset.
        """
        blocks = expected_blocks(self.header, self.sidecar.rows, self.sidecar.examples)
        if set(blocks) != set(self.sidecar.blocks):
            wrong = ", ".join(sorted(set(blocks) ^ set(self.sidecar.blocks)))[:200]
            file = self.path.with_suffix(".json")
            message = f"{file}: field 'blocks' expected one hash for each dataset, differs in {wrong}"
            raise StoreFormatError(f"{message}; the sidecar is damaged or foreign: move it and its shard away")
        sealed = self.sidecar.structure is not None
        places = inspect_shard(self.path, blocks, self.sidecar.bytes, sealed=sealed)
        structure = structure_hash(self.path, [place.extent for place in places.values() if place.offset is not None])
        if structure != (self.sidecar.structure or structure):
            message = f"{self.path}: expected structure of hash {self.sidecar.structure}, got {structure}"
            raise StoreFormatError(f"{message}; {DAMAGED}")
        return places

    def view(self, mapped: NDArray[np.uint8], block: str) -> NDArray[Any]:
        """One dataset as an array over the mapped bytes of the file, without a copy."""
        place = self.places[block]
        if place.offset is None:
            return np.empty(place.shape, place.dtype)
        return np.ndarray(place.shape, place.dtype, buffer=mapped.data, offset=place.offset)

    def map(self) -> NDArray[np.uint8]:
        """The bytes of the file, mapped read-only.

        Raises:
            StoreFormatError: the file is gone or has another size by now, so that reading the map would crash.
        """
        try:
            mapped = np.memmap(self.path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise StoreFormatError(f"{self.path}: expected the shard, got {error}; {DAMAGED}") from error
        if len(mapped) != self.sidecar.bytes:
            message = f"{self.path}: expected {self.sidecar.bytes} bytes, found {len(mapped)}"
            raise StoreFormatError(f"{message}; {DAMAGED}")
        return mapped.view(np.ndarray)

    def open(self) -> io.FileIO:
        """The file, for `read_into`; the caller closes it."""
        _ = self.places
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise StoreFormatError(f"{self.path}: expected the shard, got {error.strerror}; {DAMAGED}") from error

    def read_into(self, file: io.FileIO, block: str, first: int, out: NDArray[Any]) -> None:
        """Read rows `first` and following of a dataset into a C-contiguous array.

        Raises:
            StoreFormatError: the file ends early, or the disk fails.
        """
        if not out.size:
            return
        rest = out.reshape(-1).view(np.uint8).data
        try:
            file.seek((self.places[block].offset or 0) + first * (out.nbytes // len(out)))
            while len(rest):
                got = file.readinto(rest)
                if not got:
                    raise OSError(0, "the file ends early")
                rest = rest[got:]
        except OSError as error:
            message = f"{self.path}: dataset {block} expected to be readable, got an error ({error.strerror})"
            raise StoreFormatError(f"{message}; {DAMAGED}") from error

    def will_need(self, file: io.FileIO, block: str, first: int, last: int) -> None:
        """Let the system fetch rows `first` to `last` - 1 of a dataset, without waiting for them."""
        place = self.places[block]
        if place.offset is not None and hasattr(os, "posix_fadvise"):
            row_bytes = place.length_bytes // place.shape[0]
            start, length = place.offset + first * row_bytes, (last - first) * row_bytes
            with contextlib.suppress(OSError):  # advice only
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)

    def load(self, block: str, file: io.FileIO | None = None) -> NDArray[Any]:
        """One whole dataset, checked against its hash.

        Raises:
            StoreFormatError: the bytes are not those that were committed; names file and dataset.
        """
        place = self.places[block]
        array = np.empty(place.shape, place.dtype)
        with contextlib.ExitStack() as stack:
            self.read_into(file or stack.enter_context(self.open()), block, 0, array)
        found = block_hash(array)
        if found != self.sidecar.blocks[block]:
            message = f"{self.path}: dataset {block} expected hash {self.sidecar.blocks[block]}, got {found}"
            raise StoreFormatError(f"{message}; {DAMAGED}")
        return array
