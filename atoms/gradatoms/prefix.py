"""Run a prefix once, then many continuations of it: the key-value cache is shared, only the tail is computed.

What happens at or after a position cannot change what came before it in a causal model, so a step at a position, or
soft tokens after a context, need the tokens from there on only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int

from gradatoms.hooking import edit_input, predict_at
from gradatoms.models import LoadedModel


@dataclass(frozen=True)
class Prefix:
    """The cached keys and values of B prefixes; ``mask`` (B, S) is zero where a shorter one was padded."""

    cache: Any
    mask: Int[torch.Tensor, "B S"]

    def fork(self, index: Int[torch.Tensor, " R"]) -> Any:
        """A cache whose row r is prefix ``index[r]``; this prefix itself is never changed by what uses it."""
        if self.mask.shape[1] == 0:
            return None
        fork = copy.copy(self.cache)
        fork.layers = [copy.copy(layer) for layer in self.cache.layers]
        fork.batch_select_indices(index)
        return fork


@torch.no_grad()
def run_prefix(loaded: LoadedModel, contexts: Sequence[Sequence[int]], *, after: Prefix | None = None) -> Prefix:
    """Compute the keys and values of token ids, padded on the left to one length.

    Args:
        contexts: B lists of token ids; all may be empty.
        after: one prefix (B = 1) that comes before each of them, such as a header.
    """
    from transformers import DynamicCache

    width = max(len(c) for c in contexts)
    ids = torch.tensor([[0] * (width - len(c)) + list(c) for c in contexts], dtype=torch.long, device=loaded.device)
    mask = torch.tensor(
        [[0] * (width - len(c)) + [1] * len(c) for c in contexts], dtype=torch.long, device=loaded.device
    )
    if width == 0:
        return (
            Prefix(None, mask.reshape(len(contexts), 0))
            if after is None
            else Prefix(after.fork(_zeros(mask)), after.mask[_zeros(mask)])
        )
    if after is None:
        cache, full = DynamicCache(config=loaded.model.config), mask
    else:
        cache, full = after.fork(_zeros(mask)), torch.cat([after.mask[_zeros(mask)], mask], dim=1)
    with edit_input(loaded.model.get_output_embeddings(), lambda h: h[:, -1:]):
        loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, **_place(full, width))
    return Prefix(cache, full)


def run_tail(
    loaded: LoadedModel,
    prefix: Prefix,
    rows: Int[torch.Tensor, " R"],
    *,
    ids: Int[torch.Tensor, "R T"] | None = None,
    embeds: Float[torch.Tensor, "R T D"] | None = None,
    at: tuple[Int[torch.Tensor, " P"], Int[torch.Tensor, " P"]],
) -> Float[torch.Tensor, "P V"]:
    """Logits of tails given as token ids or as embeddings, row r continuing prefix ``rows[r]``.

    Args:
        at: (row, tail position) pairs whose next-token logits are wanted; no others are computed.
    """
    return _run(loaded, prefix.fork(rows), prefix.mask[rows], ids=ids, embeds=embeds, at=at)[0]


@dataclass
class Grammar:
    """Which token may follow: a node of a directed graph of token ids; a node without successors ends the text."""

    next: dict[int, Grammar] = field(default_factory=dict)

    def add(self, ids: Sequence[int], end: Grammar | None = None) -> Grammar:
        """Add a path of token ids from here; its last node is merged with ``end`` where given. Returns the last node."""
        node = self
        for token in ids:
            node = node.next.setdefault(token, Grammar())
        if end is not None:
            node.next.update(end.next)
        return node


@torch.no_grad()
def generate_tail(
    loaded: LoadedModel,
    prefix: Prefix,
    embeds: Float[torch.Tensor, "B T D"],
    *,
    max_tokens: int,
    stop: int,
    grammar: Grammar | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Greedy continuations of each prefix followed by its embeddings, until token ``stop``.

    Args:
        grammar: only its paths may be written; None leaves the model free.

    Returns:
        token ids of each row without ``stop``, and the mean log-probability of its tokens under the unrestricted model.
    """
    n = len(embeds)
    ids: list[list[int]] = [[] for _ in range(n)]
    scores: list[list[float]] = [[] for _ in range(n)]
    nodes = [grammar] * n
    rows = torch.arange(n, device=embeds.device)
    at = (rows, torch.full_like(rows, embeds.shape[1] - 1))
    logits, cache, mask = _run(loaded, prefix.fork(rows), prefix.mask, embeds=embeds, at=at)
    for step in range(max_tokens):
        log_probs = logits.float().log_softmax(-1)
        if grammar is not None:
            allowed = torch.full_like(log_probs, -torch.inf)
            for i, row in enumerate(rows.tolist()):
                choices = list(nodes[row].next)
                allowed[i, choices] = 0.0
            log_probs = log_probs + allowed
        best, token = log_probs.max(-1)
        going = []
        for i, row in enumerate(rows.tolist()):
            chosen = int(token[i])
            scores[row].append(float(best[i]))
            if nodes[row] is not None:
                nodes[row] = nodes[row].next[chosen]
            if chosen != stop:
                ids[row].append(chosen)
                if nodes[row] is None or nodes[row].next:
                    going.append(i)
        if not going or step + 1 == max_tokens:
            break
        keep = torch.tensor(going, device=rows.device)
        if len(keep) < len(rows):
            cache.batch_select_indices(keep)
            rows, mask, token = rows[keep], mask[keep], token[keep]
        every = torch.arange(len(rows), device=rows.device)
        logits, cache, mask = _run(loaded, cache, mask, ids=token[:, None], at=(every, torch.zeros_like(every)))
    return ids, [sum(s) / len(s) for s in scores]


def _run(
    loaded: LoadedModel,
    cache: Any,
    mask: torch.Tensor,
    *,
    ids: torch.Tensor | None = None,
    embeds: torch.Tensor | None = None,
    at: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    new = ids if ids is not None else embeds
    assert new is not None
    full = torch.cat([mask, mask.new_ones(new.shape[:2])], dim=1)
    inputs = {"input_ids": ids} if ids is not None else {"inputs_embeds": embeds}
    with predict_at(loaded, *at):
        out = loaded.model(**inputs, past_key_values=cache, use_cache=True, **_place(full, new.shape[1]))
    return out.logits, out.past_key_values, full


def _place(mask: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
    """Mask and position ids of the last ``width`` tokens; without padding the model's own defaults are the same and faster."""
    if bool(mask.all()):
        return {}
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
    return {"attention_mask": mask, "position_ids": positions}


def _zeros(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(mask), dtype=torch.long, device=mask.device)


def similar(lengths: Sequence[int], most: int, tokens: int) -> Iterator[list[int]]:
    """Indices of prefixes in groups of similar length, shortest first, so that little is padding; empty ones apart.

    Args:
        lengths: tokens of each prefix.
        most, tokens: prefixes and padded tokens in a group at most (at least one prefix each).
    """
    members: list[int] = []
    shortest = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        length = lengths[index]
        full = len(members) == most or (len(members) + 1) * length > tokens
        if members and (full or shortest == 0 != length or length > 1.5 * shortest + 4):
            yield members
            members = []
        shortest = shortest if members else length
        members.append(index)
    if members:
        yield members
