"""Stores of all kinds that a reader must read, by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradatoms_store.merge import merge_stores
from gradatoms_store.schema import HookSpec, StoreHeader
from gradatoms_store.testing.forge import Expected, SampleShard, reseal, write_h5, write_store
from gradatoms_store.testing.samples import MANY_HOOKS, ROW_DTYPES, SAMPLE_HOOKS, UNITS, sample_header, sample_unit
from gradatoms_store.view import write_view
from gradatoms_store.writer import StoreWriter

Build = Callable[[Path], Expected]


def _plain(version: int = 2, **changes: Any) -> Build:
    """Three shards of three, one and two units."""

    def build(path: Path) -> Expected:
        header = sample_header(**changes)
        return write_store(path, header, three_shards(header), version=version)

    return build


def three_shards(header: StoreHeader) -> list[SampleShard]:
    """Shards 0, 1 and 2 of a sample store: of three, one and two units."""
    return [SampleShard.of(header, number, units) for number, units in enumerate([(0, 1, 5), (2,), (3, 4)])]


def _numbered(*numbers: int) -> Build:
    def build(path: Path) -> Expected:
        header = sample_header()
        return write_store(path, header, [SampleShard.of(header, number, [i]) for i, number in enumerate(numbers)])

    return build


def _no_shards(path: Path) -> Expected:
    return write_store(path, sample_header(), [])


def _no_rows(path: Path) -> Expected:
    """A shard with nothing, one with rows, one with examples that have no rows."""
    header = sample_header()
    sizes = [(0, 0), (10, 2), (0, 3)]
    shards = [SampleShard.of(header, i, [i], rows=n, examples=m) for i, (n, m) in enumerate(sizes)]
    shards[2] = SampleShard.of(header, 2, [7], rows=0, examples=3)
    return write_store(path, header, shards)


def _segments(path: Path) -> Expected:
    """Segments of one row, of all rows to the row, and of many more rows than there are."""
    header = sample_header()
    return write_store(
        path, header, [SampleShard.of(header, i, [i], segment_rows=n) for i, n in enumerate([1, 10, 9999])]
    )


def _extremes(path: Path) -> Expected:
    """Norms at the ends of float32, and directions whose parts are tiny or lie along one axis."""
    header = sample_header(hooks=(HookSpec(name="h", hf_name="", d=3),))
    shard = SampleShard.of(header, 0, [0], rows=6)
    shard.norms["h"][:] = [0, 1.4e-45, 1.2e-38, 1e-7, 1e4, 3.4e38]
    axes = [[0, 0, 0], [1, 0, 0], [-1, 6e-8, -6e-8], [0, 0, -1], [1, 6.1e-5, 2**-24], [0.6, -0.8, -0.0]]
    shard.directions["h"][:] = np.array(axes, "<f2")
    return write_store(path, header, [shard])


def _widest_numbers(path: Path) -> Expected:
    """Integers at the ends of their dtypes."""
    header = sample_header(n_units=2**62, seed=2**62, n_examples=2**62, model={"big": 2**70, "below": -5})
    shard = replace(SampleShard.of(header, 0, [0], example_offset=2**40), units=(2**61,))
    for field, dtype in ROW_DTYPES.items():
        if field not in ("example", "loss"):
            shard.rows[field][:2] = [np.iinfo(dtype).min, np.iinfo(dtype).max]
    shard.rows["loss"][:3] = [3.4e38, -1e-45, np.nan]
    return write_store(path, header, [shard])


def _merged(path: Path) -> Expected:
    """Shards whose example ids begin anew, as after a merge."""
    header = sample_header(n_units=16, n_examples=32)
    shards = [SampleShard.of(header, 0, [0, 1]), SampleShard.of(header, 1, [2], example_offset=16)]
    return write_store(path, header, [*shards, SampleShard.of(header, 2, [3], example_offset=2**33)])


def _leftovers(path: Path) -> Expected:
    """What killed writers leave: partial files, and whole shards without a sidecar."""
    header = sample_header()
    shards = three_shards(header)
    write_store(path, header, shards)
    folder = path / "shards"
    shutil.copy(folder / "00002.h5", folder / "00007.h5")
    shutil.copy(folder / "00002.h5", folder / "00008.h5.partial")
    shutil.copy(folder / "00002.json", folder / "00008.json.partial")
    (folder / "00001.h5.partial").write_bytes(b"half")
    (folder / "00001.json.partial").write_text("{")
    (path / "store.json.partial").write_text("{}")
    (folder / "00002.json").rename(folder / "00002.json.partial")
    (folder / "00009.h5").write_bytes(b"")
    return Expected.of(header, shards[:2])


def _writers_and_aside(path: Path) -> Expected:
    """Locks and claims of writers, living or dead, and shards that a repair took out."""
    expected = _plain()(path)
    for name in ("writers", "aside"):
        (path / name).mkdir()
    (path / "writers/lock").touch()
    (path / "writers/0123456789abcdef.json").write_text('{"units": [0, 7], "shard": 1}')
    (path / "writers/broken.json").write_text("")
    for name in ("00001.h5", "00001.json"):
        shutil.copy(path / "shards" / name, path / "aside" / name)
    (path / "aside/00001.h5.1").write_bytes(b"\0")
    return expected


def _view(path: Path) -> Expected:
    """A view of other rows than there are now: one shard fewer, and other losses."""
    expected = _plain()(path)
    n = 30
    with h5py.File(path / "view.h5", "w", libver=("v110", "v110")) as view:
        view.attrs["format"] = np.bytes_("gradatoms-view")
        layout = h5py.VirtualLayout((n,), "<f4")
        layout[:] = h5py.VirtualSource("shards/00000.h5", "norms/" + SAMPLE_HOOKS[0].name, (n,))
        view.create_virtual_dataset("rows/loss", layout)
        view["examples/id"] = np.arange(99)
    return expected


def _hard_links(path: Path) -> Expected:
    """Files that another store shares, as a merge makes them."""
    expected = _plain()(path)
    other = path.with_name("other.gstore")
    (other / "shards").mkdir(parents=True)
    for file in (path / "shards").iterdir():
        os.link(file, other / "shards" / file.name)
    return expected


def _other_json(path: Path) -> Expected:
    """JSON with other white space and order of keys, escaped where it need not be."""
    expected = _plain()(path)
    for file in path.rglob("*.json"):
        data = json.loads(file.read_text("utf-8"))
        file.write_text("\n" + json.dumps(dict(reversed(data.items())), indent=3) + " \n", "utf-8")
    return expected


def _aligned(path: Path) -> Expected:
    """Shards whose data lie at multiples of 4096 bytes, with holes between."""
    header = sample_header()
    shards = three_shards(header)[:1]
    expected = write_store(path, header, shards)
    file = path / "shards/00000.h5"
    write_h5(file, shards[0].arrays(), header.dtype, 2, alignment_threshold=1, alignment_interval=2048)
    reseal(file)
    return expected


def _one_hook(path: Path) -> Expected:
    header = sample_header(hooks=SAMPLE_HOOKS[:1], space="weights", objective="nll", model={})
    return write_store(path, header, three_shards(header))


def _many_hooks(path: Path) -> Expected:
    header = sample_header(hooks=MANY_HOOKS, dtype="bfloat16")
    return write_store(path, header, three_shards(header))


def _written(path: Path, **changes: Any) -> StoreHeader:
    """By this package's writer, with rows of a shard in random order."""
    header = sample_header(**changes)
    with StoreWriter.create(path, header, rows_per_shard=25) as writer:
        for unit in range(UNITS):
            writer.append(unit, *sample_unit(unit, header))
    return header


def _by_writer(path: Path) -> Expected:
    return Expected.read(path, _written(path))


def _by_merge(path: Path) -> Expected:
    """Two plans, so that the examples of the second are counted on from the first."""
    folders = [path.with_name(f"{plan}.gstore") for plan in ("one", "two")]
    headers = [_written(folder, plan=folder.stem) for folder in folders]
    merge_stores(folders, path)
    return Expected.read(path, headers[0])


def _by_view(path: Path) -> Expected:
    header = _written(path)
    write_view(path)
    return Expected.read(path, header)


CONTENTS: dict[str, Build] = {
    "float16": _plain(),
    "bfloat16": _plain(dtype="bfloat16"),
    "float32": _plain(dtype="float32"),
    "one hook, weights": _one_hook,
    "many hooks": _many_hooks,
    "gaps between shards": _numbered(3, 4, 70),
    "six digits": _numbered(99999, 100000, 100001),
    "no shards": _no_shards,
    "no rows": _no_rows,
    "segments": _segments,
    "extreme gradients": _extremes,
    "widest numbers": _widest_numbers,
    "merged": _merged,
    "leftovers": _leftovers,
    "writers and aside": _writers_and_aside,
    "view of other rows": _view,
    "hard links": _hard_links,
    "JSON in another dress": _other_json,
    "data far apart": _aligned,
    "written by StoreWriter": _by_writer,
    "written by merge_stores": _by_merge,
    "with a view by write_view": _by_view,
    "version 1, float16": _plain(version=1),
    "version 1, bfloat16": _plain(version=1, dtype="bfloat16"),
    "version 1, float32": _plain(version=1, dtype="float32"),
}
"""Name to what writes the store and tells what is in it."""
