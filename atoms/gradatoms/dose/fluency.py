"""How fluent texts are that a model writes with a step: their perplexity under the model without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.hooking import edit_site, predict_at
from gradatoms.models import HookSite, LoadedModel
from gradatoms.prefix import Tail, go_on, run_prefix

_TEXTS = 24
"""Texts scored at once; bounds memory."""


@torch.no_grad()
def perplexities(
    loaded: LoadedModel,
    hook: HookSite,
    direction: Float[np.ndarray, " D"],
    alpha: Sequence[float],
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    seed: int,
) -> Float[np.ndarray, " M"]:
    """exp of the mean −log p(token) under the plain model, over the tokens of texts written with a step α‖h‖ v.

    The step is at the prompt's last token and each one after it. Texts are sampled at temperature 1, as the largest logit +
    Gumbel noise; every strength gets the same noise, so that texts differ by the step alone.

    Args:
        direction: unit, shape (d,).
        alpha: M strengths.
        prompts: token ids.
        tokens: of each text.
    """
    unit = torch.as_tensor(direction, device=loaded.device)
    total = np.zeros(len(alpha))
    for length in sorted({len(ids) for ids in prompts}):
        alike = [list(ids) for ids in prompts if len(ids) == length]
        noise = torch.Generator().manual_seed(seed * 1_000_003 + length)
        steps = torch.tensor(alpha, device=loaded.device).repeat_interleave(len(alike))[:, None, None] * unit
        written = _written(loaded, hook, steps, alike, tokens, noise)
        total += _nll(loaded, written, length).reshape(len(alpha), -1).sum(axis=1)
    return np.asarray(np.exp(total / (len(prompts) * tokens)))


def _written(
    loaded: LoadedModel,
    hook: HookSite,
    steps_R1D: Float[torch.Tensor, "R 1 D"],
    prompts: Sequence[list[int]],
    tokens: int,
    noise: torch.Generator,
) -> Int[torch.Tensor, "R S"]:
    """Prompts with what is written after them: strength by strength, each prompt in turn."""

    def step(h: torch.Tensor) -> torch.Tensor:
        return h + (steps_R1D * h.float().norm(dim=-1, keepdim=True)).to(h.dtype)

    n = len(prompts)
    rows = torch.arange(n, device=loaded.device).repeat(len(steps_R1D) // n)
    prefix = run_prefix(loaded, [ids[:-1] for ids in prompts])
    ids = torch.tensor(prompts, device=loaded.device)[rows]
    going = Tail(torch.zeros(len(rows), 1), prefix.fork(rows), prefix.mask[rows])
    with edit_site(hook, step):  # of a prefix that is cached, only the last token is run
        for _ in range(tokens):
            cache, mask, after = go_on(loaded, going, ids[:, -1:].tolist())
            logits = torch.stack([each[-1] for each in after]).float()
            going = Tail(logits, cache, mask)
            gumbel = -torch.empty(n, logits.shape[1]).exponential_(generator=noise).clamp_min_(1e-30).log_()
            chosen = (logits + gumbel.to(logits.device)[rows]).argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, chosen], dim=1)
    return ids


def _nll(loaded: LoadedModel, ids: Int[torch.Tensor, "R S"], start: int) -> Float[np.ndarray, " R"]:
    """−log p of the tokens from ``start`` on, summed over each text; nats."""
    found = []
    width = ids.shape[1] - start
    for part in ids.split(_TEXTS):
        row = torch.arange(len(part), device=ids.device).repeat_interleave(width)
        at = torch.arange(start - 1, ids.shape[1] - 1, device=ids.device).repeat(len(part))
        with predict_at(loaded, row, at):
            logits = loaded.model(input_ids=part, use_cache=False).logits
        log_p = logits.float().log_softmax(-1).reshape(len(part), width, -1)
        found.append(-log_p.gather(2, part[:, start:, None]).sum(dim=(1, 2)))
    return np.asarray(torch.cat(found).cpu().numpy(), np.float64)
