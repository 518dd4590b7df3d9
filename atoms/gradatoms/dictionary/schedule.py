"""The learning rate over a fit."""

from __future__ import annotations


def schedule(t: int, steps: int | None) -> float:
    """The factor of the learning rate at step t of ``steps``: up over 5 % (50 steps at most), down to 0.1 over the last fifth."""
    if steps is None:
        return 1.0
    warm, decay = min(50, steps // 20), steps // 5
    rise = min(1.0, (t + 1) / warm) if warm else 1.0
    fall = 1 - 0.9 * max(0, t - (steps - decay)) / decay if decay else 1.0
    return rise * fall
