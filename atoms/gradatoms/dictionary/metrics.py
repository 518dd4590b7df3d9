"""How good a dictionary is, on rows it was not fitted on, each number beside its null.

Nulls. ``flipped``: the held-out rows, centred, with the signs of their coordinates flipped at random a row; norms and
magnitudes stay, structure goes. ``random sets``: as many random held-out rows as an atom has top examples. ``random
direction``: a step of the same length along a Gaussian direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes, top_rows
from gradatoms.dictionary.pushes import Pushes
from gradatoms.errors import ConfigError, ModelMismatchError
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.gradients.task import examples_of
from gradatoms.lookahead import stepped_objective
from gradatoms.metric import Metric
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store

TOP = 20
"""Top examples of an atom that coherence and purity look at."""
LEAST = 5
"""Atoms with fewer active held-out rows are not scored."""
ETA = 0.1
"""Length of a gradient step, in units of ‖h‖."""


@dataclass(frozen=True)
class AtomScore:
    """What is measured of one atom."""

    atom: int
    density: float
    """Share of held-out rows it is active on."""
    coherence: float | None
    """Mean pairwise cosine of the gradients of its top held-out rows; None with fewer than ``LEAST``."""
    stability: float | None
    """Cosine with the closest atom of a dictionary fitted with another seed; None if no other was fitted."""
    verdict: str
    """``real``, ``weak`` or ``noise``; see ``verdict``."""


@dataclass(frozen=True)
class Evaluation:
    """All metrics of a dictionary, and the scores of its atoms."""

    metrics: dict[str, Metric]
    atoms: list[AtomScore]

    def to_dict(self) -> dict[str, Any]:
        return {"metrics": {k: m.to_dict() for k, m in self.metrics.items()}, "atoms": [asdict(a) for a in self.atoms]}


def held_out_mask(store: Store, fraction: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which rows of ``store`` lie on the held-out side of the split; a hash of the example decides."""
    by_example = np.asarray([e.held_out(fraction, seed) for e in examples_of(store)], dtype=bool)
    ids = np.asarray([r.id for r in store.examples])
    return np.asarray(by_example[np.searchsorted(ids, store.rows["example"])], dtype=bool)


def evaluate(
    atoms: Atoms,
    store: Store,
    *,
    loaded: LoadedModel | None = None,
    other: Atoms | None = None,
    max_rows: int = 20_000,
    step_rows: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Measure ``atoms`` on the held-out rows of ``store``.

    Args:
        loaded: the model, for ``step_recovered``; without it that metric is left out.
        other: a dictionary of another seed, for ``stability`` and ``real_share``.
        max_rows: held-out rows at most, chosen by seed; bounds memory.
        step_rows: rows at most for ``step_recovered``.

    Raises:
        ConfigError: the store has no held-out row.
        ModelMismatchError: ``loaded`` is not the model of the store.
    """
    rng = np.random.default_rng(seed)
    split = atoms.config.get("holdout", {"fraction": 0.25, "seed": 0})
    rows = np.flatnonzero(held_out_mask(store, split["fraction"], split["seed"]))
    if not len(rows):
        raise ConfigError(
            f"expected held-out rows in {store.path}, found none of {store.n_rows}; harvest more examples"
        )
    if len(rows) > max_rows:
        rows = np.sort(rng.choice(rows, max_rows, replace=False))
    pushes = Pushes(store, hook=atoms.hook, rows=rows)
    rows, P = pushes.rows, pushes.all()
    X = atoms.center(P)
    codes = atoms.coder.encode(X)
    flipped = (X * rng.choice(np.asarray([-1.0, 1.0], np.float32), X.shape)).astype(np.float32)
    null_codes = atoms.coder.encode(flipped)
    concepts = _concepts(store, rows)
    found: dict[str, Metric] = {}
    n = len(rows)
    found["l0"] = Metric(
        value=codes.nnz / n, null=null_codes.nnz / n, unit="atoms/row", better="lower", n=n, note="null: flipped rows"
    )
    found["fvu"] = Metric(
        value=_fvu(X, codes, atoms), null=_fvu(flipped, null_codes, atoms), unit="share", better="lower", n=n,
        note="share of the centred pushes' variance left unexplained; null: flipped rows",
    )  # fmt: skip
    found["dead_share"] = Metric(
        value=_dead(codes), null=_dead(null_codes), unit="share", better="lower", n=len(atoms),
        note="atoms that no held-out row uses; null: flipped rows",
    )  # fmt: skip
    tops = [top_rows(codes.tocsc(), a, TOP) for a in range(len(atoms))]
    coherences = [_coherence(P[t]) if len(t) >= LEAST else None for t in tops]
    sizes = [len(t) for t in tops if len(t) >= LEAST]
    random_sets = [rng.choice(n, size, replace=False) for size in sizes for _ in range(5)]
    random_coherences = [_coherence(P[s]) for s in random_sets]
    scored = [c for c in coherences if c is not None]
    found["coherence"] = Metric(
        value=_mean(scored), null=_mean(random_coherences), unit="cosine", better="higher", n=len(scored),
        note=f"atoms with at least {LEAST} active held-out rows; null: random sets",
    )  # fmt: skip
    if concepts is not None:
        purities = [_purity(concepts[t]) for t in tops if len(t) >= LEAST]
        found["concept_purity"] = Metric(
            value=_mean([p >= 0.8 for p in purities]), null=_mean([_purity(concepts[s]) >= 0.8 for s in random_sets]),
            unit="share of atoms", better="higher", n=len(purities),
            note="top 20 active held-out rows at least 80 % of one concept; concepts are used for scoring only; null: random sets",
        )  # fmt: skip
    stability = None
    if other is not None:
        stability = np.asarray((atoms.W_dec @ other.W_dec.T).max(axis=1))
        signs = rng.choice(np.asarray([-1.0, 1.0], np.float32), other.W_dec.shape)
        found["stability"] = Metric(
            value=float(stability.mean()), null=float((atoms.W_dec @ (other.W_dec * signs).T).max(axis=1).mean()),
            unit="cosine", better="higher", n=len(atoms),
            note="best match in a dictionary of another seed; null: that dictionary with coordinates' signs flipped",
        )  # fmt: skip
    bar = float(np.quantile(random_coherences, 0.95)) if random_coherences else 1.0
    density = np.diff(codes.tocsc().indptr) / n
    scores = [
        AtomScore(
            a,
            float(density[a]),
            coherences[a],
            None if stability is None else float(stability[a]),
            verdict(coherences[a], None if stability is None else float(stability[a]), bar),
        )
        for a in range(len(atoms))
    ]
    if other is not None:
        null_real = _mean([c > bar for c in random_coherences]) * float(
            ((atoms.W_dec @ (other.W_dec * signs).T).max(axis=1) >= STABLE).mean()
        )
        found["real_share"] = Metric(
            value=_mean([s.verdict == "real" for s in scores]), null=null_real, unit="share of atoms", better="higher", n=len(atoms),
            note="stable over seeds and coherent on held-out rows; null: random sets and flipped atoms",
        )  # fmt: skip
    if loaded is not None and not store.header.objective.startswith("kl:"):  # the second model is not at hand
        found["step_recovered"] = step_recovered(
            atoms, store, loaded, rows, P, codes, most=step_rows, seed=seed, progress=progress
        )
    return Evaluation(found, scores)


STABLE = 0.7


def verdict(coherence: float | None, stability: float | None, bar: float) -> str:
    """``real``: coherent and stable; ``weak``: one of the two; ``noise``: neither.

    Coherent: above the 95th percentile ``bar`` of random sets of rows. Stable: a cosine of at least 0.7 with an atom of
    another seed's dictionary. Without another dictionary a coherent atom is ``weak``.
    """
    passed = (coherence is not None and coherence > bar) + (stability is not None and stability >= STABLE)
    return ("noise", "weak", "real")[passed]


def step_recovered(
    atoms: Atoms,
    store: Store,
    loaded: LoadedModel,
    rows: Int[np.ndarray, " N"],
    P: Float[np.ndarray, "N D"],
    codes: Codes,
    *,
    most: int,
    seed: int,
    progress: Progress = silent,
) -> Metric:
    """How much of a real gradient step's gain its reconstruction keeps.

    (J(h) − J(h + η‖h‖ p̂)) / (J(h) − J(h + η‖h‖ p)), each J averaged over rows, p̂ = decode(codes)/‖·‖, η = 0.1.
    The null is a random direction; ``note`` gives the mean push as well.
    """
    if not loaded.fingerprint.same_weights(store.header.model):
        raise ModelMismatchError(
            f"expected the model of the store ({store.header.model.get('name')}, {store.header.model.get('sha')}), got "
            f"{loaded.fingerprint.name} ({loaded.fingerprint.sha}); load that model"
        )
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(rows)) if len(rows) <= most else np.sort(rng.choice(len(rows), most, replace=False))
    branches, owner = _branches(store, loaded, rows[chosen])
    decoded = atoms.decode(codes[chosen])
    noise = rng.standard_normal((len(chosen), P.shape[1])).astype(np.float32)
    mean = np.broadcast_to(atoms.b_dec, noise.shape)
    steps = np.stack([_unit(v) for v in (P[chosen], decoded, noise, mean)], axis=1)[owner]
    J = stepped_objective(loaded, loaded.hook(atoms.hook), branches, steps, eta=ETA, progress=progress)
    gain = J[:, :1] - J[:, 1:]
    full, kept, random, mean_push = gain.sum(axis=0) / len(chosen)
    unit = "logits" if store.header.objective == "logit" else "nats"
    return Metric(
        value=float(kept / full),
        null=float(random / full),
        unit="share of the step's gain",
        better="higher",
        n=len(chosen),
        note=f"step of {ETA}·‖h‖ gains {full:.2f} {unit}; null: random direction; the mean push alone keeps {mean_push / full:.2f}",
    )


def _branches(
    store: Store, loaded: LoadedModel, rows: Int[np.ndarray, " N"]
) -> tuple[list[tuple[TokenSequence, int]], Int[np.ndarray, " B"]]:
    """The token sequences in which each row's position is stepped, and which row each belongs to."""
    ids = [r.id for r in store.examples]
    place = {id_: i for i, id_ in enumerate(ids)}
    examples = examples_of(store)
    wanted = [examples[place[int(e)]] for e in store.rows["example"][rows]]
    sequences = tokenize(loaded, wanted, objective=store.header.objective, positions=store.header.positions)
    branches, owner = [], []
    for i, (row, found) in enumerate(zip(rows, sequences, strict=True)):
        position = int(store.rows["position"][row])
        for sequence in found:
            if position in sequence.rows:
                branches.append((sequence, position))
                owner.append(i)
    return branches, np.asarray(owner)


def _concepts(store: Store, rows: Int[np.ndarray, " N"]) -> np.ndarray | None:
    by_id = {r.id: r.concept for r in store.examples}
    concepts = [by_id[int(e)] for e in store.rows["example"][rows]]
    return None if any(c is None for c in concepts) else np.asarray(concepts)


def _fvu(X: np.ndarray, codes: Codes, atoms: Atoms) -> float:
    return float(((X - codes @ atoms.W_dec) ** 2).sum() / (X**2).sum())


def _dead(codes: Codes) -> float:
    return float((np.diff(codes.tocsc().indptr) == 0).mean())


def _coherence(unit_rows: np.ndarray) -> float:
    n = len(unit_rows)
    return float(((unit_rows.sum(axis=0) ** 2).sum() - n) / (n * (n - 1)))


def _purity(concepts: np.ndarray) -> float:
    return float(np.unique(concepts, return_counts=True)[1].max() / len(concepts))


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
