"""Run a prefix once, then many continuations of it: the key-value cache is shared, only the tail is computed.

What happens at or after a position cannot change what came before it in a causal model, so a step at a position, or
soft tokens after a context, need the tokens from there on only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from gradatoms.models import LoadedModel


@dataclass(frozen=True)
class Prefix:
    """The cached keys and values of B prefixes of equal length."""

    cache: Any
    length: int

    def rows(self, index: Int[torch.Tensor, " R"]) -> Any:
        """A cache whose row r is prefix ``index[r]``; this prefix itself is never changed by what uses it."""
        if self.length == 0:
            return None
        fork = copy.copy(self.cache)
        fork.layers = [copy.copy(layer) for layer in self.cache.layers]
        fork.batch_select_indices(index)
        return fork


@torch.no_grad()
def run_prefix(loaded: LoadedModel, ids: Int[torch.Tensor, "B S"]) -> Prefix:
    """Compute the keys and values of token ids of equal length (B, S); S may be 0."""
    from transformers import DynamicCache

    if ids.shape[1] == 0:
        return Prefix(None, 0)
    cache = DynamicCache(config=loaded.model.config)
    loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(cache, ids.shape[1])


def run_tail(
    loaded: LoadedModel,
    prefix: Prefix,
    rows: Int[torch.Tensor, " R"],
    *,
    ids: Int[torch.Tensor, "R T"] | None = None,
    embeds: Float[torch.Tensor, "R T D"] | None = None,
) -> Float[torch.Tensor, "R T V"]:
    """Logits of tails given as token ids or as embeddings, row r continuing prefix ``rows[r]``."""
    inputs = {"input_ids": ids} if ids is not None else {"inputs_embeds": embeds}
    logits: torch.Tensor = loaded.model(**inputs, past_key_values=prefix.rows(rows), use_cache=prefix.length > 0).logits
    return logits


def by_length(sequences: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices of ``sequences`` in groups of equal length, at most ``most`` a group."""
    groups: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        groups.setdefault(len(sequence), []).append(i)
    for length in sorted(groups):
        members = groups[length]
        for start in range(0, len(members), most):
            yield members[start : start + most]
