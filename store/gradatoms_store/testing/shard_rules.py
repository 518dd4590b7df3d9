"""The rules of `FORMAT.md` on a shard file, and on a sidecar's account of it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradatoms_store.testing.json_rules import dataset_names
from gradatoms_store.testing.plain import (
    DISK_DTYPES,
    block_hash,
    concept_rows,
    norm_summary,
    segment_hashes,
    structure_hash,
    widened,
)
from gradatoms_store.testing.samples import OPTIONAL, ROW_DTYPES, TEXTS
from gradatoms_store.testing.suite import RuleBrokenError, demand

SUPERBLOCK_VERSION = 3
"""What the library version bounds v110-v110 give."""

GAP_BYTES, GAP_BYTES_A_DATASET = 65536, 4096
UNIT_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5}


def check_shard(file: Path, sidecar: dict[str, Any], header: dict[str, Any]) -> set[int]:
    """Check a shard against its sidecar and its store's header; the ids of its examples in the store.

    Raises:
        RuleBrokenError: a rule is broken.
    """
    demand(file.is_file() and not file.is_symlink(), f"{file}: regular file")
    demand(file.stat().st_size == sidecar["bytes"], f"{file}: of the size that its sidecar states")
    superblock = file.read_bytes()[:9]
    demand(superblock == b"\x89HDF\r\n\x1a\n" + bytes([SUPERBLOCK_VERSION]), f"{file}: HDF5 of v110, no user block")
    try:
        with h5py.File(file, "r") as h5:
            arrays, places = _checked_datasets(file, h5, sidecar, header)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise RuleBrokenError(f"{file}: HDF5 file that h5py opens: {error}") from error
    _check_hashes(file, arrays, places, sidecar)
    _check_rows(file, arrays, header)
    texts = _checked_texts(file, arrays)
    ids = arrays["examples/id"]
    demand(len(np.unique(ids)) == len(ids) and bool((ids >= 0).all()), f"{file}: ids are distinct and 0 or more")
    demand(set(arrays["rows/example"].tolist()) <= set(ids.tolist()), f"{file}: examples of rows are in the shard")
    _check_account(file.with_suffix(".json"), arrays, texts["concept"], sidecar)
    return {id_ + sidecar.get("example_offset", 0) for id_ in ids.tolist()}


def _checked_datasets(
    file: Path, h5: Any, sidecar: dict[str, Any], header: dict[str, Any]
) -> tuple[dict[str, NDArray[Any]], list[tuple[int, int]]]:
    """Every dataset, after a look at links, dtypes, shapes and storage; and the places of their data."""
    demand(h5.userblock_size == 0, f"{file}: no user block")
    version = h5.attrs.get("schema_version")
    demand(set(h5.attrs) == {"format", "schema_version"}, f"{file}: attributes format and schema_version")
    demand(type(h5.attrs["format"]) is np.bytes_ and h5.attrs["format"] == b"gradatoms-shard", f"{file}: its format")
    demand(type(version) is np.int64 and 1 <= version <= header["schema_version"], f"{file}: int64 schema_version")
    hooks = {hook["name"]: hook["d"] for hook in header["hooks"]}
    datasets = _walk(file, h5, "", set(dataset_names(list(hooks))))
    demand(set(datasets) == set(dataset_names(list(hooks))), f"{file}: exactly the datasets of the format")
    places: list[tuple[int, int]] = []
    for name, dataset in datasets.items():
        where = f"{file}: {name}"
        creation = dataset.id.get_create_plist()
        demand(creation.get_layout() == h5py.h5d.CONTIGUOUS, f"{where} is contiguous")
        demand(
            creation.get_nfilters() == 0 and creation.get_external_count() == 0, f"{where} has no filters, is inside"
        )
        dtype, shape = _expected(name, hooks, header["dtype"], sidecar)
        demand(dataset.dtype.str == dtype, f"{where} has the dtype {dtype}, not {dataset.dtype}")
        demand(dataset.dtype.metadata is None, f"{where} holds plain numbers")
        demand(len(dataset.shape) == len(shape), f"{where} has the shape {shape}, not {dataset.shape}")
        fits = all(want in (None, got) for want, got in zip(shape, dataset.shape, strict=True))
        demand(fits, f"{where} has the shape {shape}, not {dataset.shape}")
        marked = name.startswith("gradients/") and header["dtype"] == "bfloat16"
        attribute = dataset.attrs.get("dtype")
        good = type(attribute) is np.bytes_ and attribute == b"bfloat16" if marked else not len(dataset.attrs)
        demand(good, f"{where} carries the attribute dtype where it is bfloat16, and no other")
        if dataset.size:
            demand(dataset.id.get_offset() is not None, f"{where} has a place in the file")
            places.append((dataset.id.get_offset(), dataset.nbytes))
    places.sort()
    _check_places(file, places, len(datasets), sidecar["bytes"])
    return {name: dataset[...] for name, dataset in datasets.items()}, places


def _walk(file: Path, group: Any, prefix: str, names: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for child in group:
        name = prefix + child
        demand(type(group.get(child, getlink=True)) is h5py.HardLink, f"{file}: {name} is a hard link")
        item = group[child]
        demand(h5py.h5o.get_info(item.id).rc == 1, f"{file}: {name} has one link")
        if isinstance(item, h5py.Dataset):
            found[name] = item
            continue
        inside = any(wanted.startswith(name + "/") for wanted in names)
        demand(isinstance(item, h5py.Group) and inside, f"{file}: {name} is a group or dataset of the format")
        found |= _walk(file, item, name + "/", names)
    return found


def _expected(
    name: str, hooks: dict[str, int], dtype: str, sidecar: dict[str, Any]
) -> tuple[str, tuple[int | None, ...]]:
    """Dtype and shape that a dataset must have; None is any length."""
    n, m = sidecar["rows"], sidecar["examples"]
    kind, _, rest = name.partition("/")
    if kind == "gradients":
        return DISK_DTYPES[dtype], (n, hooks[rest])
    if kind == "norms":
        return "<f4", (n,)
    if kind == "rows":
        return ROW_DTYPES[rest], (n,)
    part = rest.partition("/")[2]
    return {"": ("<i8", (m,)), "data": ("|u1", (None,)), "offsets": ("<i8", (m + 1,)), "present": ("|u1", (m,))}[part]


def _check_places(file: Path, places: list[tuple[int, int]], datasets: int, size_bytes: int) -> None:
    ends = [(0, 0), *places, (size_bytes, 0)]
    gaps = [start - (before + length) for (before, length), (start, _) in pairwise(ends)]
    demand(min(gaps) >= 0, f"{file}: datasets lie in the file and do not overlap")
    demand(sum(gaps) <= GAP_BYTES + GAP_BYTES_A_DATASET * datasets, f"{file}: little beside the data")


def _check_hashes(
    file: Path, arrays: dict[str, NDArray[Any]], places: list[tuple[int, int]], sidecar: dict[str, Any]
) -> None:
    for name, array in arrays.items():
        demand(block_hash(array) == sidecar["blocks"][name], f"{file}: {name} has the hash in blocks")
    if sidecar["schema_version"] > 1:
        for name, said in sidecar["segments"].items():
            found = segment_hashes(arrays[name], sidecar["segment_rows"])
            demand(found == said, f"{file}: {name} has the hashes in segments")
        demand(structure_hash(file, places) == sidecar["structure"], f"{file}: the rest has the hash in structure")


def _check_rows(file: Path, arrays: dict[str, NDArray[Any]], header: dict[str, Any]) -> None:
    dtype = header["dtype"]
    for hook in [hook["name"] for hook in header["hooks"]]:
        norms = arrays[f"norms/{hook}"]
        demand(bool((np.isfinite(norms) & (norms >= 0)).all()), f"{file}: norms at {hook} are finite and 0 or more")
        directions = widened(arrays[f"gradients/{hook}"], dtype).astype(np.float64)
        demand(bool(np.isfinite(directions).all()), f"{file}: directions at {hook} are finite")
        lengths = np.linalg.norm(directions, axis=1)
        demand(bool((lengths[norms == 0] == 0).all()), f"{file}: direction of zeros where the norm at {hook} is 0")
        near = np.abs(lengths[norms > 0] - 1) < UNIT_TOLERANCE[dtype]
        demand(bool(near.all()), f"{file}: directions at {hook} have norm 1")


def _checked_texts(file: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, list[str | None]]:
    out: dict[str, list[str | None]] = {}
    for field in TEXTS:
        where = f"{file}: examples/{field}"
        data, offsets = arrays[f"examples/{field}/data"], arrays[f"examples/{field}/offsets"]
        rises = offsets[0] == 0 and offsets[-1] == len(data) and bool((np.diff(offsets) >= 0).all())
        demand(bool(rises), f"{where}: offsets rise from 0 to the length of data")
        present = arrays[f"examples/{field}/present"] if field in OPTIONAL else np.ones(len(offsets) - 1, "u1")
        demand(bool((present <= 1).all()), f"{where}: present is 0 or 1")
        demand(bool((np.diff(offsets)[present == 0] == 0).all()), f"{where}: an absent text takes no bytes")
        parts = [data[low:high].tobytes() for low, high in pairwise(offsets.tolist())]
        try:
            out[field] = [part.decode() if there else None for part, there in zip(parts, present, strict=True)]
        except UnicodeDecodeError as error:
            raise RuleBrokenError(f"{where}: UTF-8: {error}") from None
    for text in out["meta"]:
        try:
            demand(isinstance(json.loads(text or ""), dict), f"{file}: meta is a JSON object")
        except ValueError as error:
            raise RuleBrokenError(f"{file}: meta is a JSON object: {error}") from None
    return out


def _check_account(
    file: Path, arrays: dict[str, NDArray[Any]], concepts: list[str | None], sidecar: dict[str, Any]
) -> None:
    """What a sidecar tells of its rows is what the rows tell."""
    example, loss = arrays["rows/example"], arrays["rows/loss"]
    demand(
        sidecar["concepts"] == concept_rows(arrays["examples/id"], concepts, example), f"{file}: concepts of the rows"
    )
    demand(sidecar.get("nan_losses") in (None, int(np.isnan(loss).sum())), f"{file}: nan_losses of the rows")
    for hook, said in sidecar["norms"].items():
        found = norm_summary(arrays[f"norms/{hook}"])
        same = all(said[key] == found[key] for key in ("zeros", "min", "max"))
        quantiles = np.array([list(said["quantiles"].values()), list(found["quantiles"].values())])
        demand(
            same and np.allclose(quantiles[0], quantiles[1], rtol=1e-9, atol=0), f"{file}: norms of the rows at {hook}"
        )
