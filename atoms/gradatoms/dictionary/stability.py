"""Is an atom real? It is found again by other fits, and its rows point the same way, more than noise would.

Other fits: one with another seed on the same rows; two on the halves of the rows (no example in both, nor two wordings of
one fact). An atom's *stability* is its closest match among the atoms of each, and the least of the two numbers:

    stability(a) = min( max_b cos(a, b in the other seed's),  mean over halves of max_b cos(a, b in the half's) )

A dictionary that memorises rows finds them again with another seed, but not in the half without them.

Its *coherence* is the mean pairwise cosine of the gradients of its top 20 active rows that no fit has seen (Gradient Atoms,
arXiv 2603.14665, equation 3; there, on fitted rows).

The null has the same fits on noise: the centred pushes with their coordinates shuffled and their signs flipped, each row by
itself, so that norms and magnitudes stay and structure goes. An atom is

    stable    if its stability is above the 99th percentile of the null's atoms, and at least 0.5
    coherent  if its coherence is above the 99th percentile of the null's atoms, and the 95th of random sets of real rows

and its verdict is ``real`` if both, ``weak`` if one, ``noise`` if neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.pushes import Pushes

STABLE = 0.5
"""A match below this cosine is none, whatever noise does: the angle is above 60 degrees."""
NULL_QUANTILE, RANDOM_QUANTILE = 0.99, 0.95
NULL_BYTES = 2**27
"""Rows of noise that are held at most."""

Fit = Callable[[str, Pushes, FitConfig], Atoms]
"""``fit(name, rows, config)``: makes one of the dictionaries that are compared."""


@dataclass(frozen=True)
class Bars:
    """What an atom must exceed, from the null."""

    stability: float
    """Least stability of a stable atom."""
    coherence: float
    """The null's 99th percentile; random sets of the rows at hand may ask for more."""
    null_stability: float
    """Mean stability of the null's atoms."""
    null_coherence: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Stability:
    """How well each atom is found again."""

    atoms: Float[np.ndarray, " K"]
    seed: float
    """Mean match with another seed's dictionary, and with those of halves."""
    halves: float
    bars: Bars

    def to_dict(self) -> dict[str, Any]:
        return {
            "atoms": [float(s) for s in self.atoms], "seed": self.seed, "halves": self.halves, "bars": self.bars.to_dict()
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Stability:
        return cls(np.asarray(value["atoms"]), value["seed"], value["halves"], Bars(**value["bars"]))


def check(
    atoms: Atoms,
    pushes: Pushes,
    halves: tuple[Pushes, Pushes],
    unseen: Float[np.ndarray, "N D"],
    config: FitConfig,
    fit: Fit,
    coherences: Callable[[Atoms, Float[np.ndarray, "N D"]], Sequence[float | None]],
) -> Stability:
    """Fit the dictionaries that ``atoms`` is compared with, and those of noise.

    Args:
        pushes: the rows that ``atoms`` was fitted on; ``halves``: the same, divided.
        unseen: pushes that it was not fitted on.
        coherences: of each atom on given pushes, None where too few are active.
    """
    other = fit("seed", pushes, replace(config, seed=config.seed + 1))
    parts = [fit(f"half-{name}", half, config) for name, half in zip("ab", halves, strict=True)]
    found = stabilities(atoms, other, parts)
    mean = pushes.mean()
    n = min(len(pushes), max(2, NULL_BYTES // (4 * pushes.d)))
    rows = noise(pushes.sample(n, config.seed) - mean, config.seed)
    null_config = replace(config, weight="none")
    of_noise = Pushes(rows, hook=pushes.hook, normalize=False)
    null = fit("null", of_noise, null_config)
    null_other = fit("null-seed", of_noise, replace(null_config, seed=config.seed + 1))
    null_parts = [fit(f"null-{name}", of_noise.only(of_noise.rows[i::2]), null_config) for i, name in enumerate("ab")]
    null_found = stabilities(null, null_other, null_parts)
    null_coherences = [c for c in coherences(null, noise(unseen - mean, config.seed + 1)) if c is not None]
    bars = Bars(
        stability=max(STABLE, float(np.quantile(null_found, NULL_QUANTILE))),
        coherence=float(np.quantile(null_coherences, NULL_QUANTILE)) if null_coherences else 0.0,
        null_stability=float(null_found.mean()),
        null_coherence=float(np.mean(null_coherences)) if null_coherences else 0.0,
    )
    halves_match = np.mean([match(atoms, part) for part in parts], axis=0)
    return Stability(found, float(match(atoms, other).mean()), float(halves_match.mean()), bars)


def stabilities(atoms: Atoms, other: Atoms, halves: Sequence[Atoms]) -> Float[np.ndarray, " K"]:
    """min(match with the other seed, mean match with the halves) of each atom."""
    return np.minimum(match(atoms, other), np.mean([match(atoms, half) for half in halves], axis=0))


def match(atoms: Atoms, other: Atoms) -> Float[np.ndarray, " K"]:
    """Cosine of each atom with the closest of ``other``; of either sign where codes are signed."""
    best = []
    for start in range(0, len(atoms), 4096):
        cosine = atoms.W_dec[start : start + 4096] @ other.W_dec.T
        best.append((np.abs(cosine) if atoms.coder.signed else cosine).max(axis=1))
    return np.concatenate(best)


def noise(rows: Float[np.ndarray, "N D"], seed: int) -> Float[np.ndarray, "N D"]:
    """Each row with its coordinates shuffled and their signs flipped at random."""
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permuted(rows, axis=1)
    return np.asarray(shuffled * rng.choice(np.asarray([-1.0, 1.0], np.float32), rows.shape), dtype=np.float32)


def verdict(coherence: float | None, stability: float | None, bars: Bars | None, random_bar: float) -> str:
    """``real``: coherent and stable; ``weak``: one of the two; ``noise``: neither. Without other fits nothing is real."""
    least = random_bar if bars is None else max(random_bar, bars.coherence)
    coherent = coherence is not None and coherence > least
    stable = stability is not None and bars is not None and stability > bars.stability
    return ("noise", "weak", "real")[coherent + stable]
