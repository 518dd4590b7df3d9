"""Two dictionaries matched atom by atom, and two stores by how much of each atom they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms_store import Store

CHUNK = 2048
"""Atoms, or rows, that are compared at once; bounds memory."""


def match_atoms(a: Atoms, b: Atoms) -> list[dict[str, Any]]:
    """For each atom of ``a`` the closest of ``b``: ``atom``, ``other``, ``cosine``, ``mutual`` (each is the other's closest).

    Raises:
        ConfigError: the two are of different widths: their directions cannot be compared.
    """
    if a.W_dec.shape[1] != b.W_dec.shape[1]:
        raise ConfigError(
            f"expected two dictionaries of one width, got {a.W_dec.shape[1]} and {b.W_dec.shape[1]}; compare atoms of one model"
        )
    best, cosine = _closest(a.W_dec, b.W_dec)
    back, _ = _closest(b.W_dec, a.W_dec)
    return [
        {"atom": i, "other": int(j), "cosine": float(c), "mutual": bool(back[j] == i)}
        for i, (j, c) in enumerate(zip(best, cosine, strict=True))
    ]


def random_match(a: Atoms, b: Atoms, *, seed: int = 0, n: int = 256) -> float:
    """The mean cosine of a random direction with the closest atom of ``b``: what a match is to be read beside."""
    found = np.random.default_rng(seed).standard_normal((n, a.W_dec.shape[1])).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return float(_closest(found, b.W_dec)[1].mean())


def _closest(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "K D"]) -> tuple[np.ndarray, np.ndarray]:
    best, cosine = np.zeros(len(a), dtype=np.int64), np.zeros(len(a), dtype=np.float32)
    for start in range(0, len(a), CHUNK):
        products = a[start : start + CHUNK] @ b.T
        best[start : start + CHUNK] = products.argmax(axis=1)
        cosine[start : start + CHUNK] = products.max(axis=1)
    return best, cosine


def spectrum(atoms: Atoms, store: Store) -> dict[str, Any]:
    """Mean code of each atom over the rows of a store, its standard error, and the share of rows it is active on.

    Raises:
        ConfigError: the store lacks the atoms' hook.
    """
    if atoms.hook not in store.hooks:
        raise ConfigError(f"expected gradients at {atoms.hook}, {store.path} has {', '.join(store.hooks)}")
    total, squares, active = (np.zeros(len(atoms)) for _ in range(3))
    rows = 0
    for batch in store.batches(atoms.hook, CHUNK):
        codes = atoms.encode(-batch.gradients[batch.norms > 0])
        total += np.asarray(codes.sum(axis=0)).ravel()
        squares += np.asarray(codes.multiply(codes).sum(axis=0)).ravel()
        active += np.bincount(codes.indices, minlength=len(atoms))
        rows += codes.shape[0]
    mean = total / max(1, rows)
    variance = np.maximum(squares / max(1, rows) - mean**2, 0)
    return {"mean": mean, "error": np.sqrt(variance / max(1, rows)), "share": active / max(1, rows), "rows": rows}


def compare_stores(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Atoms by how much their mean codes in two spectra differ, the most first; ``z`` is the difference in standard errors."""
    difference = one["mean"] - two["mean"]
    error = np.sqrt(one["error"] ** 2 + two["error"] ** 2)
    z = np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
    return [
        {"atom": int(i), "one": float(one["mean"][i]), "two": float(two["mean"][i]), "difference": float(difference[i]), "z": float(z[i])}
        for i in np.argsort(-np.abs(difference), kind="stable")
    ]  # fmt: skip
