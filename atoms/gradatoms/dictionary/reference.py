"""The coders in plain NumPy, one row at a time: what ``kernels.py`` must agree with. For reading and for tests."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls


def omp(x: Float[np.ndarray, " D"], W: Float[np.ndarray, "K D"], k: int) -> Float[np.ndarray, " K"]:
    """Orthogonal matching pursuit: k times, add the atom of largest |pull|, then least squares on all chosen."""
    c, left, chosen = np.zeros(len(W)), x.astype(np.float64), list[int]()
    for _ in range(k):
        pull = W @ left
        pull[chosen] = 0
        best = int(np.abs(pull).argmax())
        if abs(pull[best]) <= 1e-6:
            break
        chosen.append(best)
        weights = np.linalg.lstsq(W[chosen].T.astype(np.float64), x.astype(np.float64), rcond=None)[0]
        left = x - weights @ W[chosen]
        c[:] = 0
        c[chosen] = weights
    return c


def nn_omp(x: Float[np.ndarray, " D"], W: Float[np.ndarray, "K D"], k: int) -> Float[np.ndarray, " K"]:
    """The same with weights ≥ 0: the atom of largest pull, then non-negative least squares; what turns zero is out."""
    c, left, chosen = np.zeros(len(W)), x.astype(np.float64), list[int]()
    for _ in range(8 * k):
        pull = W @ left
        pull[chosen] = -np.inf
        best = int(pull.argmax())
        if pull[best] <= 1e-6 or len(chosen) == k:
            break
        chosen.append(best)
        weights = nnls(W[chosen].T.astype(np.float64), x.astype(np.float64))[0]
        chosen = [a for a, w in zip(chosen, weights, strict=True) if w > 1e-9]
        c[:] = 0
        c[chosen] = weights[weights > 1e-9]
        left = x - c @ W
    return c


def lasso(
    x: Float[np.ndarray, " D"], W: Float[np.ndarray, "K D"], alpha: float, *, positive: bool, sweeps: int = 2000
) -> Float[np.ndarray, " K"]:
    """argmin ½‖x − cᵀW‖² + α‖c‖₁ by cyclic coordinate descent until nothing moves; c ≥ 0 if ``positive``."""
    c, left = np.zeros(len(W)), x.astype(np.float64)
    W = W.astype(np.float64)
    square = (W**2).sum(axis=1)
    for _ in range(sweeps):
        moved = 0.0
        for a in range(len(W)):
            pull = W[a] @ left + square[a] * c[a]
            new = max(pull - alpha, 0) if positive else np.sign(pull) * max(abs(pull) - alpha, 0)
            new /= square[a]
            left += (c[a] - new) * W[a]
            moved, c[a] = max(moved, abs(c[a] - new)), new
        if moved < 1e-10:
            break
    return c


def matching_pursuit(
    x: Float[np.ndarray, " D"], W: Float[np.ndarray, "K D"], steps: int, *, positive: bool, threshold: float = 0.0
) -> Float[np.ndarray, " K"]:
    """``steps`` times, the atom of largest pull takes its whole pull; stops after one when less than ``threshold`` is left."""
    c, left = np.zeros(len(W)), x.astype(np.float64)
    for _ in range(steps):
        pull = W @ left
        best = int((pull if positive else np.abs(pull)).argmax())
        enough = c.any() and np.linalg.norm(left) < threshold
        if enough or (pull[best] if positive else abs(pull[best])) <= 1e-7:
            break
        c[best] += pull[best]
        left = left - pull[best] * W[best]
    return c


def top_k(pre: Float[np.ndarray, " K"], k: int, *, signed: bool = False) -> Float[np.ndarray, " K"]:
    """The k largest entries, negatives zero; ``signed``: the k largest in size."""
    order = np.argsort(-(np.abs(pre) if signed else pre), kind="stable")[:k]
    c = np.zeros(len(pre))
    c[order] = pre[order] if signed else np.maximum(pre[order], 0)
    return c
