"""Shares of rows with intervals that respect concepts, and how likely chance does as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

DRAWS = 1000


def share(
    right: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"], kinds: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """Mean of ``right`` with a 95 % bootstrap interval that draws whole concepts (percentiles of ``DRAWS`` draws).

    Returns:
        value, interval (None below two concepts), n.
    """
    values = np.asarray(right, dtype=np.float64)
    if not len(values):
        return {"value": None, "interval": None, "null": None, "p": None, "n": 0}
    names, group = np.unique(kinds, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    interval = None
    if len(names) > 1:
        drawn = np.random.default_rng([seed, 17]).integers(0, len(names), (DRAWS, len(names)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        interval = [float(v) for v in np.quantile(means, [0.025, 0.975])]
    return {"value": float(values.mean()), "interval": interval, "null": None, "p": None, "n": len(values)}


def matched(
    said: Shaped[np.ndarray, " n"], truth: Shaped[np.ndarray, " n"], kinds: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """Share of rows whose ``said`` is their ``truth``, as ``share``; null and p by permuting which truth is whose."""
    found = share(said == truth, kinds, seed=seed)
    return found | permuted(lambda order: float((said == truth[order]).mean()), found["value"], len(said), seed=seed)


def permuted(score: Callable[[np.ndarray], float], value: float | None, n: int, *, seed: int = 0) -> dict[str, Any]:
    """Null, the mean of ``score`` over random orders of n rows, and p, how often one is at least ``value``."""
    if value is None:
        return {"null": None, "p": None}
    rng = np.random.default_rng([seed, 19])
    drawn = [score(rng.permutation(n)) for _ in range(DRAWS)]
    p = (1 + sum(one >= value - 1e-12 for one in drawn)) / (1 + DRAWS)
    return {"null": float(np.mean(drawn)), "p": p}


def ranks(scores: Float[np.ndarray, "n L"], column: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Rank of each row's column, 1 the best; ties share the mean rank."""
    own = scores[np.arange(len(scores)), column][:, None]
    return 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float | None:
    """Pearson's r; None for fewer than three pairs or where one never varies."""
    if len(a) < 3 or np.std(a) == 0 or np.std(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
