"""What the stores of the fault tests hold: the units of the store's other tests, and the values that readers must give."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms_store import ExampleRecord, GradientBlock, Store, StoreHeader, StoreWriter, open_store

DTYPES = ("float16", "bfloat16", "float32")
FIELDS = ("example", "position", "token", "target", "loss")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-22}
"""Largest relative error of a stored value of a direction; float32 is divided and rounded twice."""


def _kit() -> Any:
    """The helpers of the store's other tests: `make_header`, `make_unit`, ..."""
    file = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("store_conftest", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KIT = _kit()
ROWS = int(KIT.ROWS)
"""Rows of a unit; `token` numbers the rows of a store, so that unit u has tokens u * ROWS to (u + 1) * ROWS - 1."""


@dataclass(frozen=True)
class Rows:
    """Rows as a reader gives them, ascending by token, n of them."""

    directions: dict[str, np.ndarray[Any, Any]]
    """Hook to unit directions as float32, shape (n, d)."""
    norms: dict[str, np.ndarray[Any, Any]]
    fields: dict[str, np.ndarray[Any, Any]]

    def equal(self, other: Rows) -> np.ndarray[Any, Any]:
        """Which rows of two tables of one length are the same to the last bit, shape (n,)."""
        same = np.ones(len(self.fields["token"]), bool)
        for hook, directions in self.directions.items():
            same &= (directions == other.directions[hook]).all(axis=1) & (self.norms[hook] == other.norms[hook])
        for field, values in self.fields.items():
            same &= (values == other.fields[field]) | (
                (values != values) & (other.fields[field] != other.fields[field])
            )
        return same

    def take(self, index: np.ndarray[Any, Any]) -> Rows:
        """Rows by number."""
        return Rows(
            {hook: values[index] for hook, values in self.directions.items()},
            {hook: values[index] for hook, values in self.norms.items()},
            {field: values[index] for field, values in self.fields.items()},
        )


def read_rows(store: Store) -> Rows:
    """A whole store, streamed, with the segments' hashes checked; in the order of the store."""
    directions, norms, fields = {}, {}, {}
    for hook in store.hooks:
        parts = list(store.batches(hook, 64))
        d = store.header.hook(hook).d
        directions[hook] = np.concatenate([np.empty((0, d), np.float32), *(part.gradients for part in parts)])
        norms[hook] = np.concatenate([np.empty(0, np.float32), *(part.norms for part in parts)])
        for field in FIELDS:
            values = np.concatenate([store.rows[field][:0], *(part.rows[field] for part in parts)])
            if not np.array_equal(fields.setdefault(field, values), values, equal_nan=field == "loss"):
                raise AssertionError(f"{field} differs between the streams of two hooks")
    return Rows(directions, norms, fields)


@dataclass(frozen=True)
class Content:
    """A plan, and what a store of it must hold."""

    header: StoreHeader
    units: list[tuple[GradientBlock, list[ExampleRecord]]]
    rows: Rows
    """Every row, as a reader gives it: from a store that was written without any fault, and checked."""

    @property
    def n_units(self) -> int:
        """Units of the plan."""
        return len(self.units)

    @property
    def examples(self) -> dict[int, ExampleRecord]:
        """Id to example."""
        return {example.id: example for _, examples in self.units for example in examples}


def make_content(folder: Path, n_units: int, dtype: str) -> Content:
    """A plan of so many units; `folder` takes the faultless store."""
    header: StoreHeader = KIT.make_header(n_units=n_units, n_examples=2 * n_units, dtype=dtype, plan=f"f{n_units}")
    units = [KIT.make_unit(unit) for unit in range(n_units)]
    path = fill(folder / f"clean-{dtype}-{n_units}.gstore", header, units, range(n_units), 30)
    store = open_store(path)
    rows = read_rows(store)
    rows = rows.take(np.argsort(rows.fields["token"]))
    _check_against_given(rows, units, dtype)
    return Content(header, units, rows)


def fill(path: Path, header: StoreHeader, units: list[Any], which: Any, rows_per_shard: int) -> Path:
    """A new store with some of the units."""
    with StoreWriter.create(path, header, rows_per_shard=rows_per_shard) as writer:
        for unit in which:
            writer.append(unit, *units[unit])
    return path


def contents(folder: Path, n_units: int) -> Callable[[int], Content]:
    """Content of the n-th trial: the dtypes in turn, each made when first needed."""
    made: dict[str, Content] = {}

    def give(number: int) -> Content:
        dtype = DTYPES[number % len(DTYPES)]
        if dtype not in made:
            made[dtype] = make_content(folder, n_units, dtype)
        return made[dtype]

    return give


def _check_against_given(rows: Rows, units: list[Any], dtype: str) -> None:
    """The faultless store holds what was given, to the rounding of the dtype."""
    blocks = [block for block, _ in units]
    for field, values in rows.fields.items():
        np.testing.assert_array_equal(values, np.concatenate([getattr(block, field) for block in blocks]))
    for hook in rows.norms:
        raw = np.concatenate([block.gradients[hook] for block in blocks]).astype(np.float64)
        norms = np.linalg.norm(raw, axis=1)
        np.testing.assert_allclose(rows.norms[hook], norms, rtol=2e-7)
        tiny = 2.0**-25 if dtype == "float16" else 0.0
        np.testing.assert_allclose(rows.directions[hook], raw / norms[:, None], rtol=ROUNDING[dtype] * 1.01, atol=tiny)
