"""Shards that HDF5 may open and the format forbids."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from forge import (
    HOOKS,
    ROWS,
    Forge,
    address,
    attack,
    attacks,
    dataset_bytes,
    message,
    patch,
    replace,
    reseal,
    restate,
    retyped,
)

PLUGIN_FILTER = 32015
"""Number of a filter that libhdf5 has not built in (Zstandard)."""


# Storage elsewhere


@attack
def external_raw_storage(forge: Forge) -> None:
    with forge.open() as file:
        shape = file["rows/loss"].shape
        del file["rows/loss"]
        file.create_dataset("rows/loss", shape, "<f4", external=[(str(forge.outside), 0, h5py.h5f.UNLIMITED)])


@attack
def external_link(forge: Forge) -> None:
    with forge.open() as file:
        del file["norms"]
        file["norms"] = h5py.ExternalLink(str(forge.outside), "/norms")


@attack
def soft_link(forge: Forge) -> None:
    with forge.open() as file:
        del file["rows/target"]
        file["rows/target"] = h5py.SoftLink("/rows/token")


@attack
def soft_link_to_external_link(forge: Forge) -> None:
    with forge.open() as file:
        del file["rows/target"]
        file["rows/target"] = h5py.SoftLink("/rows/aside")
        file["rows/aside"] = h5py.ExternalLink(str(forge.outside), "/rows/target")


@attack
def virtual_dataset_outside(forge: Forge) -> None:
    with forge.open() as file:
        shape = file["rows/loss"].shape
        del file["rows/loss"]
        layout = h5py.VirtualLayout(shape, "<f4")
        layout[:] = h5py.VirtualSource(str(forge.outside), "rows/loss", shape)
        file.create_virtual_dataset("rows/loss", layout)


@attack
def virtual_dataset_inside(forge: Forge) -> None:
    with forge.open() as file:
        shape = file["rows/target"].shape
        del file["rows/target"]
        layout = h5py.VirtualLayout(shape, "<i4")
        layout[:] = h5py.VirtualSource(".", "rows/token", shape)
        file.create_virtual_dataset("rows/target", layout)


@attack
def user_block(forge: Forge) -> None:
    content = forge.shard.read_bytes()
    forge.shard.write_bytes(b"#!/bin/sh\n".ljust(512, b"\0") + content)
    forge.refit()


# Filters


@attack
def oversized_deflate_chunk(forge: Forge) -> None:
    """One small chunk that inflates to a gigabyte."""
    with forge.open() as file:
        del file["examples/prompt/data"]
        options: dict[str, Any] = {"chunks": (2**26,), "compression": "gzip"}
        made = file.create_dataset("examples/prompt/data", (2**30,), "u1", **options)
        made.id.write_direct_chunk((0,), b"\x78\x9c\x03\x00\x00\x00\x00\x01")


@attack
def plugin_filter(forge: Forge) -> None:
    with forge.open() as file:
        shape = file["rows/loss"].shape
        del file["rows/loss"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk(shape)
        creation.set_filter(PLUGIN_FILTER, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(shape)
        made = h5py.h5d.create(file.id, b"rows/loss", h5py.h5t.IEEE_F32LE, space, creation)
        made.write_direct_chunk((0,), b"\0" * 100)


@attack
def chunks_without_filters(forge: Forge) -> None:
    with forge.open() as file:
        replace(file, "rows/loss", chunks=True)


@attack
def compact_storage(forge: Forge) -> None:
    with forge.open() as file:
        shape = file["rows/loss"].shape
        del file["rows/loss"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, b"rows/loss", h5py.h5t.IEEE_F32LE, space, creation)


@attack
def group_with_filtered_links(forge: Forge) -> None:
    """The names in a group are inflated as soon as somebody lists it."""
    with forge.open() as file:
        creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        h5py.h5i.inc_ref(creation)  # for the second name that the list gets:
        h5py.h5p.PropDCID(creation.id).set_deflate(9)  # h5py offers it for datasets only, libhdf5 for all objects
        group = h5py.h5g.create(file.id, b"aside", gcpl=creation)
        for number in range(9):  # more than 8 links are kept in a heap, until less than 6 are left
            group.links.create_soft(b"%d" % number, b"/rows")
        for name in list(file["examples"]):
            file.move(f"examples/{name}", f"aside/{name}")
        for number in range(9):
            del file[f"aside/{number}"]
        del file["examples"]
        file.move("aside", "examples")


@attack
def group_with_hidden_filtered_links(forge: Forge) -> None:
    """The same; but the header of the group does not tell, only that of its heap."""
    group_with_filtered_links(forge)
    with forge.bytes() as data:
        start = address(data, "examples")
        at, length = message(data, start, 11)  # the one that tells becomes padding
        data[at] = 0
        data[at + 3 : at + 4 + length] = bytes(1 + length)
        reseal(data, start)


# Shapes and places


@attack
def absurd_declared_shape(forge: Forge) -> None:
    with forge.open() as file:
        del file["examples/prompt/data"]
        file.create_dataset("examples/prompt/data", (2**50,), "u1")


@attack
def absurd_rows(forge: Forge) -> None:
    """2^61 rows everywhere: numbers of 8 bytes would take 2^64 of them, which is 0 to a careless program."""
    rows = 2**61
    with forge.bytes() as data:
        for name in json.loads(forge.sidecar.read_text())["blocks"]:
            if not name.startswith("examples/"):
                offset, length = dataset_bytes(data, name)
                patch(data, name, struct.pack("<Q", 2 * ROWS), struct.pack("<Q", rows))
                much = length // (2 * ROWS) * rows % 2**64
                patch(data, name, struct.pack("<QQ", offset, length), struct.pack("<QQ", offset, much))
    forge.edit(rows=rows, **({} if "segment_rows" not in forge.sidecar.read_text() else {"segment_rows": rows}))


@attack
def bytes_beyond_the_end(forge: Forge) -> None:
    """A contiguous dataset whose stated place is 100 bytes before the end, and needs more."""
    with forge.bytes() as data:
        _moved(data, "gradients/" + HOOKS[0], len(data) - 100)


@attack
def bytes_beyond_the_end_by_far(forge: Forge) -> None:
    with forge.bytes() as data:
        _moved(data, "gradients/" + HOOKS[0], 2**63 - 100)


@attack
def cut_behind_the_structures(forge: Forge) -> None:
    """A larger dataset, whose file is then cut; superblock and sidecar state the new length."""
    with forge.open() as file:
        del file["examples/meta/data"]
        file["examples/meta/data"] = np.zeros(50_000, np.uint8)
    with forge.bytes() as data:
        del data[-10_000:]


@attack
def larger_shape_than_place(forge: Forge) -> None:
    """A declared shape of a terabyte, the stated length in bytes changed to fit."""
    with forge.bytes() as data:
        length = dataset_bytes(data, "examples/meta/data")[1]
        patch(data, "examples/meta/data", struct.pack("<Q", length), struct.pack("<Q", 2**40))


@attack
def two_datasets_share_bytes(forge: Forge) -> None:
    with forge.bytes() as data:
        _moved(data, "rows/token", dataset_bytes(data, "rows/target")[0])


@attack
def data_over_the_superblock(forge: Forge) -> None:
    with forge.bytes() as data:
        _moved(data, "rows/token", 0)


@attack
def data_over_a_header(forge: Forge) -> None:
    with forge.bytes() as data:
        _moved(data, "rows/token", address(data, "rows/loss") - 8)


@attack
def two_links_to_one_dataset(forge: Forge) -> None:
    with forge.open() as file:
        del file["rows/target"]
        file["rows/target"] = file["rows/token"]


@attack
def two_links_to_one_group(forge: Forge) -> None:
    with forge.open() as file:
        del file["examples/foil"]
        file["examples/foil"] = file["examples/concept"]


# Groups


@attack
def cycle_of_groups(forge: Forge) -> None:
    with forge.open() as file:
        file["rows/rows"] = file["rows"]


@attack
def cycle_in_place_of_a_group(forge: Forge) -> None:
    with forge.open() as file:
        del file["examples"]
        file["examples"] = file["/"]


@attack
def dataset_for_a_group(forge: Forge) -> None:
    with forge.open() as file:
        del file["norms"]
        file["norms"] = np.zeros(3, np.float32)


@attack
def group_for_a_dataset(forge: Forge) -> None:
    with forge.open() as file:
        del file["rows/loss"]
        file.create_group("rows/loss")


@attack
def datatype_for_a_dataset(forge: Forge) -> None:
    with forge.open() as file:
        del file["rows/loss"]
        file["rows/loss"] = np.dtype("<f4")


@attack
def something_more(forge: Forge) -> None:
    with forge.open() as file:
        file["rows/\x1b[31mmore\n"] = np.zeros(3)


@attack
def many_links(forge: Forge) -> None:
    """Two hundred thousand names in one group."""
    with forge.open() as file:
        group = file["rows"].id
        for number in range(200_000):
            group.links.create_soft(b"%d" % number, b"/rows/loss")


@attack
def header_of_half_a_gigabyte(forge: Forge) -> None:
    """An object header that claims so much, in a sparse file that has it; a library would read it to check its sum."""
    with forge.bytes() as data:
        old = struct.pack("<Q", address(data, "examples/meta"))
        patch(data, "examples", old, struct.pack("<Q", len(data)))
        data += b"OHDR\x02\x03" + struct.pack("<Q", 2**29) + bytes(500)
    with open(forge.shard, "r+b") as file:
        head = bytearray(file.read(48))
        restate(head, 2**30)
        file.seek(0)
        file.write(head)
        file.truncate(2**30)
    forge.edit(bytes=2**30)


@attack
def superblock_extension(forge: Forge) -> None:
    """A superblock whose extension is where a group's header is."""
    with forge.bytes() as data:
        data[20:28] = struct.pack("<Q", address(data, "rows"))


@attack
def many_attributes(forge: Forge) -> None:
    with forge.open() as file:
        for number in range(3000):
            file["rows/loss"].attrs[f"a{number}"] = number


# Types


def _typed(forge: Forge, kind: Callable[[], Any]) -> None:
    with forge.open() as file:
        retyped(file, "rows/token", kind())


def _bitfield() -> Any:
    return h5py.h5t.STD_B32LE.copy()


def _opaque() -> Any:
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 4)
    kind.set_tag(b"anything")
    return kind


def _enum() -> Any:
    kind = h5py.h5t.enum_create(h5py.h5t.STD_I32LE)
    kind.enum_insert(b"A", 0)
    return kind


def _odd_precision() -> Any:
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(17)
    return kind


def _python(dtype: Any) -> Any:
    return h5py.h5t.py_create(np.dtype(dtype), logical=True)


attacks(
    _typed,
    wrong_dtype=(lambda: h5py.h5t.IEEE_F32LE,),
    dtype_big_endian=(lambda: h5py.h5t.STD_I32BE,),
    dtype_unsigned=(lambda: h5py.h5t.STD_U32LE,),
    dtype_wider=(lambda: h5py.h5t.STD_I64LE,),
    dtype_odd_precision=(_odd_precision,),
    dtype_vlen_string=(lambda: _python(h5py.string_dtype()),),
    dtype_fixed_string=(lambda: _python("S4"),),
    dtype_vlen_numbers=(lambda: _python(h5py.vlen_dtype(np.int32)),),
    dtype_compound=(lambda: _python([("a", "<i2"), ("b", "<i2")]),),
    dtype_array=(lambda: _python(("<i2", (2,))),),
    dtype_reference=(lambda: _python(h5py.ref_dtype),),
    dtype_bitfield=(_bitfield,),
    dtype_opaque=(_opaque,),
    dtype_enum=(_enum,),
)


@attack
def dtype_committed(forge: Forge) -> None:
    """The right type, but kept elsewhere in the file, where it may be shared or changed."""
    with forge.open() as file:
        kind = h5py.h5t.STD_I32LE.copy()
        kind.commit(file.id, b"kind")
        retyped(file, "rows/token", kind)
        del file["kind"]


# The attribute of bfloat16 directions


def _attributed(forge: Forge, value: dict[str, Any] | None) -> None:
    with forge.open() as file:
        attributes = file["gradients/" + HOOKS[0]].attrs
        del attributes["dtype"]
        if value is not None:
            attributes.create("dtype", **value)


attacks(
    _attributed,
    bfloat16_attribute_missing=(None,),
    bfloat16_attribute_other=({"data": np.bytes_("float16")},),
    bfloat16_attribute_vlen=({"data": "bfloat16", "dtype": h5py.string_dtype()},),
    bfloat16_attribute_huge=({"data": np.bytes_("bfloat16".ljust(60_000))},),
    bfloat16_attribute_array=({"data": np.array([b"bfloat16"] * 7000)},),
    bfloat16_attribute_empty=({"data": h5py.Empty("S8")},),
)


@attack
def bfloat16_attribute_twice(forge: Forge) -> None:
    with forge.open() as file:
        file["gradients/" + HOOKS[0]].attrs["more"] = np.bytes_("float16")


def _moved(data: bytearray, name: str, start: int) -> None:
    """Let a dataset's data begin elsewhere."""
    old = struct.pack("<Q", dataset_bytes(data, name)[0])
    patch(data, name, b"\x03\x01" + old, b"\x03\x01" + struct.pack("<Q", start))
