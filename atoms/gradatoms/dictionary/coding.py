"""Sparse codes: given atoms, which few explain each centred push.

Codes are SciPy CSR arrays of shape (rows, n_atoms), float32, their columns ascending in each row. The functions code rows
with given atoms; the ``Coder`` classes are how a dictionary carries its own way of coding. All are checked against the
plain NumPy forms in ``reference.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array, vstack

from gradatoms.dictionary import kernels, topk_kernels
from gradatoms.errors import ConfigError

Codes: TypeAlias = csr_array

_ROWS = 4096
"""Rows coded at a time; bounds memory."""


def omp(
    X: Float[np.ndarray, "N D"], W_dec: Float[np.ndarray, "K D"], k: int, *, positive: bool = False, tol: float = 0.0
) -> Codes:
    """Orthogonal matching pursuit: the atom that fits what is left best enters, all weights are solved again; k times.

    Args:
        X: centred pushes, shape (rows, d).
        W_dec: unit atoms, shape (n_atoms, d).
        k: atoms a row at most.
        positive: weights ≥ 0 (atoms whose weight would turn negative leave again).
        tol: stop when no atom pulls harder than this.

    Raises:
        ConfigError: k out of range.

    Source: Pati et al. 1993; with the Gram matrix, Rubinstein et al. 2008; non-negative, Bruckstein et al. 2008.
    """
    _check(W_dec, k)
    mode = kernels.NONNEGATIVE if positive else kernels.FREE
    most = min(k, *W_dec.shape)
    return _by_gram(X, W_dec, lambda a, gram, _x: kernels.active_set(a, gram, 0.0, most, mode, max(tol, 1e-6)))


def lasso(X: Float[np.ndarray, "N D"], W_dec: Float[np.ndarray, "K D"], alpha: float) -> Codes:
    """Lasso codes argmin_c ½‖x − cᵀW‖² + α‖c‖₁, exactly, by an active set.

    Args:
        alpha: penalty α > 0; larger gives fewer atoms a row. A push has norm 1 before centring.
    """
    return _penalised(X, W_dec, alpha, kernels.SIGNED)


def nn_lasso(
    X: Float[np.ndarray, "N D"], W_dec: Float[np.ndarray, "K D"], alpha: float, *, refit: bool = False
) -> Codes:
    """Non-negative lasso codes argmin_{c ≥ 0} ½‖x − cᵀW‖² + α Σ c, exactly, by an active set.

    Args:
        alpha: penalty α > 0.
        refit: the penalty shrinks every weight by about α; fit the weights again without it, by non-negative least squares
            on the atoms it chose: the choice is the lasso's, the weights are not biased.
    """
    codes = _penalised(X, W_dec, alpha, kernels.NONNEGATIVE)
    return _refitted(X, W_dec, codes) if refit else codes


def matching_pursuit(
    X: Float[np.ndarray, "N D"],
    W_dec: Float[np.ndarray, "K D"],
    steps: int,
    *,
    positive: bool = True,
    threshold: float = 0.0,
) -> Codes:
    """Matching pursuit: the atom that pulls hardest takes its whole pull, at most ``steps`` times.

    Args:
        steps: how often at most; an atom may be chosen again.
        positive: weights ≥ 0.
        threshold: after the first step, stop when ‖x − cᵀW‖ is below this.

    Source: Mallat and Zhang 1993.
    """
    _check(W_dec, 1)
    return _by_gram(
        X, W_dec,
        lambda a, gram, x: kernels.pursue(a, gram, steps, not positive, threshold, np.einsum("nd,nd->n", x, x)),
    )  # fmt: skip


def top_k(pre: Float[np.ndarray, "N K"], k: int, *, signed: bool = False) -> Codes:
    """The k largest entries of each row of pre-activations, negatives set to zero; ``signed``: the k largest in size.

    Args:
        pre: pre-activations, shape (rows, n_atoms).
        k: entries kept a row, 1 ≤ k ≤ n_atoms.
    """
    if not k >= 1:
        raise ConfigError(f"expected k of at least 1, got {k}")
    size = np.abs(pre) if signed else pre
    index = np.empty((len(pre), min(k, pre.shape[1])), np.int32)
    topk_kernels.largest(np.ascontiguousarray(size, dtype=np.float32), index.shape[1], index)
    index.sort(axis=1)
    value = np.take_along_axis(pre, index.astype(np.int64), axis=1)
    return _csr(index, value, (value != 0) if signed else (value > 0), pre.shape[1])


def above(pre: Float[np.ndarray, "N K"], threshold: Float[np.ndarray, " K"] | float) -> Codes:
    """The entries of pre-activations that exceed a threshold (JumpReLU; ReLU with threshold 0)."""
    rows, columns = np.nonzero((pre > threshold) & (pre > 0))
    indptr = np.searchsorted(rows, np.arange(len(pre) + 1))
    return csr_array((pre[rows, columns].astype(np.float32), columns.astype(np.int32), indptr), shape=pre.shape)


def leading(codes: Codes) -> Int[np.ndarray, " N"]:
    """Each row's atom of largest weight, shape (rows,); −1 where a row has none."""
    return np.asarray([
        codes.indices[a + int(codes.data[a:b].argmax())] if b > a else -1
        for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    ], dtype=np.int64)  # fmt: skip


def top_rows(codes: Codes | csc_array, atom: int, n: int, *, sign: int = 1) -> Int[np.ndarray, " n"]:
    """Row numbers where ``atom`` is most active, strongest first, at most ``n``; rows without it are left out.

    Args:
        sign: +1 for rows with positive weight, −1 for those with negative weight (of signed codes).
    """
    column = codes.tocsc()[:, [atom]] if codes.format != "csc" else codes[:, [atom]]
    order = np.argsort(-sign * column.data, kind="stable")
    return column.indices[order[sign * column.data[order] > 0][:n]]


class Coder(ABC):
    """From centred pushes to sparse codes."""

    signed: bool = False
    """Whether weights may be negative."""

    @abstractmethod
    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        """Codes of centred pushes ``X``, CSR of shape (rows, n_atoms)."""


@dataclass(frozen=True)
class LassoCoder(Coder):
    """Codes by lasso, non-negative with the weights fitted again (see ``nn_lasso``), or signed as they are."""

    W_dec: Float[np.ndarray, "K D"]
    alpha: float
    signed: bool = False

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        if self.signed:
            return lasso(X, self.W_dec, self.alpha)
        return nn_lasso(X, self.W_dec, self.alpha, refit=True)


@dataclass(frozen=True)
class OmpCoder(Coder):
    """Codes by orthogonal matching pursuit with at most k atoms."""

    W_dec: Float[np.ndarray, "K D"]
    k: int
    signed: bool = False

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return omp(X, self.W_dec, self.k, positive=not self.signed)


@dataclass(frozen=True)
class PursuitCoder(Coder):
    """Codes by matching pursuit, as SAELens' ``matching_pursuit``."""

    W_dec: Float[np.ndarray, "K D"]
    steps: int
    threshold: float = 0.0

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return matching_pursuit(X, self.W_dec, self.steps, threshold=self.threshold)


@dataclass(frozen=True)
class TopKCoder(Coder):
    """Codes by one encoder product: the k largest of x·W_enc + b_enc, negatives zero; ``signed``: the k largest in size."""

    W_enc: Float[np.ndarray, "D K"]
    b_enc: Float[np.ndarray, " K"]
    k: int
    signed: bool = False

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return _in_pieces(
            X, lambda x: top_k(x @ self.W_enc + self.b_enc, self.k, signed=self.signed), self.W_enc.shape[1]
        )


@dataclass(frozen=True)
class ThresholdCoder(Coder):
    """Codes of encoders that keep what exceeds a threshold: JumpReLU; ReLU (``standard``) with threshold 0."""

    W_enc: Float[np.ndarray, "D K"]
    b_enc: Float[np.ndarray, " K"]
    threshold: Float[np.ndarray, " K"]

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return _in_pieces(X, lambda x: above(x @ self.W_enc + self.b_enc, self.threshold), self.W_enc.shape[1])


@dataclass(frozen=True)
class GatedCoder(Coder):
    """Codes of gated encoders: x·W_enc + b_gate > 0 opens, x·W_enc·exp(r_mag) + b_mag is the weight, at least 0."""

    W_enc: Float[np.ndarray, "D K"]
    b_gate: Float[np.ndarray, " K"]
    r_mag: Float[np.ndarray, " K"]
    b_mag: Float[np.ndarray, " K"]

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        def gated(x: np.ndarray) -> Codes:
            product = x @ self.W_enc
            return above(np.where(product + self.b_gate > 0, product * np.exp(self.r_mag) + self.b_mag, 0), 0.0)

        return _in_pieces(X, gated, self.W_enc.shape[1])


def _check(W_dec: np.ndarray, k: int) -> None:
    if not 1 <= k <= len(W_dec):
        raise ConfigError(f"expected k from 1 to the {len(W_dec)} atoms, got {k}")


def _penalised(X: np.ndarray, W_dec: np.ndarray, alpha: float, mode: int) -> Codes:
    if not alpha > 0:
        raise ConfigError(f"expected alpha (the lasso penalty) above 0, got {alpha}")
    most = min(W_dec.shape)
    return _by_gram(X, W_dec, lambda a, gram, _x: kernels.active_set(a, gram, float(alpha), most, mode, 1e-6))


Kernel: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _by_gram(X: np.ndarray, W_dec: np.ndarray, kernel: Kernel) -> Codes:
    """Codes by a kernel that takes correlations, the Gram matrix and rows; n_atoms² floats are held beside the rows."""
    W = np.ascontiguousarray(W_dec, dtype=np.float32)
    gram = W @ W.T

    def coded(x: np.ndarray) -> Codes:
        index, value, count = kernel(x @ W.T, gram, x)
        order = np.where(np.arange(index.shape[1]) < count[:, None], index, len(W)).argsort(axis=1, kind="stable")
        index, value = np.take_along_axis(index, order, axis=1), np.take_along_axis(value, order, axis=1)
        return _csr(index, value, np.arange(index.shape[1]) < count[:, None], len(W))

    return _in_pieces(X, coded, len(W))


def _in_pieces(X: np.ndarray, encode: Callable[[np.ndarray], Codes], n_atoms: int) -> Codes:
    X = np.ascontiguousarray(X, dtype=np.float32)
    parts = [encode(X[start : start + _ROWS]) for start in range(0, len(X), _ROWS)]
    if len(parts) == 1:
        return parts[0]
    return csr_array(vstack(parts, format="csr")) if parts else csr_array((0, n_atoms), dtype=np.float32)


def _csr(index: np.ndarray, value: np.ndarray, keep: np.ndarray, n_atoms: int) -> Codes:
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return csr_array((value[keep].astype(np.float32), index[keep], indptr), shape=(len(index), n_atoms))


def _refitted(X: np.ndarray, W_dec: np.ndarray, codes: Codes) -> Codes:
    """The weights of chosen atoms by non-negative least squares on them; those that become zero are left out."""
    W = np.ascontiguousarray(W_dec, dtype=np.float32)
    index, indptr = codes.indices.astype(np.int32), codes.indptr.astype(np.int64)
    value = kernels.refit(np.ascontiguousarray(X, dtype=np.float32), W, indptr, index)
    found = csr_array((value, codes.indices, codes.indptr), shape=codes.shape)
    found.eliminate_zeros()
    return found
