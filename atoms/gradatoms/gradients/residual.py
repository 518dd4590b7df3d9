"""Activation gradients of a batch of token sequences, exactly, at the least cost.

Rows are g = ∂J/∂h at (hook, position); J is defined in ``sequences``, its gradient at the output projection in
``objective``.

How the cost is kept down: parameters are frozen and the lowest hook's output is detached, so that no graph exists below
it; the output projection sees only the positions that predict a token, a piece of the vocabulary at a time; sequences of
similar length share a batch. Rows are right-padded and no mask is passed: a causal model never looks at what follows a
position, so padding cannot change a gradient. Examples are independent within a batch, so the gradient of the batch's
summed J holds every example's own.

Legend: B sequences, S tokens, D width, P predicted positions, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from transformers import Cache, DynamicCache

from gradatoms.errors import ModelMismatchError
from gradatoms.gradients.batches import TokenBatch
from gradatoms.gradients.objective import (
    Projection,
    Terms,
    objective_gradient,
    objective_of_logits,
    projection_scale,
)
from gradatoms.gradients.sharing import Heads
from gradatoms.hooking import attention, edit_input, edit_site
from gradatoms.models import HookSite, LoadedModel

PLAIN_ATTENTION_TOKENS = 128
"""Batches of longer rows keep the model's own attention kernel, whose memory does not grow with the square of the length."""


@dataclass(frozen=True)
class BatchGradients:
    """Raw gradients of a batch, one entry a row, and its losses, one a sequence."""

    gradients: dict[str, Float[np.ndarray, "R D"]]
    activations: dict[str, Float[np.ndarray, "R D"]]
    """h at the same rows, where asked for."""
    example: Int[np.ndarray, " R"]
    position: Int[np.ndarray, " R"]
    token: Int[np.ndarray, " R"]
    sequence_example: Int[np.ndarray, " B"]
    sequence_loss: Float[np.ndarray, " B"]
    """J of each sequence (nats; logits for ``logit``); an example's J is the sum over its sequences."""


def default_attention(loaded: LoadedModel) -> tuple[tuple[int, str], ...]:
    """Plain products for short rows on the CPU, whose backward they make faster; else the model's own."""
    plain = loaded.device.type == "cpu" and loaded.model.config._attn_implementation == "sdpa"
    return ((PLAIN_ATTENTION_TOKENS, "eager"),) if plain else ()


class ResidualGradients:
    """Takes ∂J/∂h at every hook for the rows of a batch.

    Args:
        hooks: the sites, in any order; the graph is cut at those with no other below them.
        autocast: compute in this dtype where it is faster (``torch.bfloat16``); gradients come back in float32.
        reference: the second model, for objective ``kl``; of the same vocabulary.
        activations: give h beside g.
        attention: implementation for batches up to each width, ascending, as ``((128, "eager"), …)``; wider ones, and all
            by default on other devices than the CPU, keep the model's own.
        whole_logits: never take the projection apart; for tests.

    Raises:
        ModelMismatchError: the second model has another vocabulary.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        hooks: Sequence[HookSite],
        *,
        autocast: torch.dtype | None = None,
        reference: LoadedModel | None = None,
        activations: bool = False,
        attention: Sequence[tuple[int, str]] | None = None,
        whole_logits: bool = False,
    ) -> None:
        self.loaded, self.hooks, self.autocast, self.reference = loaded, list(hooks), autocast, reference
        self.activations = activations
        self.attention = tuple(default_attention(loaded) if attention is None else attention)
        if reference is not None and reference.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
            raise ModelMismatchError(
                f"expected a second model with the tokens of {loaded.fingerprint.name}, {reference.fingerprint.name} has "
                "others; choose one of the same family"
            )
        models = [m for m in (loaded, reference) if m is not None]
        scales = [None if whole_logits else projection_scale(m) for m in models]
        self._scales = {id(m): scale for m, scale in zip(models, scales, strict=True) if scale is not None}
        self._cast: dict[int, Projection] = {}
        self.in_pieces = len(self._scales) == len(models)
        """Whether the vocabulary is taken a piece at a time."""

    def _projection(self, loaded: LoadedModel) -> Projection:
        """The projection of a model, within its pass; a copy in the dtype of autocast is kept."""
        head, key = loaded.model.get_output_embeddings(), id(loaded)
        if self.autocast is None or any(type(p) is not nn.Parameter for p in loaded.model.parameters()):
            return Projection.of(head, self._scales[key], self.autocast)
        if key not in self._cast:
            self._cast[key] = Projection.of(head, self._scales[key], self.autocast)
        return self._cast[key]

    def attention_for(self, width: int) -> str | None:
        """The attention implementation for batches of this width, None for the model's own."""
        return next((name for most, name in self.attention if width <= most), None)

    def __call__(self, batch: TokenBatch) -> BatchGradients:
        kept: dict[str, torch.Tensor] = {}

        def keep(site: HookSite, h: torch.Tensor) -> torch.Tensor:
            if not kept or not h.requires_grad:  # nothing below it is asked for
                h = h.detach().requires_grad_(True)
            elif site.kind == "resid_pre":
                h = h.view_as(h)  # what the block does with it, and nobody else
            kept[site.name] = h
            return h.clone() if site.kind in ("attn_out", "mlp_out") else h  # some blocks add to these in place

        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            final, logits, head = self._forward(self.loaded, batch, stack, keep)
        terms = Terms(batch.term_at_T, batch.term_token_T, batch.term_weight_T, batch.matched_P, batch.logit)
        loss_P, outputs, seeds = self._objective(batch, final, logits, head, terms.to(final.device))
        grads = torch.autograd.grad(outputs, [kept[h.name] for h in self.hooks], seeds)
        return self._rows(batch, kept, grads, loss_P)

    def _forward(
        self,
        loaded: LoadedModel,
        batch: TokenBatch,
        stack: ExitStack,
        keep: Callable[[HookSite, torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, Projection | None]:
        """Final hidden states (P, D) at the predicted positions, and their logits (P, V) or the projection to them."""
        final: list[torch.Tensor] = []
        head: list[Projection] = []

        def at_positions(h_BSD: torch.Tensor) -> torch.Tensor:
            h_PD = h_BSD[batch.places(batch.at_seq_P, batch.at_col_P, h_BSD.device)].contiguous()
            final.append(h_PD)
            if not self.in_pieces:
                return h_PD
            head.append(self._projection(loaded))
            return h_PD[:1].detach()

        width = batch.ids_LS.shape[1] if batch.heads is None else 0
        stack.enter_context(attention(loaded, self.attention_for(width)))
        if self.autocast is not None:
            stack.enter_context(torch.autocast(batch.ids_LS.device.type, self.autocast))
        inputs: dict[str, Any] = {"input_ids": batch.ids_LS, "use_cache": False}
        if batch.mask is not None:
            inputs["attention_mask"] = batch.mask
        if batch.positions_LS is not None:
            inputs["position_ids"] = batch.positions_LS
        if batch.heads is not None:
            inputs |= {"past_key_values": _run_heads(loaded, batch.heads), "use_cache": True}
        for site in self.hooks if loaded is self.loaded else ():
            stack.enter_context(edit_site(site, lambda h, site=site: keep(site, h)))  # type: ignore[misc]
        stack.enter_context(edit_input(loaded.model.get_output_embeddings(), at_positions))
        logits = loaded.model(**inputs).logits
        return final[0], logits, head[0] if head else None

    def _objective(
        self, batch: TokenBatch, final: torch.Tensor, logits: torch.Tensor, head: Projection | None, terms: Terms
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor] | None]:
        """J of each position, and what to differentiate with which seeds."""
        other: tuple[torch.Tensor, torch.Tensor, Projection | None] | None = None
        if self.reference is not None:
            with ExitStack() as stack, torch.no_grad():
                other = self._forward(self.reference, batch, stack, lambda _, h: h)
        if head is not None:
            pair = None if other is None or other[2] is None else (other[2], other[0])
            loss, gradient = objective_gradient(head, final, terms, pair)
            return loss, [final], [gradient.to(final.dtype)]
        logits = logits.reshape(len(final), -1)
        z_other = None if other is None else other[1].reshape(len(final), -1).to(logits.device)
        with torch.enable_grad():
            loss = objective_of_logits(logits, terms.to(logits.device), z_other)
            return loss.detach(), [loss.sum()], None

    def _rows(
        self, batch: TokenBatch, kept: dict[str, torch.Tensor], grads: Sequence[torch.Tensor], loss_P: torch.Tensor
    ) -> BatchGradients:
        seq, column = batch.row_seq_R, batch.row_col_R
        loss_B = batch.constant_B.index_add(0, batch.at_seq_P, loss_P.to(batch.constant_B.device))

        def rows(x_BSD: torch.Tensor) -> np.ndarray:
            found: np.ndarray = x_BSD.detach()[batch.places(seq, column, x_BSD.device)].float().cpu().numpy()
            return found

        return BatchGradients(
            {h.name: rows(g) for h, g in zip(self.hooks, grads, strict=True)},
            {h.name: rows(kept[h.name]) for h in self.hooks} if self.activations else {},
            np.asarray([batch.example_B[b] for b in seq.tolist()], dtype=np.int64),
            (column - batch.shift_B[seq]).cpu().numpy().astype(np.int32),
            batch.ids_LS[batch.places(seq, column, batch.ids_LS.device)].cpu().numpy().astype(np.int32),
            np.asarray(batch.example_B, dtype=np.int64),
            loss_B.cpu().numpy(),
        )


@torch.no_grad()
def _run_heads(loaded: LoadedModel, heads: Heads) -> Cache:
    """Keys and values of the trees that come before the lines of a batch."""
    cache = DynamicCache()
    with edit_input(loaded.model.get_output_embeddings(), lambda h: h[:1, :1]):
        loaded.model(
            input_ids=heads.ids_LN,
            attention_mask=heads.mask,
            position_ids=heads.position_LN,
            past_key_values=cache,
            use_cache=True,
        )
    return cache
