"""Weight gradients of documents against the one-document loop that forms them whole, and against bergson; and what memory they take."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.examples import Example, read_examples
from gradatoms.gradients import HarvestConfig
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.curvature import CurvatureConfig, fit_curvature
from gradatoms.gradients.linear import find_linear
from gradatoms.gradients.passes import WatchedPass
from gradatoms.gradients.projection import Projection, ProjectionConfig, eigen_projection, random_projection
from gradatoms.gradients.reference import weights_one_at_a_time
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
from gradatoms.gradients.weights import HOOK, WeightGradients
from gradatoms.hooking import has_bfloat16
from gradatoms.metric import peak_memory_bytes
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model, load_tokenizer

DOCUMENTS, REPEATS, ASKED = 48, 3, 5.0
MEMORY = 5000
"""Documents of the memory test."""


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


def documents(limit: int) -> list[Example]:
    return read_examples("builtin:instructions", limit=limit, tokenizer=cache(lambda: load_tokenizer("smollm2")))


def median_seconds(work: Callable[[], object]) -> tuple[float, float, float]:
    """Median, least and most over repeats, after one call that is not timed."""
    work()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found), min(found), max(found)


def whole_then_projected(
    loaded: LoadedModel, sequences: list[list[TokenSequence]], projection: Projection
) -> np.ndarray:
    """The published way: each document's whole gradients, brought to the whole eigenbasis, of which 50 components are kept."""
    sites = find_linear(loaded)
    rows = []
    for gradients in weights_one_at_a_time(loaded, sequences, sites):
        parts = [
            (m.V_S.T @ g @ m.V_A)[m.at_S, m.at_A] / m.scale for g, m in zip(gradients, projection.modules, strict=True)
        ]
        rows.append(torch.cat(parts).numpy())
    return np.stack(rows)


def test_against_the_loop(smollm2: LoadedModel) -> None:
    examples = documents(DOCUMENTS)
    sites, sequences = find_linear(smollm2), tokenize(smollm2, examples)
    projection = eigen_projection(
        fit_curvature(smollm2, examples, sites, CurvatureConfig(dtype="auto")), ProjectionConfig()
    )
    branches = [one[0] for one in sequences]
    tokens = sum(len(b.ids) for b in branches)
    loop, *spread = median_seconds(lambda: whole_then_projected(smollm2, sequences, projection))
    print(f"\n{len(branches)} documents, {tokens} tokens, {len(sites)} modules, {projection.d} components")
    print(
        f"one at a time, whole: {len(branches) / loop:.1f} documents/s ({len(branches) / spread[1]:.1f} to {len(branches) / spread[0]:.1f})"
    )
    bare = WatchedPass(smollm2, sites)

    def passes() -> None:
        for group in by_budget(branches, 1024):
            bare.run(pad(group, smollm2.device), lambda *_: None, lambda *_: None)

    alone, low, high = median_seconds(passes)
    print(
        f"the same passes without any weight gradient, float32: {len(branches) / alone:.1f} documents/s "
        f"({len(branches) / high:.1f} to {len(branches) / low:.1f}), {loop / alone:.1f} times the loop: no batched way can do better"
    )
    expected = whole_then_projected(smollm2, sequences, projection)
    for name, dtype, sketch in (
        ("float32", None, 0), ("float32, with sketches", None, 16), ("bfloat16", torch.bfloat16, 0),
        ("bfloat16, with sketches", torch.bfloat16, 16),
    ):  # fmt: skip
        if dtype is not None and not has_bfloat16("cpu"):
            continue
        take = WeightGradients(smollm2, sites, projection, sketch=sketch, autocast=dtype)

        def ours(take: WeightGradients = take) -> dict[int, np.ndarray]:
            found = {}
            for group in by_budget(branches, 1024):
                block = take(pad(group, smollm2.device))
                found |= dict(zip(block.example.tolist(), block.gradients[HOOK], strict=True))
            return found

        seconds, low, high = median_seconds(ours)
        rows = np.stack([row for _, row in sorted(ours().items())])
        error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
        print(
            f"{name}: {len(branches) / seconds:.1f} documents/s ({len(branches) / high:.1f} to {len(branches) / low:.1f}), "
            f"{loop / seconds:.1f} times the loop; asked {ASKED:.0f}; relative error {np.median(error):.1e}, at most {error.max():.1e}"
        )


@pytest.mark.filterwarnings("ignore")
def test_against_bergson(smollm2: LoadedModel, tmp_path: Path) -> None:
    """Both take random projections of every document's gradients of the same modules, 7 × 7 and 8 × 8 numbers a module."""
    pytest.importorskip("bergson", reason="needs bergson on the path")
    from bergson import GradientProcessor, IndexConfig, collect_gradients
    from datasets import Dataset

    examples = documents(DOCUMENTS)
    sites = find_linear(smollm2)
    branches = [one[0] for one in tokenize(smollm2, examples)]
    whole = [smollm2.tokenizer(e.prompt + e.target, add_special_tokens=False).input_ids for e in examples]
    data = Dataset.from_dict({"input_ids": whole, "length": [len(w) for w in whole]})
    names = {s.name.removeprefix("model.") for s in sites}
    runs = iter(range(100))

    def theirs() -> None:
        where = tmp_path / f"run{next(runs)}"
        config = IndexConfig(run_path=str(where), token_batch_size=1024, projection_dim=8)
        groups: list[list[int]] = []
        for i in sorted(range(len(whole)), key=lambda i: len(whole[i])):
            if groups and len(whole[i]) * (len(groups[-1]) + 1) <= 1024:
                groups[-1].append(i)
            else:
                groups.append([i])
        collect_gradients(
            smollm2.model, data, GradientProcessor(projection_dim=8), config, batches=groups, target_modules=names
        )

    take = WeightGradients(
        smollm2, sites, random_projection(sites, ProjectionConfig(kind="random", top_k=64)), sketch=0
    )

    def ours() -> None:
        for group in by_budget(branches, 1024):
            take(pad(group, smollm2.device))

    smollm2.model.get_input_embeddings().requires_grad_(
        True
    )  # as bergson's own set-up does, so that its hooks are called
    try:
        a = median_seconds(theirs)
    finally:
        smollm2.model.requires_grad_(False)
    b = median_seconds(ours)
    print(f"\nbergson {len(whole) / a[0]:.1f} documents/s ({len(whole) / a[2]:.1f} to {len(whole) / a[1]:.1f})")
    print(
        f"ours    {len(whole) / b[0]:.1f} documents/s ({len(whole) / b[2]:.1f} to {len(whole) / b[1]:.1f}), {a[0] / b[0]:.2f} times"
    )


def test_memory_and_seconds_of_5000_documents(tmp_path: Path) -> None:
    """Harvest and fit in a process of their own: peak resident memory less that of the model loaded and run once; seconds by step."""
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    found = {}
    for n in (0, 500, MEMORY):
        done = subprocess.run(
            [sys.executable, __file__, str(n), str(tmp_path / f"{n}.gstore")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"},  # as the command line sets it
        )
        found[n] = json.loads(done.stdout.splitlines()[-1])
        if n:
            beyond = {stage: (peak - found[0]["peak"]["model"]) / 1e9 for stage, peak in found[n]["peak"].items()}
            print(
                f"\n{n} documents: GB beyond the model until the end of "
                + ", ".join(f"{stage} {gb:.2f}" for stage, gb in beyond.items())
                + " (goal 2); "
                + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found[n]["seconds"].items())
            )


def _pipeline(n: int, out: str) -> None:
    """Prints, as JSON, the highest resident memory so far and the seconds of each stage."""
    loaded = load_model("smollm2")
    with torch.no_grad():
        loaded.model(torch.ones(1, 64, dtype=torch.long))
    peak, seconds, started = {"model": peak_memory_bytes()}, {}, time.perf_counter()
    told: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            told[stage] = time.perf_counter() - started

    if n:
        few = documents(3000)
        examples = [few[i % len(few)] for i in range(n)]
        started = time.perf_counter()
        config = WeightConfig(curvature=CurvatureConfig(dtype="auto", examples=1000))
        harvest_weights(loaded, examples, out, HarvestConfig(dtype="auto"), config, progress=progress)
        peak["gradients"] = peak_memory_bytes()
        whole = time.perf_counter() - started
        seconds = {"curvature": told["curvature"], "projected gradients": whole - told["curvature"]}
        fit_store(out, Path(out).with_suffix(".atoms"), OnlineConfig(n_atoms=500))
        peak["eight fits and checks"] = peak_memory_bytes()
        seconds["eight fits and checks"] = time.perf_counter() - started - whole
    print(json.dumps({"peak": peak, "seconds": seconds}))


if __name__ == "__main__":
    _pipeline(int(sys.argv[1]), sys.argv[2])
