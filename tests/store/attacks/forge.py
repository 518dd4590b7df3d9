"""Tools of a forger: a valid small store, changes to its files, and everything else made to fit them again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, StoreError, StoreHeader, StoreWriter
from gradatoms_store.container import structure_hash
from gradatoms_store.jsonio import digest_of

HOOKS = ("blocks.3.hook", "blocks.7.hook")
UNITS, ROWS, D = 6, 8, 6
Build = Callable[["Forge"], None]
ATTACKS: dict[str, tuple[str, Build]] = {}
"""Every attack by name: the module that it is from, and a function that turns a valid store into a hostile one."""


def attack(build: Build) -> Build:
    """Register an attack."""
    ATTACKS[build.__name__] = (build.__module__, build)
    return build


def attacks(template: Callable[..., None], **variants: tuple[Any, ...]) -> None:
    """Register an attack in variants: name to the arguments that follow the forge."""
    for name, arguments in variants.items():
        ATTACKS[name] = (template.__module__, lambda forge, arguments=arguments: template(forge, *arguments))


def write_store(path: Path, *, hooks: tuple[str, ...] = HOOKS, **changes: Any) -> None:
    """A valid store of 48 rows and 12 examples in 3 shards."""
    values: dict[str, Any] = {
        "model": {"name": "tiny", "d_model": D},
        "hooks": tuple(HookSpec(name=name, hf_name="model.layers", d=D) for name in hooks),
        "objective": "nll",
        "positions": "prediction",
        "plan": "c0ffee",
        "n_units": UNITS,
        "n_examples": 2 * UNITS,
    }
    rng = np.random.default_rng(0)
    with StoreWriter.create(path, StoreHeader(**(values | changes)), rows_per_shard=2 * ROWS) as writer:
        for unit in range(UNITS):
            block = GradientBlock(
                gradients={name: rng.standard_normal((ROWS, D)).astype(np.float32) for name in hooks},
                example=np.arange(ROWS, dtype=np.int64) % 2 + 2 * unit,
                position=np.arange(ROWS, dtype=np.int32),
                token=np.arange(ROWS, dtype=np.int32),
                target=np.arange(ROWS, dtype=np.int32),
                loss=rng.uniform(0, 9, ROWS).astype(np.float32),
            )
            texts = [(2 * unit + i, f"prompt {i}", "target", "foil", "concept", "{}") for i in range(2)]
            keys = ("id", "prompt", "target", "foil", "concept", "meta")
            writer.append(unit, block, [ExampleRecord(**dict(zip(keys, text, strict=True))) for text in texts])


class Forge:
    """One store to be made hostile; the shard attacked is the second of three."""

    def __init__(self, valid: Path, folder: Path) -> None:
        """Copy the valid store into `folder`, with some files of the victim's outside of it."""
        self.store = folder / "s.gstore"
        shutil.copytree(valid, self.store)
        self.shard = self.store / "shards" / "00001.h5"
        self.sidecar = self.shard.with_suffix(".json")
        self.outside = folder / "outside.h5"
        shutil.copy(self.shard, self.outside)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The shard, for changes; then its sidecar is made to fit."""
        with h5py.File(self.shard, "r+", libver=("v110", "v110")) as file:
            yield file
        self.refit()

    @contextlib.contextmanager
    def bytes(self) -> Iterator[bytearray]:
        """The shard's bytes, for changes; then the superblock states the length, and the sidecar is made to fit."""
        data = bytearray(self.shard.read_bytes())
        yield data
        restate(data, len(data))
        self.shard.write_bytes(data)
        self.refit()

    def refit(self, **changes: Any) -> None:
        """Let the sidecar state what the shard holds, as far as that can be said, and its own right digest."""
        data = json.loads(self.sidecar.read_text()) | {"bytes": self.shard.stat().st_size}
        with contextlib.suppress(OSError, RuntimeError):
            data |= self._stated(data)
        self.write_json(self.sidecar, data | changes)

    def _stated(self, data: dict[str, Any]) -> dict[str, Any]:
        blocks, segments, extents = dict(data["blocks"]), dict(data.get("segments", {})), []
        step = data.get("segment_rows", 1)
        with h5py.File(self.shard) as file, open(self.shard, "rb") as raw:
            for name in blocks:
                with contextlib.suppress(KeyError, OSError, AttributeError, TypeError, OverflowError):
                    offset, shape, length = file[name].id.get_offset(), file[name].shape, file[name].nbytes
                    if offset is not None and length < 2**20:
                        extents.append((offset, length))
                        raw.seek(offset)
                        content = raw.read(length)
                        blocks[name] = xxhash.xxh3_128_hexdigest(content)
                        if name in segments:
                            bounds = range(0, length, step * (length // shape[0]))
                            parts = [content[low : low + bounds.step] for low in bounds]
                            segments[name] = "".join(xxhash.xxh3_64_hexdigest(part) for part in parts)
        out = {"blocks": blocks}
        if "segments" in data:
            out["segments"] = segments
            with contextlib.suppress(StoreError):
                out["structure"] = structure_hash(self.shard, extents)
        return out

    def edit(self, **changes: Any) -> None:
        """Change the sidecar, which then has its right digest."""
        self.write_json(self.sidecar, json.loads(self.sidecar.read_text()) | changes)

    def edit_header(self, **changes: Any) -> None:
        """Change `store.json`, and the fingerprint in every sidecar with it."""
        file = self.store / "store.json"
        self.write_json(file, json.loads(file.read_text()) | changes)
        with contextlib.suppress(StoreError):
            fingerprint = StoreHeader.from_json(file.read_text()).fingerprint
            for sidecar in self.shard.parent.glob("*.json"):
                self.write_json(sidecar, json.loads(sidecar.read_text()) | {"fingerprint": fingerprint})

    @staticmethod
    def write_json(path: Path, data: dict[str, Any]) -> None:
        """Write a JSON file with its right digest."""
        data.pop("digest", None)
        if data["schema_version"] != 1:
            data["digest"] = digest_of(data)
        path.write_text(json.dumps(data))

    def view(self) -> Any:
        """An HDF5 file to become the store's view."""
        return h5py.File(self.store / "view.h5", "w", libver=("v110", "v110"))

    def link_away(self, path: Path) -> None:
        """Move a file or folder out of the store, and leave a symbolic link."""
        kept = self.store.parent / "kept"
        os.rename(path, kept)
        path.symlink_to(kept)


def replace(file: Any, name: str, **options: Any) -> None:
    """Make a dataset anew with options."""
    values = file[name][:]
    del file[name]
    file.create_dataset(name, data=values, **options)


def retyped(file: Any, name: str, kind: Any) -> None:
    """Make a dataset anew with another HDF5 type."""
    shape = file[name].shape
    del file[name]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation)


def address(data: bytearray, name: str) -> int:
    """Where the header of an object is, as libhdf5 finds it."""
    with h5py.File(io.BytesIO(data)) as file:
        return int(h5py.h5o.get_info(file.id, name.encode()).addr)


def dataset_bytes(data: bytearray, name: str) -> tuple[int, int]:
    """Where a dataset's data begin, and how many bytes they are."""
    with h5py.File(io.BytesIO(data)) as file:
        return int(file[name].id.get_offset()), int(file[name].nbytes)


def header_bounds(data: bytearray, start: int) -> tuple[int, int]:
    """Where the messages of the object header at `start` begin and end; its checksum follows."""
    flags = data[start + 5]
    at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    return at + width, at + width + int.from_bytes(data[at : at + width], "little")


def message(data: bytearray, start: int, kind: int) -> tuple[int, int]:
    """Where the first message of a kind begins in the object header at `start`, and its length without its own header."""
    at, end = header_bounds(data, start)
    while at < end:
        length = int.from_bytes(data[at + 1 : at + 3], "little")
        if data[at] == kind:
            return at, length
        at += 4 + length
    raise ValueError(f"no message {kind} at {start}")


def reseal(data: bytearray, start: int) -> None:
    """Give the object header at `start` its right checksum again."""
    _, end = header_bounds(data, start)
    data[end : end + 4] = lookup3(data[start:end]).to_bytes(4, "little")


def restate(data: bytearray, size: int) -> None:
    """Let the superblock state the file's length."""
    data[28:36] = size.to_bytes(8, "little")
    data[44:48] = lookup3(data[:44]).to_bytes(4, "little")


def patch(data: bytearray, name: str, old: bytes, new: bytes) -> None:
    """Replace bytes in the header of an object."""
    start = address(data, name)
    _, end = header_bounds(data, start)
    assert old in data[start:end] and len(old) == len(new)
    data[start:end] = data[start:end].replace(old, new)
    reseal(data, start)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 (hashlittle, start value 0): HDF5's checksum of metadata."""

    def turn(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    padded = bytes(data) + bytes(-len(data) % 12)
    for start in range(0, len(padded), 12):
        a = (a + int.from_bytes(padded[start : start + 4], "little")) & 0xFFFFFFFF
        b = (b + int.from_bytes(padded[start + 4 : start + 8], "little")) & 0xFFFFFFFF
        c = (c + int.from_bytes(padded[start + 8 : start + 12], "little")) & 0xFFFFFFFF
        if start + 12 < len(padded):
            for k in (4, 6, 8, 16, 19, 4):
                a = (a - c) & 0xFFFFFFFF ^ turn(c, k)
                c = (c + b) & 0xFFFFFFFF
                a, b, c = b, c, a
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - turn(b, k)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
