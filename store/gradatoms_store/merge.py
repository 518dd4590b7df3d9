"""Several stores become one; the shard files are shared through hard links where the disk allows it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradatoms_store.container import structure_hash
from gradatoms_store.errors import StoreError, StoreExistsError, StoreMismatchError, StoreNotFoundError, StoreValueError
from gradatoms_store.files import PARTIAL, fsync_path, publish, write_text
from gradatoms_store.jsonio import digest_of
from gradatoms_store.layout import segment_rows, segmented
from gradatoms_store.reader import Store, open_store
from gradatoms_store.schema import SCHEMA_VERSION, STORE_FILE, StoreHeader
from gradatoms_store.shard import Shard, segment_hash
from gradatoms_store.sidecar import SHARDS, Sidecar, shard_stem

Progress = Callable[[str, int, int], None]


def merge_stores(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, progress: Progress | None = None
) -> Path:
    """Make a new store of the shards of several, in the order given.

    The stores must hold rows of one kind (as for `open_store`). Stores of one plan (parts of one harvest) make a store of
    that plan, which can be resumed. Stores of different plans make a store of a new plan, whose digest is taken of theirs:
    the units and the example ids of each store follow those of the one before. Shards are hard-linked where they lie on
    one file system and copied where not; as shards never change, both stores stay whole. Hashes are not checked: run
    `verify_store` on the result or the sources.

    Args:
        paths: two or more stores, or one to copy; no writer may be at work on them.
        out: folder to make; it appears under its name when it is whole.
        progress: called with ("merge", shards done, shards).

    Returns:
        `out`.

    Raises:
        StoreValueError: no store is given. StoreNotFoundError, StoreFormatError, StoreMismatchError: as for `open_store`.
        StoreExistsError: `out` exists. StoreError: it cannot be written.
    """
    if not paths:
        raise StoreValueError("paths expected one store or more, got none; name them")
    target = Path(out)
    if target.exists() or target.is_symlink():
        raise StoreExistsError(f"{target}: expected a path for a new store, found that it exists; choose another path")
    if not target.parent.is_dir():
        raise StoreNotFoundError(f"{target}: expected the folder {target.parent}, found none; make it first")
    if len({Path(path).resolve() for path in paths}) != len(paths):
        raise StoreMismatchError(f"{target}: expected different stores, got one twice; name each once")
    store = open_store(*paths)
    header, first_unit = _header(store)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / SHARDS).mkdir(parents=True)
        for number, shard in enumerate(store.shards):
            _place(shard, partial / SHARDS, number, header, first_unit[shard.path.parents[1]])
            if progress is not None:
                progress("merge", number + 1, len(store.shards))
        write_text(partial / STORE_FILE, header.to_json())
        fsync_path(partial / SHARDS)
        publish(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{target}: expected to write it, got {error}; check space and rights") from error
    return target


def _header(store: Store) -> tuple[StoreHeader, dict[Path, int]]:
    """Header of the merged store, and what each source's unit numbers are raised by."""
    first: dict[str, int] = {}
    n_units = n_examples = 0
    for header in store.headers:
        if header.plan not in first:
            first[header.plan] = n_units
            n_units, n_examples = n_units + header.n_units, n_examples + header.n_examples
    plan = store.header.plan if len(first) == 1 else digest_of({"plans": list(first)})
    merged = replace(store.header, plan=plan, n_units=n_units, n_examples=n_examples, schema_version=SCHEMA_VERSION)
    pairs = zip(store.paths, store.headers, strict=True)
    return merged, {path: first[header.plan] for path, header in pairs}


def _place(shard: Shard, folder: Path, number: int, header: StoreHeader, first_unit: int) -> None:
    """Link or copy one shard under its new number, then write its sidecar."""
    file = folder / f"{shard_stem(number)}.h5"
    try:
        os.link(shard.path, file)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(shard.path, file)
        fsync_path(file)
    upgraded = shard.sidecar if shard.sidecar.structure is not None else _upgraded(shard)
    sidecar = replace(
        upgraded,
        file=file.name,
        fingerprint=header.fingerprint,
        units=tuple(unit + first_unit for unit in shard.sidecar.units),
        example_offset=shard.example_offset,
        schema_version=header.schema_version,
    )
    write_text(file.with_suffix(".json"), sidecar.to_json())


def _upgraded(shard: Shard) -> Sidecar:
    """The sidecar of a shard of format version 1, with what version 2 adds; reads the shard's rows."""
    rows = segment_rows(shard.header)
    segments: dict[str, str] = {}
    with shard.open() as file:
        for block in segmented(shard.header):
            array = shard.load(block, file)
            segments[block] = "".join(segment_hash(array[low : low + rows]) for low in range(0, len(array), rows))
        nan = int(np.isnan(shard.load("rows/loss", file)).sum())
    extents = [place.extent for place in shard.places.values() if place.offset is not None]
    structure = structure_hash(shard.path, extents)
    return replace(shard.sidecar, structure=structure, segment_rows=rows, segments=segments, nan_losses=nan)
