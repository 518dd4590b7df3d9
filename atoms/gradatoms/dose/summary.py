"""What curves say together, and how well a strength set on some prompts holds on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dose.neutral import CALIBRATING, TOKENS, UNSEEN
from gradatoms.dose.records import Curve
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms.projector.measures import share
from gradatoms.steering import Meter, steering, strength

RIVALS = ("random", "mean_difference", "mean_gradient", "prompt")
LEAST = 5
"""Atoms with fewer held-out examples are not counted: their gain says little."""


def summary(curves: Iterable[Curve], budget: float | int = 0.5, *, least: int = LEAST, seed: int = 0) -> dict[str, Any]:
    """What curves say together at one budget; each number with a 95 % bootstrap interval that draws atoms.

    Args:
        budget: nats, one of those that were measured.
        least: held-out examples that an atom has at least to be counted.

    Returns:
        ``atoms`` counted, and means, each ``{"value", "interval", "n"}``: ``beats`` (of each rival, the share of atoms whose gain is
        larger; where either has not met the budget the pair is left out), ``gain`` of the atom and each rival, ``target_rate``
        of these and ``plain``, ``off_target_kl``, ``perplexity_ratio``, ``safe_alpha`` and ``safe_kl`` (over atoms that have a safe range).

    Raises:
        ConfigError: no curve has enough examples, or the budget was not measured.
    """
    every = list(curves)
    counted = [curve for curve in every if len(curve.rows) >= least]
    if not counted:
        raise ConfigError(
            f"expected a curve of at least {least} held-out examples, got none of {len(every)}; measure more atoms, or set least"
        )
    doses = [curve.at(budget) for curve in counted]

    def over(values: Iterable[float | bool | None]) -> dict[str, Any]:
        known = np.asarray([v for v in values if v is not None], np.float64)
        found = share(known, np.arange(len(known)), seed=seed)
        return {name: found[name] for name in ("value", "interval", "n")}

    def rival(curve: Curve, name: str) -> Any:
        if name == "prompt":
            return curve.prompt
        each = curve.baselines.get(name, ())
        return next((e for e in each if np.isclose(e.budget, budget)), None)

    rivals = {name: [rival(curve, name) for curve in counted] for name in RIVALS}
    return {
        "budget": float(budget),
        "atoms": len(counted),
        "beats": {name: over(dose.beats.get(name) for dose in doses) for name in RIVALS},
        "gain": {"atom": over(dose.gain for dose in doses)}
        | {name: over(None if e is None else e.gain for e in found) for name, found in rivals.items()},
        "target_rate": {"plain": over(curve.target_rate for curve in counted)}
        | {"atom": over(dose.target_rate for dose in doses)}
        | {name: over(None if e is None else e.target_rate for e in found) for name, found in rivals.items()},
        "prompt_kl": over(None if curve.prompt is None else curve.prompt.kl for curve in counted),
        "off_target_kl": over(dose.off_target_kl for dose in doses),
        "perplexity_ratio": over(dose.perplexity_ratio for dose in doses),
        "safe_alpha": over(curve.safe_alpha for curve in counted),
        "safe_kl": over(curve.safe_kl for curve in counted),
    }


@dataclass(frozen=True, kw_only=True)
class Landing:
    """How often a strength that was set on some prompts has its effect on others."""

    value: float
    """Share of atoms whose effect on unseen prompts is within ``within`` of the budget, relatively."""
    interval: tuple[float, float] | None
    """95 % bootstrap over atoms; all have the same prompts, so it does not hold what their choice does: see ``noise``."""
    n: int
    """Atoms."""
    ratios: dict[int, float]
    """The effect on unseen prompts over the budget, of each atom."""
    noise: float
    """Standard error of such a ratio from the choice of prompts alone, on both sides, mean over atoms."""
    budget: float
    within: float
    tokens: int


def landing(
    loaded: LoadedModel,
    atoms: Atoms,
    chosen: Sequence[int] | None = None,
    *,
    budget: float | int = 0.5,
    within: float | int = 0.2,
    alpha: Mapping[int, float] | None = None,
    calibrating: Sequence[str] = CALIBRATING,
    unseen: Sequence[str] = UNSEEN,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> Landing:
    """How often a strength set for ``budget`` nats on some prompts has that effect on others, within a fifth.

    The effect is that of ``steering.Meter`` with ``tokens`` tokens, on both sides. ``neutral.TOKENS`` says how many of these, and how
    many prompts, keep the choice of prompts from deciding.

    Args:
        chosen: which atoms; None is all.
        alpha: strengths that were already set on ``calibrating`` with this budget and these tokens, by atom; others are
            calibrated.
        calibrating, unseen: two sets of prompts, without one in common.

    Raises:
        ConfigError: no atoms, prompts in common, or a budget or share that is not positive.
    """
    wanted = list(range(len(atoms))) if chosen is None else list(dict.fromkeys(chosen))
    both = set(calibrating) & set(unseen)
    if both:
        raise ConfigError(
            f"expected unseen prompts, {len(both)} are among those calibrated on; leave them out of one side"
        )
    if not wanted or not budget > 0 or not within > 0:
        raise ConfigError(
            f"expected atoms, a budget and a share above 0, got {len(wanted)} atoms, {budget} nats and {within}"
        )
    ratios, errors = {}, []
    known = {} if alpha is None else alpha
    with fast_math(loaded):
        seen = Meter(loaded, calibrating, tokens=tokens, batch=len(calibrating))
        new = Meter(loaded, unseen, tokens=tokens, batch=len(unseen))
        for done, index in enumerate(wanted, 1):
            atom = atoms[index]
            found = known[index] if index in known else strength(seen, steering(atom, 1.0), budget)[0]
            effects = new.each(steering(atom, found))
            ratios[index] = float(effects.mean() / budget)
            spread = effects.std() / effects.mean() if effects.mean() > 0 else np.nan
            errors.append(spread * np.sqrt(1 / len(calibrating) + 1 / len(unseen)))
            progress("landing", done, len(wanted))
    hits = np.asarray([abs(ratio - 1) <= within for ratio in ratios.values()])
    counted = share(hits, np.arange(len(hits)))
    return Landing(
        value=counted["value"],
        interval=None if counted["interval"] is None else (counted["interval"][0], counted["interval"][1]),
        n=len(hits),
        ratios=ratios,
        noise=float(np.mean(errors)),
        budget=float(budget),
        within=float(within),
        tokens=tokens,
    )
