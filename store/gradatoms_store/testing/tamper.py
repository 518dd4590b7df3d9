"""Ways to change one thing in a store that is there, with digests and hashes made to fit, as a forger would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from gradatoms_store.testing.forge import reseal, write_json
from gradatoms_store.testing.samples import SAMPLE_HOOKS
from gradatoms_store.testing.suite import demand

Damage = Callable[[Path], None]
Edit = Callable[[dict[str, Any]], object]
WIDE, NARROW = (hook.name for hook in SAMPLE_HOOKS)
SIDECAR, SHARD = "shards/00001.json", "shards/00001.h5"


def edited(name: str, edit: Edit, seal: bool = True) -> Damage:
    """Change the content of a JSON file; its digest is made to fit, or stays what the edit leaves."""

    def damage(path: Path) -> None:
        file = path / name
        data = json.loads(file.read_text("utf-8"))
        edit(data)
        if not seal:
            file.write_text(json.dumps(data, ensure_ascii=False), "utf-8")
            return
        write_json(file, data)

    return damage


def _inner(data: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        data = data[key]
    return data


def with_value(name: str, *keys: Any, to: Any) -> Damage:
    """Give a field, perhaps one inside others, another value."""

    def edit(data: dict[str, Any]) -> None:
        _inner(data, keys[:-1])[keys[-1]] = to

    return edited(name, edit)


def without(name: str, *keys: Any) -> Damage:
    """Leave out a field, perhaps one inside others."""
    return edited(name, lambda data: _inner(data, keys[:-1]).pop(keys[-1]), seal=keys != ("digest",))


def with_text(name: str, old: str, new: str) -> Damage:
    """Change the text of a JSON file; the digest stays."""

    def damage(path: Path) -> None:
        text = (path / name).read_text("utf-8")
        demand(old in text, f"{name} holds {old}")
        (path / name).write_text(text.replace(old, new, 1), "utf-8")

    return damage


def with_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file; nothing else is made to fit."""

    def damage(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return damage


def with_h5(edit: Callable[[Any], object]) -> Damage:
    """Change a shard with h5py; its sidecar is made to fit."""

    def damage(path: Path) -> None:
        with h5py.File(path / SHARD, "r+", libver=("v110", "v110")) as file:
            edit(file)
        reseal(path / SHARD)

    return damage


def symlinked(name: str) -> Damage:
    """Move a file or folder out of the store and link to it."""

    def damage(path: Path) -> None:
        moved = path.with_name("moved")
        (path / name).rename(moved)
        (path / name).symlink_to(moved)

    return damage


def with_folder(name: str) -> Damage:
    """Put a folder in the place of a file."""

    def damage(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return damage
