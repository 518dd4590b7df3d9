"""Sparse coding of many rows at once, compiled by numba over all cores.

Every coder here works on correlations a = x·Wᵀ and the Gram matrix G = W·Wᵀ and never sees x or W again. Rows are
independent, so threads take rows. The plain NumPy form of each kernel is in ``reference.py``, and tests hold them
together. Compiled code is cached where Python keeps its own (``__pycache__``, or numba's ``NUMBA_CACHE_DIR``).

Shapes: N rows, K atoms, M the most atoms a row may have. A result is padded: ``index`` (N, M) int32, ``value`` (N, M)
float32, ``count`` (N,) int32; entries past a row's count mean nothing.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit, prange

CHUNK = 64
"""Rows a thread takes at a time; its buffers serve all of them."""

FREE, NONNEGATIVE, SIGNED = 0, 1, 2
"""Which weights the active-set coder allows: any (OMP), c ≥ 0, or any sign under an L1 penalty (lasso)."""

_ZERO = 1e-9
"""A weight this small has reached zero."""
_DEPENDENT = 1e-5
"""An atom whose square distance from the span of the active ones is below this adds nothing."""


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def active_set(a, gram, penalty, most, mode, tol):
    """Codes by an active set: one atom enters at a time, weights are solved exactly, atoms that turn against their sign leave.

    Minimises ½‖x − cᵀW‖² + penalty·‖c‖₁. Exact for the lasso (``SIGNED``) and the non-negative lasso when it stops by
    itself (Lawson and Hanson's algorithm with a linear term); stopped at M atoms without a penalty it is orthogonal
    matching pursuit (``FREE``) or its non-negative form (Bruckstein et al. 2008).

    Args:
        a: correlations x·Wᵀ, (N, K) float32.
        gram: W·Wᵀ, (K, K) float32.
        penalty: α ≥ 0.
        most: M.
        mode: ``FREE``, ``NONNEGATIVE`` or ``SIGNED``.
        tol: an atom enters only if it pulls harder than the penalty and this.
    """
    n = len(a)
    index = np.zeros((n, most), np.int32)
    value = np.zeros((n, most), np.float32)
    count = np.zeros(n, np.int32)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        room = _room(a.shape[1], most)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            count[i] = _solve_row(a[i], gram, penalty, most, mode, tol, room, index[i], value[i])
    return index, value, count


@njit(cache=True)
@no_type_check
def _room(n_atoms, most):
    """Buffers of one thread: pull and closed (K,); atoms, sign, weights c, z and those before (M,); the factor L (M, M).

    With room for one atom more, which may take the place of another.
    """
    return (
        np.empty(n_atoms, np.float32),
        np.empty(n_atoms, np.bool_),
        np.empty(most + 1, np.int32),
        np.empty((4, most + 1)),
        np.empty((most + 1, most + 1)),
    )


@njit(cache=True, fastmath=True)
@no_type_check
def _solve_row(a, gram, penalty, most, mode, tol, room, index, value):
    """One row of ``active_set``; returns how many atoms it has."""
    pull, closed, atoms, weights, L = room
    sign, c, z, before = weights[0], weights[1], weights[2], weights[3]
    pull[:] = a
    closed[:] = False
    m = 0
    for _ in range(4 * most + 8):
        if m == most and penalty == 0:
            break
        j = _strongest(pull, closed, mode == NONNEGATIVE, penalty + tol)
        if j < 0:
            break
        closed[j] = True  # until it leaves; for good if it brings nothing, or leaves at once
        atoms[m], sign[m], c[m] = j, -1.0 if pull[j] < 0 else 1.0, 0.0
        for r in range(m + 1):
            before[r] = c[r] * sign[r]
        free = _append(L, gram, atoms, sign, m) and m < most
        if not free and (penalty == 0 or not _exchange(L, c, z, m, abs(pull[j]) - penalty)):
            continue
        m += 1
        while True:
            if free:
                _solve(L, a, atoms, sign, penalty, m, z)
                step = 1.0
                if mode != FREE:
                    for r in range(m):
                        if z[r] <= _ZERO:
                            step = min(step, c[r] / max(c[r] - z[r], 1e-30))
                for r in range(m):
                    c[r] += step * (z[r] - c[r])
                if step == 1.0:
                    break
            kept = 0
            for r in range(m):
                if c[r] > _ZERO:
                    atoms[kept], sign[kept], c[kept], before[kept] = atoms[r], sign[r], c[r], before[r]
                    kept += 1
                    continue
                _move(pull, gram[atoms[r]], -before[r])
                if atoms[r] != j:
                    closed[atoms[r]] = False
            if kept == m:
                break
            for r in range(kept):
                _append(L, gram, atoms, sign, r)
            m, free = kept, True
        for r in range(m):
            _move(pull, gram[atoms[r]], c[r] * sign[r] - before[r])
    for r in range(m):
        index[r] = atoms[r]
        value[r] = c[r] * sign[r]
    return m


@njit(cache=True, fastmath=True)
@no_type_check
def _strongest(pull, closed, one_sided, least):
    """The open atom that pulls hardest, or −1 if none pulls harder than ``least``."""
    best, j = np.float32(least), -1
    for atom in range(len(pull)):
        size = pull[atom] if one_sided else abs(pull[atom])
        if size > best and not closed[atom]:
            best, j = size, atom
    return j


@njit(cache=True, fastmath=True)
@no_type_check
def _append(L, gram, atoms, sign, m):
    """Row ``m`` of the Cholesky factor of sᵢsⱼG on the active atoms; False if the atom depends linearly on those before."""
    j = atoms[m]
    square = float(gram[j, j])
    for r in range(m):
        t = sign[m] * sign[r] * gram[j, atoms[r]]
        for q in range(r):
            t -= L[r, q] * L[m, q]
        t /= L[r, r]
        L[m, r] = t
        square -= t * t
    L[m, m] = np.sqrt(max(square, 1e-12))
    return square > _DEPENDENT


@njit(cache=True, fastmath=True)
@no_type_check
def _exchange(L, c, v, m, gain):
    """Let atom ``m``, a combination Σ v_r·(atom r) of those before, take over weight until one of them has none left.

    What is explained stays; the penalty falls by ``gain`` for each unit of weight. False if the atoms are not so dependent
    that this helps.
    """
    for r in range(m - 1, -1, -1):
        t = L[m, r]
        for q in range(r + 1, m):
            t -= L[q, r] * v[q]
        v[r] = t / L[r, r]
    most, out = 1e30, -1
    for r in range(m):
        if v[r] > 0 and c[r] < most * v[r]:
            most, out = c[r] / v[r], r
    if out < 0 or most * L[m, m] ** 2 >= gain:
        return False
    for r in range(m):
        c[r] -= most * v[r]
    c[m], c[out] = most, 0.0
    return True


@njit(cache=True, fastmath=True)
@no_type_check
def _solve(L, a, atoms, sign, penalty, m, z):
    """z with L·Lᵀ·z = s·a − penalty: the weights of the active atoms if none were bounded."""
    for r in range(m):
        t = sign[r] * a[atoms[r]] - penalty
        for q in range(r):
            t -= L[r, q] * z[q]
        z[r] = t / L[r, r]
    for r in range(m - 1, -1, -1):
        t = z[r] / L[r, r]
        z[r] = t
        for q in range(r):
            z[q] -= L[r, q] * t


@njit(cache=True, fastmath=True)
@no_type_check
def _move(pull, row, by):
    """Take ``by`` times an atom out of what is left to explain."""
    delta = np.float32(by)
    if delta != 0:
        for atom in range(len(pull)):
            pull[atom] -= delta * row[atom]


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def pursue(a, gram, most, signed, threshold, squares):
    """Matching pursuit (Mallat and Zhang 1993): M times, the atom that pulls hardest takes all of its pull.

    Args:
        a, gram: as for ``active_set``.
        most: steps at most; an atom may be chosen again, and is listed once.
        signed: also negative weights.
        threshold: after the first step, stop when ‖x − cᵀW‖ is below this.
        squares: ‖x‖², (N,) float32.
    """
    n, n_atoms = a.shape
    index = np.zeros((n, most), np.int32)
    value = np.zeros((n, most), np.float32)
    count = np.zeros(n, np.int32)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        pull = np.empty(n_atoms, np.float32)
        closed = np.zeros(n_atoms, np.bool_)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            pull[:] = a[i]
            left, m = squares[i], 0
            for _ in range(most):
                j = _strongest(pull, closed, not signed, 1e-7)
                if j < 0 or (m > 0 and left < threshold * threshold):
                    break
                c = pull[j]
                left -= c * c
                _move(pull, gram[j], c)
                r = 0
                while r < m and index[i, r] != j:
                    r += 1
                if r == m:
                    index[i, r] = j
                    m += 1
                value[i, r] += c
            count[i] = m
    return index, value, count


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def refit(x, W, indptr, indices):
    """Non-negative least squares of each row on the atoms it has: argmin_{c ≥ 0} ‖x − Σ_s c_s·W[a_s]‖, in CSR order.

    Args:
        x: (N, D) float32; W: (K, D) float32; indptr (N + 1,) and indices of the codes.
    """
    value = np.zeros(len(indices), np.float32)
    n = len(x)
    most = 1
    for i in range(n):
        most = max(most, indptr[i + 1] - indptr[i])
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        gram = np.empty((most, most), np.float32)
        pull, found, weight = np.empty(most, np.float32), np.empty(most, np.int32), np.empty(most, np.float32)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            m = indptr[i + 1] - indptr[i]
            if m == 0:
                continue
            atoms, room = indices[indptr[i] : indptr[i + 1]], _room(m, m)
            for r in range(m):
                pull[r] = dot(x[i], W[atoms[r]])
                for q in range(r + 1):
                    gram[r, q] = gram[q, r] = dot(W[atoms[r]], W[atoms[q]])
            count = _solve_row(pull[:m], gram[:m, :m], 0.0, m, NONNEGATIVE, 0.0, room, found, weight)
            for r in range(count):
                value[indptr[i] + found[r]] = weight[r]
    return value


@njit(cache=True, fastmath=True)
@no_type_check
def dot(u, v):
    """u·v, in float32."""
    total = np.float32(0)
    for j in range(len(u)):
        total += u[j] * v[j]
    return total


@njit(cache=True, fastmath=True)
@no_type_check
def update_block(W, left, within, block):
    """The atoms of a block, one after the other: W_a ∝ what is left for it with its own part put back; of norm 1.

    Args:
        W: atoms, (K, D) float32, changed in place.
        left: B − A·W of the block, (b, D) float32, kept up to date.
        within: A among the atoms of the block, (b, b) float32.
        block: their numbers, (b,).
    """
    d = W.shape[1]
    change = np.empty(d, np.float32)
    for r in range(len(block)):
        atom, own, square = W[block[r]], within[r, r], 0.0
        for j in range(d):
            change[j] = left[r, j] + own * atom[j]
            square += float(change[j]) * float(change[j])
        if square < 1e-20:
            continue
        scale = np.float32(1 / np.sqrt(square))
        for j in range(d):
            change[j] = scale * change[j] - atom[j]
            atom[j] += change[j]
        for q in range(r, len(block)):
            by, row = within[q, r], left[q]
            for j in range(d):
                row[j] -= by * change[j]
