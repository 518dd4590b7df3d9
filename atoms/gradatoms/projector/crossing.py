"""Which pushes are read inside which contexts: every kind of gradient inside every other kind of context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.projector.model import noise_like
from gradatoms.projector.rows import Rows, Splits, described

SPLITS = ("seen", "targets", "contexts", "concepts")
PAIR_FROM = 0.3
"""Both of the two atoms of a row of ``pairs`` weigh more."""


@dataclass(frozen=True)
class Crossing:
    """t gradients, each to be read inside a prompt of another kind."""

    rows: Int[np.ndarray, " t"]
    """Whose gradient."""
    contexts: Int[np.ndarray, " t"]
    """Whose prompt."""

    def first(self, n: int) -> Crossing:
        return Crossing(self.rows[:n], self.contexts[:n])


def cross(rows: Rows, splits: Splits, *, most: int, contexts: int, rng: np.random.Generator) -> dict[str, Crossing]:
    """For each split at most ``most`` gradients; kinds of gradient take turns, and so do the kinds of context for each.

    ``contexts``, as a split, are seen gradients inside contexts whose kind no description was trained in; ``pairs`` are seen
    gradients with two atoms of a weight over ``PAIR_FROM``.

    Args:
        contexts: different prompts used as contexts in each split, at most: each has its own no-vector scores.

    Raises:
        ConfigError: too few rows or kinds to cross.
    """
    kinds = rows.kinds()
    ordinary = _one_of_each(kinds, np.flatnonzero(~rows.fitted & ~splits.outside & ~splits.concepts), contexts, rng)
    strange = _one_of_each(kinds, np.flatnonzero(splits.outside), contexts, rng)
    found = {
        "seen": _turns(kinds, np.flatnonzero(splits.seen), ordinary, most, rng),
        "targets": _turns(kinds, np.flatnonzero(splits.targets), ordinary, most, rng),
        "contexts": _turns(kinds, np.flatnonzero(splits.seen), strange, most, rng),
        "concepts": _turns(kinds, np.flatnonzero(splits.concepts), ordinary, most, rng),
    }
    weights = described(rows.codes)[1]
    found["pairs"] = _turns(kinds, np.flatnonzero(splits.seen & (weights[:, 1] > PAIR_FROM)), ordinary, most, rng)
    if len(np.unique(rows.lead[found["seen"].rows])) < 2:
        raise ConfigError(
            f"expected held-out rows of at least two labelled atoms, found {len(found['seen'].rows)} rows; harvest more examples"
        )
    return found


def _one_of_each(
    kinds: np.ndarray, among: Int[np.ndarray, " a"], most: int, rng: np.random.Generator
) -> Int[np.ndarray, " c"]:
    """Rows whose prompts are contexts, of as many kinds as there may be."""
    shuffled = rng.permutation(among)
    if not len(shuffled):
        return shuffled
    _, first = np.unique(kinds[shuffled], return_index=True)
    return rng.permutation(shuffled[first])[:most]


def _turns(
    kinds: np.ndarray,
    among: Int[np.ndarray, " a"],
    contexts: Int[np.ndarray, " c"],
    most: int,
    rng: np.random.Generator,
) -> Crossing:
    among = rng.permutation(among)
    turn = np.zeros(len(among), dtype=int)
    for kind in np.unique(kinds[among]):
        of = kinds[among] == kind
        turn[of] = np.arange(of.sum())
    chosen: list[int] = []
    inside: list[int] = []
    used: dict[str, int] = {}
    for row in among[np.argsort(turn, kind="stable")]:
        others = [c for c in contexts if kinds[c] != kinds[row]]
        if others and len(chosen) < most:
            at = used.setdefault(str(kinds[row]), int(rng.integers(len(others))))
            chosen.append(int(row))
            inside.append(int(others[at % len(others)]))
            used[str(kinds[row])] = at + 1
    return Crossing(np.asarray(chosen, dtype=np.int64), np.asarray(inside, dtype=np.int64))


Control = Callable[[Atoms, Rows, Splits, Int[np.ndarray, " t"], np.random.Generator], Float[np.ndarray, "t D"] | None]


def _deranged(atoms: Atoms, rows: Rows, splits: Splits, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    lead, found = rows.lead, []
    for row in chosen:
        others = chosen[lead[chosen] != lead[row]]
        found.append(rng.choice(others))
    return rows.pushes[found]


CONTROLS: dict[str, Control] = {
    "no vector": lambda *_: None,
    "zero": lambda atoms, _rows, _splits, chosen, _rng: np.tile(np.asarray(atoms.b_dec, np.float32), (len(chosen), 1)),
    "mean gradient": lambda _atoms, rows, splits, chosen, _rng: np.tile(
        _unit(rows.pushes[splits.train].mean(axis=0)), (len(chosen), 1)
    ),
    "gaussian": lambda atoms, rows, _splits, chosen, rng: noise_like(atoms, rows.pushes[chosen], rng),
    "deranged": _deranged,
    "sign flip": lambda atoms, rows, _splits, chosen, _rng: np.asarray(
        2 * atoms.b_dec - rows.pushes[chosen], np.float32
    ),
}
"""What is read in place of a row's own push: nothing; a centred push of zero; the mean push of the training rows; a
Gaussian one of the same norm; another row's, of another leading atom; the centred push turned round."""


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x), dtype=np.float32)
