"""Damage done to files: which regions a shard has, and what may happen to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

PAGE = 4096


@dataclass(frozen=True)
class Region:
    """A range of bytes in a shard file."""

    name: str
    """Path of the dataset; `structure` before the first dataset, `gap` between two, `tail` after the last."""
    start: int
    stop: int

    @property
    def block(self) -> str | None:
        """The dataset, when it is one."""
        return self.name if "/" in self.name else None


def regions(shard: Path) -> list[Region]:
    """Every byte of a shard file is in one of these, as plain h5py tells."""
    found: list[Region] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            start = item.id.get_offset()
            found.append(Region(name, start, start + item.id.get_storage_size()))

    with h5py.File(shard) as file:
        file.visititems(visit)
    found.sort(key=lambda region: region.start)
    position, size = 0, shard.stat().st_size
    for region in list(found):
        if region.start > position:
            found.append(Region("gap" if position else "structure", position, region.start))
        position = region.stop
    if position < size:
        found.append(Region("tail", position, size))
    return found


def flip(file: Path, rng: np.random.Generator, region: Region | None = None) -> None:
    """Flip one bit, somewhere in a region (None: in the file); of a JSON file, so that its meaning changes."""
    data = bytearray(file.read_bytes())
    good = bytes(data)
    while data == good or (file.suffix == ".json" and _meaning(data) == _meaning(good)):
        data[:] = good
        low, high = (region.start, region.stop) if region else (0, len(data))
        data[rng.integers(low, high)] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def _meaning(data: bytes | bytearray) -> object:
    try:
        return json.loads(data.decode())
    except ValueError:
        return bytes(data)


def zero(file: Path, rng: np.random.Generator, region: Region) -> bool:
    """Zero a page at a random place of a region, or the whole region when it is smaller; whether that changed bytes."""
    data = bytearray(file.read_bytes())
    start = int(rng.integers(region.start, max(region.start + 1, region.stop - PAGE + 1)))
    stop = min(start + PAGE, region.stop)
    changed = any(data[start:stop])
    data[start:stop] = bytes(stop - start)
    file.write_bytes(data)
    return changed


def cut(file: Path, by: int | None) -> None:
    """Truncate by so many bytes; None for half."""
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.truncate(size // 2 if by is None else max(0, size - by))


def junk(file: Path, rng: np.random.Generator, n: int) -> None:
    """Append random bytes."""
    with open(file, "ab") as handle:
        handle.write(rng.bytes(n))


def swap(one: Path, other: Path) -> None:
    """Let two files change names."""
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)
