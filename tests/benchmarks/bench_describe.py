"""How long one description takes, warm, beside the same model writing as many tokens by itself."""

from __future__ import annotations

import importlib.util
import statistics
import time

import numpy as np
import pytest
import torch

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model
from gradatoms.projector.confidence import Confidence
from gradatoms.projector.describe import Describer, describe
from gradatoms.projector.model import ProjectorConfig, new_projector
from gradatoms.projector.reader import Reader
from gradatoms.projector.words import new_words

ATOMS, ROUNDS, SECONDS = 192, 7, 1.0
"""Atoms with labels; rounds timed; what one description may take on two cores."""


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


def untrained(loaded: LoadedModel) -> Describer:
    """Random atoms with made-up labels of five words, which the soft tokens say as clearly as trained ones do."""
    rng = np.random.default_rng(0)
    D = rng.standard_normal((ATOMS, loaded.embeddings.shape[1])).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    atoms = Atoms(D, np.zeros(D.shape[1], np.float32), OmpCoder(D, 3), loaded.default_hook())
    words = "river stone music winter engine paper garden silver doctor island copper letter bridge market".split()
    labels = {a: f"topic {a}: {', '.join(rng.choice(words, 4, replace=False))}" for a in range(ATOMS)}
    projector = new_projector(loaded, atoms, ProjectorConfig())
    projector.words = new_words(loaded, atoms, labels, list(labels), projector.config.soft_tokens)
    with torch.no_grad():
        projector.words.quiet.fill_(-1.0)  # always names two atoms, the slowest answer
    return Describer(Reader(loaded, projector), atoms, labels, Confidence())


def test_a_description_beside_plain_generation(smollm2: LoadedModel) -> None:
    describer = untrained(smollm2)
    prompt, target, context = "The capital of Spain is", " Madrid", "Water boils at a temperature of"
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):  # the first warms up
        started = time.perf_counter()
        found = describe(smollm2, describer.atoms, prompt, target, context=context, describer=describer)
        ours.append(time.perf_counter() - started)
        tokens = len(smollm2.tokenizer(found.text).input_ids)
        ids = smollm2.tokenizer(context, return_tensors="pt")
        started = time.perf_counter()
        with torch.no_grad():
            smollm2.model.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        theirs.append(time.perf_counter() - started)
    a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
    print(
        f"\ndescribe: {a:.2f} s warm ({min(ours[1:]):.2f} to {max(ours[1:]):.2f}); generate, {tokens} tokens: {b:.2f} s; {a / b:.2f} of it"
    )
    assert a < 2 * b
