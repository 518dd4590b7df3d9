"""The format straight from `FORMAT.md`, with h5py, json and xxhash alone: a reader that checks nothing, and the hashes.

It shares no code with this package's reader and writer, so that each can be held against the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.schema import ExampleRecord
from gradatoms_store.testing.samples import OPTIONAL, ROW_DTYPES, TEXTS

DISK_DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
QUANTILES = ("0.05", "0.25", "0.5", "0.75", "0.95")


class PlainReader:
    """A store as `FORMAT.md` describes it; trusts every byte."""

    def __init__(self, path: Path) -> None:
        """`path`: the store's folder."""
        self._header = json.loads((path / "store.json").read_text("utf-8"))
        sidecars = sorted((path / "shards").glob("*.json"), key=lambda file: int(file.stem))
        self._shards = [(json.loads(file.read_text("utf-8")), file.with_suffix(".h5")) for file in sidecars]

    def directions(self, hook: str) -> NDArray[float32]:
        """Unit gradients of all rows, shape (n, d)."""
        (d,) = [item["d"] for item in self._header["hooks"] if item["name"] == hook]
        parts = [widened(part, self._header["dtype"]) for part in self._parts(f"gradients/{hook}")]
        return np.concatenate([np.empty((0, d), np.float32), *parts])

    def norms(self, hook: str) -> NDArray[float32]:
        """Norms of all rows, shape (n,)."""
        return np.concatenate([np.empty(0, np.float32), *self._parts(f"norms/{hook}")])

    def rows(self) -> dict[str, NDArray[Any]]:
        """Row fields, each of shape (n,)."""
        out = {
            field: np.concatenate([np.empty(0, dtype), *self._parts(f"rows/{field}")])
            for field, dtype in ROW_DTYPES.items()
        }
        counts = [sidecar["rows"] for sidecar, _ in self._shards]
        out["example"] += np.repeat(np.array(self._offsets(), "<i8"), counts)
        return out

    def examples(self) -> list[ExampleRecord]:
        """All examples, in storage order."""
        out: list[ExampleRecord] = []
        for offset, (_, shard) in zip(self._offsets(), self._shards, strict=True):
            with h5py.File(shard, "r") as file:
                texts = {field: _texts(file[f"examples/{field}"]) for field in TEXTS}
                for number, id_ in enumerate(file["examples/id"][:].tolist()):
                    values: dict[str, Any] = {field: texts[field][number] for field in TEXTS}
                    out.append(ExampleRecord(id=id_ + offset, **values))
        return out

    def _offsets(self) -> list[int]:
        return [sidecar.get("example_offset", 0) for sidecar, _ in self._shards]

    def _parts(self, dataset: str) -> list[NDArray[Any]]:
        parts = []
        for _, shard in self._shards:
            with h5py.File(shard, "r") as file:
                parts.append(file[dataset][:])
        return parts


def _texts(group: Any) -> list[str | None]:
    data, offsets = group["data"][:].tobytes(), group["offsets"][:].tolist()
    present = group["present"][:].tolist() if "present" in group else [1] * (len(offsets) - 1)
    return [data[a:b].decode() if there else None for (a, b), there in zip(pairwise(offsets), present, strict=True)]


def widened(stored: NDArray[Any], dtype: str) -> NDArray[float32]:
    """Directions on disk as float32, exactly."""
    if dtype == "bfloat16":
        return (stored.astype("<u4") << 16).view(np.float32)
    return stored.astype(np.float32)


def narrowed(values: NDArray[float32], dtype: str) -> NDArray[Any]:
    """float32 directions as they are on disk, rounded to nearest."""
    if dtype == "bfloat16":
        return ((values.view(np.uint32) + np.uint32(0x8000)) >> 16).astype("<u2")
    return values.astype(DISK_DTYPES[dtype])


def text_arrays(examples: list[ExampleRecord]) -> dict[str, NDArray[Any]]:
    """The datasets of `examples/`, path to array."""
    out: dict[str, NDArray[Any]] = {"examples/id": np.array([example.id for example in examples], "<i8")}
    for field in TEXTS:
        values = [getattr(example, field) for example in examples]
        encoded = [(value or "").encode() for value in values]
        out[f"examples/{field}/data"] = np.frombuffer(b"".join(encoded), "u1")
        out[f"examples/{field}/offsets"] = np.cumsum([0, *map(len, encoded)]).astype("<i8")
        if field in OPTIONAL:
            out[f"examples/{field}/present"] = np.array([value is not None for value in values], "u1")
    return out


def digest(data: Mapping[str, Any]) -> str:
    """The digest of a JSON object: of all its keys but `digest`."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def fingerprint(header: Mapping[str, Any]) -> str:
    """The fingerprint of the content of a `store.json`."""
    keys = ("model", "hooks", "objective", "positions", "dtype", "space", "plan")
    return digest({key: header[key] for key in keys if key in header})


def block_hash(array: NDArray[Any]) -> str:
    """What `blocks` says of a dataset."""
    return xxhash.xxh3_128_hexdigest(array.tobytes())


def segment_hashes(array: NDArray[Any], rows: int) -> str:
    """What `segments` says of a dataset."""
    parts = (array[low : low + rows].tobytes() for low in range(0, len(array), rows))
    return "".join(xxhash.xxh3_64_hexdigest(part) for part in parts)


def extents(file: Any) -> list[tuple[int, int]]:
    """Byte offset and length of the data of each contiguous dataset of an open HDF5 file, in the order of the file."""
    found: list[tuple[int, int]] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            found.append((item.id.get_offset(), item.nbytes))

    file.visititems(visit)
    return sorted(found)


def structure_hash(path: Path, places: list[tuple[int, int]] | None = None) -> str:
    """What `structure` says of a shard; `places`: what `extents` finds in it, when that is known."""
    if places is None:
        with h5py.File(path, "r") as file:
            places = extents(file)
    content, position, outside = path.read_bytes(), 0, b""
    for start, length in places:
        outside += content[position:start]
        position = start + length
    return xxhash.xxh3_128_hexdigest(outside + content[position:])


def norm_summary(norms: NDArray[float32]) -> dict[str, Any]:
    """What `norms` says of a hook."""
    if not len(norms):
        return {"zeros": 0, "min": None, "max": None, "quantiles": {}}
    values = np.quantile(norms.astype(np.float64), [float(q) for q in QUANTILES]).tolist()
    quantiles = dict(zip(QUANTILES, values, strict=True))
    zeros = int((norms == 0).sum())
    return {"zeros": zeros, "min": float(norms.min()), "max": float(norms.max()), "quantiles": quantiles}


def concept_rows(ids: NDArray[Any], concepts: list[str | None], example: NDArray[Any]) -> dict[str, int]:
    """What `concepts` says: concept to number of rows."""
    concept_of = dict(zip(ids.tolist(), concepts, strict=True))
    found = [concept_of[id_] for id_ in example.tolist()]
    return {name: found.count(name) for name in sorted({name for name in found if name is not None})}
