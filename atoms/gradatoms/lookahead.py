"""The virtual step: inject a direction into the residual stream and watch the next-token distribution move.

h ← h + α‖h‖·v at the hook, at one position. With v an atom this is its *lookahead*: what the atom pushes toward, read off
the model itself. With v a push it is a gradient step of length α‖h‖, and the change of J says how much a step gains.

The logit lens reads a direction by multiplying it with the unembedding; in the middle of a network that says little,
because the later blocks still transform the direction. The lookahead runs those blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import Edit, edit_site
from gradatoms.models import HookSite, LoadedModel
from gradatoms.prefix import Prefix, by_length, run_prefix, run_tail
from gradatoms.progress import Progress, silent

NEUTRAL = ("The", "I think that", "One thing to know is", "A short list:")
"""Contexts about nothing in particular."""

_ROWS = 128
"""Injections run at once; bounds memory."""


@dataclass(frozen=True)
class Shift:
    """How the next-token distribution moves under each direction, averaged over that direction's contexts."""

    delta_p: Float[np.ndarray, "K V"]
    """Mean change of probability; each row sums to zero."""
    log_ratio: Float[np.ndarray, "K V"]
    """Mean log p(steered) − log p(plain), in nats."""
    kl: Float[np.ndarray, " K"]
    """Mean KL(plain ‖ steered), in nats."""
    contexts: Int[np.ndarray, " K"]
    """Contexts that each mean is over."""


@torch.no_grad()
def lookahead(
    loaded: LoadedModel,
    hook: HookSite,
    directions: Float[np.ndarray, "K D"],
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    *,
    alpha: float,
    progress: Progress = silent,
) -> Shift:
    """Inject directions at the last token of contexts.

    Args:
        directions: unit rows, shape (K, d).
        contexts: token ids; the step is at the last token.
        pairs: (direction, context) indices to run.
        alpha: strength, in units of the residual norm ‖h‖ at that token. 0.1 reads well on SmolLM2.
    """
    n, vocabulary = len(directions), loaded.fingerprint.vocab_size
    shift = Shift(
        np.zeros((n, vocabulary), np.float32),
        np.zeros((n, vocabulary), np.float32),
        np.zeros(n, np.float32),
        np.zeros(n, np.int64),
    )
    unit = torch.as_tensor(directions, device=loaded.device)
    wanted: dict[int, list[int]] = {}
    for direction, context in pairs:
        wanted.setdefault(context, []).append(direction)
    done = 0
    used = sorted(wanted)
    for group in by_length([contexts[c] for c in used], 64):
        members = [used[i] for i in group]
        ids = torch.tensor([list(contexts[c]) for c in members], device=loaded.device)
        prefix = run_prefix(loaded, [contexts[c][:-1] for c in members])
        plain = _last(loaded, prefix, torch.arange(len(members), device=loaded.device), ids)
        jobs = [(row, direction) for row, c in enumerate(members) for direction in wanted[c]]
        for start in range(0, len(jobs), _ROWS):
            rows, chosen = (
                torch.tensor(column, device=loaded.device) for column in zip(*jobs[start : start + _ROWS], strict=True)
            )
            with edit_site(hook, _adder(unit[chosen], alpha)):
                steered = _last(loaded, prefix, rows, ids)
            _accumulate(shift, chosen, plain[rows], steered)
            done += len(rows)
            progress("lookahead", done, len(pairs))
    count = np.maximum(shift.contexts, 1)
    return Shift(shift.delta_p / count[:, None], shift.log_ratio / count[:, None], shift.kl / count, shift.contexts)


def _last(loaded: LoadedModel, prefix: Prefix, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (R, V) after the last token of rows ``rows`` of ``ids``."""
    at = (torch.arange(len(rows), device=ids.device), torch.zeros(len(rows), dtype=torch.long, device=ids.device))
    return run_tail(loaded, prefix, rows, ids=ids[rows, -1:], at=at).float().log_softmax(-1)


def _adder(direction_RD: torch.Tensor, alpha: float) -> Edit:
    """An edit that steps the first position of each row by α‖h‖ along that row's direction."""

    def add(h: torch.Tensor) -> torch.Tensor:
        first = h[:, :1]
        stepped = first + alpha * first.norm(dim=-1, keepdim=True) * direction_RD[:, None].to(h.dtype)
        return torch.cat([stepped, h[:, 1:]], dim=1)

    return add


def _accumulate(shift: Shift, chosen: torch.Tensor, plain: torch.Tensor, steered: torch.Tensor) -> None:
    p = plain.exp()
    kl = (p * (plain - steered)).sum(-1)
    for row, direction in enumerate(chosen.tolist()):
        shift.delta_p[direction] += (steered[row].exp() - p[row]).cpu().numpy()
        shift.log_ratio[direction] += (steered[row] - plain[row]).cpu().numpy()
        shift.kl[direction] += float(kl[row])
        shift.contexts[direction] += 1


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
    eta: float,
    progress: Progress = silent,
) -> Stepped:
    """J of each (sequence, position) without a step and after each of M steps of length η‖h‖, and how the steps differ.

    Args:
        branches: token sequences and the position of the step in each; terms before the position cannot change and are left out.
        steps: unit directions, shape (rows, M, d).
        eta: step length in units of ‖h‖.
    """
    objective = np.zeros((len(branches), 1 + steps.shape[1]), dtype=np.float32)
    divergence = np.zeros_like(objective)
    done = 0
    for group in by_length([s.ids[:position] for s, position in branches], 32):
        chosen = [branches[i] for i in group]
        prefix = run_prefix(loaded, [s.ids[:p] for s, p in chosen])
        tails = [s.ids[p:] for s, p in chosen]
        width = max(len(t) for t in tails)
        ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in tails], device=loaded.device)
        terms = [(row, q - p, token, w) for row, (s, p) in enumerate(chosen) for q, token, w in s.terms if q >= p]
        row_P, pos_P, token_P, weight_P = (
            torch.tensor(column, device=loaded.device) for column in zip(*terms, strict=True)
        )
        rows = torch.arange(len(chosen), device=loaded.device)

        def by_row(values: torch.Tensor, of: torch.Tensor = row_P, n: int = len(chosen)) -> torch.Tensor:
            return torch.zeros(n, device=values.device).index_add_(0, of, values)

        first: torch.Tensor | None = None
        count = by_row(torch.ones(len(terms), device=loaded.device))
        for m in [1, 0, *range(2, 1 + steps.shape[1])]:
            direction = torch.as_tensor(
                steps[group, m - 1] if m else np.zeros((len(group), hook.d), np.float32), device=loaded.device
            )
            with edit_site(hook, _adder(direction, eta)):
                logits = run_tail(loaded, prefix, rows, ids=ids, at=(row_P, pos_P)).float()
            log_p = logits.log_softmax(-1)
            first = log_p if first is None else first
            values = logits if chosen[0][0].logit else log_p
            objective[group, m] = by_row(-weight_P * values.gather(1, token_P[:, None])[:, 0]).cpu().numpy()
            divergence[group, m] = (by_row((first.exp() * (first - log_p)).sum(-1)) / count).cpu().numpy()
        done += len(group)
        progress("step recovered", done, len(branches))
    return Stepped(objective, divergence)
