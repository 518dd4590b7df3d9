"""How good a dictionary is, on rows it was not fitted on, each number beside its null.

Nulls. ``flipped``: the held-out rows, centred, with the signs of their coordinates flipped at random a row; norms and
magnitudes stay, structure goes. ``random sets``: as many random held-out rows as an atom has top examples. ``random
direction``: a step of the same length along a Gaussian direction. What makes an atom real is in ``stability.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes, top_rows
from gradatoms.dictionary.concepts import concept_metrics, mean
from gradatoms.dictionary.online import DUPLICATE
from gradatoms.dictionary.pushes import Pushes, example_mask, held_out_mask
from gradatoms.dictionary.stability import RANDOM_QUANTILE, Stability, verdict
from gradatoms.dictionary.steps import step_metrics, unit
from gradatoms.errors import ConfigError
from gradatoms.metric import Metric
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import SKETCH, Store

TOP = 20
"""Top examples of an atom that coherence and purity look at."""
LEAST = 5
"""Atoms with fewer active held-out rows are not scored."""


@dataclass(frozen=True)
class AtomScore:
    """What is measured of one atom."""

    atom: int
    density: float
    """Share of held-out rows it is active on."""
    coherence: float | None
    """Mean pairwise cosine of the gradients of its top held-out rows; None with fewer than ``LEAST``. Of the rows with
    positive weight; where codes are signed, of the sign with more rows."""
    stability: float | None
    """How well other fits find it again; None if there are none."""
    verdict: str
    """``real``, ``weak`` or ``noise``; see ``stability.py``."""
    coherence_negative: float | None = None
    """The same over its rows of the other sign, where codes are signed."""
    duplicate_of: int | None = None
    """An atom before it with a cosine above ``DUPLICATE``."""
    raw_coherence: float | None = None
    """Of weight gradients: mean pairwise cosine of the whole raw gradients of the same top rows, from their sketches."""


@dataclass(frozen=True)
class Evaluation:
    """All metrics of a dictionary, and the scores of its atoms."""

    metrics: dict[str, Metric]
    atoms: list[AtomScore]
    histogram: dict[str, list[float]] = field(default_factory=dict)
    """``edges`` of log10 density, and how many atoms are in each bin; atoms without a row are in the first."""
    stability: Stability | None = None

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = {"metrics": {k: m.to_dict() for k, m in self.metrics.items()}}
        value |= {"atoms": [asdict(a) for a in self.atoms], "density_histogram": self.histogram}
        return value | ({} if self.stability is None else {"stability": self.stability.to_dict()})


def evaluate(
    atoms: Atoms,
    store: Store,
    *,
    loaded: LoadedModel | None = None,
    stability: Stability | None = None,
    max_rows: int = 20_000,
    step_rows: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Measure ``atoms`` on the held-out rows of ``store``.

    Args:
        loaded: the model, for ``step_recovered`` and ``step_kl``; without it they are left out.
        stability: how well other fits find the atoms, for ``stability``, ``real_share`` and the verdicts.
        max_rows: held-out rows at most, chosen by seed; bounds memory.
        step_rows: rows at most that steps are taken on.

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
    pushes = Pushes(store, hook=hook_in(store, atoms), rows=rows)
    rows, P = pushes.rows, pushes.all()
    X = atoms.center(P)
    codes = atoms.coder.encode(X)
    flipped = (X * rng.choice(np.asarray([-1.0, 1.0], np.float32), X.shape)).astype(np.float32)
    null_codes = atoms.coder.encode(flipped)
    n = len(rows)
    found = _reconstruction(atoms, X, codes, flipped, null_codes)
    found |= _use(atoms, store, codes, null_codes, rng)
    tops = _tops(codes)
    scores = [[_coherence(P[t]) if len(t) >= LEAST else None for t in sides] for sides in tops]
    enough = [t for sides in tops for t in sides if len(t) >= LEAST]
    random_sets = [rng.choice(n, len(t), replace=False) for t in enough for _ in range(5)]
    random_coherences = [_coherence(P[s]) for s in random_sets]
    main = [_main(sides) for sides in scores]
    scored = [c for c in main if c is not None]
    found["coherence"] = Metric(
        value=mean(scored), null=mean(random_coherences), unit="cosine", better="higher", n=len(scored),
        note=f"atoms with at least {LEAST} active held-out rows; null: random sets",
    )  # fmt: skip
    raw = _raw_rows(store, pushes)
    raw_scores: list[float | None] = [None] * len(atoms)
    if raw is not None:
        raw_scores = [_coherence(raw[sides[0]]) if len(sides[0]) >= LEAST else None for sides in tops]
        kept = [c for c in raw_scores if c is not None]
        found["raw_coherence"] = Metric(
            value=mean(kept), null=mean([_coherence(raw[s]) for s in random_sets]), unit="cosine", better="higher", n=len(kept),
            note="of whole gradients of the weights, from random projections of them; null: random sets",
        )  # fmt: skip
    concepts = _concepts(store, rows)
    if concepts is not None:
        half = example_mask(store, lambda e: e.held_out(0.5, split["seed"] + 1))[rows]
        found |= concept_metrics(codes, concepts, half, enough, random_sets, rng)
    bar = float(np.quantile(random_coherences, RANDOM_QUANTILE)) if random_coherences else 1.0
    bars = None if stability is None else stability.bars
    density = np.diff(codes.tocsc().indptr) / n
    twins = duplicates(atoms.W_dec)
    report = [
        AtomScore(
            a, float(density[a]), main[a], s, verdict(main[a], s, bars, bar),
            scores[a][1] if atoms.coder.signed else None, twins.get(a), raw_scores[a],
        )
        for a, s in enumerate([None] * len(atoms) if stability is None else [float(s) for s in stability.atoms])
    ]  # fmt: skip
    if stability is not None:
        found |= _reality(stability, report, random_coherences, bar)
    steps = atoms.space == "activation" and not store.header.objective.startswith(
        "kl:"
    )  # the second model is not at hand
    if loaded is not None and steps:
        found |= step_metrics(atoms, store, loaded, rows, P, codes, most=step_rows, seed=seed, progress=progress)
    return Evaluation(found, report, _histogram(density, n), stability)


def coherences(atoms: Atoms, P: Float[np.ndarray, "N D"]) -> list[float | None]:
    """The coherence of each atom over its top rows among unit pushes ``P``; None with fewer than ``LEAST``."""
    tops = _tops(atoms.encode(P))
    return [_main([_coherence(unit(P[t])) if len(t) >= LEAST else None for t in sides]) for sides in tops]


def hook_in(store: Store, atoms: Atoms) -> str:
    """The hook of ``atoms`` in ``store``; for a dictionary from elsewhere, the only one of its width.

    Raises:
        ConfigError: no such hook, or several.
    """
    if atoms.hook in store.hooks:
        return atoms.hook
    hooks = [name for name in store.hooks if store.header.hook(name).d == atoms.W_dec.shape[1]]
    if atoms.config.get("kind") != "foreign" or len(hooks) != 1:
        raise ConfigError(
            f"expected {store.path} to hold {atoms.hook} of width {atoms.W_dec.shape[1]}, got {', '.join(store.hooks)}; "
            "harvest that hook"
        )
    return hooks[0]


def duplicates(W_dec: Float[np.ndarray, "K D"]) -> dict[int, int]:
    """Atoms that point where one before them does (cosine above ``DUPLICATE``), and the first such one."""
    found: dict[int, int] = {}
    for start in range(0, len(W_dec), 2048):
        close = np.argwhere(W_dec[start : start + 2048] @ W_dec.T > DUPLICATE)
        for row, other in close.tolist():
            if other < start + row:
                found.setdefault(start + row, other)
    return found


def _reconstruction(
    atoms: Atoms, X: np.ndarray, codes: Codes, flipped: np.ndarray, null_codes: Codes
) -> dict[str, Metric]:
    n = len(X)

    def cosine(rows: np.ndarray, c: Codes) -> float:
        decoded = atoms.decode(c)
        return float(np.einsum("nd,nd->n", unit(rows + atoms.b_dec), unit(decoded)).mean())

    return {
        "l0": Metric(
            value=codes.nnz / n, null=null_codes.nnz / n, unit="atoms/row", better="lower", n=n, note="null: flipped rows"
        ),
        "fvu": Metric(
            value=_fvu(X, codes, atoms), null=_fvu(flipped, null_codes, atoms), unit="share", better="lower", n=n,
            note="share of the centred pushes' variance left unexplained; null: flipped rows",
        ),
        "cosine": Metric(
            value=cosine(X, codes), null=cosine(flipped, null_codes), unit="cosine", better="higher", n=n,
            note="of a push with its reconstruction; null: flipped rows",
        ),
    }  # fmt: skip


def _use(atoms: Atoms, store: Store, codes: Codes, null_codes: Codes, rng: np.random.Generator) -> dict[str, Metric]:
    used = np.diff(codes.tocsc().indptr) > 0
    n = len(used)
    for batch in store.batches(hook_in(store, atoms), 8192, fields=()):
        if used.all():
            break
        used[np.unique(atoms.encode(-batch.gradients).indices)] = True
    flipped = atoms.W_dec * rng.choice(np.asarray([-1.0, 1.0], np.float32), atoms.W_dec.shape)
    return {
        "dead_share": Metric(
            value=float((~used).mean()), null=float((np.diff(null_codes.tocsc().indptr) == 0).mean()),
            unit="share", better="lower", n=n,
            note="atoms that no row of the store uses; null: that no flipped held-out row uses",
        ),
        "duplicate_share": Metric(
            value=len(duplicates(atoms.W_dec)) / n, null=len(duplicates(flipped)) / n, unit="share", better="lower", n=n,
            note=f"atoms with a cosine above {DUPLICATE} with one before; null: their coordinates' signs flipped",
        ),
    }  # fmt: skip


def _reality(
    stability: Stability, report: Sequence[AtomScore], random_coherences: Sequence[float], bar: float
) -> dict[str, Metric]:
    bars = stability.bars
    # a null atom is real if it passes both bars, each set at a quantile of what is not real
    null_real = (1 - 0.99) * mean([c > max(bar, bars.coherence) for c in random_coherences])
    return {
        "stability": Metric(
            value=float(stability.atoms.mean()), null=bars.null_stability, unit="cosine", better="higher",
            n=len(stability.atoms),
            note=f"how well other fits find an atom: least of another seed ({stability.seed:.2f}) and of halves of the rows "
            f"({stability.halves:.2f}); null: the same fits on rows with coordinates shuffled and signs flipped",
        ),
        "real_share": Metric(
            value=mean([s.verdict == "real" for s in report]), null=null_real, unit="share of atoms", better="higher",
            n=len(report),
            note=f"stability above {bars.stability:.2f}, coherence above {max(bar, bars.coherence):.2f}; null: chance of noise",
        ),
    }  # fmt: skip


def _tops(codes: Codes) -> list[list[Int[np.ndarray, " _"]]]:
    """Top rows of each atom with positive weight, and with negative; the larger set first."""
    columns = codes.tocsc()
    signed = bool((codes.data < 0).any())
    sides = [
        [top_rows(columns, a, TOP), *([top_rows(columns, a, TOP, sign=-1)] if signed else [])]
        for a in range(codes.shape[1])
    ]
    return [sorted(pair, key=len, reverse=True) for pair in sides]


def _raw_rows(store: Store, pushes: Pushes) -> Float[np.ndarray, "N P"] | None:
    """Unit sketches of the same rows' whole gradients, where the store has them."""
    name = pushes.hook + SKETCH
    if name not in store.hooks:
        return None
    parts = [b.gradients for b in store.batches(name, 2048, rows=pushes.rows, fields=())]
    return np.concatenate(parts)


def _main(sides: Sequence[float | None]) -> float | None:
    return sides[0]


def _histogram(density: Float[np.ndarray, " K"], n: int) -> dict[str, list[float]]:
    edges = np.linspace(np.floor(np.log10(1 / n)), 0, 25)
    counts = np.histogram(np.log10(np.maximum(density, 10 ** edges[0])), bins=edges)[0]
    return {"edges": [float(e) for e in edges], "counts": [float(c) for c in counts]}


def _concepts(store: Store, rows: Int[np.ndarray, " N"]) -> np.ndarray | None:
    by_id = {r.id: r.concept for r in store.iter_examples()}
    concepts = [by_id[int(e)] for e in store.rows["example"][rows]]
    return None if any(c is None for c in concepts) else np.asarray(concepts)


def _fvu(X: np.ndarray, codes: Codes, atoms: Atoms) -> float:
    return float(((X - codes @ atoms.W_dec) ** 2).sum() / (X**2).sum())


def _coherence(unit_rows: np.ndarray) -> float:
    n = len(unit_rows)
    return float(((unit_rows.sum(axis=0) ** 2).sum() - n) / (n * (n - 1)))
