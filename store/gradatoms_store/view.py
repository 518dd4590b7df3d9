"""`view.h5`: one HDF5 file over all shards, so that any HDF5 tool opens a store as a whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradatoms_store.claims import Claims
from gradatoms_store.container import Recorder
from gradatoms_store.errors import StoreError, StoreFormatError
from gradatoms_store.files import PARTIAL, publish
from gradatoms_store.guard import VIEW_BYTES, VIEW_FILE, VIEW_SOURCES
from gradatoms_store.layout import TEXT_FIELDS, BlockSpec, expected_blocks
from gradatoms_store.reader import Store, open_unviewed
from gradatoms_store.shard import Shard
from gradatoms_store.sidecar import SHARDS

Progress = Callable[[str, int, int], None]


def write_view(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """Write `view.h5` into a store: virtual datasets over the committed shards, laid end to end.

    It has the datasets of a shard, of the whole store: n rows and m examples. Offsets of texts are written out, as they
    count from the start of the store there; so are example ids where a merge shifted them. A view is derived: it shows
    the shards that were there when it was made (attributes `rows` and `shards`), and may be deleted.

    HDF5 shows **zeros** for a shard that is missing, without an error. So the store is opened and checked first, and the
    view is to be made again after a repair; `read` and `batches` never look at it.

    Args:
        path: the store's folder.
        progress: called with ("view", datasets done, datasets).

    Returns:
        The file.

    Raises:
        StoreNotFoundError: no store there.
        StoreFormatError: a shard is missing or damaged; names it. A view that was there is left as it was.
        StoreError: the folder cannot be written.
    """
    folder = Path(path)
    view = folder / VIEW_FILE
    if view.is_symlink():
        raise StoreFormatError(f"{view}: expected a regular file or none, found a link; remove it")
    store = open_unviewed([folder])
    blocks = _blocks(store)
    if len(blocks) * len(store.shards) > VIEW_SOURCES:
        message = f"{folder}: expected at most {VIEW_SOURCES // len(blocks)} shards, got {len(store.shards)}"
        raise StoreError(f"{message}, too many for a view; export the store instead")
    recorder = Recorder()
    with h5py.File(recorder, "w", libver=("v110", "v110"), locking=False) as file:
        file.attrs["format"] = np.bytes_("gradatoms-view")
        file.attrs["schema_version"] = np.int64(store.header.schema_version)
        file.attrs["rows"] = np.int64(store.n_rows)
        file.attrs["shards"] = np.int64(len(store.shards))
        for number, (name, spec) in enumerate(blocks.items()):
            _write(file, name, spec, store)
            if progress is not None:
                progress("view", number + 1, len(blocks))
    if recorder.size_bytes > VIEW_BYTES:
        message = f"{folder}: expected a view of at most {VIEW_BYTES} bytes, got {recorder.size_bytes}"
        raise StoreError(f"{message}; export the store instead: it has too many examples for a view")
    partial = view.with_name(view.name + PARTIAL)
    try:
        with Claims(folder).exclusive():
            _save(recorder, partial)
            publish(partial, view)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreError(f"{view}: expected to write it, got {error}; check space and rights") from error
    return view


def _blocks(store: Store) -> dict[str, BlockSpec]:
    """The datasets of the view."""
    lengths = dict.fromkeys(TEXT_FIELDS, 0)
    for shard in store.shards:
        for field in TEXT_FIELDS:
            lengths[field] += shard.places[f"examples/{field}/data"].shape[0]
    examples = sum(shard.sidecar.examples for shard in store.shards)
    return expected_blocks(store.header, store.n_rows, examples, lengths)


def _write(file: Any, name: str, spec: BlockSpec, store: Store) -> None:
    if name.endswith("/offsets") or (name == "examples/id" and any(shard.example_offset for shard in store.shards)):
        data = _offsets(store.shards, name) if name.endswith("/offsets") else _ids(store.shards)
        dataset = (
            file.create_dataset(name, data=data) if len(data) else file.create_dataset(name, data.shape, data.dtype)
        )
    elif name == "rows/example" and any(shard.example_offset for shard in store.shards):
        dataset = file.create_dataset(name, data=store.rows["example"])
    elif 0 in spec.shape:
        dataset = file.create_dataset(name, spec.shape, spec.dtype)
    else:
        layout = h5py.VirtualLayout(spec.shape, spec.dtype)
        start = 0
        for shard in store.shards:
            shape = shard.places[name].shape
            if 0 not in shape:
                source = h5py.VirtualSource(f"{SHARDS}/{shard.path.name}", name, shape, np.dtype(spec.dtype))
                layout[start : start + shape[0]] = source
            start += shape[0]
        dataset = file.create_virtual_dataset(name, layout)
    if spec.dtype_attribute is not None:
        dataset.attrs["dtype"] = np.bytes_(spec.dtype_attribute)


def _offsets(shards: Sequence[Shard], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    parts, start = [np.zeros(1, "<i8")], 0
    for shard in shards:
        offsets = shard.load(name)
        parts.append(offsets[1:] + start)
        start += int(offsets[-1])
    return np.concatenate(parts)


def _ids(shards: Sequence[Shard]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([np.empty(0, "<i8"), *(shard.load("examples/id") + shard.example_offset for shard in shards)])


def _save(recorder: Recorder, partial: Path) -> None:
    with open(partial, "wb") as file:
        for start, part in sorted(recorder.parts.items()):
            file.seek(start)
            file.write(part)
        file.truncate(recorder.size_bytes)
        file.flush()
        os.fsync(file.fileno())
