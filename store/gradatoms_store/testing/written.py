"""What a store that a writer wrote must hold, checked with h5py, json and xxhash."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from numpy.testing import assert_array_equal

from gradatoms_store.schema import ExampleRecord, GradientBlock, StoreHeader
from gradatoms_store.testing.forge import header_data
from gradatoms_store.testing.json_rules import check_header
from gradatoms_store.testing.plain import PlainReader
from gradatoms_store.testing.reading import assert_rounded
from gradatoms_store.testing.rules import check_store, check_tidy
from gradatoms_store.testing.samples import joined, sample_unit
from gradatoms_store.testing.suite import demand

Unit = tuple[GradientBlock, list[ExampleRecord]]


def units(header: StoreHeader, *numbers: int) -> dict[int, Unit]:
    """Units of the sample plan, by number."""
    return {number: sample_unit(number, header) for number in numbers}


def committed(path: Path) -> set[int]:
    """Units in committed shards."""
    sidecars = [json.loads(file.read_text("utf-8")) for file in (path / "shards").glob("*.json")]
    return {unit for sidecar in sidecars for unit in sidecar["units"]}


def assert_holds(path: Path, header: StoreHeader, wanted: dict[int, Unit]) -> None:
    """Demand that a store is as the format says, holds exactly these units, and has nothing beside them."""
    check_store(path)
    check_tidy(path)
    stored = check_header(path / "store.json")
    given = json.loads(json.dumps(header_data(header, header.schema_version)))
    demand({key: value for key, value in stored.items() if key != "digest"} == given, f"{path}: the header as given")
    demand(committed(path) == set(wanted), f"{path}: units {sorted(wanted)}, not {sorted(committed(path))}")
    for file in (path / "shards").glob("*.json"):
        with h5py.File(file.with_suffix(".h5")) as shard:
            ids = set(shard["examples/id"][:].tolist())
        own = {example.id for unit in json.loads(file.read_text("utf-8"))["units"] for example in wanted[unit][1]}
        demand(ids == own, f"{file}: exactly the examples of its units, so that a unit is in one shard")
    reader, block = PlainReader(path), joined(list(wanted.values()), header)
    rows = reader.rows()
    order, there = np.lexsort((block.position, block.example)), np.lexsort((rows["position"], rows["example"]))
    for field, values in rows.items():
        assert_array_equal(values[there], getattr(block, field)[order], f"rows/{field}")
    for hook in header.hooks:
        directions, norms = reader.directions(hook.name)[there], reader.norms(hook.name)[there]
        assert_rounded(directions, norms, block.gradients[hook.name][order], header.dtype)
    examples = sorted((example for _, found in wanted.values() for example in found), key=lambda example: example.id)
    demand(sorted(reader.examples(), key=lambda example: example.id) == examples, f"{path}: examples as given")
