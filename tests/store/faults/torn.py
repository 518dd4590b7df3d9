"""What a power cut leaves of the last write: parts of a shard, of a sidecar, of a claim. A resume clears them away."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from check import inspect
from children import Job, run
from content import contents, fill
from kills import finish
from tally import Bench, Tally

UNITS, COMMITTED = 24, 12


def last_writes(bench: Bench, tally: Tally) -> None:
    """Leave torn files of the next shard beside the committed ones."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, range(COMMITTED), 20)
        before = inspect(path, content)
        later = Path(shutil.copytree(path, folder / "later.gstore"))
        child = run(Job(later, content, 0, 20), folder / "later.log")
        tally.fail_if(child.status, f"{where}: {child.error}")
        left = _leave(rng, path, later, tally.trials)
        tally.rows += before.rows
        found = inspect(path, content, (), before)
        tally.take(found, f"{where}, with {left}")
        tally.fail_if(found.units != before.units, f"{where}: torn {left} counts as committed")
        finish(tally, path, content, rng, folder, found, f"{where}, with {left}")


def _leave(rng: np.random.Generator, path: Path, later: Path, number: int) -> list[str]:
    """Put parts of files of `later` into the store at `path`, as a power cut would."""
    shards, stem = later / "shards", f"{COMMITTED // 2:05d}"
    shard, sidecar, claim = shards / f"{stem}.h5", shards / f"{stem}.json", b'{"units": [3, 4], "shard": 6}'
    torn: dict[str, bytes] = {}
    case = number % 6
    if case == 0:
        torn[f"shards/{stem}.h5.partial"] = _torn(rng, shard.read_bytes())
    if case == 1:
        torn[f"shards/{stem}.h5"] = _torn(rng, shard.read_bytes())
    if case == 2:
        torn[f"shards/{stem}.h5"] = shard.read_bytes()
        torn[f"shards/{stem}.json.partial"] = _torn(rng, sidecar.read_bytes())
    if case == 3:
        torn["store.json.partial"] = _torn(rng, (later / "store.json").read_bytes())
        torn["shards/00031.h5"] = bytes(int(rng.integers(5000)))
    if case == 4:
        torn["writers/0123456789abcdef.json"] = _torn(rng, claim)
        torn["shards/00006.h5.partial"] = b""
    if case == 5:  # the file has its length, but not its bytes
        torn[f"shards/{stem}.h5.partial"] = bytes(shard.stat().st_size)
        torn[f"shards/{stem}.json.partial"] = bytes(sidecar.stat().st_size)
    for name, data in torn.items():
        (path / name).write_bytes(data)
    return sorted(torn)


def _torn(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]
