"""Every rule of `FORMAT.md` on what is on the disk, checked with h5py, json and xxhash alone.

Slow, and holds shards whole: it is there to be read beside the page, and to be right.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from gradatoms_store.testing.json_rules import check_header, check_sidecar
from gradatoms_store.testing.shard_rules import check_shard
from gradatoms_store.testing.suite import demand

_NUMBER = re.compile(r"[0-9]{5}|[1-9][0-9]{5,8}")


def check_store(path: Path) -> None:
    """Check everything that `FORMAT.md` says of a store's header, shards and sidecars, as they are now.

    Raises:
        RuleBrokenError: a rule is broken; names file and rule.
    """
    for item in [path, *path.rglob("*")]:
        mode = os.lstat(item).st_mode
        demand(stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{item}: regular file or folder")
    header = check_header(path / "store.json")
    shards = path / "shards"
    demand(shards.is_dir(), f"{shards}: folder of shards")
    units: set[int] = set()
    sidecars: dict[Path, dict[str, Any]] = {}
    for file in sorted(shards.glob("*.json")):
        demand(_NUMBER.fullmatch(file.stem) is not None, f"{file}: number of five to nine digits")
        sidecar = check_sidecar(file, header)
        demand(units.isdisjoint(sidecar["units"]), f"{file}: units are in no other shard")
        units |= set(sidecar["units"])
        sidecars[file.with_suffix(".h5")] = sidecar
    ids: set[int] = set()
    for shard, sidecar in sidecars.items():
        found = check_shard(shard, sidecar, header)
        demand(ids.isdisjoint(found), f"{shard}: ids of examples are unique in the store")
        ids |= found


def check_tidy(path: Path) -> None:
    """Check that no writer left anything but what `FORMAT.md` names: after the last one closed.

    Raises:
        RuleBrokenError: something is left.
    """
    names = {item.name for item in path.iterdir()} - {"store.json", "shards", "view.h5", "writers", "aside"}
    demand(not names, f"{path}: nothing but what the format names, found {sorted(names)}")
    for file in (path / "shards").iterdir():
        sidecar, shard = file.with_suffix(".json"), file.with_suffix(".h5")
        demand(file in (sidecar, shard) and sidecar.exists() and shard.exists(), f"{file}: no leftover")
    left = [file.name for file in (path / "writers").glob("*") if file.name != "lock"]
    demand(not left, f"{path}: no claims, found {left}")
