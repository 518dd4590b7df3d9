"""Sparse codes: given atoms, which few explain each centred push.

Codes are SciPy CSR matrices of shape (rows, n_atoms) with non-negative float32 values.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.sparse import csc_array, csr_array

Codes: TypeAlias = csr_array

_ROWS = 4096
"""Rows coded at a time; bounds memory."""


def top_k(pre: Float[np.ndarray, "N K"], k: int) -> Codes:
    """The k largest entries of each row of pre-activations, negatives set to zero.

    Args:
        pre: pre-activations, shape (rows, n_atoms).
        k: entries kept a row, 1 ≤ k ≤ n_atoms.
    """
    n, n_atoms = pre.shape
    columns = np.sort(np.argpartition(-pre, min(k, n_atoms) - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(pre, columns, axis=1)
    keep = values > 0
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return csr_array((values[keep].astype(np.float32), columns[keep], indptr), shape=(n, n_atoms))


def nn_lasso(X: Float[np.ndarray, "N D"], W_dec: Float[np.ndarray, "K D"], alpha: float) -> Codes:
    """Non-negative lasso codes: argmin_c ½‖x − cᵀW‖² + α Σ c, c ≥ 0, by scikit-learn's coordinate descent, then refitted.

    The penalty shrinks every weight by about α, so the weights on the selected atoms are fitted again without it
    (non-negative least squares on the support): the support is the lasso's, the weights are not biased.

    Args:
        X: centred pushes, shape (rows, d).
        W_dec: unit atoms, shape (n_atoms, d).
        alpha: penalty α; larger gives fewer atoms a row. A push has norm 1 before centring.
    """
    from scipy.optimize import nnls
    from scipy.sparse import vstack
    from sklearn.decomposition import sparse_encode

    gram = (W_dec @ W_dec.T).astype(np.float64)
    parts = []
    for start in range(0, len(X), _ROWS):
        x = X[start : start + _ROWS].astype(np.float64)
        codes = sparse_encode(
            x, W_dec.astype(np.float64), gram=gram, algorithm="lasso_cd", alpha=alpha, positive=True, max_iter=200
        )
        for row, c in zip(x, codes, strict=True):
            support = np.flatnonzero(c)
            if len(support):
                c[support] = nnls(W_dec[support].T.astype(np.float64), row)[0]
        parts.append(csr_array(codes.astype(np.float32)))
    return csr_array(vstack(parts, format="csr")) if parts else csr_array((0, len(W_dec)), dtype=np.float32)


def leading(codes: Codes) -> np.ndarray:
    """Each row's atom of largest weight, shape (rows,); −1 where a row has none."""
    return np.asarray([
        codes.indices[a + int(codes.data[a:b].argmax())] if b > a else -1
        for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    ], dtype=np.int64)  # fmt: skip


def top_rows(codes: Codes | csc_array, atom: int, n: int) -> np.ndarray:
    """Row numbers where ``atom`` is most active, strongest first, at most ``n``; rows without it are left out."""
    column = codes.tocsc()[:, [atom]] if codes.format != "csc" else codes[:, [atom]]
    order = np.argsort(-column.data, kind="stable")[:n]
    return column.indices[order]
