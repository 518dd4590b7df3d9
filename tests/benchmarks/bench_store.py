"""The gradient store against what its bytes allow: a raw file through np.memmap, raw writes, and other formats."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

from gradatoms_store import (
    ExampleRecord,
    GradientBlock,
    HookSpec,
    Store,
    StoreHeader,
    StoreWriter,
    open_store,
    store_info,
)

D, ROWS, BATCH, UNIT = 576, 400_000, 4096, 8192
REPEATS = 5
SHARD_ROWS, CHUNK_ROWS = 65536, 1024
"""Of the peers: rows of a file (zarr: of a shard) and of the piece that is read at once when they shuffle."""


def header(d: int, rows: int, unit: int, **changes: object) -> StoreHeader:
    values: dict[str, object] = {
        "model": {"name": "none"},
        "hooks": (HookSpec(name="h", hf_name="h", d=d),),
        "objective": "nll",
        "positions": "last",
        "plan": "bench",
        "n_units": -(-rows // unit),
        "n_examples": -(-rows // unit),
    }
    return StoreHeader(**(values | changes))  # type: ignore[arg-type]


def unit_of(number: int, gradients: np.ndarray) -> tuple[int, GradientBlock, list[ExampleRecord]]:
    n = len(gradients)
    numbers = np.arange(n, dtype=np.int32)
    block = GradientBlock(
        gradients={"h": gradients},
        example=np.full(n, number, np.int64),
        position=numbers,
        token=numbers,
        target=numbers,
        loss=numbers.astype(np.float32),
    )
    return number, block, [ExampleRecord(id=number, prompt="p", target="t", foil=None, concept=None, meta="{}")]


def make_store(path: Path, d: int, rows: int, unit: int, **changes: object) -> Store:
    gradients = np.random.default_rng(0).standard_normal((unit, d)).astype(np.float32)
    with StoreWriter.create(path, header(d, rows, unit, **changes)) as writer:
        for number, low in enumerate(range(0, rows, unit)):
            writer.append(*unit_of(number, gradients[: min(unit, rows - low)]))
    return open_store(path)


def medians(arms: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each arm, all arms once a round, after a round that is not counted; sorted."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(REPEATS + 1):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            if repeat:
                found[name].append(time.perf_counter() - started)
    return {name: sorted(seconds) for name, seconds in found.items()}


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages, so that the next read comes from the disk."""
    for file in [folder] if folder.is_file() else folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def in_pieces(n: int, size: int, rng: np.random.Generator | None) -> Iterator[slice]:
    lows = np.arange(0, n, size)
    for low in lows if rng is None else rng.permutation(lows):
        yield slice(int(low), min(int(low) + size, n))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_read(tmp_path: Path, dtype: str) -> None:
    rows = ROWS if dtype == "float16" else ROWS // 2
    store = make_store(tmp_path / "s.gstore", D, rows, UNIT, dtype=dtype)
    stored = np.concatenate([batch.gradients for batch in store.batches("h", 65536)]).astype(dtype)
    stored.tofile(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "peer.h5", "w") as file:
        file.create_dataset("g", data=stored)
    peer = zarr.create_array(
        tmp_path / "peer.zarr",
        shape=stored.shape,
        dtype=stored.dtype,
        chunks=(CHUNK_ROWS, D),
        shards=(SHARD_ROWS, D),
        compressors=None,
    )
    peer[:] = stored
    names = [tmp_path / f"{low}.safetensors" for low in range(0, rows, SHARD_ROWS)]
    for name, low in zip(names, range(0, rows, SHARD_ROWS), strict=True):
        save_file({"g": stored[low : low + SHARD_ROWS]}, name)
    size_gb = stored.nbytes / 1e9
    del stored
    rng = np.random.default_rng(0)
    raw = np.memmap(tmp_path / "raw.bin", dtype, "r", shape=(rows, D))

    def ours(shuffle: int | None, fresh: bool) -> None:
        opened = open_store(store.path) if fresh else store
        for _ in opened.batches("h", BATCH, shuffle=shuffle):
            pass

    def memmap_shuffled() -> None:
        order = rng.permutation(rows)
        for part in in_pieces(rows, BATCH, None):
            raw[order[part]].astype(np.float32)

    def safetensors(shuffled: bool) -> None:
        order = rng if shuffled else None
        for number in rng.permutation(len(names)) if shuffled else range(len(names)):
            with safe_open(names[number], "numpy") as file:
                tensor = file.get_slice("g")
                for part in in_pieces(tensor.get_shape()[0], CHUNK_ROWS if shuffled else BATCH, order):
                    tensor[part].astype(np.float32)

    def zarr_read(shuffled: bool) -> None:
        for part in in_pieces(rows, CHUNK_ROWS if shuffled else BATCH, rng if shuffled else None):
            np.asarray(peer[part]).astype(np.float32)

    few = 4 * BATCH

    def h5py_fancy() -> None:
        order = rng.permutation(rows)[:few]
        with h5py.File(tmp_path / "peer.h5") as file:
            for part in in_pieces(few, BATCH, None):
                file["g"][np.sort(order[part])].astype(np.float32)

    def memmap_sequential() -> None:
        for part in in_pieces(rows, BATCH, None):
            raw[part].astype(np.float32)

    def memmap_bytes() -> None:
        for part in in_pieces(rows, BATCH, None):
            np.array(raw[part])

    found = medians(
        {
            "np.memmap, sequential": memmap_sequential,
            "store, sequential": lambda: ours(None, False),
            "store, sequential, hashes checked": lambda: ours(None, True),
            "store, shuffled": lambda: ours(0, False),
            "store, shuffled, hashes checked": lambda: ours(0, True),
            "np.memmap, rows in random order": memmap_shuffled,
            "np.memmap, bytes only, no float32": memmap_bytes,
            "safetensors, sequential": lambda: safetensors(False),
            "safetensors, pieces in random order": lambda: safetensors(True),
            "zarr v3 sharded, sequential": lambda: zarr_read(False),
            "zarr v3 sharded, pieces in random order": lambda: zarr_read(True),
            "h5py fancy indexing (4 batches)": h5py_fancy,
        }
    )
    base = statistics.median(found["np.memmap, sequential"])
    print(
        f"\n{dtype} -> float32 batches of {BATCH} x {D}, {size_gb:.2f} GB stored, in the page cache, medians of {REPEATS}"
    )
    print(f"{'':42}{'GB/s':>7}{'lowest':>8}{'highest':>8}{'× memmap sequential':>21}")
    shares = {}
    for name, seconds in found.items():
        part = few / rows if "4 batches" in name else 1.0
        speeds = [part * size_gb / s for s in (statistics.median(seconds), seconds[-1], seconds[0])]
        shares[name] = speeds[0] / (size_gb / base)
        print(f"{name:42}{speeds[0]:7.2f}{speeds[1]:8.2f}{speeds[2]:8.2f}{shares[name]:21.2f}")
    cold_file = Path(shutil.copyfile(tmp_path / "raw.bin", tmp_path / "cold.bin"))  # `raw` keeps its pages mapped
    for name, order in (("sequential", None), ("shuffled", 0)):
        cold = {}
        for arm, path in (("np.memmap", cold_file), ("store", store.path)):
            seconds = []
            for _ in range(3):
                drop_from_cache(path)
                started = time.perf_counter()
                if arm == "store":
                    ours(order, True)
                else:
                    fresh = np.memmap(cold_file, dtype, "r", shape=(rows, D))
                    for part in in_pieces(rows, BATCH, None):
                        fresh[part].astype(np.float32)
                    del fresh  # mapped pages are not forgotten
                seconds.append(time.perf_counter() - started)
            cold[arm] = size_gb / statistics.median(seconds)
        print(
            f"from the disk: store {name} {cold['store']:.2f} GB/s, np.memmap sequential {cold['np.memmap']:.2f} GB/s"
        )
    if dtype == "float16":  # the default; float32 needs no conversion, so there np.memmap is a plain copy in memory
        assert shares["store, sequential, hashes checked"] > 0.8
        assert shares["store, shuffled, hashes checked"] > 0.7


def test_write(tmp_path: Path) -> None:
    n, shards = 100_000, 4
    gradients = np.random.default_rng(0).standard_normal((n, D)).astype(np.float32)
    raw = np.random.default_rng(0).integers(0, 255, n * (2 * D + 28), dtype=np.uint8)
    found: dict[str, list[float]] = {
        "raw write and fsync": [],
        "commit of buffered rows": [],
        "from float32 gradients": [],
    }

    def write_raw() -> float:
        started = time.perf_counter()
        for number in range(shards):
            with open(tmp_path / f"{number}.raw", "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
        return time.perf_counter() - started

    def commit() -> float:
        seconds = 0.0
        with StoreWriter.create(tmp_path / "c.gstore", header(D, shards * n, n), rows_per_shard=10 * n) as writer:
            for number in range(shards):
                writer.append(*unit_of(number, gradients))
                started = time.perf_counter()
                writer.flush()
                seconds += time.perf_counter() - started
        return seconds

    def whole() -> float:
        started = time.perf_counter()
        with StoreWriter.create(tmp_path / "w.gstore", header(D, shards * n, n), rows_per_shard=n) as writer:
            for number in range(shards):
                writer.append(*unit_of(number, gradients))
        return time.perf_counter() - started

    for repeat in range(9):
        for values, work in zip(found.values(), (write_raw, commit, whole), strict=True):
            seconds = work()
            if repeat >= 2:  # the first rounds get pages that this machine has never used, which are slow
                values.append(seconds)
            for path in tmp_path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    size_gb = shards * raw.nbytes / 1e9
    base = statistics.median(found["raw write and fsync"])
    print(f"\n{shards} shards of {size_gb / shards:.3f} GB, medians of {len(found['raw write and fsync'])}")
    for name, values in found.items():
        median = statistics.median(values)
        spread = f"{size_gb / max(values):.2f} to {size_gb / min(values):.2f}"
        print(f"{name:24}{size_gb / median:6.2f} GB/s ({spread}){base / median:8.2f} × raw")
    assert base / statistics.median(found["commit of buffered rows"]) > 0.5


STREAM = """
import sys, resource
from gradatoms_store import open_store
store = open_store(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
for shuffle in (None, 0):
    seen, samples = 0, []
    for batch in store.batches("h", 4096, shuffle=shuffle, buffer_bytes=int(sys.argv[2])):
        seen += len(batch.index)
        samples.append(resident())
    tenths = [max(samples[i * len(samples) // 10 : (i + 1) * len(samples) // 10]) for i in range(10)]
    print("shuffled  " if shuffle is not None else "sequential", *(f"{value:.0f}" for value in tenths))
    assert max(tenths[1:]) - min(tenths[1:]) < 64, tenths
"""


def test_memory_is_flat(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.gstore", D, ROWS, UNIT)
    buffer_bytes = store.info.bytes // 4
    print(
        f"\nresident MiB in each tenth of a pass over {store.info.bytes / 2**20:.0f} MiB, buffer {buffer_bytes / 2**20:.0f} MiB"
    )
    command = [sys.executable, "-c", STREAM, str(store.path), str(buffer_bytes)]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def test_fifty_million_rows(tmp_path: Path) -> None:
    rows, d = 50_000_000, 8
    started = time.perf_counter()
    path = make_store(tmp_path / "s.gstore", d, rows, 2**18).path
    print(f"\n{rows:,} rows of {d}: written in {time.perf_counter() - started:.0f} s")
    found: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        started = time.perf_counter()
        value = work()
        found.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return value

    for cached in (False, True):
        where = "" if cached else ", from the disk"
        for _ in range(5):
            if not cached:
                drop_from_cache(path)
            timed(f"info{where}", lambda: store_info(path))
            if not cached:
                drop_from_cache(path)
            store = timed(f"open{where}", lambda: open_store(path))
            assert isinstance(store, Store)
            timed(f"first batch{where}", lambda store=store: next(store.batches("h", BATCH)))
            timed(f"first batch, shuffled{where}", lambda store=store: next(store.batches("h", BATCH, shuffle=0)))
    info = store_info(path)
    print(f"{info.shards} shards, {info.bytes / 1e9:.2f} GB; median ms of 5 (lowest to highest)")
    for name, values in found.items():
        print(f"{name:40}{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})")
    assert info.rows == rows
