"""Shard files that a reader must refuse, by name: one rule of `FORMAT.md` broken in each, all else made to fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradatoms_store.testing.forge import reseal
from gradatoms_store.testing.shard_rules import GAP_BYTES, GAP_BYTES_A_DATASET
from gradatoms_store.testing.tamper import (
    SHARD,
    WIDE,
    Damage,
    symlinked,
    with_bytes,
    with_folder,
    with_h5,
)


def _replaced(name: str, values: Any = None, **options: Any) -> Damage:
    """Write a dataset of a shard anew, with other values or in other storage."""

    def edit(file: Any) -> None:
        old = file[name][...]
        del file[name]
        file.create_dataset(name, data=old if values is None else values(old), **options)

    return with_h5(edit)


def _value(name: str, index: int, value: Any) -> Damage:
    def edit(file: Any) -> None:
        file[name][index] = value

    return with_h5(edit)


def _external(file: Any) -> None:
    shape = file["rows/loss"].shape
    del file["rows/loss"]
    file.create_dataset("rows/loss", shape, "<f4", external=[("00000.h5", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: Any) -> None:
    shape = file["rows/loss"].shape
    del file["rows/loss"]
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[:] = h5py.VirtualSource("00000.h5", "rows/loss", (30,))[: shape[0]]
    file.create_virtual_dataset("rows/loss", layout)


def _compact(file: Any) -> None:
    values = file["rows/loss"][...]
    del file["rows/loss"]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(np.dtype("<f4"))
    dataset = h5py.h5d.create(file.id, b"rows/loss", kind, space, dcpl=creation)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def _soft(file: Any) -> None:
    file.move("rows/loss", "rows/target_")
    del file["rows/target"]
    file["rows/loss"] = h5py.SoftLink("/rows/target_")
    file.move("rows/target_", "rows/target")


def _linked(file: Any, to: Any) -> None:
    del file["rows/position"]
    file["rows/position"] = to(file)


def _user_block(path: Path) -> None:
    old, new = path / SHARD, path / "shards/new"
    with h5py.File(old) as source, h5py.File(new, "w", libver=("v110", "v110"), userblock_size=512) as target:
        target.attrs.update(source.attrs)
        for name in source:
            source.copy(name, target)
    os.replace(new, old)
    reseal(old)


def _padded(path: Path) -> None:
    with open(path / SHARD, "ab") as file:
        file.write(bytes(GAP_BYTES + 40 * GAP_BYTES_A_DATASET))
    reseal(path / SHARD)


SHARD_DAMAGES: dict[str, Damage] = {
    "shard: missing": lambda path: os.unlink(path / SHARD),
    "shard: a byte short": with_bytes(SHARD, lambda data: data[:-1]),
    "shard: a byte long": with_bytes(SHARD, lambda data: data + b"\0"),
    "shard: another of the same size": with_bytes(SHARD, lambda data: bytes(len(data))),
    "shard: symbolic link": symlinked(SHARD),
    "shard: a folder": with_folder(SHARD),
    "shards: symbolic link": symlinked("shards"),
    "shards: missing": lambda path: shutil.rmtree(path / "shards"),
    "shard: user block": _user_block,
    "shard: much beside the data": _padded,
    "shard: unknown dataset": with_h5(lambda file: file.create_dataset("rows/more", data=np.zeros(3))),
    "shard: unknown group": with_h5(lambda file: file.create_group("more")),
    "shard: unknown group of a text": with_h5(lambda file: file.create_group("examples/prompt/more")),
    "shard: present of a text that has none": with_h5(
        lambda file: file.create_dataset("examples/prompt/present", data=np.ones(2, "u1"))
    ),
    "shard: dataset missing": with_h5(lambda file: file.__delitem__("rows/loss")),
    "shard: hook missing": with_h5(lambda file: file.__delitem__("norms/" + WIDE)),
    "shard: group in place of a dataset": with_h5(lambda file: _linked(file, lambda f: f.create_group(None))),
    "shard: dataset in place of a group": with_h5(
        lambda file: (file.__delitem__("norms"), file.create_dataset("norms", data=np.zeros(3)))
    ),
    "shard: named type in place of a dataset": with_h5(lambda file: _linked(file, lambda f: np.dtype("<i4"))),
    "shard: soft link": with_h5(_soft),
    "shard: external link": with_h5(
        lambda file: _linked(file, lambda f: h5py.ExternalLink("00000.h5", "rows/position"))
    ),
    "shard: two links to one dataset": with_h5(lambda file: _linked(file, lambda f: f["rows/token"])),
    "shard: chunked": _replaced("rows/loss", chunks=True),
    "shard: compressed": _replaced("rows/loss", chunks=True, compression="gzip"),
    "shard: checksums of HDF5": _replaced("rows/loss", chunks=True, fletcher32=True),
    "shard: resizable": _replaced("rows/loss", maxshape=(None,)),
    "shard: compact": with_h5(_compact),
    "shard: external storage": with_h5(_external),
    "shard: virtual": with_h5(_virtual),
    "shard: no place for the data": with_h5(
        lambda file: (file.__delitem__("rows/loss"), file.create_dataset("rows/loss", (10,), "<f4"))
    ),
    "shard: big-endian": _replaced("rows/position", lambda old: old.astype(">i4")),
    "shard: unsigned": _replaced("rows/position", lambda old: old.astype("<u4")),
    "shard: wider": _replaced("rows/position", lambda old: old.astype("<i8")),
    "shard: float64 norms": _replaced("norms/" + WIDE, lambda old: old.astype("<f8")),
    "shard: float32 directions": _replaced("gradients/" + WIDE, lambda old: old.astype("<f4")),
    "shard: unsigned directions": _replaced("gradients/" + WIDE, lambda old: old.view("<u2")),
    "shard: strings": _replaced("examples/prompt/data", lambda old: np.array(["a"], "S5")),
    "shard: booleans": _replaced("examples/foil/present", lambda old: old.astype(bool)),
    "shard: a row too few": _replaced("rows/loss", lambda old: old[:-1]),
    "shard: a row too many": _replaced("rows/loss", lambda old: np.append(old, old[:1])),
    "shard: another width": _replaced("gradients/" + WIDE, lambda old: old[:, :-1]),
    "shard: another rank": _replaced("rows/loss", lambda old: old[:, None]),
    "shard: an offset too few": _replaced("examples/prompt/offsets", lambda old: old[1:]),
    "shard: an example too many": _replaced("examples/id", lambda old: np.append(old, 99)),
    "shard: absurd shape": with_h5(
        lambda file: (
            file.__delitem__("examples/prompt/data"),
            file.create_dataset("examples/prompt/data", (2**50,), "u1"),
        )
    ),
    "shard: texts begin late": _value("examples/meta/offsets", 0, 1),
    "shard: texts end early": _value("examples/meta/offsets", -1, 3),
    "shard: texts reach beyond the data": _value("examples/meta/offsets", -1, 2**40),
    "shard: texts overlap": _value("examples/meta/offsets", 1, 2**40),
    "shard: texts not UTF-8": _value("examples/meta/data", 0, 0xFF),
}

BFLOAT16_DAMAGES: dict[str, Damage] = {
    "bfloat16: no attribute": with_h5(lambda file: file["gradients/" + WIDE].attrs.__delitem__("dtype")),
    "bfloat16: other attribute": with_h5(
        lambda file: file["gradients/" + WIDE].attrs.create("dtype", np.bytes_("float16"))
    ),
    "bfloat16: attribute of variable length": with_h5(
        lambda file: file["gradients/" + WIDE].attrs.create("dtype", "bfloat16", dtype=h5py.string_dtype())
    ),
    "bfloat16: float16 inside": _replaced("gradients/" + WIDE, lambda old: old.view("<f2")),
}
