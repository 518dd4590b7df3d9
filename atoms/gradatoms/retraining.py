"""The test of an attribution: train again without an atom's documents, and without as many others.

The model is trained anew from the same weights, in the same order: on all documents that the dictionary was fitted on, without as
many random ones (several draws), and, for each atom, without its ``drop`` documents of largest code. What counts is J on the held-out
documents that are most the atom's:

    effect = J(without its documents) − mean J(without random ones)        nats a document

Above 0 the atom's documents taught what they are said to teach. The null is the same for one random draw against the others. The
draws are the same for all atoms, so K atoms cost K + draws + 1 trainings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.attribution import Attribution
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.linear import LinearSite
from gradatoms.gradients.sequences import TokenSequence, tokenize_usable
from gradatoms.hooking import fast_math, predict_at
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms.weight_steps import require_weights, sites_of

LEAST, MOST = 5, 20
"""Held-out documents that an atom needs, and the most that count: those of largest code."""
DRAWS = 2000
"""Bootstrap draws."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """How the model is trained again."""

    drop: int = 20
    """Documents left out."""
    draws: int = 3
    """Random draws of as many."""
    epochs: int = 3
    learning_rate: float = 1e-3
    batch: int = 16
    """Documents a step."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("drop", 1), ("draws", 2), ("epochs", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"expected {name} of at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"expected a learning rate above 0, got {self.learning_rate}")


@dataclass(frozen=True)
class Retrained:
    """J on an atom's held-out documents after each training, nats a document."""

    atom: int
    held: int
    untrained: float
    whole: float
    without_own: float
    without_random: tuple[float, ...]

    @property
    def effect(self) -> float:
        return self.without_own - float(np.mean(self.without_random))

    @property
    def null(self) -> float:
        """One random draw against the others."""
        return self.without_random[0] - float(np.mean(self.without_random[1:]))


@dataclass(frozen=True)
class Checked:
    """The effect over atoms, with its 95 % bootstrap interval, and the same of the null."""

    rows: tuple[Retrained, ...]
    effect: float
    interval: tuple[float, float]
    null: float
    null_interval: tuple[float, float]


def retraining_check(
    loaded: LoadedModel,
    atoms: Atoms,
    chosen: Sequence[int] | None = None,
    config: RetrainConfig | None = None,
    *,
    store_path: str | Path | None = None,
    progress: Progress = silent,
) -> Checked:
    """Train again without each atom's documents. The model is as before afterwards.

    Args:
        chosen: which atoms; None takes all that have ``LEAST`` held-out documents and ``drop`` fitted ones.

    Raises:
        ConfigError: atoms of activations, or none that has enough documents.
    """
    config = config or RetrainConfig()
    sites = sites_of(loaded, [m.name for m in require_weights(atoms).modules])
    index = Attribution(atoms, store_path)
    split = atoms.config.get("holdout", {"fraction": 0.25, "seed": 0})
    held_rows = held_out_mask(index.store, split["fraction"], split["seed"])
    held = {int(e) for e in index.example_of_row[held_rows]}
    sequences, _ = tokenize_usable(
        loaded, [index.texts[i] for i in sorted(index.texts)], objective=index.store.header.objective
    )
    by_id = dict(zip(sorted(index.texts), sequences, strict=True))
    fitted = [i for i in sorted(by_id) if i not in held and by_id[i]]
    found = []
    for atom in range(len(atoms)) if chosen is None else chosen:
        hits = [h.example for h in index.documents_of(atom, None)]
        own, unseen = [e for e in hits if e not in held], [e for e in hits if e in held and by_id[e]]
        if len(unseen) >= LEAST and len(own) >= config.drop:
            found.append((atom, own[: config.drop], unseen[:MOST]))
    if not found:
        raise ConfigError(
            f"expected atoms with {config.drop} fitted and {LEAST} held-out documents, there are none; drop fewer, or use more documents"
        )
    kept = [site.weight.clone() for site in sites]
    rng = np.random.default_rng(config.seed)
    draws = [set(rng.choice(fitted, config.drop, replace=False).tolist()) for _ in range(config.draws)]
    trainings = len(found) + len(draws) + 1
    done = 0

    def trained(without: Collection[int], on: Sequence[Sequence[int]]) -> list[float]:
        """Mean J of sets of documents after training without some."""
        nonlocal done
        try:
            _train(loaded, sites, [None if i in without else by_id[i][0] for i in fitted], config)
            return measured(on)
        finally:
            with torch.no_grad():
                for site, before in zip(sites, kept, strict=True):
                    site.weight.copy_(before)
            done += 1
            progress("retraining", done, trainings)

    def measured(on: Sequence[Sequence[int]]) -> list[float]:
        return [float(_objective(loaded, [by_id[i][0] for i in some]).mean()) for some in on]

    held_of = [unseen for _, _, unseen in found]
    untrained, whole = measured(held_of), trained((), held_of)
    random = np.asarray([trained(draw, held_of) for draw in draws])
    rows = [
        Retrained(
            atom, len(unseen), untrained[n], whole[n], trained(set(own), [unseen])[0], tuple(map(float, random[:, n]))
        )
        for n, (atom, own, unseen) in enumerate(found)
    ]
    effects, nulls = np.asarray([r.effect for r in rows]), np.asarray([r.null for r in rows])
    return Checked(tuple(rows), float(effects.mean()), _interval(effects), float(nulls.mean()), _interval(nulls))


def _interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.percentile(draws.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _train(
    loaded: LoadedModel, sites: Sequence[LinearSite], sequences: Sequence[TokenSequence | None], config: RetrainConfig
) -> None:
    """One training; documents that are None are left out of an order that is the same with and without them."""
    parameters = []
    for site in sites:
        weight = site.module.weight
        assert isinstance(weight, torch.nn.Parameter)
        parameters.append(weight.requires_grad_(True))
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    try:
        for epoch in range(config.epochs):
            places = np.random.default_rng([config.seed, epoch]).permutation(len(sequences))
            order = [one for i in places if (one := sequences[i]) is not None]
            for start in range(0, len(order), config.batch):
                batch = pad(order[start : start + config.batch], loaded.device)
                with torch.enable_grad(), fast_math(loaded), predict_at(loaded, batch.at_seq_P, batch.at_col_P):
                    log_p = loaded.model(input_ids=batch.ids_LS, use_cache=False).logits.float().log_softmax(-1)
                    loss = -(batch.term_weight_T * log_p[batch.term_at_T, batch.term_token_T]).sum() / len(
                        batch.example_B
                    )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@torch.no_grad()
def _objective(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> Float[np.ndarray, " N"]:
    """J of each document, nats."""
    found: list[float] = []
    for group in by_budget(sequences, 4096):
        batch = pad(group, loaded.device)
        with predict_at(loaded, batch.at_seq_P, batch.at_col_P):
            log_p = loaded.model(input_ids=batch.ids_LS, use_cache=False).logits.float().log_softmax(-1)
        values = -batch.term_weight_T * log_p[batch.term_at_T, batch.term_token_T]
        total = torch.zeros(len(group), device=values.device).index_add(0, batch.at_seq_P[batch.term_at_T], values)
        found += total.cpu().tolist()
    return np.asarray(found)
