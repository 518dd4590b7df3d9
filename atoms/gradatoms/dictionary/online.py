"""Classical dictionary learning: few atoms a push, the weights solved exactly, the atoms in closed form.

Objective over centred pushes x_i with weights w_i and unit atoms W (Mairal et al. 2009):

    min over W, c of  Σ_i w_i (½‖x_i − c_iᵀW‖² + α‖c_i‖₁)        c ≥ 0 unless ``signed``

With ``k`` instead of a penalty, codes are orthogonal matching pursuit with at most k atoms. A step codes a batch
(``kernels.py``, exact) and adds its statistics A = Σ w c cᵀ (K, K) and B = Σ w c xᵀ (K, d); then each atom in turn takes the
direction that minimises the objective with all others fixed, W_a ∝ B_a − Σ_{b ≠ a} A_ab W_b, in blocks that are one matrix
product each. Older batches fade: in the first pass linearly, later with a memory of one pass. ``full`` makes one such update a
pass, from the statistics of all rows under the same atoms, which never increases the objective.

Atoms that no row uses, and the weaker of two that point the same way, are given the direction of a row that was
explained badly; not in the last passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from gradatoms.dictionary import kernels
from gradatoms.dictionary.base import NOISE, FitConfig, Learner, Solution
from gradatoms.dictionary.coding import Coder, Codes, LassoCoder, OmpCoder, lasso, nn_lasso
from gradatoms.dictionary.reduce import Reduce
from gradatoms.errors import ConfigError

DUPLICATE = 0.95
"""Cosine above which two atoms are one."""
_BLOCK = 32
"""Atoms updated from one matrix product."""
_DENSE = 0.03
"""Share of non-zero codes above which a dense product is faster than a sparse one."""
_SKETCH = 256
_WORST = 1024
"""Rows explained worst that are kept for atoms without use."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(FitConfig):
    """Settings of classical dictionary learning."""

    method: ClassVar[str] = "online"
    rotatable: ClassVar[bool] = True

    alpha: float = 0.1
    """Lasso penalty α on unit pushes. 0.2 gives 2 to 3 atoms a row on relation prompts, 0.1 gives 4 to 6."""
    k: int | None = None
    """At most so many atoms a row, by orthogonal matching pursuit, instead of the penalty."""
    signed: bool = False
    """Whether weights may be negative."""
    full: bool = False
    """One update a pass from all its rows, instead of one a batch."""
    init: Literal["spread", "rows"] = "spread"
    """First atoms: pushes of the corpus that are far from each other, or any."""
    resample: bool = True
    """Give atoms without use, and doubles, the directions of rows that were explained badly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ConfigError(f"expected alpha between 0 and 1 (a push has norm 1), got {self.alpha}")
        if self.k is not None:
            self.require_k(self.k)
        if self.init not in ("spread", "rows"):
            raise ConfigError(f"expected init spread or rows, got {self.init!r}")

    def learner(self, d: int, steps: int | None, reduce: Reduce) -> OnlineLearner:
        return OnlineLearner(self, d, steps, reduce)


class OnlineLearner(Learner):
    """A classical fit under way."""

    def __init__(self, config: OnlineConfig, d: int, steps: int | None, reduce: Reduce) -> None:
        self.config, self.d, self.reduce = config, d, reduce
        self.steps_a_pass = None if steps is None else max(1, steps // config.epochs)
        n = config.n_atoms
        self.W = np.zeros((n, d), np.float32)
        self.A, self.B = np.zeros((n, n), np.float32), np.zeros((n, d), np.float32)
        self.used = np.zeros(n)
        self.t = self.passes = 0
        self.worst_size, self.worst = np.zeros(0, np.float32), np.zeros((0, d), np.float32)

    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        rng, n = np.random.default_rng(self.config.seed), self.config.n_atoms
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = (rows / np.maximum(norm, 1e-12))[norm[:, 0] > 0]
        if not len(unit):  # all rows are the same
            unit = rng.standard_normal((n, self.d)).astype(np.float32)
        if len(unit) <= n:  # every row, then rows again with noise
            chosen = np.concatenate([np.arange(len(unit)), rng.choice(len(unit), n - len(unit))])
        elif self.config.init == "spread":
            chosen = spread(unit, n, rng)
        else:
            chosen = rng.choice(len(unit), n, replace=False)
        first = unit[chosen] + NOISE / np.sqrt(self.d) * rng.standard_normal((n, self.d))
        self.W = (first / np.linalg.norm(first, axis=1, keepdims=True)).astype(np.float32)

    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        X = np.ascontiguousarray(X, dtype=np.float32)
        codes = self._encode(X)
        w = np.ones(len(X), np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
        data = codes.data * np.repeat(w, np.diff(codes.indptr))
        weighted = csr_array((data, codes.indices, codes.indptr), shape=codes.shape)
        A, B = _products(codes, weighted, X)
        left = X - codes @ self.W
        squares = np.einsum("nd,nd->n", left, left)
        sums = np.asarray([float((w * squares).sum()), float((w * abs(codes).sum(axis=1)).sum()), len(X), codes.nnz])
        used = np.bincount(codes.indices, minlength=len(self.W)).astype(np.float64)
        self.reduce.sum(A, B, sums, used)
        self.used += used
        if self.config.full:
            self.A += A
            self.B += B
        else:
            keep = self._memory()
            self.A *= keep
            self.B *= keep
            self.A += A
            self.B += B
            update(self.W, self.A, self.B)
        self.t += 1
        self._remember(left, squares * w)
        error, l1, n, nnz = sums
        penalty = self.config.alpha if self.config.k is None else 0.0
        return {"loss": error / n, "objective": (error / 2 + penalty * l1) / n, "l0": nnz / n}

    def _encode(self, X: np.ndarray) -> Codes:
        if self.config.k is not None:
            return OmpCoder(self.W, self.config.k, self.config.signed).encode(X)
        return (lasso if self.config.signed else nn_lasso)(X, self.W, self.config.alpha)

    def _memory(self) -> float:
        """What the statistics of earlier batches keep."""
        most = self.t if self.steps_a_pass is None else min(self.t, self.steps_a_pass)
        return 1 - 1 / (most + 1)

    def end_epoch(self) -> None:
        self.passes += 1
        if self.config.full:
            update(self.W, self.A, self.B, sweeps=3)
        if self.config.resample and self.passes < 0.8 * self.config.epochs:
            self._resample()
        if self.config.full:
            self.A[:], self.B[:] = 0, 0
        self.used[:] = 0
        self.worst_size, self.worst = self.worst_size[:0], self.worst[:0]

    def _resample(self) -> None:
        lost = np.flatnonzero((self.used == 0) | doubles(self.W, self.used))
        _, rows = self.reduce.largest(self.worst_size, self.worst, min(len(self.W), _WORST))
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = (rows / np.maximum(norm, 1e-12))[norm[:, 0] > 0][: len(lost)]
        lost = lost[: len(rows)]
        self.W[lost] = rows
        self.A[lost], self.A[:, lost], self.B[lost] = 0, 0, 0

    def _remember(self, left: np.ndarray, size: np.ndarray) -> None:
        """Keep the rows of this pass that were explained worst."""
        if self.config.resample:
            most = min(len(self.W), _WORST)
            top = _most(size, most)
            size, rows = np.concatenate([self.worst_size, size[top]]), np.concatenate([self.worst, left[top]])
            keep = _most(size, most)
            self.worst_size, self.worst = size[keep].astype(np.float32), rows[keep]

    def state(self) -> dict[str, np.ndarray]:
        held: dict[str, np.ndarray] = {
            "W": self.W,
            "A": self.A,
            "B": self.B,
            "used": self.used,
            "worst_size": self.worst_size,
            "worst": self.worst,
        }
        return {k: v.copy() for k, v in held.items()} | {"counts": np.asarray([self.t, self.passes])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        for name in ("W", "A", "B", "used", "worst_size", "worst"):
            setattr(self, name, state[name].copy())
        self.t, self.passes = (int(n) for n in state["counts"])

    def solution(self) -> Solution:
        W = self.W.copy()
        coder: Coder = LassoCoder(W, self.config.alpha, self.config.signed)
        if self.config.k is not None:
            coder = OmpCoder(W, self.config.k, self.config.signed)
        return Solution(W, np.zeros(self.d, np.float32), coder)


def update(
    W: Float[np.ndarray, "K D"], A: Float[np.ndarray, "K K"], B: Float[np.ndarray, "K D"], *, sweeps: int = 1
) -> None:
    """Block coordinate descent on the atoms, in place: each takes W_a ∝ B_a − Σ_{b ≠ a} A_ab W_b, of norm 1.

    Args:
        W: unit atoms.
        A: Σ c cᵀ; atoms whose diagonal entry is zero stay as they are.
        B: Σ c xᵀ.

    Source: Mairal et al. 2009, algorithm 2.
    """
    usable = np.flatnonzero(np.diagonal(A) > 1e-10)
    for _ in range(sweeps):
        for start in range(0, len(usable), _BLOCK):
            block = usable[start : start + _BLOCK]
            within = A[np.ix_(block, block)]
            left = np.ascontiguousarray(B[block] - A[block] @ W)
            kernels.update_block(W, left, within, block)


def spread(unit: Float[np.ndarray, "N D"], n: int, rng: np.random.Generator) -> np.ndarray:
    """n of N > n unit rows, each drawn in proportion to its squared distance from the line of the nearest one before.

    k-means++ (Arthur and Vassilvitskii 2007) for directions: the distance is 1 − max(cos, 0)². Where rows are long, cosines are
    those of a Gaussian projection to 256 coordinates, which is off by about 1/16.
    """
    if unit.shape[1] > _SKETCH:
        sketch = unit @ rng.standard_normal((unit.shape[1], _SKETCH)).astype(np.float32)
        unit = sketch / np.maximum(np.linalg.norm(sketch, axis=1, keepdims=True), 1e-12)
    chosen = [int(rng.integers(len(unit)))]
    nearest = np.zeros(len(unit), np.float32)
    for _ in range(n - 1):
        nearest = np.maximum(nearest, unit @ unit[chosen[-1]])
        chance = np.maximum(1 - nearest.astype(np.float64) ** 2, 0)
        chance[chosen] = 0
        total = chance.sum()
        free = np.setdiff1d(np.arange(len(unit)), chosen) if total <= 0 else None
        chosen.append(int(rng.choice(free) if free is not None else rng.choice(len(unit), p=chance / total)))
    return np.asarray(chosen)


def doubles(W: Float[np.ndarray, "K D"], used: Float[np.ndarray, " K"]) -> np.ndarray:
    """Which atoms are the less used of a pair with cosine above ``DUPLICATE``, a mask of shape (K,)."""
    found = np.zeros(len(W), bool)
    order = np.argsort(-used, kind="stable")
    for start in range(0, len(W), 1024):
        rows = order[start : start + 1024]
        close = W[rows] @ W[order].T > DUPLICATE
        found[rows] = (close & (np.arange(len(W))[None] < np.arange(start, start + len(rows))[:, None])).any(axis=1)
    return found


def _most(size: np.ndarray, n: int) -> np.ndarray:
    """Where the n largest are."""
    return np.argpartition(-size, n)[:n] if len(size) > n else np.arange(len(size))


def _products(codes: Codes, weighted: csr_array, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ w c cᵀ and Σ w c xᵀ, float32."""
    if codes.nnz > _DENSE * codes.shape[0] * codes.shape[1]:
        dense, by_weight = codes.toarray(), weighted.toarray()
        return dense.T @ by_weight, by_weight.T @ X
    turned = weighted.T.tocsr()
    return np.asarray((turned @ codes).toarray(), dtype=np.float32), np.asarray(turned @ X, dtype=np.float32)
