"""What a writer must refuse: another model, hook, dtype or objective; NaN and Inf. And what it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
from check import inspect, inspect_complete
from children import Job, run
from content import DTYPES, KIT, ROUNDING, contents, fill
from tally import Bench, Tally

from gradatoms_store import GradientBlock, HookSpec, StoreMismatchError, StoreValueError, StoreWriter, open_store

UNITS = 12
SCALES = (0.0, 1e-30, 1e-7, 1.0, 1e4, 1e30)


def _other_headers(header: Any) -> list[tuple[str, dict[str, Any]]]:
    """What a message must name, and a change of the header."""
    one, two = header.hooks
    wider = HookSpec(name=two.name, hf_name=two.hf_name, d=two.d + 1)
    renamed = HookSpec(name="blocks.9.hook_resid_post", hf_name=two.hf_name, d=two.d)
    moved = HookSpec(name=two.name, hf_name="model.layers.9", d=two.d)
    return [
        ("model.name", {"model": header.model | {"name": "other"}}),
        ("model.sha", {"model": header.model | {"sha": "ffff"}}),
        ("model.revision", {"model": header.model | {"revision": "2"}}),
        (two.name, {"hooks": (one,)}),
        (two.name, {"hooks": (one, wider)}),
        (two.name, {"hooks": (one, moved)}),
        (renamed.name, {"hooks": (one, renamed)}),
        ("hook order", {"hooks": (two, one)}),
        ("dtype", {"dtype": next(dtype for dtype in DTYPES if dtype != header.dtype)}),
        ("objective", {"objective": "contrast"}),
        ("positions", {"positions": "last"}),
        ("space", {"space": "weights"}),
        ("plan", {"plan": "0123"}),
        ("n_units", {"n_units": UNITS + 1}),
        ("n_examples", {"n_examples": 1}),
        ("seed", {"seed": 6}),
    ]


def headers(bench: Bench, tally: Tally) -> None:
    """A resume with another header is refused, names the field, and changes nothing."""
    give = contents(bench.folder, UNITS)
    for _, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = fill(folder / "s.gstore", content.header, content.units, range(6), 20)
        before = inspect(path, content)
        tally.rows += before.rows
        for name, change in _other_headers(content.header):
            values = {field: getattr(content.header, field) for field in content.header.__dataclass_fields__}
            try:
                StoreWriter.resume(path, type(content.header)(**(values | change))).close()
                text = "nothing was refused"
            except StoreMismatchError as error:
                text = str(error)
            tally.expect(f"{name}: " in text and "\n" not in text, f"{where}: {name} is not named: {text}")
        found = inspect(path, content, (), before)
        tally.take(found, where)
        tally.fail_if(found.units != before.units, f"{where}: something was committed")
        child = run(Job(path, content, 0), folder / "resumed.log")
        tally.fail_if(child.status, f"{where}: {child.error}")
        tally.take(inspect_complete(path, content, found), f"{where}, at the end")


def non_finite(bench: Bench, tally: Tally) -> None:
    """NaN and Inf are refused with hook and example, nothing is buffered, and the writer goes on."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        path = folder / "s.gstore"
        with StoreWriter.create(path, content.header, rows_per_shard=30) as writer:
            for unit, (block, examples) in enumerate(content.units):
                hook, row = str(rng.choice(KIT.HOOKS)), int(rng.integers(len(block.example)))
                bad = {name: values.copy() for name, values in block.gradients.items()}
                bad[hook][row, rng.integers(bad[hook].shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
                try:
                    writer.append(unit, GradientBlock(**(vars(block) | {"gradients": bad})), examples)
                    text = "nothing was refused"
                except StoreValueError as error:
                    text = str(error)
                named = hook in text and f"example {int(block.example[row])} " in text
                tally.expect(named and "\n" not in text, f"{where}: unit {unit} row {row} at {hook}: {text}")
                writer.append(unit, block, examples)
        tally.take(inspect_complete(path, content), where)


def extremes(bench: Bench, tally: Tally) -> None:
    """Zero, tiny and huge gradients come back, to the rounding of the dtype; zeros as norm 0 and direction 0."""
    give = contents(bench.folder, UNITS)
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        dtype, path = content.header.dtype, folder / "s.gstore"
        given: dict[str, list[np.ndarray[Any, Any]]] = {hook: [] for hook in KIT.HOOKS}
        with StoreWriter.create(path, content.header, rows_per_shard=30) as writer:
            for unit, (block, examples) in enumerate(content.units):
                scale = rng.choice(SCALES, (len(block.example), 1)).astype(np.float32)
                gradients = {
                    name: rng.standard_normal(g.shape).astype(np.float32) for name, g in block.gradients.items()
                }
                gradients = {name: values * scale for name, values in gradients.items()}
                writer.append(unit, GradientBlock(**(vars(block) | {"gradients": gradients})), examples)
                for hook, values in gradients.items():
                    given[hook].append(values)
        store = open_store(path)
        order = np.argsort(store.rows["token"])
        for hook, parts in given.items():
            g = np.concatenate(parts).astype(np.float64)
            read = store.read(hook, order)
            norms = np.linalg.norm(g, axis=1)
            error = np.abs(read.gradients * read.norms[:, None].astype(np.float64) - g)
            tiny = 2.0**-25 if dtype == "float16" else 0.0
            near = (error <= (1.02 * ROUNDING[dtype] * np.abs(g) + tiny * norms[:, None])).all(axis=1)
            zeros = (read.norms == 0) == (norms == 0)
            zeros &= (read.gradients == 0).all(axis=1) == (norms == 0)
            tally.rows += len(g)
            tally.lost += int((~(near & zeros)).sum())
            tally.expect(
                bool(near.all() and zeros.all()), f"{where}: {hook}: {int((~(near & zeros)).sum())} rows differ"
            )
