"""Writes stores with h5py and json alone, for readers to read: rows, numbers and versions as a test wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.schema import ExampleRecord, StoreHeader
from gradatoms_store.testing.plain import (
    PlainReader,
    block_hash,
    concept_rows,
    digest,
    fingerprint,
    narrowed,
    norm_summary,
    segment_hashes,
    structure_hash,
    text_arrays,
    widened,
)
from gradatoms_store.testing.samples import EXAMPLES, ROW_DTYPES, ROWS, joined, sample_unit


@dataclass(frozen=True)
class SampleShard:
    """A shard to be written, n rows in the order on disk."""

    number: int
    units: tuple[int, ...]
    directions: dict[str, NDArray[Any]]
    """Hook to directions in the dtype on disk, shape (n, d)."""
    norms: dict[str, NDArray[float32]]
    """Hook to norms, shape (n,)."""
    rows: dict[str, NDArray[Any]]
    """Row fields, each of shape (n,)."""
    examples: list[ExampleRecord]
    example_offset: int = 0
    segment_rows: int = 7

    @classmethod
    def of(
        cls,
        header: StoreHeader,
        number: int,
        units: Sequence[int],
        *,
        rows: int = ROWS,
        examples: int = EXAMPLES,
        example_offset: int = 0,
        segment_rows: int = 7,
    ) -> SampleShard:
        """A shard of units of the sample plan; see `sample_unit`."""
        parts = [sample_unit(unit, header, rows, examples) for unit in units]
        block = joined(parts, header)
        directions, norms = {}, {}
        for hook, gradients in block.gradients.items():
            exact = np.linalg.norm(gradients.astype(np.float64), axis=1)
            unit_rows = gradients / np.where(exact == 0, 1, exact)[:, None]
            directions[hook] = narrowed(unit_rows.astype(np.float32), header.dtype)
            norms[hook] = exact.astype(np.float32)
        fields = {field: getattr(block, field).astype(dtype) for field, dtype in ROW_DTYPES.items()}
        records = [example for _, found in parts for example in found]
        return cls(number, tuple(units), directions, norms, fields, records, example_offset, segment_rows)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every dataset of the shard, path to array."""
        out: dict[str, NDArray[Any]] = {f"gradients/{hook}": array for hook, array in self.directions.items()}
        out |= {f"norms/{hook}": array.astype("<f4") for hook, array in self.norms.items()}
        out |= {f"rows/{field}": array for field, array in self.rows.items()}
        return out | text_arrays(self.examples)


@dataclass(frozen=True)
class Expected:
    """What a reader must give for a store, n rows in storage order."""

    directions: dict[str, NDArray[float32]]
    norms: dict[str, NDArray[float32]]
    rows: dict[str, NDArray[Any]]
    examples: list[ExampleRecord]
    """By ascending id."""

    @classmethod
    def of(cls, header: StoreHeader, shards: Sequence[SampleShard]) -> Expected:
        """Of shards, which are given in the order of their numbers."""
        directions, norms = {}, {}
        for hook in header.hooks:
            parts = [widened(shard.directions[hook.name], header.dtype) for shard in shards]
            directions[hook.name] = np.concatenate([np.empty((0, hook.d), np.float32), *parts])
            norms[hook.name] = np.concatenate([np.empty(0, np.float32), *(shard.norms[hook.name] for shard in shards)])
        rows = {
            field: np.concatenate([np.empty(0, dtype), *(shard.rows[field] for shard in shards)])
            for field, dtype in ROW_DTYPES.items()
        }
        counts = [len(shard.rows["example"]) for shard in shards]
        rows["example"] += np.repeat(np.array([shard.example_offset for shard in shards], "<i8"), counts)
        examples = [
            ExampleRecord(**(vars(example) | {"id": example.id + shard.example_offset}))
            for shard in shards
            for example in shard.examples
        ]
        return cls(directions, norms, rows, sorted(examples, key=lambda example: example.id))

    @classmethod
    def read(cls, path: Path, header: StoreHeader) -> Expected:
        """Of a store on the disk, as `PlainReader` reads it."""
        reader = PlainReader(path)
        hooks = [hook.name for hook in header.hooks]
        directions, norms = (
            {hook: reader.directions(hook) for hook in hooks},
            {hook: reader.norms(hook) for hook in hooks},
        )
        return cls(directions, norms, reader.rows(), sorted(reader.examples(), key=lambda example: example.id))


def write_store(path: Path, header: StoreHeader, shards: Sequence[SampleShard], *, version: int = 2) -> Expected:
    """Write a whole store.

    Args:
        path: folder to make.
        header: of the store; its version is not looked at.
        shards: in the order of their numbers.
        version: format version, 1 or 2.
    """
    (path / "shards").mkdir(parents=True)
    data = header_data(header, version)
    write_json(path / "store.json", data)
    for shard in shards:
        file = path / "shards" / f"{shard.number:05d}.h5"
        write_h5(file, shard.arrays(), header.dtype, version)
        write_json(file.with_suffix(".json"), _sidecar(file, shard, data, version))
    return Expected.of(header, shards)


def header_data(header: StoreHeader, version: int) -> dict[str, Any]:
    """The content of `store.json`, but for the digest."""
    values = asdict(header) | {"hooks": [asdict(hook) for hook in header.hooks]}
    return {"format": "gradatoms-store"} | values | {"schema_version": version}


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file of the store, with its digest where its version has one; UTF-8 without escapes."""
    version = data.get("schema_version")
    content = dict(data) if version == 1 else {**data, "digest": digest(data)}
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def write_h5(file: Path, arrays: Mapping[str, NDArray[Any]], dtype: str, version: int, **options: Any) -> None:
    """Write a shard file through libhdf5, which puts things where it likes."""
    with h5py.File(file, "w", libver=("v110", "v110"), **options) as h5:
        h5.attrs["format"] = np.bytes_("gradatoms-shard")
        h5.attrs["schema_version"] = np.int64(version)
        for name, array in arrays.items():
            dataset = h5.create_dataset(name, array.shape, array.dtype)
            if array.size:
                dataset[...] = array
            if name.startswith("gradients/") and dtype == "bfloat16":
                dataset.attrs["dtype"] = np.bytes_("bfloat16")


def _sidecar(file: Path, shard: SampleShard, header: Mapping[str, Any], version: int) -> dict[str, Any]:
    ids = np.array([example.id for example in shard.examples], "<i8")
    concepts = [example.concept for example in shard.examples]
    data: dict[str, Any] = {
        "format": "gradatoms-shard",
        "schema_version": version,
        "file": file.name,
        "fingerprint": fingerprint(header),
        "rows": len(shard.rows["example"]),
        "examples": len(ids),
        "units": list(shard.units),
        "norms": {hook["name"]: norm_summary(shard.norms[hook["name"]]) for hook in header["hooks"]},
        "concepts": concept_rows(ids, concepts, shard.rows["example"]),
    }
    if version > 1:
        data |= {"segment_rows": shard.segment_rows, "example_offset": shard.example_offset}
        data["nan_losses"] = int(np.isnan(shard.rows["loss"]).sum())
    return data | hashes(file, shard.arrays(), shard.segment_rows, version)


def hashes(file: Path, arrays: Mapping[str, NDArray[Any]], segment_rows: int, version: int) -> dict[str, Any]:
    """What a sidecar says of the bytes of its shard."""
    data: dict[str, Any] = {"bytes": file.stat().st_size}
    data["blocks"] = {name: block_hash(array) for name, array in arrays.items()}
    if version > 1:
        by_row = {name: array for name, array in arrays.items() if not name.startswith("examples/")}
        data["segments"] = {name: segment_hashes(array, segment_rows) for name, array in by_row.items()}
        data["structure"] = structure_hash(file)
    return data


def reseal(file: Path) -> None:
    """Let the sidecar of a shard that was changed say what the shard is now, as a forger would."""
    sidecar = file.with_suffix(".json")
    data = json.loads(sidecar.read_text("utf-8"))
    arrays: dict[str, NDArray[Any]] = {}
    with h5py.File(file, "r") as h5:
        for name in data["blocks"]:
            hard = isinstance(h5.get(name, getlink=True), h5py.HardLink)
            dataset = h5.get(name) if hard else None
            if isinstance(dataset, h5py.Dataset) and dataset.nbytes < 2**20 and not dataset.external:
                arrays[name] = dataset[...]
    said = hashes(file, arrays, data.get("segment_rows", 1), data["schema_version"])
    for key in ("blocks", "segments"):
        if key in said:
            said[key] = data[key] | said[key]
    write_json(sidecar, data | said)
