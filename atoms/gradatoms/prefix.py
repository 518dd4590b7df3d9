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


@dataclass(frozen=True)
class Tail:
    """B texts read so far: what the next token may be, and all that is needed to go on."""

    logits: Float[torch.Tensor, "B V"]
    cache: Any
    mask: Int[torch.Tensor, "B S"]

    def part(self, rows: Int[torch.Tensor, " R"]) -> Tail:
        """Some of the texts, any of them several times; this tail itself is not changed."""
        return Tail(self.logits[rows], Prefix(self.cache, self.mask).fork(rows), self.mask[rows])


def read_tail(
    loaded: LoadedModel, prefix: Prefix, rows: Int[torch.Tensor, " R"], embeds: Float[torch.Tensor, "R T D"]
) -> Tail:
    """Embeddings read after prefixes, row r after prefix ``rows[r]``."""
    every = torch.arange(len(rows), device=embeds.device)
    at = (every, torch.full_like(every, embeds.shape[1] - 1))
    return Tail(*_run(loaded, prefix.fork(rows), prefix.mask[rows], embeds=embeds, at=at))


@torch.no_grad()
def go_on(
    loaded: LoadedModel, tail: Tail, chains: Sequence[Sequence[int]]
) -> tuple[Any, Int[torch.Tensor, "B S"], list[Float[torch.Tensor, "T V"]]]:
    """The texts of ``tail``, whose cache is taken over, after at least one more token each.

    Returns:
        cache; mask; and for each text the logits after every token of its chain.
    """
    device, width = tail.mask.device, max(len(chain) for chain in chains)
    ids = torch.tensor([[*chain, *[0] * (width - len(chain))] for chain in chains], device=device)
    real = torch.tensor([[1] * len(chain) + [0] * (width - len(chain)) for chain in chains], device=device)
    row, position = real.nonzero(as_tuple=True)
    logits, cache, mask = _run(loaded, tail.cache, tail.mask, ids=ids, at=(row, position), real=real)
    return cache, mask, list(logits.split([len(chain) for chain in chains]))


@torch.no_grad()
def next_logits(
    loaded: LoadedModel, tail: Tail, rows: Int[torch.Tensor, " R"], texts: Sequence[Sequence[int]]
) -> Float[torch.Tensor, "R V"]:
    """Logits of the token after text r (token ids, perhaps none), itself after the text ``rows[r]`` of ``tail``."""
    longer = [i for i, text in enumerate(texts) if len(text)]
    logits = tail.logits[rows]
    if not longer:
        return logits
    device, width = rows.device, max(len(texts[i]) for i in longer)
    ids = torch.tensor([[*texts[i], *[0] * (width - len(texts[i]))] for i in longer], device=device)
    lengths = torch.tensor([len(texts[i]) for i in longer], device=device)
    real = (torch.arange(width, device=device) < lengths[:, None]).long()
    kept = torch.tensor(longer, device=device)
    start = tail.part(rows[kept])
    at = (torch.arange(len(longer), device=device), lengths - 1)
    found, _, _ = _run(loaded, start.cache, start.mask, ids=ids, at=at, real=real)
    return logits.index_copy(0, kept, found.to(logits.dtype))


def _run(
    loaded: LoadedModel,
    cache: Any,
    mask: torch.Tensor,
    *,
    ids: torch.Tensor | None = None,
    embeds: torch.Tensor | None = None,
    at: tuple[torch.Tensor, torch.Tensor],
    real: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    new = ids if ids is not None else embeds
    assert new is not None
    full = torch.cat([mask, mask.new_ones(new.shape[:2]) if real is None else real], dim=1)
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
