"""Small real stores for the tests: seeded gradients with a wide range of norms, and examples with awkward texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, StoreHeader, StoreWriter

HOOKS = ("blocks.3.hook_resid_post", "blocks.7.hook_resid_post")
UNITS, ROWS, D = 12, 10, 24


def make_header(**changes: Any) -> StoreHeader:
    values: dict[str, Any] = {
        "model": {"name": "tiny", "sha": "ab12", "d_model": D},
        "hooks": tuple(HookSpec(name=name, hf_name=f"model.layers.{name.split('.')[1]}", d=D) for name in HOOKS),
        "objective": "nll",
        "positions": "prediction",
        "plan": "c0ffee",
        "n_units": UNITS,
        "n_examples": 2 * UNITS,
        "seed": 5,
    }
    return StoreHeader(**(values | changes))


def make_unit(unit: int, n: int = ROWS) -> tuple[GradientBlock, list[ExampleRecord]]:
    """Unit `unit`: n rows over two examples; `token` numbers the rows of the whole store, so rows are recognisable."""
    rng = np.random.default_rng(unit)
    scale = np.float32(10.0) ** rng.uniform(-7, 4, (n, 1)).astype(np.float32)
    gradients = {name: rng.standard_normal((n, D)).astype(np.float32) * scale for name in HOOKS}
    ids = np.array([2 * unit, 2 * unit + 1])
    block = GradientBlock(
        gradients=gradients,
        example=ids[np.arange(n) % 2].astype(np.int64),
        position=np.arange(n, dtype=np.int32),
        token=(unit * n + np.arange(n)).astype(np.int32),
        target=rng.integers(0, 49152, n).astype(np.int32),
        loss=rng.uniform(0, 9, n).astype(np.float32),
    )
    examples = [
        ExampleRecord(
            id=int(id_),
            prompt=f"Qu'est-ce que\n\0 {id_} 🧪?",
            target=f" réponse {id_}",
            foil=None if id_ % 2 else "",
            concept=None if id_ % 3 == 0 else f"concept {id_ % 3}",
            meta=json.dumps({"id": int(id_)}),
        )
        for id_ in ids
    ]
    return block, examples


def raw_rows() -> dict[str, np.ndarray[Any, Any]]:
    """What a complete store must hold, in the order of `token`: hook name to g, and row field to values."""
    blocks = [make_unit(unit)[0] for unit in range(UNITS)]
    out = {name: np.concatenate([block.gradients[name] for block in blocks]) for name in HOOKS}
    for field in ("example", "position", "token", "target", "loss"):
        out[field] = np.concatenate([getattr(block, field) for block in blocks])
    return out


@pytest.fixture
def samples() -> SimpleNamespace:
    """The helpers of this file, by name."""
    return SimpleNamespace(
        header=make_header, unit=make_unit, raw=raw_rows, hooks=HOOKS, n_units=UNITS, n_rows=UNITS * ROWS, d=D
    )


@pytest.fixture
def fill() -> Callable[..., Path]:
    """Write units to a new store: `fill(path, units=range(12), rows_per_shard=35, **header_changes)`."""

    def make(path: Path, units: Any = range(UNITS), rows_per_shard: int = 35, **changes: Any) -> Path:
        with StoreWriter.create(path, make_header(**changes), rows_per_shard=rows_per_shard) as writer:
            for unit in units:
                writer.append(unit, *make_unit(unit))
        return path

    return make


@pytest.fixture
def store_path(tmp_path: Path, fill: Callable[..., Path]) -> Path:
    """A complete store of 120 rows in 3 shards."""
    return fill(tmp_path / "facts.gstore")
