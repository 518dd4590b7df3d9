"""Spherical k-means as a baseline: every push belongs to one direction.

A pass assigns each centred push to the atom of largest cosine; then every atom is the mean direction of its rows (Dhillon
and Modha 2001). Codes have one atom a row, with the push's projection as weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import NOISE, FitConfig, Learner, Solution
from gradatoms.dictionary.coding import TopKCoder
from gradatoms.dictionary.online import spread
from gradatoms.dictionary.reduce import Reduce


@dataclass(frozen=True, kw_only=True)
class KMeansConfig(FitConfig):
    """Settings of spherical k-means."""

    method: ClassVar[str] = "kmeans"
    rotatable: ClassVar[bool] = True

    batch_size: int = 4096

    def learner(self, d: int, steps: int | None, reduce: Reduce) -> KMeansLearner:
        return KMeansLearner(self, d, reduce)


class KMeansLearner(Learner):
    """Sums the rows of each atom over a pass."""

    def __init__(self, config: KMeansConfig, d: int, reduce: Reduce) -> None:
        self.config, self.reduce = config, reduce
        self.W = np.zeros((config.n_atoms, d), np.float32)
        self.sums = np.zeros((config.n_atoms, d))

    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        rng, n = np.random.default_rng(self.config.seed), len(self.W)
        unit = _unit(rows)
        chosen = spread(unit, n, rng) if len(unit) > n else np.arange(n) % len(unit)
        noise = NOISE / np.sqrt(self.W.shape[1]) * rng.standard_normal(self.W.shape)
        self.W = _unit(unit[chosen] + noise.astype(np.float32))

    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        cosine = _unit(X) @ self.W.T
        nearest = cosine.argmax(axis=1) if len(X) else np.zeros(0, np.int64)
        part = np.zeros_like(self.sums)
        np.add.at(part, nearest, _unit(X) if weights is None else _unit(X) * weights[:, None])
        left = (X**2).sum(axis=1) * (1 - np.maximum(cosine[np.arange(len(X)), nearest], 0) ** 2)
        sums = np.asarray([float(left.sum()), len(X)])
        self.reduce.sum(part, sums)
        self.sums += part
        return {"loss": sums[0] / sums[1]}

    def end_epoch(self) -> None:
        norm = np.linalg.norm(self.sums, axis=1)
        self.W[norm > 0] = (self.sums[norm > 0] / norm[norm > 0, None]).astype(np.float32)
        self.sums[:] = 0

    def state(self) -> dict[str, np.ndarray]:
        return {"W": self.W.copy(), "sums": self.sums.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.W, self.sums = state["W"].copy(), state["sums"].copy()

    def solution(self) -> Solution:
        W = self.W.copy()
        coder = TopKCoder(np.ascontiguousarray(W.T), np.zeros(len(W), np.float32), 1)
        return Solution(W, np.zeros(W.shape[1], np.float32), coder)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
