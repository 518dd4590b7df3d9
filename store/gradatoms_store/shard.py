"""One shard file: written once with h5py, checked with h5py, then read by mapping its bytes into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.guard import Place, inspect_shard
from gradatoms_store.layout import BlockSpec, expected_blocks
from gradatoms_store.schema import SCHEMA_VERSION, StoreHeader
from gradatoms_store.sidecar import SHARD_FORMAT, Sidecar

ALIGNMENT_BYTES = 64


def write_shard(path: Path, arrays: Iterable[tuple[str, NDArray[Any]]], blocks: dict[str, BlockSpec]) -> dict[str, str]:
    """Write a new HDF5 file (libver v110, contiguous, no filters) and close it.

    Args:
        path: file to make; one that is there is replaced, so never the name of a committed shard.
        arrays: dataset path and array, consumed one at a time.
        blocks: what each dataset must be.

    Returns:
        Dataset path to hex xxh3_128 of the bytes handed to HDF5.
    """
    hashes: dict[str, str] = {}
    options: dict[str, Any] = {
        "libver": ("v110", "v110"),
        "alignment_threshold": 1,
        "alignment_interval": ALIGNMENT_BYTES,
    }
    with h5py.File(path, "w", **options) as file:
        file.attrs["format"] = np.bytes_(SHARD_FORMAT)
        file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)
        for name, array in arrays:
            spec = blocks[name]
            contiguous = np.ascontiguousarray(array, spec.dtype)
            dataset = file.create_dataset(name, data=contiguous)
            if spec.dtype_attribute is not None:
                dataset.attrs["dtype"] = np.bytes_(spec.dtype_attribute)
            hashes[name] = block_hash(contiguous)
    return hashes


def block_hash(array: NDArray[Any]) -> str:
    """Hex xxh3_128 of an array's bytes in C order."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Shard:
    """A committed shard, checked; its bytes are reached through memory maps only."""

    path: Path
    sidecar: Sidecar
    start: int
    """Global number of its first row."""
    places: dict[str, Place]

    @classmethod
    def open(cls, path: Path, sidecar: Sidecar, header: StoreHeader, start: int) -> Shard:
        """Check the shard at `path` against header and sidecar.

        Raises:
            StoreFormatError: it is damaged, hostile or does not agree; names file and dataset.
        """
        blocks = expected_blocks(header, sidecar.rows, sidecar.examples)
        if set(blocks) != set(sidecar.blocks):
            wrong = ", ".join(sorted(set(blocks) ^ set(sidecar.blocks)))[:200]
            message = (
                f"{path.with_suffix('.json')}: field 'blocks' expected one hash for each dataset, differs in {wrong}"
            )
            raise StoreFormatError(f"{message}; the sidecar is damaged or foreign: move it and its shard away")
        return cls(path, sidecar, start, inspect_shard(path, blocks))

    def map(self) -> NDArray[np.uint8]:
        """The bytes of the file, mapped read-only; pages are read when touched."""
        return np.memmap(self.path, np.uint8, "r").view(np.ndarray)

    def view(self, mapped: NDArray[np.uint8], block: str) -> NDArray[Any]:
        """One dataset as an array over the mapped bytes, without a copy."""
        place = self.places[block]
        if place.offset is None:
            return np.empty(place.shape, place.dtype)
        return np.ndarray(place.shape, place.dtype, buffer=mapped.data, offset=place.offset)

    def load(self, block: str) -> NDArray[Any]:
        """One whole dataset, copied and checked against its hash.

        Raises:
            StoreFormatError: the bytes are not those that were committed; names file and dataset.
        """
        array = self.view(self.map(), block).copy()
        found = block_hash(array)
        if found != self.sidecar.blocks[block]:
            message = f"{self.path}: dataset {block} expected hash {self.sidecar.blocks[block]}, got {found}"
            raise StoreFormatError(
                f"{message}; the shard is damaged: restore it, or delete it with its sidecar and resume"
            )
        return array
