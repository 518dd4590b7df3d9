"""Passes over batches of documents that tell what linear modules see, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch

from gradatoms.gradients.batches import TokenBatch
from gradatoms.gradients.linear import Enter, Leave, LinearSite, watch
from gradatoms.gradients.objective import Projection, Terms
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.models import LoadedModel


class WatchedPass(ResidualGradients):
    """Runs J of a batch, and its gradient as far down as the lowest module asked for.

    Args:
        draw: with a generator, targets are drawn from the model's own distribution in place of the documents'.
        others: as for ``ResidualGradients``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sites: Sequence[LinearSite],
        *,
        draw: torch.Generator | None = None,
        autocast: torch.dtype | None = None,
        reference: LoadedModel | None = None,
        attention: Sequence[tuple[int, str]] | None = None,
    ) -> None:
        super().__init__(loaded, [], autocast=autocast, reference=reference, attention=attention)
        self.sites, self.draw = list(sites), draw

    def run(self, batch: TokenBatch, enter: Enter, leave: Leave) -> torch.Tensor:
        """J of each predicted position, (P,); ``enter`` and ``leave`` are told of every module (see ``linear.watch``)."""
        lines = (batch.ids_LS.shape[0], batch.ids_LS.shape[1])
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            leaves = stack.enter_context(watch(self.sites, lines, enter, leave))
            final, logits, head = self._forward(self.loaded, batch, stack, lambda _, h: h)
            terms = Terms(batch.term_at_T, batch.term_token_T, batch.term_weight_T, batch.matched_P, batch.logit)
            terms = terms.to(final.device)
            if self.draw is not None:
                terms = _drawn(terms, final, logits, head, self.draw)
            loss_P, outputs, seeds = self._objective(batch, final, logits, head, terms)
            torch.autograd.backward(outputs, seeds, inputs=leaves)
        return loss_P


@torch.no_grad()
def _drawn(
    terms: Terms, final: torch.Tensor, logits: torch.Tensor, head: Projection | None, generator: torch.Generator
) -> Terms:
    """The same places with targets from the model's own distribution."""
    if head is None:
        p = logits.reshape(len(final), -1).float().softmax(-1)
        token = torch.multinomial(p, 1, generator=generator)[:, 0]
    else:
        token = head.sample(final, generator)
    at = torch.arange(len(final), device=final.device)
    return Terms(at, token.to(final.device), torch.ones(len(at), device=final.device), terms.matched_P, False)


def raw_gradients(take: WatchedPass, batch: TokenBatch, weights: np.ndarray | None = None) -> list[torch.Tensor]:
    """Σ_b w_b G_b of each module over the documents of a batch, in full, (d_out, d_in); for what asks for raw gradients.

    Args:
        weights: w, one a document; None is 1.
    """
    device = take.loaded.device
    found = [torch.zeros(s.d_out, s.d_in, device=device) for s in take.sites]
    w = torch.ones(len(batch.ids_LS)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    w = w.to(device)[:, None, None]

    def leave(number: int, x: torch.Tensor, delta: torch.Tensor) -> None:
        found[number] += (delta.float() * w).flatten(0, 1).T @ x.flatten(0, 1)

    take.run(batch, lambda _, x: x.float(), leave)
    return found
