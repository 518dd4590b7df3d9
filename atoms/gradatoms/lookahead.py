"""The virtual step: inject a direction into the residual stream and watch the next-token distribution move.

h ← h + α‖h‖·v at the hook, at one position. With v an atom this is its *lookahead*: what the atom pushes toward, read off
the model itself. With v a push it is a gradient step of length α‖h‖, and the change of J says how much a step gains.

The logit lens reads a direction by multiplying it with the unembedding, as if no block came after the hook. In the middle
of a network that says little, because the later blocks still transform the direction: let J be their Jacobian. A step
along v changes the logits by U·J·v, which the lookahead measures, at finite length. The lens gives U·v. A gradient is a
covector: g = Jᵀ·Uᵀ·(p − target), so U·g reads Jᵀ-space, and the effect of a step down it is −U·J·g, which is the lookahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from gradatoms.errors import ConfigError
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import edit_input, edit_site
from gradatoms.injection import adder, grouped, inject, per_direction
from gradatoms.models import HookSite, LoadedModel
from gradatoms.prefix import run_prefix, run_tail, similar
from gradatoms.progress import Progress, silent

NEUTRAL = ("The", "I think that", "One thing to know is", "A short list:")
"""Contexts about nothing in particular."""


@dataclass(frozen=True)
class Ranking:
    """The first n tokens of each direction by some measure; id −1, with zeros, where fewer qualify."""

    ids: Int[np.ndarray, "K n"]
    delta_p: Float[np.ndarray, "K n"]
    """Mean change of probability."""
    log_ratio: Float[np.ndarray, "K n"]
    """Mean log p(steered) − log p(plain), in nats."""


@dataclass(frozen=True)
class Tops:
    """The tokens that move most, best first."""

    promoted: Ranking
    """By Δp, largest rise first."""
    demoted: Ranking
    """By Δp, largest fall first."""
    promoted_ratio: Ranking
    """By log-ratio, among tokens of some probability before or after."""
    demoted_ratio: Ranking
    """The same, largest fall first."""


@dataclass(frozen=True)
class Shift:
    """How the next-token distribution moves under each direction, averaged over that direction's contexts."""

    delta_p: Float[np.ndarray, "K V"]
    """Mean change of probability; each row sums to zero."""
    log_ratio: Float[np.ndarray, "K V"]
    """Mean log p(steered) − log p(plain), in nats."""
    p: Float[np.ndarray, "K V"]
    """Mean probability without a step."""
    kl: Float[np.ndarray, " K"]
    """Mean KL(plain ‖ steered), in nats."""
    entropy: Float[np.ndarray, " K"]
    """Mean H(steered) − H(plain), in nats."""
    contexts: Int[np.ndarray, " K"]
    """Contexts that each mean is over."""

    def part(self, start: int, stop: int) -> Shift:
        """The directions from ``start`` to before ``stop``."""
        return Shift(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def top(self, n: int, floor: float | int = 1e-4) -> Tops:
        """The n tokens of each direction that rise and fall most, by Δp and by log-ratio.

        Args:
            floor: a token is ranked by log-ratio only if its mean probability before or after is at least this.

        Raises:
            ConfigError: ``n`` is below 1.
        """
        if n < 1:
            raise ConfigError(f"expected at least 1 token a ranking, got {n}")
        usual = np.maximum(self.p, self.p + self.delta_p) >= floor
        low = np.float32(-np.inf)
        return Tops(
            promoted=self._first(self.delta_p, n),
            demoted=self._first(-self.delta_p, n),
            promoted_ratio=self._first(np.where(usual, self.log_ratio, low), n),
            demoted_ratio=self._first(np.where(usual, -self.log_ratio, low), n),
        )

    def _first(self, score: Float[np.ndarray, "K V"], n: int) -> Ranking:
        """The n largest scores of each row; those of −∞ do not qualify."""
        kept = min(n, score.shape[1])
        best, ids = (x.numpy() for x in torch.from_numpy(score).topk(kept, dim=1))  # faster than argpartition
        fits = np.isfinite(best)
        columns = (
            np.where(fits, ids, -1),
            np.where(fits, np.take_along_axis(self.delta_p, ids, axis=1), 0),
            np.where(fits, np.take_along_axis(self.log_ratio, ids, axis=1), 0),
        )
        missing = ((0, 0), (0, n - kept))
        return Ranking(*(np.pad(x, missing, constant_values=fill) for x, fill in zip(columns, (-1, 0, 0), strict=True)))


@torch.no_grad()
def lookahead(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    alpha: float | int | Float[np.ndarray, " K"],
    progress: Progress = silent,
) -> Shift:
    """Inject directions at the last token of contexts.

    What is returned holds three arrays of (K, V) numbers. To bound memory, pass some tens of directions at a time.
    Products run as the caller sets them; log-probabilities are float32.

    Args:
        directions: unit rows, shape (K, d).
        contexts: token ids; the step is at the last token.
        pairs: (direction, context) indices to run.
        alpha: strength, one for all or one a direction, in units of the residual norm ‖h‖ at that token; negative pushes
            away. 0.1 reads well on SmolLM2.

    Raises:
        ConfigError: a context is empty, or there is not one strength a direction.
    """
    n, device = len(directions), loaded.device
    unit, strength = torch.as_tensor(directions, device=device), per_direction(alpha, n, device)
    sums = ShiftSums(n, loaded.fingerprint.vocab_size, device)
    done = 0
    for group in grouped(loaded, hook, contexts, pairs):
        for rows, chosen in group.parts():
            steered = inject(loaded, hook, group, rows, unit[chosen], strength[chosen])
            sums.add(chosen, group.plain_BV[rows], steered)
            done += len(rows)
            progress("lookahead", done, len(pairs))
    return sums.mean()


class ShiftSums:
    """Sums over contexts of what ``Shift`` holds the means of."""

    def __init__(self, n: int, vocabulary: int, device: torch.device) -> None:
        self.wide = [torch.zeros(n, vocabulary, device=device) for _ in range(3)]
        self.narrow = [torch.zeros(n, device=device) for _ in range(3)]

    def add(self, chosen: torch.Tensor, plain_RV: torch.Tensor, steered_RV: torch.Tensor) -> None:
        p, q, log_ratio = plain_RV.exp(), steered_RV.exp(), steered_RV - plain_RV
        kl = -(p * log_ratio).sum(-1)
        entropy = (p * plain_RV).sum(-1) - (q * steered_RV).sum(-1)
        for total, part in zip(self.wide, (q - p, log_ratio, p), strict=True):
            total.index_add_(0, chosen, part)
        for total, part in zip(self.narrow, (kl, entropy, torch.ones_like(kl)), strict=True):
            total.index_add_(0, chosen, part)

    def mean(self) -> Shift:
        kl, entropy, contexts = self.narrow
        count = contexts.clamp_min(1)
        for total in self.wide:
            total.div_(count[:, None])
        delta_p, log_ratio, p = (total.cpu().numpy() for total in self.wide)
        return Shift(
            delta_p,
            log_ratio,
            p,
            (kl / count).cpu().numpy(),
            (entropy / count).cpu().numpy(),
            contexts.long().cpu().numpy(),
        )


# The logit lens


@torch.no_grad()
def logit_lens(loaded: LoadedModel, directions: Float[np.ndarray, "K D"]) -> Float[np.ndarray, "K V"]:
    """Logits a unit of each direction adds if no block came after the hook: U·(w ⊙ v), without bias and without ‖h‖.

    w is the weight of the final norm; if that norm centres (LayerNorm), so is v first. Without a final norm, w = 1. The lens
    and the lookahead agree at the last hook, for short steps, up to the length of h; before it they differ by the
    Jacobian J of the blocks between, which the lens leaves out (see the head of this module).

    Args:
        directions: unit rows, shape (K, d).
    """
    with torch.autocast(loaded.device.type, enabled=False):
        v = torch.as_tensor(directions, device=loaded.device)
        norm = _final_norm(loaded)
        if norm is not None:
            v = _through(norm, v, loaded.model.dtype)
        return (v @ loaded.model.get_output_embeddings().weight.float().T).cpu().numpy()


def _final_norm(loaded: LoadedModel) -> nn.Module | None:
    """The last module without parts that makes what the unembedding reads; found by running one token."""
    head = loaded.model.get_output_embeddings()
    made: list[tuple[nn.Module, torch.Tensor]] = []
    read: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if args and isinstance(out, torch.Tensor) and out.shape == args[0].shape and not torch.equal(args[0], out):
            made.append((module, out))

    def keep(h: torch.Tensor) -> torch.Tensor:
        read.append(h)
        return h

    with ExitStack() as stack:
        for module in loaded.model.modules():
            flat = all(parameter.dim() == 1 for parameter in module.parameters())
            if module is not head and flat and not any(True for _ in module.children()):
                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(edit_input(head, keep))
        loaded.model(input_ids=torch.tensor([[loaded.fingerprint.vocab_size // 2]], device=loaded.device))
    return next((m for m, out in reversed(made) if torch.equal(out, read[0])), None)


def _through(norm: nn.Module, v_KD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The norm's weight ⊙ v, centred if the norm centres, read off what it makes of rows of ±1, which it need not scale."""
    d = v_KD.shape[1]
    signs = torch.ones(1, d, device=v_KD.device)
    signs[:, 1::2] = -1
    if d % 2:
        signs[:, -1] = 0
    up, down, aside = (norm(x.to(dtype)).float() for x in (signs, -signs, signs + 1))
    weight = (up - down) * signs / 2
    if d % 2:
        weight[:, -1] = (norm(signs.roll(1, 1).to(dtype)) - norm(-signs.roll(1, 1).to(dtype)))[:, -1].float() / 2
    centres = torch.allclose(aside, up, rtol=1e-2, atol=1e-2)
    return weight * (v_KD - v_KD.mean(dim=1, keepdim=True) if centres else v_KD)


# J along a step


_BRANCHES = 64
_TOKENS = 8192
_CELLS = 2**26
"""Branches, tokens before their steps, and logits after them that are run at once at most; bounds memory."""


@dataclass(frozen=True)
class Stepped:
    """What steps do to the objective, R rows and M steps each."""

    objective: Float[np.ndarray, "R M1"]
    """J, shape (R, 1 + M); column 0 is the plain model."""
    kl: Float[np.ndarray, "R M1"]
    """KL(after the first step ‖ after this one) in nats, mean over the positions of J's terms; column 0 is the plain model."""


@torch.no_grad()
def stepped(
    loaded: LoadedModel,
    hook: HookSite,
    branches: Sequence[tuple[TokenSequence, int]],
    steps: Float[np.ndarray, "R M D"],
    *,
    eta: float | int | Float[np.ndarray, " R"],
    progress: Progress = silent,
) -> Stepped:
    """J of each (sequence, position) without a step and after each of M steps of length η‖h‖, and how the steps differ.

    Args:
        branches: token sequences and the position of the step in each; terms before the position cannot change and are left out.
        steps: unit directions, shape (rows, M, d).
        eta: step length in units of ‖h‖, one for all or one a row.

    Raises:
        ConfigError: there is not one length a row.
    """
    n_steps = 1 + steps.shape[1]
    objective = np.zeros((len(branches), n_steps), dtype=np.float32)
    divergence = np.zeros_like(objective)
    length = per_direction(eta, len(branches), loaded.device)
    order = sorted(range(len(branches)), key=lambda i: branches[i][0].ids[: branches[i][1]])  # equal ones together
    done = 0
    terms = max((len(s.terms) for s, _ in branches), default=1)
    most = max(1, min(_BRANCHES, _CELLS // (n_steps * terms * loaded.fingerprint.vocab_size)))
    for members in similar([branches[i][1] for i in order], most, _TOKENS):
        group = [order[i] for i in members]
        directions = np.concatenate([np.zeros((len(group), 1, hook.d), np.float32), steps[group]], axis=1)
        chosen = [branches[i] for i in group]
        objective[group], divergence[group] = _stepped(
            loaded, hook, chosen, torch.as_tensor(directions, device=loaded.device), length[group]
        )
        done += len(group)
        progress("step recovered", done, len(branches))
    return Stepped(objective, divergence)


def _stepped(
    loaded: LoadedModel,
    hook: HookSite,
    branches: Sequence[tuple[TokenSequence, int]],
    direction_RMD: Float[torch.Tensor, "R M D"],
    length_R: Float[torch.Tensor, " R"],
) -> tuple[Float[np.ndarray, "R M"], Float[np.ndarray, "R M"]]:
    """J and divergence of some branches after each of their M steps, in one pass."""
    n, m = direction_RMD.shape[:2]
    contexts = {s.ids[:p]: None for s, p in branches}
    prefix = run_prefix(loaded, list(contexts))
    place = {context: i for i, context in enumerate(contexts)}
    rows = torch.tensor([place[s.ids[:p]] for s, p in branches], device=loaded.device)
    tails = [s.ids[p:] for s, p in branches]
    width = max(len(t) for t in tails)
    ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in tails], device=loaded.device)
    terms = [(row, q - p, token, w) for row, (s, p) in enumerate(branches) for q, token, w in s.terms if q >= p]
    row_P, pos_P, token_P, weight_P = (
        torch.tensor(column, device=loaded.device) for column in zip(*terms, strict=True)
    )
    at = (torch.cat([row_P + n * k for k in range(m)]), pos_P.repeat(m))
    steps = direction_RMD.transpose(0, 1).reshape(n * m, -1)
    with edit_site(hook, adder(steps, length_R.repeat(m))):
        logits = run_tail(loaded, prefix, rows.repeat(m), ids=ids.repeat(m, 1), at=at).float()
    logits_MPV = logits.view(m, len(terms), -1)
    log_p_MPV = logits_MPV.log_softmax(-1)

    def by_row(values_MP: torch.Tensor) -> torch.Tensor:
        return values_MP.new_zeros(m, n).index_add_(1, row_P, values_MP)

    values = (logits_MPV if branches[0][0].logit else log_p_MPV).gather(2, token_P.expand(m, -1)[..., None])[..., 0]
    first = log_p_MPV[1]
    kl_MP = torch.stack([(first.exp() * (first - log_p)).sum(-1) for log_p in log_p_MPV])
    count = by_row(torch.ones_like(kl_MP))
    return by_row(-weight_P * values).T.cpu().numpy(), (by_row(kl_MP) / count).T.cpu().numpy()
