"""What was said, against the sparse codes: terms and their weights, the leading atom, how far confidence can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from gradatoms.dictionary.coding import Codes
from gradatoms.projector.describe import Said
from gradatoms.projector.measures import correlation, permuted, share
from gradatoms.projector.rows import described


def named_atoms(said: Sequence[Said]) -> Int[np.ndarray, " t"]:
    """The leading atom that each description names; −1 where it names none."""
    return np.asarray([s.terms[0].atom if s.terms else -1 for s in said], dtype=np.int64)


def term_metrics(said: Sequence[Said], codes: Codes, kinds: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Precision and recall of all terms, and their weights."""
    truth = _truth(codes)
    named = [{t.atom: t.weight for t in s.terms} for s in said]
    n = len(said)

    def precision(order: np.ndarray) -> np.ndarray:
        return np.asarray([len(s.keys() & truth[o].keys()) / max(1, len(s)) for s, o in zip(named, order, strict=True)])

    def recall(order: np.ndarray) -> np.ndarray:
        return np.asarray([len(s.keys() & truth[o].keys()) / len(truth[o]) for s, o in zip(named, order, strict=True)])

    every = np.arange(n)
    found: dict[str, Any] = {}
    up = {"unit": "mean over rows", "better": "higher"}
    for name, of in (("term_precision", precision), ("term_recall", recall)):
        value = share(of(every), kinds, seed=seed)
        null = permuted(partial(_mean_of, of), value["value"], n, seed=seed)
        found[name] = value | null | up | {"note": "named atoms against the code's; null: rows permuted"}
    pairs = [(s[a], t[a]) for s, t in zip(named, truth, strict=True) for a in s.keys() & t.keys()]
    stated, coded = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    r = correlation(stated, coded)
    null = permuted(lambda o: correlation(stated, coded[o]) or 0.0, r, len(pairs), seed=seed)
    found["weight_correlation"] = {"value": r, "n": len(pairs), "interval": None} | null | {
        "unit": "Pearson's r", "better": "higher", "note": "stated against coded weight of atoms rightly named; null: permuted",
    }  # fmt: skip
    return found


def both_named(said: Sequence[Said], codes: Codes, kinds: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """How often both atoms of rows that have two (see ``crossing``) are named; null and p by permuting the rows."""
    truth = _truth(codes)
    named = [{t.atom for t in s.terms} for s in said]

    def both(order: np.ndarray) -> np.ndarray:
        return np.asarray([truth[o].keys() <= s for s, o in zip(named, order, strict=True)], dtype=np.float64)

    value = share(both(np.arange(len(said))), kinds, seed=seed)
    return value | permuted(partial(_mean_of, both), value["value"], len(said), seed=seed)


def calibration(said: Sequence[Said], truth: Int[np.ndarray, " t"]) -> dict[str, Any]:
    """Stated confidence against how often the leading atom was right, for the rows that were described at all."""
    told = np.asarray([bool(s.terms) for s in said])
    right = (named_atoms(said) == truth)[told]
    stated = np.asarray([s.confidence for s in said])[told]
    if not len(stated):
        return {"bins": [], "brier": None, "brier_null": None}
    bins = []
    for part in np.array_split(np.argsort(stated, kind="stable"), min(5, len(stated))):
        bins.append({"confidence": float(stated[part].mean()), "accuracy": float(right[part].mean()), "n": len(part)})
    rate = float(right.mean())
    return {"bins": bins, "brier": float(np.mean((stated - right) ** 2)), "brier_null": rate * (1 - rate)}


def crossing_matrix(right: Bool[np.ndarray, " t"], gradients: np.ndarray, contexts: np.ndarray) -> dict[str, Any]:
    """How often the leading label was named, by kind of gradient (rows) and of context (columns); None where never crossed."""
    kinds = sorted({*gradients.tolist(), *contexts.tolist()})
    accuracy = [
        [float(right[at].mean()) if (at := (gradients == a) & (contexts == b)).any() else None for b in kinds]
        for a in kinds
    ]
    return {"kinds": kinds, "accuracy": accuracy}


def _truth(codes: Codes) -> list[dict[int, float]]:
    """Atom and weight of what each row's description should name."""
    return [
        {int(a): float(w) for a, w in zip(row, weight, strict=True) if a >= 0}
        for row, weight in zip(*described(codes), strict=True)
    ]


def _mean_of(of: Callable[[np.ndarray], np.ndarray], order: np.ndarray) -> float:
    return float(of(order).mean())
