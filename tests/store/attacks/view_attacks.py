"""Views and files of a store that lead elsewhere, or take for ever."""

from __future__ import annotations

import os
import shutil
from typing import Any

import h5py
import numpy as np
from forge import Forge, attack, attacks

from gradatoms_store import write_view


def _view_of(forge: Forge, source: Any, name: str = "rows/loss") -> None:
    with forge.view() as file:
        layout = h5py.VirtualLayout((16,), "<f4")
        layout[:] = h5py.VirtualSource(source(forge), name, (16,))
        file.create_virtual_dataset("rows/loss", layout)


def _uncommitted(forge: Forge) -> str:
    shutil.copy(forge.outside, forge.store / "shards" / "00009.h5")
    return "shards/00009.h5"


attacks(
    _view_of,
    view_of_absolute_path=(lambda forge: str(forge.outside),),
    view_of_parent_folder=(lambda _: "../outside.h5",),
    view_through_a_shard=(lambda _: "shards/00000.h5/../../../outside.h5",),
    view_of_other_file=(lambda _: "store.json",),
    view_of_itself=(lambda _: ".",),
    view_of_uncommitted_shard=(_uncommitted,),
    view_of_missing_shard=(lambda _: "shards/00077.h5",),
)


def _view_of_pattern(forge: Forge, pattern: str) -> None:
    """A virtual dataset without end, for which a library tries one file name after the other."""
    with forge.view() as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        space = h5py.h5s.create_simple((1,), (h5py.h5s.UNLIMITED,))
        space.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (1,), (1,))
        creation.set_virtual(space, pattern.encode(), b"x", h5py.h5s.create_simple((1,)))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, creation)


attacks(_view_of_pattern, view_of_pattern=("shards/%b.h5",), view_of_pattern_outside=("../%b.h5",))


@attack
def view_with_external_link(forge: Forge) -> None:
    with forge.view() as file:
        file["rows"] = h5py.ExternalLink(str(forge.outside), "/rows")


@attack
def view_with_soft_link(forge: Forge) -> None:
    with forge.view() as file:
        file["a"] = np.zeros(3, np.float32)
        file["b"] = h5py.SoftLink("/a")


@attack
def view_with_filter(forge: Forge) -> None:
    with forge.view() as file:
        file.create_dataset("x", data=np.zeros(100), chunks=(10,), compression="gzip")


@attack
def view_with_external_storage(forge: Forge) -> None:
    with forge.view() as file:
        file.create_dataset("x", (16,), "<f4", external=[(str(forge.outside), 0, h5py.h5f.UNLIMITED)])


@attack
def view_with_vlen_strings(forge: Forge) -> None:
    with forge.view() as file:
        file["x"] = ["text"]


@attack
def view_with_cycle(forge: Forge) -> None:
    with forge.view() as file:
        file.create_group("a")
        file["a/b"] = file["a"]


@attack
def view_with_deep_groups(forge: Forge) -> None:
    with forge.view() as file:
        file.create_group("/".join("abcdefgh" * 100))


@attack
def view_with_many_names(forge: Forge) -> None:
    with forge.view() as file:
        file["x"] = np.zeros(3)
        for number in range(20_000):
            file.id.links.create_hard(b"%d" % number, file.id, b"x")


@attack
def view_with_many_sources(forge: Forge) -> None:
    """Each source takes ten kilobytes of memory as soon as the dataset is opened."""
    with forge.view() as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        space, source = h5py.h5s.create_simple((60_000,)), h5py.h5s.create_simple((1,))
        for row in range(60_000):
            space.select_hyperslab((row,), (1,))
            creation.set_virtual(space, b"shards/00000.h5", b"rows/loss", source)
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((60_000,)), creation)


@attack
def view_of_a_terabyte(forge: Forge) -> None:
    write_view(forge.store)
    os.truncate(forge.store / "view.h5", 2**40)


@attack
def view_is_a_link(forge: Forge) -> None:
    write_view(forge.store)
    forge.link_away(forge.store / "view.h5")


@attack
def view_is_a_pipe(forge: Forge) -> None:
    os.mkfifo(forge.store / "view.h5")


@attack
def view_is_a_folder(forge: Forge) -> None:
    (forge.store / "view.h5").mkdir()


# Files of another kind


def _linked(forge: Forge, path: str) -> None:
    forge.link_away(forge.store / path)


attacks(
    _linked,
    linked_shard=("shards/00001.h5",),
    linked_sidecar=("shards/00001.json",),
    linked_shards_folder=("shards",),
    linked_header=("store.json",),
)


def _piped(forge: Forge, path: str) -> None:
    (forge.store / path).unlink()
    os.mkfifo(forge.store / path)


attacks(
    _piped,
    piped_shard=("shards/00001.h5",),
    piped_sidecar=("shards/00001.json",),
    piped_header=("store.json",),
)


def _folder(forge: Forge, path: str) -> None:
    (forge.store / path).unlink()
    (forge.store / path).mkdir()


attacks(
    _folder,
    folder_for_shard=("shards/00001.h5",),
    folder_for_sidecar=("shards/00001.json",),
    folder_for_header=("store.json",),
)


@attack
def device_for_shard(forge: Forge) -> None:
    """`/dev/zero` under the name of a shard; only root can make one, others get a link to it."""
    forge.shard.unlink()
    try:
        os.mknod(forge.shard, 0o666 | 0o020000, os.makedev(1, 5))
    except OSError:
        forge.shard.symlink_to("/dev/zero")


@attack
def link_without_end(forge: Forge) -> None:
    forge.shard.unlink()
    forge.shard.symlink_to(forge.shard.name)


@attack
def empty_shard(forge: Forge) -> None:
    forge.shard.write_bytes(b"")
    forge.edit(bytes=1)


@attack
def zeros_for_shard(forge: Forge) -> None:
    forge.shard.write_bytes(bytes(forge.shard.stat().st_size))


@attack
def name_without_end(forge: Forge) -> None:
    shutil.copy(forge.sidecar, forge.sidecar.with_name("9" * 200 + ".json"))


@attack
def name_with_line_break(forge: Forge) -> None:
    shutil.copy(forge.sidecar, forge.sidecar.with_name("0000\n\x1b[31m1.json"))
