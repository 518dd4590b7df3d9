"""The guard on the way in: a shard is hostile until every object in it is what the format allows.

It reads metadata only, never data through HDF5: a dataset passes when it is reached by hard links, holds its bytes
contiguously inside the file, without filters, external or virtual storage, and has exactly the dtype and shape that
header and sidecar demand. Data are then read as plain bytes at the place found here.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.layout import BlockSpec

VIEW_FILE = "view.h5"
VIEW_BYTES = 2**28
_SOURCE = re.compile(r"shards/[0-9]{5,9}\.h5")


@dataclass(frozen=True)
class Place:
    """Where a dataset's bytes are in its file."""

    offset: int | None
    """Byte offset from the start of the file; None for a dataset without elements."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def length_bytes(self) -> int:
        """Bytes that the data take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> tuple[int, int]:
        """Byte offset and length."""
        return self.offset or 0, self.length_bytes


def inspect_shard(path: Path, blocks: Mapping[str, BlockSpec], size_bytes: int) -> dict[str, Place]:
    """Check a shard file's structure.

    Args:
        path: the HDF5 file.
        blocks: dataset path to what it must be; anything else in the file is refused.
        size_bytes: what the file's size must be.

    Returns:
        Dataset path to its place.

    Raises:
        StoreFormatError: the reason, with file and dataset.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
            _refuse(path, "/", f"a regular file of {size_bytes} bytes", f"{found.st_size} bytes or another kind")
        with h5py.File(path, "r", locking=False) as file:
            if file.userblock_size:
                _refuse(path, "/", "no user block", f"one of {file.userblock_size} bytes")
            return _walk(path, file.id, "", blocks, size_bytes)
    except StoreFormatError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        message = f"{path}: expected a readable HDF5 file, got an error ({reason:.200})"
        raise StoreFormatError(f"{message}; the shard is damaged: restore it, or delete it with its sidecar") from error


def _walk(path: Path, group: Any, prefix: str, blocks: Mapping[str, BlockSpec], size_bytes: int) -> dict[str, Place]:
    """Check the links of one group, whose children in `blocks` begin with `prefix`."""
    children = {name[len(prefix) :].split("/")[0] for name in blocks if name.startswith(prefix)}
    found = {name.decode("utf-8", "replace") for name in group}
    if found != children:
        where = prefix or "/"
        wrong = sorted(found ^ children)[:5]
        _refuse(path, where, f"exactly {len(children)} entries", f"others or fewer: {', '.join(wrong)}")
    places: dict[str, Place] = {}
    for child in sorted(children):
        name = prefix + child
        link = group.links.get_info(child.encode())
        if link.type != h5py.h5l.TYPE_HARD:
            _refuse(path, name, "a hard link", "a soft or external link")
        item = h5py.h5o.open(group, child.encode())
        if name in blocks:
            places[name] = _dataset(path, item, name, blocks[name], size_bytes)
        elif isinstance(item, h5py.h5g.GroupID):
            places |= _walk(path, item, name + "/", blocks, size_bytes)
        else:
            _refuse(path, name, "a group", type(item).__name__)
    return places


def _dataset(path: Path, item: Any, name: str, spec: BlockSpec, size_bytes: int) -> Place:
    """Check one dataset."""
    if not isinstance(item, h5py.h5d.DatasetID):
        _refuse(path, name, "a dataset", type(item).__name__)
    creation = item.get_create_plist()
    if creation.get_nfilters():
        _refuse(path, name, "no filters", f"{creation.get_nfilters()} of them")
    if creation.get_layout() != h5py.h5d.CONTIGUOUS:
        _refuse(path, name, "contiguous storage", "chunked, compact or virtual storage")
    if creation.get_external_count():
        _refuse(path, name, "storage inside the file", "external storage")
    dtype = np.dtype(spec.dtype)
    kind = item.get_type()
    if kind != h5py.h5t.py_create(dtype, logical=True):
        _refuse(path, name, f"dtype {spec.dtype}", f"{type(kind).__name__} of {kind.get_size()} bytes")
    shape = tuple(int(length) for length in item.shape)
    fits = len(shape) == len(spec.shape) and all(
        want in (None, got) for want, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        _refuse(path, name, f"shape {spec.shape}", f"{shape}")
    if spec.dtype_attribute is not None:
        attribute = _attribute(item)
        if attribute != spec.dtype_attribute.encode():
            _refuse(path, name, f"attribute dtype = {spec.dtype_attribute!r}", repr(attribute))
    length_bytes = Place(None, shape, dtype).length_bytes  # of Python integers: an absurd shape cannot overflow
    if not length_bytes:
        return Place(None, shape, dtype)
    offset = item.get_offset()
    if offset is None or offset + length_bytes > size_bytes:
        _refuse(path, name, f"{length_bytes} bytes inside a file of {size_bytes}", f"offset {offset}")
    return Place(int(offset), shape, dtype)


def _attribute(item: Any) -> bytes | None:
    """The attribute `dtype` when it is a short fixed-length string, else None."""
    if not h5py.h5a.exists(item, b"dtype"):
        return None
    attribute = h5py.h5a.open(item, b"dtype")
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or kind.get_size() > 64 or attribute.shape:
        return None
    value = np.empty((), f"S{kind.get_size()}")
    attribute.read(value)
    return bytes(value[()])


def _refuse(path: Path, name: str, expected: str, got: str) -> NoReturn:
    message = f"{path}: {name} expected {expected}, got {got}"
    raise StoreFormatError(f"{message}; the shard is damaged or not to be trusted: do not use it, ask for a clean copy")


def inspect_view(path: Path) -> None:
    """Check `view.h5` of the store at `path`, if there is one: other tools will open it, this package never does.

    Every dataset must be plain, or virtual with sources in this store's `shards/` only.

    Raises:
        StoreFormatError: the reason, with file and dataset.
    """
    file = path / VIEW_FILE
    if not os.path.lexists(file):
        return
    try:
        found = os.lstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > VIEW_BYTES:
            _refuse(file, "/", f"a regular file of at most {VIEW_BYTES} bytes", f"{found.st_size} or another kind")
        with h5py.File(file, "r", locking=False) as view:
            _walk_view(file, view.id, "")
    except StoreFormatError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        message = f"{file}: expected a readable HDF5 file, got an error ({reason:.200})"
        raise StoreFormatError(f"{message}; delete it and run `atoms store view`") from error


def _walk_view(file: Path, group: Any, prefix: str) -> None:
    for name in group:
        where = prefix + name.decode("utf-8", "replace")
        if where.count("/") > 2:
            _refuse(file, where, "groups two deep", "deeper ones")
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            _refuse(file, where, "a hard link", "a soft or external link")
        item = h5py.h5o.open(group, name)
        if isinstance(item, h5py.h5g.GroupID):
            _walk_view(file, item, where + "/")
            continue
        if not isinstance(item, h5py.h5d.DatasetID):
            _refuse(file, where, "a dataset", type(item).__name__)
        creation = item.get_create_plist()
        if creation.get_nfilters() or creation.get_external_count():
            _refuse(file, where, "no filters and no external storage", "one of them")
        if item.get_type().get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            _refuse(file, where, "numbers", "another type")
        if creation.get_layout() == h5py.h5d.VIRTUAL:
            for number in range(creation.get_virtual_count()):
                source = creation.get_virtual_filename(number)
                if not _SOURCE.fullmatch(source):
                    _refuse(file, where, "sources such as shards/00000.h5", repr(source)[:100])
        elif creation.get_layout() != h5py.h5d.CONTIGUOUS:
            _refuse(file, where, "virtual or contiguous storage", "chunked or compact storage")
