"""Principal components as a baseline: the directions of largest variance, which need not mean anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import FitConfig, Learner, Solution
from gradatoms.dictionary.coding import TopKCoder
from gradatoms.dictionary.reduce import Reduce
from gradatoms.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PCAConfig(FitConfig):
    """Settings of principal components."""

    method: ClassVar[str] = "pca"

    n_atoms: int = 64
    """Components; at most as many as a push has coordinates."""
    epochs: int = 1
    batch_size: int = 4096
    k: int = 8
    """Components kept a row: those of largest projection, either sign."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k(self.k)

    def learner(self, d: int, steps: int | None, reduce: Reduce) -> PCALearner:
        if self.n_atoms > d:
            raise ConfigError(
                f"expected at most {d} principal components of pushes of that width, got n_atoms {self.n_atoms}"
            )
        return PCALearner(self, d, reduce)


class PCALearner(Learner):
    """Sums x xᵀ; its leading eigenvectors are the atoms."""

    def __init__(self, config: PCAConfig, d: int, reduce: Reduce) -> None:
        self.config, self.reduce = config, reduce
        self.moment = np.zeros((d, d))

    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        """Nothing to choose."""

    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        x = X.astype(np.float64)  # so that the order of sums does not turn components of like variance
        part = x.T @ (x if weights is None else x * weights[:, None])
        self.reduce.sum(part)
        self.moment += part
        return {}

    def state(self) -> dict[str, np.ndarray]:
        return {"moment": self.moment.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.moment = state["moment"].copy()

    def solution(self) -> Solution:
        W = np.linalg.eigh(self.moment)[1][:, ::-1][:, : self.config.n_atoms].T
        W = W * np.sign(W[np.arange(len(W)), np.abs(W).argmax(axis=1)])[:, None]  # eigh leaves the sign open
        W = np.ascontiguousarray(W, dtype=np.float32)
        zero = np.zeros(len(W), np.float32)
        return Solution(W, np.zeros(W.shape[1], np.float32), TopKCoder(W.T.copy(), zero, self.config.k, signed=True))
