"""Sample content for the conformance suites: seeded, and with every awkward value that the format allows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.schema import ExampleRecord, GradientBlock, HookSpec, StoreHeader

SAMPLE_HOOKS = (
    HookSpec(name="blocks.3.hook_resid_post", hf_name="model.layers.3", d=24),
    HookSpec(name="Größe 🧪.7", hf_name="", d=1),
)
MANY_HOOKS = tuple(
    HookSpec(name=name, hf_name=name, d=1 + width)
    for width, name in enumerate(["b", "a", " ", "blocks.0", "attrs", "é", "e\u0301", "a\\b", "x" * 200])
)
UNITS = 8
ROWS = 10
EXAMPLES = 2
"""Units of the sample plan, and rows and examples of a unit unless told otherwise."""

ROW_DTYPES = {"example": "<i8", "position": "<i4", "token": "<i4", "target": "<i4", "loss": "<f4"}
TEXTS = ("prompt", "target", "foil", "concept", "meta")
OPTIONAL = ("foil", "concept")

SCALES = (0.0, 1e-7, 1e-3, 1.0, 1e4, 1e-30, 1e30)
"""Sizes of the gradients of a unit, in turn."""

_PROMPTS = ("", "a\0b\0", "Qu'est-ce que\n\t🧪é?", " \u202eltr", "x" * 300, "\ufeffbom")
_FOILS = (None, "no", "", "\0")
_CONCEPTS = (None, "concept 1", "", "Begriff 🧪")


def sample_header(**changes: Any) -> StoreHeader:
    """A header of UNITS units over two hooks of different widths; fields may be given otherwise."""
    values: dict[str, Any] = {
        "model": {"name": "tiny/ü🧪\x7f", "sha": "ab12", "d_model": 24},
        "hooks": SAMPLE_HOOKS,
        "objective": "contrast",
        "positions": "prediction",
        "plan": "c0ffee",
        "n_units": UNITS,
        "n_examples": EXAMPLES * UNITS,
        "seed": 5,
    }
    return StoreHeader(**(values | changes))


def sample_unit(
    unit: int, header: StoreHeader | None = None, rows: int = ROWS, examples: int = EXAMPLES
) -> tuple[GradientBlock, list[ExampleRecord]]:
    """Unit `unit` of the sample plan.

    Gradients are of the sizes in SCALES, some of them zero; some losses are NaN, some tokens −1; texts are empty, absent,
    long, with NUL and outside ASCII. Example and position together tell each row from every other.

    Args:
        unit: number of the unit; units of different numbers share nothing.
        header: whose hooks; `sample_header()` when None.
        rows: n; 0 gives a unit without rows.
        examples: examples of the unit; at least 1 where there are rows.
    """
    rng = np.random.default_rng([unit, rows])
    number = np.arange(rows)
    gradients: dict[str, NDArray[float32]] = {}
    for index, hook in enumerate((header or sample_header()).hooks):
        scale = np.array(SCALES, np.float32)[(number + unit + index) % len(SCALES)]
        gradients[hook.name] = rng.standard_normal((rows, hook.d)).astype(np.float32) * scale[:, None]
    block = GradientBlock(
        gradients=gradients,
        example=(examples * unit + number % max(1, examples)).astype(np.int64),
        position=number.astype(np.int32),
        token=np.where(number % 4 == 3, -1, unit * rows + number).astype(np.int32),
        target=np.where(number % 5 == 4, -1, rng.integers(0, 2**31, rows)).astype(np.int32),
        loss=np.where(number % 6 == 5, np.nan, rng.uniform(-1, 9, rows)).astype(np.float32),
    )
    return block, [sample_example(examples * unit + i) for i in range(examples)]


def sample_example(id_: int) -> ExampleRecord:
    """Example `id_` of the sample plan."""
    return ExampleRecord(
        id=id_,
        prompt=_PROMPTS[id_ % len(_PROMPTS)] + f"{id_}" * (id_ % 2),
        target=f" réponse {id_}" if id_ % 5 else "",
        foil=_FOILS[id_ % len(_FOILS)],
        concept=_CONCEPTS[id_ % len(_CONCEPTS)],
        meta=json.dumps({"id": id_, "größe": ["\0", None]}, ensure_ascii=bool(id_ % 2)),
    )


def joined(units: list[tuple[GradientBlock, list[ExampleRecord]]], header: StoreHeader) -> GradientBlock:
    """Rows of several units end to end."""
    blocks = [block for block, _ in units]
    rows = {
        field: np.concatenate([np.empty(0, dtype), *(getattr(block, field) for block in blocks)])
        for field, dtype in ROW_DTYPES.items()
    }
    gradients = {
        hook.name: np.concatenate(
            [np.empty((0, hook.d), np.float32), *(block.gradients[hook.name] for block in blocks)]
        )
        for hook in header.hooks
    }
    return GradientBlock(gradients=gradients, **rows)
