"""The sparse parts of a TopK training step, compiled by numba: what touches only the atoms that are active.

With k atoms active in a row, a step needs one dense product, x·W_encᵀ, to choose them. The decoder, and the gradients of
both weights, touch k of K atoms a row. Here they run over rows (weights are read) and over atoms (gradients are written,
each by one thread, in the order of rows, so that results do not depend on the number of threads).

Shapes: B rows, K atoms, D coordinates, k active atoms a row; weights are (K, D), an atom a row; an index of −1 is an empty
place. ``topk_torch.py`` is the same in plain torch.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit, prange

from gradatoms.dictionary.kernels import dot

_CHUNK = 16
_BLOCK = 32
"""Entries of which only the largest is looked at, unless it could be among the k largest."""


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def largest(pre, k, index):
    """The k largest of each row of ``pre`` (B, K), into ``index`` (B, k) int32, in no order; of equal ones the first seen.

    ``pre`` is float32, or int16: the bits of bfloat16, whose order is that of the numbers as long as they are positive
    (negatives come after all positives, in no order; a TopK encoder makes them zero).
    """
    n, n_atoms = pre.shape
    for chunk in prange((n + _CHUNK - 1) // _CHUNK):
        kept = np.empty(k, pre.dtype)
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            row, chosen = pre[i], index[i]
            for j in range(k):
                kept[j] = row[j]
                chosen[j] = j
            low = np.argmin(kept)
            bar = kept[low]
            start = k
            while start < n_atoms:
                stop = min(start + _BLOCK, n_atoms)
                top = row[start]
                for j in range(start + 1, stop):
                    top = max(top, row[j])
                if top > bar:
                    for j in range(start, stop):
                        if row[j] > bar:
                            kept[low] = row[j]
                            chosen[low] = j
                            low = 0
                            bar = kept[0]
                            for q in range(1, k):
                                if kept[q] < bar:
                                    bar = kept[q]
                                    low = q
                start = stop


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def decode(x, index, W_enc, b_enc, W_dec, clip, code, out):
    """code[i, s] = x_i·W_enc[a] + b_enc[a] for the chosen atoms a, at least 0 if ``clip``; out[i] = Σ_s code·W_dec[a]."""
    n, k = index.shape
    d = x.shape[1]
    for chunk in prange((n + _CHUNK - 1) // _CHUNK):
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            row, total = x[i], out[i]
            total[:] = 0
            for s in range(k):
                a = index[i, s]
                c = dot(row, W_enc[a]) + b_enc[a] if a >= 0 else np.float32(0)
                if clip and c < 0:
                    c = np.float32(0)
                code[i, s] = c
                if c != 0:
                    atom = W_dec[a]
                    for j in range(d):
                        total[j] += c * atom[j]


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def pull_back(d_out, index, code, W_dec, d_code):
    """d_code[i, s] = d_out_i·W_dec[a] where the code is not zero, else 0: the gradient passes back through the decoder."""
    n, k = index.shape
    for chunk in prange((n + _CHUNK - 1) // _CHUNK):
        for i in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            for s in range(k):
                d_code[i, s] = dot(d_out[i], W_dec[index[i, s]]) if code[i, s] != 0 else 0.0


@njit(cache=True)
@no_type_check
def by_atom(index, code, n_atoms):
    """The active entries (row·k + s), sorted by atom, ascending within it; and where each atom's begin, (K + 1,)."""
    n, k = index.shape
    start = np.zeros(n_atoms + 1, np.int64)
    for i in range(n):
        for s in range(k):
            if code[i, s] != 0:
                start[index[i, s] + 1] += 1
    for a in range(n_atoms):
        start[a + 1] += start[a]
    place = start[:-1].copy()
    entry = np.empty(start[-1], np.int32)
    for i in range(n):
        for s in range(k):
            if code[i, s] != 0:
                a = index[i, s]
                entry[place[a]] = i * k + s
                place[a] += 1
    return start, entry


@njit(parallel=True, cache=True, fastmath=True)
@no_type_check
def accumulate(x, d_out, code, d_code, start, entry, g_enc, g_bias, g_dec):
    """Add to the gradients: g_enc[a] += Σ d_code·x, g_bias[a] += Σ d_code, g_dec[a] += Σ code·d_out over a's entries."""
    n_atoms, d = g_enc.shape
    k = code.shape[1]
    for chunk in prange((n_atoms + _CHUNK - 1) // _CHUNK):
        for a in range(chunk * _CHUNK, min(n_atoms, (chunk + 1) * _CHUNK)):
            enc, dec = g_enc[a], g_dec[a]
            bias = g_bias[a]
            for e in range(start[a], start[a + 1]):
                i = entry[e] // k
                s = entry[e] - i * k
                dc, c = d_code[i, s], code[i, s]
                bias += dc
                row, back = x[i], d_out[i]
                for j in range(d):
                    enc[j] += dc * row[j]
                    dec[j] += c * back[j]
            g_bias[a] = bias
