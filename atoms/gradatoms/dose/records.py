"""Settings of a dose–response curve, and what one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gradatoms.dose.neutral import TOKENS
from gradatoms.errors import ConfigError

MET = 0.1
"""An effect this close to its budget, relatively, has met it; a direction too weak for the budget has not."""


@dataclass(frozen=True, kw_only=True)
class DoseConfig:
    """How curves are measured."""

    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    """Effects that strengths are set for: mean KL(plain ‖ steered) on neutral prompts, nats a token; ascending."""
    tokens: int = TOKENS
    """Tokens of continuation that this effect is over."""
    most: float = 4.0
    """Greatest strength, in units of ‖h‖."""
    examples: int = 24
    """Held-out examples of the atom, at most."""
    fitted: int = 64
    """Fitted rows, at most, on each side of the difference of mean activations."""
    unrelated: int = 16
    """Prompts of held-out rows that the effect off target is measured on; of each atom, those in which it is not active."""
    unrelated_tokens: int = 8
    """Tokens of continuation that it is over."""
    written: int = 24
    """Texts written with each strength for the perplexity."""
    written_tokens: int = 24
    """Tokens of each."""
    fluent: float = 1.5
    """Greatest perplexity of a safe strength, over that of plain texts."""
    randoms: int = 3
    """Random directions."""
    request: str = "Talk about {label}. "
    """What is put before a prompt to ask for the atom's label."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or not 0 < self.budgets[0] < np.inf:
            said = ", ".join(map(str, self.budgets)) or "none"
            raise ConfigError(
                f"expected KL budgets above 0 nats, ascending, got {said}; name each once, smallest first"
            )
        if not self.most > 0:
            raise ConfigError(f"expected most above 0, got {self.most}")
        if not self.fluent > 1:
            raise ConfigError(f"expected fluent above 1, the perplexity of plain texts, got {self.fluent}")
        if "{label}" not in self.request:
            raise ConfigError(f"expected a request with {{label}} in it, got {self.request!r}")
        for name in (
            "tokens",
            "examples",
            "fitted",
            "unrelated",
            "unrelated_tokens",
            "written",
            "written_tokens",
            "randoms",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a direction does on target with one budget."""

    budget: float
    """Nats a token on neutral prompts."""
    alpha: float
    """Strength with that effect, in units of ‖h‖."""
    kl: float
    """The effect that this strength has; smaller than the budget where even the greatest strength is too weak."""
    gain: float
    """Mean J(h) − J(h + α‖h‖ v) on held-out examples of the atom, the step at the gradient's own position; nats."""
    target_rate: float | None
    """Share of their prompts after which, with the step at the last token, the likeliest token begins a target of the concept."""

    @property
    def met(self) -> bool:
        """Whether the budget was met."""
        return abs(self.kl / self.budget - 1) <= MET


@dataclass(frozen=True, kw_only=True)
class Dose(Effect):
    """What the atom itself does with one budget."""

    off_target_kl: float | None
    """Mean KL(plain ‖ steered) after prompts in which the atom is not active, nats a token; None where it is active in all."""
    perplexity: float
    """Of texts written with the step, under the model without it."""
    perplexity_ratio: float
    """The same over that of texts written without."""
    beats: dict[str, bool] = field(default_factory=dict)
    """Whether the gain is larger than each baseline's; one that has not met the budget is left out."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What it does to ask for the label in the prompt; there is no strength to set."""

    request: str
    """Put before each prompt."""
    kl: float
    """KL(after the neutral prompt ‖ after request and prompt), nats a token of the plain continuation."""
    gain: float
    target_rate: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Dose and response of one atom."""

    atom: int
    settings: str
    """Digest of everything that it depends on: settings, atoms, label, store, model."""
    label: str | None
    concept: str | None
    """Of most fitted examples that the atom leads; ground truth, for scoring only."""
    rows: tuple[int, ...]
    """Numbers, in the store, of the held-out rows that are its target."""
    objective: float
    """Mean J of these without a step."""
    target_rate: float | None
    """Without a step."""
    perplexity: float
    """Of texts written without a step."""
    doses: tuple[Dose, ...]
    """One a budget."""
    baselines: dict[str, tuple[Effect, ...]]
    """``random`` (mean over several), ``mean_difference`` of activations, ``mean_gradient``; one effect a budget."""
    prompt: Asked | None
    """None without a label."""
    safe_alpha: float | None
    """See ``safe``."""
    safe_kl: float | None
    """The effect on neutral prompts there."""
    seconds: float

    def at(self, budget: float | int) -> Dose:
        """The dose of one budget.

        Raises:
            ConfigError: it was not measured.
        """
        for dose in self.doses:
            if np.isclose(dose.budget, budget):
                return dose
        known = ", ".join(f"{dose.budget:g}" for dose in self.doses)
        raise ConfigError(f"expected one of the budgets of these curves ({known} nats), got {budget:g}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Curve:
        """The curve that ``to_dict`` wrote.

        Raises:
            TypeError, KeyError: it is no curve.
        """
        return cls(**dict(value) | {
            "rows": tuple(value["rows"]),
            "doses": tuple(Dose(**dose) for dose in value["doses"]),
            "baselines": {name: tuple(Effect(**e) for e in effects) for name, effects in value["baselines"].items()},
            "prompt": None if value["prompt"] is None else Asked(**value["prompt"]),
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """Why an atom has no curve."""

    atom: int
    settings: str
    failure: str


def safe(doses: Sequence[Dose], limit: float | int) -> tuple[float, float] | None:
    """The largest strength up to which texts stay fluent, and its effect: (α, KL).

    The rule: strengths are taken from the weakest up, and the first whose perplexity is more than ``limit`` times that of
    plain texts ends the range. Between it and the one before, log ratio and log KL are taken as linear in log α, and the
    range ends where the ratio is ``limit``. None where already the weakest is too strong; where none is, the strongest that
    was measured.
    """
    before: Dose | None = None
    for dose in sorted(doses, key=lambda d: d.alpha):
        if dose.perplexity_ratio > limit:
            if before is None:
                return None
            low, high = np.log([before.perplexity_ratio, dose.perplexity_ratio])
            share = (np.log(limit) - low) / (high - low)
            alpha, kl = (
                float(np.exp((1 - share) * np.log(a) + share * np.log(b)))
                for a, b in ((before.alpha, dose.alpha), (before.kl, dose.kl))
            )
            return alpha, kl
        before = dose
    return None if before is None else (before.alpha, before.kl)
