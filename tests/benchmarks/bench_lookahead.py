"""How long the lookahead of a dictionary takes: beside whole forward passes one at a time, and for a thousand atoms."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.examples import read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.hooking import edit_site, fast_math
from gradatoms.labels.gather import gather
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.lookahead import lookahead
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model
from gradatoms_store import open_store

DIRECTIONS, CONTEXTS, LOOP = 64, 4, 48
"""Directions, contexts of each, and injections that the loop is timed on."""
MINUTES = 15
"""What a thousand atoms may take."""


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


@torch.no_grad()
def loop(
    loaded: LoadedModel, hook: str, V: np.ndarray, contexts: list[list[int]], pairs: list[tuple[int, int]]
) -> None:
    """The same injections, one whole forward pass each."""
    for k, c in pairs:
        v = torch.from_numpy(V[k])

        def step(h: torch.Tensor, v: torch.Tensor = v) -> torch.Tensor:
            return torch.cat([h[:, :-1], h[:, -1:] + 0.1 * h[:, -1:].norm(dim=-1, keepdim=True) * v], dim=1)

        with edit_site(loaded.hook(hook), step):
            loaded.model(input_ids=torch.tensor([contexts[c]]), logits_to_keep=1).logits.float().log_softmax(-1)


def test_batched_injections_against_one_at_a_time(smollm2: LoadedModel) -> None:
    hook = smollm2.default_hook()
    V = np.random.default_rng(0).standard_normal((DIRECTIONS, 576)).astype(np.float32)
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    prompts = [e.prompt for e in read_examples("builtin:corrections", limit=DIRECTIONS * CONTEXTS)]
    contexts = smollm2.tokenizer(prompts).input_ids
    pairs = [(k, k * CONTEXTS + c) for k in range(DIRECTIONS) for c in range(CONTEXTS)]
    ours, theirs = [], []
    with fast_math(smollm2):
        for _ in range(4):  # the first warms up
            started = time.perf_counter()
            lookahead(smollm2, smollm2.hook(hook), V, contexts, pairs, alpha=0.1)
            ours.append((time.perf_counter() - started) / len(pairs))
            started = time.perf_counter()
            loop(smollm2, hook, V, contexts, pairs[:LOOP])
            theirs.append((time.perf_counter() - started) / LOOP)
    a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
    print(f"\ninjections: {1 / a:.0f}/s, one whole forward at a time {1 / b:.0f}/s: {b / a:.1f} times")
    assert a < b


def test_evidence_for_a_thousand_atoms(smollm2: LoadedModel, tmp_path: Path) -> None:
    harvest(smollm2, read_examples("builtin:corrections", limit=1600), tmp_path / "s.gstore", HarvestConfig())
    store = open_store(tmp_path / "s.gstore")
    atoms, _ = fit_store(store.path, tmp_path / "x.atoms", OnlineConfig(n_atoms=112, epochs=5), checks=False)
    marks: dict[str, list[float]] = {}
    started = time.perf_counter()
    gather(
        smollm2, atoms, load_codes(tmp_path / "x.atoms" / "codes.h5"), store, tmp_path / "evidence.h5",
        EvidenceConfig(random=16),
        progress=lambda stage, done, total: marks.setdefault(stage, []).append(time.perf_counter() - started),
    )  # fmt: skip
    once, first, last = marks["hard negatives"][-1], marks["lookahead"][0], marks["lookahead"][-1]
    per_direction = min(first - once, last - first) / 64
    minutes = (once + 1048 * per_direction) / 60
    print(
        f"\nevidence: {per_direction:.2f} s a direction after {once:.0f} s for hard negatives; "
        f"a thousand atoms and 48 random directions {minutes:.1f} min (may take {MINUTES})"
    )
    assert minutes < MINUTES
