"""Two dictionaries matched atom by atom, and two stores by how much of each atom they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, store_of
from gradatoms.errors import ConfigError
from gradatoms_store import Store

CHUNK = 2048
"""Atoms, or rows, that are compared at once; bounds memory."""
RANDOM = 256
"""Random directions beside a match."""


By = Literal["directions", "codes"]


@dataclass(frozen=True)
class Match:
    """For each atom of one dictionary the closest of another."""

    by: By
    """What is compared: the atoms' directions, or their codes on the examples that both were fitted on."""
    rows: list[dict[str, Any]]
    """``atom``, ``other``, ``cosine``, ``mutual`` (each is the other's closest), the closest pairs first."""
    null: float
    """Mean cosine with the closest atom: of random directions, or of codes whose examples are in another order."""
    examples: int | None = None
    """How many examples the codes are compared on."""

    @property
    def mean(self) -> float:
        return sum(r["cosine"] for r in self.rows) / max(1, len(self.rows))

    @property
    def mutual(self) -> float:
        """Share of atoms that are their closest atom's closest."""
        return sum(r["mutual"] for r in self.rows) / max(1, len(self.rows))


def match_atoms(a: Atoms, b: Atoms, by: By | None = None, *, seed: int = 0) -> Match:
    """Match two dictionaries: seeds and checkpoints by directions; other layers and models, whose directions mean nothing to each
    other, by codes (cosine of two atoms' codes over examples, each example's summed over its rows).

    Args:
        by: None takes directions where both are of one hook and width, and codes elsewhere.

    Raises:
        ConfigError: by directions, and the two are of different widths; by codes, and no example is in both.
        AtomsFormatError: by codes, and codes or store of one are not at hand.
    """
    if by is None:
        by = "directions" if (a.hook, a.W_dec.shape[1]) == (b.hook, b.W_dec.shape[1]) else "codes"
    rng = np.random.default_rng(seed)
    if by == "directions":
        if a.W_dec.shape[1] != b.W_dec.shape[1]:
            raise ConfigError(
                f"expected two dictionaries of one width, got {a.W_dec.shape[1]} and {b.W_dec.shape[1]}; match them by codes"
            )
        noise = rng.standard_normal((RANDOM, a.W_dec.shape[1])).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        return Match(by, _matched(a.W_dec, b.W_dec), float(_closest(noise, b.W_dec)[1].mean()))
    ours, theirs = _by_example(a), _by_example(b)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise ConfigError(
            "expected two dictionaries that were fitted on some of the same examples (prompt, target, foil), these share none"
        )
    A, B = (_unit_columns(load_codes(folder_of(x) / "codes.h5"), rows, shared) for x, rows in ((a, ours), (b, theirs)))
    null = float(_closest(A, B[:, rng.permutation(len(shared))])[1].mean())
    return Match(by, _matched(A, B), null, len(shared))


def _matched(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "K D"]) -> list[dict[str, Any]]:
    best, cosine = _closest(a, b)
    back, _ = _closest(b, a)
    rows = [
        {"atom": i, "other": int(j), "cosine": float(c), "mutual": bool(back[j] == i)}
        for i, (j, c) in enumerate(zip(best, cosine, strict=True))
    ]
    return sorted(rows, key=lambda r: -r["cosine"])


def _by_example(atoms: Atoms) -> dict[tuple[str, str, str | None], list[int]]:
    """The rows of each example of the fitted store."""
    store = store_of(atoms)
    keys = {e.id: (e.prompt, e.target, e.foil) for e in store.examples}
    found: dict[tuple[str, str, str | None], list[int]] = {}
    for row, example in enumerate(store.rows["example"]):
        found.setdefault(keys[int(example)], []).append(row)
    return found


def _unit_columns(
    codes: Codes, rows: Mapping[tuple[str, str, str | None], list[int]], shared: Sequence[tuple[str, str, str | None]]
) -> Float[np.ndarray, "K N"]:
    """Each atom's codes over the shared examples, at length 1; an atom that is active on none is 0."""
    owner = np.repeat(np.arange(len(shared)), [len(rows[key]) for key in shared])
    chosen = np.concatenate([rows[key] for key in shared])
    total = csr_array((np.ones(len(chosen), np.float32), (owner, chosen)), shape=(len(shared), codes.shape[0])) @ codes
    columns = np.ascontiguousarray(total.toarray().T, dtype=np.float32)
    lengths = np.linalg.norm(columns, axis=1, keepdims=True)
    return np.divide(columns, lengths, out=columns, where=lengths > 0)


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
