"""The plain way: one example at a time, whole backward. What the fast path is checked and timed against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers.pytorch_utils import Conv1D

from gradatoms.gradients.linear import LinearSite
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import edit_site
from gradatoms.models import HookSite, LoadedModel


def one_at_a_time(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[TokenSequence]],
    hook: HookSite,
    *,
    reference: LoadedModel | None = None,
) -> Float[np.ndarray, "R D"]:
    """Rows of g = ∂J/∂h by ``retain_grad`` and ``backward``, one example after another, parameters as users find them.

    Parameters require gradients while this runs, as they do in a model that transformers has just loaded. The rows come
    in the order of the examples and, within one, of their positions; branches of one example are summed.

    Args:
        reference: the second model of objective ``kl``.
    """
    rows: list[np.ndarray] = []
    loaded.model.requires_grad_(True)
    try:
        for branches in sequences:
            total: dict[int, Any] = {}
            for branch in branches:
                for position, g in _one(loaded, branch, hook, reference).items():
                    total[position] = total.get(position, 0) + g
            rows += [total[position] for position in sorted(total)]
    finally:
        loaded.model.requires_grad_(False)
        loaded.model.zero_grad(set_to_none=True)
    return np.stack(rows)


def _one(
    loaded: LoadedModel, sequence: TokenSequence, hook: HookSite, reference: LoadedModel | None
) -> dict[int, np.ndarray]:
    kept: list[torch.Tensor] = []

    def keep(h: torch.Tensor) -> torch.Tensor:
        h = h.view_as(h)  # of a block's input, what the block does with it
        h.retain_grad()
        kept.append(h)
        return h

    ids = torch.tensor([sequence.ids], device=loaded.device)
    with torch.enable_grad(), edit_site(hook, keep):
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0].float()
        values = logits if sequence.logit else logits.log_softmax(-1)
        objective = sum(-weight * values[position, token] for position, token, weight in sequence.terms)
        for position in sequence.matched:
            assert reference is not None
            with torch.no_grad():
                log_q = reference.model(input_ids=ids, use_cache=False).logits[0, position].float().log_softmax(-1)
            objective = objective + (log_q.exp() * (log_q - values[position])).sum()
        objective.backward()
    loaded.model.zero_grad(set_to_none=True)
    gradient = kept[0].grad
    assert gradient is not None
    return {position: gradient[0, position].float().cpu().numpy() for position in sequence.rows}


def weights_one_at_a_time(
    loaded: LoadedModel, sequences: Sequence[Sequence[TokenSequence]], sites: Sequence[LinearSite]
) -> Iterator[list[Float[torch.Tensor, "O I"]]]:
    """The whole ∂J/∂W of each module, one example after another, by ``backward``: the published way of per-document gradients."""
    loaded.model.requires_grad_(False)
    parameters = [site.module.weight for site in sites]
    for parameter in parameters:
        assert isinstance(parameter, torch.Tensor)
        parameter.requires_grad_(True)
    try:
        for branches in sequences:
            loaded.model.zero_grad(set_to_none=True)
            for branch in branches:
                ids = torch.tensor([branch.ids], device=loaded.device)
                with torch.enable_grad():
                    logits = loaded.model(input_ids=ids, use_cache=False).logits[0].float()
                    values = logits if branch.logit else logits.log_softmax(-1)
                    at, token, weight = (list(column) for column in zip(*branch.terms, strict=True))
                    (-torch.tensor(weight, device=values.device) * values[at, token]).sum().backward()
            found: list[torch.Tensor] = []
            for site, parameter in zip(sites, parameters, strict=True):
                gradient = parameter.grad
                assert isinstance(gradient, torch.Tensor)
                found.append((gradient.T if isinstance(site.module, Conv1D) else gradient).float())
            yield found
    finally:
        loaded.model.requires_grad_(False)
        loaded.model.zero_grad(set_to_none=True)
