"""Dose–response: what an atom does to a model as its strength grows, beside simpler ways to the same end.

For each strength, stated as what it changes on neutral prompts (KL, nats a token): what it gains on held-out examples of the
atom, what it changes where it should change nothing, and how fluent the text still is. Random directions, the difference of
mean activations and the mean gradient get the same budgets; the prompt that asks for it stands beside them.
"""

from gradatoms.dose.files import load_curves
from gradatoms.dose.records import Asked, Curve, Dose, DoseConfig, Effect
from gradatoms.dose.runs import dose_all, dose_curve
from gradatoms.dose.summary import Landing, landing, summary

__all__ = [
    "Asked",
    "Curve",
    "Dose",
    "DoseConfig",
    "Effect",
    "Landing",
    "dose_all",
    "dose_curve",
    "landing",
    "load_curves",
    "summary",
]
