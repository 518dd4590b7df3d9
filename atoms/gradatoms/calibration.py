"""How long a step must be for a stated effect, and what the model's slope at zero predicts of it.

The effect of h + α‖h‖·v is the mean over contexts of KL(plain ‖ steered), in nats. At small α it is ½α²F, where F is the
variance under p of d log p / dα: the Fisher information of the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.autograd import forward_ad

from gradatoms.errors import ConfigError
from gradatoms.hooking import Edit, attention
from gradatoms.injection import Group, grouped, inject, inject_with, per_direction
from gradatoms.models import HookSite, LoadedModel
from gradatoms.progress import Progress, silent

START = 0.1
"""Strength that a search begins with, in units of ‖h‖, where no better one is known."""
_FURTHEST = 4.0
"""Most that a strength grows from one try to the next."""
_LEAST = 1e-6
"""Strength below which a search does not go: what has an effect there, as clamping does, is not the step's."""
_NARROW = 1e-4
"""A bracket of this relative width is taken as a point: in between is rounding."""
_DIFFERENCE = 1e-2
"""Half the width of the central difference."""


@dataclass(frozen=True)
class Calibration:
    """The strength of each direction whose effect is the budget."""

    alpha: Float[np.ndarray, " K"]
    """Strengths in units of ‖h‖; nan for a direction without contexts."""
    kl: Float[np.ndarray, " K"]
    """Mean KL(plain ‖ steered) at that strength, in nats; nan for a direction without contexts."""
    reached: Bool[np.ndarray, " K"]
    """False where even the greatest strength has a smaller effect (or none has so small a one), and where there are no contexts."""
    tries: Int[np.ndarray, " K"]
    """Strengths that were tried."""


@torch.no_grad()
def calibrate_all(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    kl: float | int,
    most: float | int = 4.0,
    tolerance: float | int = 0.02,
    start: Float[np.ndarray, " K"] | None = None,
    progress: Progress = silent,
) -> Calibration:
    """The α > 0 of each direction at which its mean KL over its contexts is ``kl``, by a bracketed search.

    All directions are searched at once; each round runs those that are not done. α grows until the effect is above the
    budget, and the two ends are then interpolated (log KL over log α) or halved. KL(α) need not be monotone far out: what
    is found is the first crossing on the way out from the start. Prefixes of all contexts are kept, so pass some tens of
    directions at a time.

    Args:
        directions: unit rows, shape (K, d).
        contexts: token ids; the step is at the last token.
        pairs: (direction, context) indices; the contexts that a direction's effect is the mean over.
        kl: budget in nats.
        most: greatest strength, in units of ‖h‖.
        tolerance: relative error of the effect that is good enough.
        start: first strengths to try, such as ``sqrt(2·kl/fisher)``; where not finite and positive, 0.1 is tried.

    Raises:
        ConfigError: ``kl``, ``most`` or ``tolerance`` is not positive, or a context is empty.
    """
    for name, value, unit in (("a KL budget", kl, " nats"), ("most", most, ""), ("a tolerance", tolerance, "")):
        if not value > 0:
            raise ConfigError(f"expected {name} above 0{unit}, got {value}")
    wanted = np.bincount([direction for direction, _ in pairs], minlength=len(directions)) > 0
    search = Search(len(directions), float(kl), float(most), float(tolerance), start)
    search.done = ~wanted
    groups = list(grouped(loaded, hook, contexts, pairs))
    while not search.done.all():
        active = np.flatnonzero(~search.done)
        found = _mean_kl(loaded, hook, directions, groups, search.alpha, ~search.done)
        search.tell(active, found[active])
        progress("calibrate", int((search.done & wanted).sum()), int(wanted.sum()))
    search.alpha[~wanted] = search.kl[~wanted] = np.nan
    return Calibration(search.alpha, search.kl, search.reached & wanted, search.tries)


@torch.no_grad()
def mean_kl(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    alpha: float | int | Float[np.ndarray, " K"],
) -> Float[np.ndarray, " K"]:
    """Mean KL(plain ‖ steered) of each direction over its contexts, in nats; nan without contexts. Arguments: ``lookahead``."""
    strength = per_direction(alpha, len(directions), loaded.device).cpu().numpy()
    every = np.ones(len(directions), bool)
    return _mean_kl(loaded, hook, directions, list(grouped(loaded, hook, contexts, pairs)), strength, every)


def _mean_kl(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    groups: Sequence[Group],
    alpha: Float[np.ndarray, " K"],
    active: Bool[np.ndarray, " K"],
) -> Float[np.ndarray, " K"]:
    """The effect of the directions in the mask ``active``; nan for others."""
    unit, keep = (torch.as_tensor(x, device=loaded.device) for x in (directions, active))
    strength = per_direction(alpha, len(directions), loaded.device)
    total, count = (torch.zeros(len(directions), device=loaded.device) for _ in range(2))
    for group in groups:
        for rows, chosen in group.parts(keep):
            steered = inject(loaded, hook, group, rows, unit[chosen], strength[chosen])
            plain = group.plain_BV[rows]
            divergence = (plain.exp() * (plain - steered)).sum(-1)
            total.index_add_(0, chosen, divergence)
            count.index_add_(0, chosen, torch.ones_like(divergence))
    return np.asarray((total / count).cpu().numpy(), dtype=np.float64)


class Search:
    """Where each direction's search stands: its bracket, and the strength to try next."""

    def __init__(
        self, n: int, kl: float, most: float, tolerance: float, start: Float[np.ndarray, " K"] | None = None
    ) -> None:
        self.budget, self.most, self.tolerance = kl, most, tolerance
        first = np.full(n, START) if start is None else np.asarray(start, np.float64)
        if len(first) != n:
            raise ConfigError(f"expected one start for each of {n} directions, got {len(first)}")
        self.alpha = np.minimum(np.where(np.isfinite(first) & (first > 0), first, START), most)
        self.kl = np.zeros(n)
        """Effect at the latest strength."""
        self.tries = np.zeros(n, np.int64)
        self.done, self.reached = np.zeros(n, bool), np.ones(n, bool)
        self.low, self.low_kl = np.zeros(n), np.zeros(n)
        self.high, self.high_kl = np.full(n, np.inf), np.full(n, np.inf)
        self.slope = np.full(n, 2.0)
        """d log KL / d log α, as last measured."""
        self.bracketed = np.zeros(n, np.int64)
        """Tries since the bracket has two ends."""

    def tell(self, i: Int[np.ndarray, " n"], kl: Float[np.ndarray, " n"]) -> None:
        """Take in the effects ``kl`` that directions ``i`` have at their strengths, and choose their next."""
        alpha, before = self.alpha[i], np.where(self.low[i] > 0, self.low[i], self.high[i])
        before_kl = np.where(self.low[i] > 0, self.low_kl[i], self.high_kl[i])
        self.tries[i] += 1
        self.kl[i] = kl
        below = kl < self.budget  # what is no number counts as too far
        self.low[i[below]], self.low_kl[i[below]] = alpha[below], kl[below]
        self.high[i[~below]], self.high_kl[i[~below]] = alpha[~below], kl[~below]
        hit = np.abs(kl / self.budget - 1) <= self.tolerance
        self.reached[i] = hit | np.where(below, alpha < self.most, alpha > _LEAST)
        narrow = self.high[i] <= (1 + _NARROW) * self.low[i]
        self.done[i] = hit | narrow | ~self.reached[i]
        with np.errstate(all="ignore"):
            slope = np.log(kl / before_kl) / np.log(alpha / before)
        self.slope[i] = np.where(np.isfinite(slope) & (slope > 0), np.clip(slope, 0.5, 4.0), 2.0)
        rest = i[~self.done[i]]
        self.alpha[rest] = self._next(rest)

    def _next(self, i: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Inside the bracket where there is one; else along the power law through the latest tries."""
        low, high, alpha = self.low[i], self.high[i], self.alpha[i]
        with np.errstate(all="ignore"):
            steep = np.where(np.isinf(high), self.slope[i], np.maximum(self.slope[i], 1.5))  # inwards KL goes as α²
            law = alpha * (self.budget / np.maximum(self.kl[i], 1e-12)) ** (1 / steep)
            two = np.log(self.high_kl[i] / self.low_kl[i]) / np.log(high / low)
            between = low * (self.budget / self.low_kl[i]) ** (1 / two)
            half = np.sqrt(low * high)
        open_above, open_below = np.isinf(high), low == 0
        outward = np.clip(law, 1.02 * alpha, _FURTHEST * alpha)
        inward = np.where(np.isfinite(law), np.clip(law, alpha / 16, alpha / 1.02), alpha / 2)
        both = ~open_above & ~open_below
        self.bracketed[i] += both
        slow = (self.bracketed[i] > 3) & (self.bracketed[i] % 2 == 0)
        halve = slow | ~((between > low) & (between < high))
        inside = np.where(halve, half, between)
        return np.clip(np.where(open_above, outward, np.where(open_below, inward, inside)), _LEAST, self.most)


# The slope at zero


@dataclass(frozen=True)
class Linear:
    """What the model's slope at α = 0 predicts of a step."""

    slope: Float[np.ndarray, "K V"]
    """Mean over contexts of d log p / dα, in nats per unit of α."""
    fisher: Float[np.ndarray, " K"]
    """Mean over contexts of Var_p(d log p / dα), in nats²: KL(α) ≈ ½α²·fisher."""


@torch.no_grad()
def linear(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
) -> Linear:
    """The Jacobian-vector product of the log-probabilities with each step α‖h‖·v, at α = 0.

    It is taken in forward mode: dual numbers from the edit at the hook up to the logits, with plain attention and without
    reduced precision. Where the model has an operation without a forward derivative, the central difference
    (log p(α) − log p(−α)) / 2α at α = 0.01 takes its place; its error is of order α². Zeros for a direction without
    contexts.

    Args:
        directions: unit rows, shape (K, d).
        contexts: token ids; the step is at the last token.
        pairs: (direction, context) indices to run.

    Raises:
        ConfigError: a context is empty.
    """
    n, device = len(directions), loaded.device
    unit = torch.as_tensor(directions, device=device)
    slope = torch.zeros(n, loaded.fingerprint.vocab_size, device=device)
    fisher, count = torch.zeros(n, device=device), torch.zeros(n, device=device)
    with _exact(loaded):
        forward_mode = True
        for group in grouped(loaded, hook, contexts, pairs):
            for rows, chosen in group.parts():
                d_logits: torch.Tensor | None = None
                if forward_mode:
                    d_logits = _forward_mode(loaded, hook, group, rows, unit[chosen])
                    forward_mode = d_logits is not None
                if d_logits is None:
                    d_logits = _difference(loaded, hook, group, rows, unit[chosen])
                p = group.plain_BV[rows].exp()
                d_log_p = d_logits - (p * d_logits).sum(-1, keepdim=True)
                slope.index_add_(0, chosen, d_log_p)
                fisher.index_add_(0, chosen, (p * d_log_p.square()).sum(-1))
                count.index_add_(0, chosen, torch.ones_like(fisher[chosen]))
    count.clamp_min_(1)
    return Linear(slope.div_(count[:, None]).cpu().numpy(), (fisher / count).cpu().numpy())


@contextmanager
def _exact(loaded: LoadedModel) -> Iterator[None]:
    """While open, products are as precise as the model, and attention has a forward derivative."""
    with (
        attention(loaded, "eager"),
        torch.autocast(loaded.device.type, enabled=False),
        warnings.catch_warnings(),  # the first dual number loads rules that torch has written in an older way
    ):
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def _forward_mode(
    loaded: LoadedModel, hook: HookSite, group: Group, rows: torch.Tensor, direction_RD: torch.Tensor
) -> torch.Tensor | None:
    """d logits / dα (R, V) at α = 0 by dual numbers; None where the model has an operation without a forward derivative."""
    try:
        with forward_ad.dual_level():
            logits = inject_with(loaded, hook, group, rows, _tangent(direction_RD))
            tangent = forward_ad.unpack_dual(logits).tangent
            return None if tangent is None else tangent.float()
    except (NotImplementedError, RuntimeError):
        return None


def _tangent(direction_RD: torch.Tensor) -> Edit:
    """An edit that leaves h and gives its first position the tangent ‖h‖·v."""

    def lift(h: torch.Tensor) -> torch.Tensor:
        first = h[:, :1]
        tangent = direction_RD[:, None].to(h.dtype) * first.norm(dim=-1, keepdim=True)
        return forward_ad.make_dual(h.clone(), torch.cat([tangent, torch.zeros_like(h[:, 1:])], dim=1))

    return lift


def _difference(
    loaded: LoadedModel, hook: HookSite, group: Group, rows: torch.Tensor, direction_RD: torch.Tensor
) -> torch.Tensor:
    """The same, up to a constant a row, by a central difference."""
    up, down = (inject(loaded, hook, group, rows, direction_RD, a) for a in (_DIFFERENCE, -_DIFFERENCE))
    return (up - down) / (2 * _DIFFERENCE)
