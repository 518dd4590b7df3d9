"""Which rows of a store speak for an atom: those it is most active on, some it is active on, near misses, and others.

Fitted rows become evidence. Held-out rows become trials, which labels are scored on. Random directions, labelled and
scored the same way, are the null: each is taken as active on as many rows as the median atom.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.metrics import hook_in
from gradatoms.dictionary.pushes import Pushes
from gradatoms_store import Store

TOP = 20
"""Examples of largest code kept an atom."""
DRAWN = 8
"""Examples drawn of each other kind."""
TRIALS = 10
"""Held-out examples of each kind that a label is scored on."""
STRONG = 0.25
"""An example counts as active in a trial if its code is at least this share of the atom's largest fitted one."""
POOL = 48
"""Fitted rows that inactive examples are drawn from."""
SAMPLE = 16_384
"""Rows of each side that near misses and random directions are looked for in; bounds memory and time."""
_CELLS = 2**25

Weighted = list[tuple[int, float]]
"""Row numbers with the direction's code there."""


@dataclass(frozen=True)
class Selected:
    """Rows for one direction."""

    top: Weighted = field(default_factory=list)
    """Fitted, largest code first."""
    active: Weighted = field(default_factory=list)
    """Fitted, drawn from the rest that it is active on."""
    near: Weighted = field(default_factory=list)
    """Fitted, not active, of largest product with the direction."""
    inactive: Weighted = field(default_factory=list)
    """Fitted, not active, drawn from a pool that all directions share, so that few contexts have to be computed."""
    trial_active: Weighted = field(default_factory=list)
    """Held out, with a code of at least a quarter of the largest fitted one, spread evenly from the largest down."""
    trial_weak: Weighted = field(default_factory=list)
    """Held out, active with a smaller code, spread in the same way."""
    trial_inactive: Weighted = field(default_factory=list)
    """Held out, not active, drawn."""
    density: float = 0.0
    """Share of fitted rows that it is active on."""


@dataclass(frozen=True)
class Sides:
    """Pushes sampled from the two sides of the split, less the mean push."""

    fitted: Int[np.ndarray, " F"]
    held: Int[np.ndarray, " H"]
    X_fitted: Float[np.ndarray, "F D"]
    X_held: Float[np.ndarray, "H D"]
    pool: Int[np.ndarray, " P"]
    """Fitted rows that every direction's inactive examples are drawn from."""

    @classmethod
    def of(
        cls, atoms: Atoms, store: Store, fitted: Int[np.ndarray, " N"], held: Int[np.ndarray, " M"], seed: int
    ) -> Sides:
        rng = np.random.default_rng([seed, 0])
        pushes = Pushes(store, hook=hook_in(store, atoms))
        rows, parts = [], []
        for side in (fitted, held):
            usable = np.intersect1d(side, pushes.rows)
            chosen = usable if len(usable) <= SAMPLE else np.sort(rng.choice(usable, SAMPLE, replace=False))
            rows.append(chosen)
            found = pushes.only(chosen).all() if len(chosen) else np.zeros((0, atoms.W_dec.shape[1]), np.float32)
            parts.append(atoms.center(found))
        pool = np.sort(_draw(rng, len(rows[0]), POOL))
        return cls(rows[0], rows[1], parts[0], parts[1], rows[0][pool])


def select(
    atoms: Atoms,
    codes: Codes,
    sides: Sides,
    fitted: Int[np.ndarray, " N"],
    held: Int[np.ndarray, " M"],
    *,
    seed: int,
) -> list[Selected]:
    """Rows for every atom.

    Args:
        codes: of every row of the store, shape (rows, n_atoms).
        fitted, held: row numbers of the two sides.
    """
    by_atom, by_held = codes[fitted].tocsc(), codes[held].tocsc()
    products = _products(atoms.W_dec, sides.X_fitted)
    found = []
    for atom in range(len(atoms)):
        own = _column(by_atom, atom, fitted)
        is_own = np.isin(sides.fitted, [row for row, _ in own])
        near = np.where(is_own, -np.inf, next(products))
        density = len(own) / max(1, len(fitted))
        found.append(_selected(own, _column(by_held, atom, held), near, sides, density, seed, atom))
    return found


def random_directions(n: int, d: int, seed: int) -> Float[np.ndarray, "R D"]:
    """Gaussian directions of norm 1: the null of everything that is said of an atom."""
    x = np.random.default_rng([seed, 1]).standard_normal((n, d)).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def select_random(directions: Float[np.ndarray, "R D"], sides: Sides, density: float, *, seed: int) -> list[Selected]:
    """The same for random directions: code max(0, x·v − θ), θ set so that a share ``density`` of fitted rows is active."""
    found = []
    for i, v in enumerate(directions):
        near = sides.X_fitted @ v
        threshold = random_threshold(near, density)
        own = _ranked(sides.fitted, near - threshold)
        others = _ranked(sides.held, sides.X_held @ v - threshold)
        found.append(_selected(own, others, np.where(near > threshold, -np.inf, near), sides, density, seed, 10**6 + i))
    return found


def random_threshold(products: Float[np.ndarray, " F"], density: float) -> float:
    """θ such that a share ``density`` of the products is above it."""
    return float(np.quantile(products, 1 - density)) if len(products) else 0.0


def _selected(
    own: Weighted, held: Weighted, near: Float[np.ndarray, " F"], sides: Sides, density: float, seed: int, number: int
) -> Selected:
    rng = np.random.default_rng([seed, 2, number])
    order = np.argsort(-near, kind="stable")[:DRAWN]
    bar = STRONG * own[0][1] if own else 0.0
    strong, weak = [x for x in held if x[1] >= bar], [x for x in held if x[1] < bar]
    return Selected(
        top=own[:TOP],
        active=[own[TOP + i] for i in np.sort(_draw(rng, len(own) - TOP, DRAWN))],
        near=[(int(sides.fitted[i]), 0.0) for i in order if np.isfinite(near[i])],
        inactive=_without(rng, sides.pool, own, DRAWN),
        trial_active=_spread(strong, TRIALS),
        trial_weak=_spread(weak, TRIALS // 2),
        trial_inactive=_without(rng, sides.held, held, TRIALS),
        density=density,
    )


def _spread(ranked: Weighted, most: int) -> Weighted:
    """At most so many, evenly from the first to the last."""
    at = np.unique(np.linspace(0, max(0, len(ranked) - 1), min(most, len(ranked))).round().astype(int))
    return [ranked[i] for i in at]


def _column(by_atom: csc_array, atom: int, rows: Int[np.ndarray, " N"]) -> Weighted:
    a, b = by_atom.indptr[atom], by_atom.indptr[atom + 1]
    return _ranked(rows[by_atom.indices[a:b]], by_atom.data[a:b])


def _ranked(rows: Int[np.ndarray, " N"], weights: Float[np.ndarray, " N"]) -> Weighted:
    order = np.argsort(-weights, kind="stable")
    return [(int(rows[i]), float(weights[i])) for i in order if weights[i] > 0]


def _draw(rng: np.random.Generator, n: int, most: int) -> Int[np.ndarray, " m"]:
    return rng.choice(n, min(n, most), replace=False) if n > 0 else np.zeros(0, np.int64)


def _without(rng: np.random.Generator, rows: Int[np.ndarray, " N"], own: Weighted, most: int) -> Weighted:
    rest = np.setdiff1d(rows, [row for row, _ in own])
    return [(int(rest[i]), 0.0) for i in _draw(rng, len(rest), most)]


def _products(W: Float[np.ndarray, "K D"], X: Float[np.ndarray, "F D"]) -> Iterator[Float[np.ndarray, " F"]]:
    step = max(1, _CELLS // max(1, len(X)))
    for start in range(0, len(W), step):
        yield from W[start : start + step] @ X.T
