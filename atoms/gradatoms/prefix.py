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
    """Which token may follow: a node of a directed graph of token ids, which may have several ways on by one token.

    A text stands at a tuple of nodes (``start``, then ``step`` by ``step``); where nothing may follow, it ends.
    """

    next: dict[int, list[Grammar]] = field(default_factory=dict)
    also: list[Grammar] = field(default_factory=list)
    """Nodes that what is here may go on from as well."""

    def add(self, ids: Sequence[int], end: Grammar | None = None) -> Grammar:
        """Add a path of token ids from here, sharing what it has in common with the paths added before.

        Args:
            end: the node where the text goes on; it may be shared by many paths, and is not changed.

        Returns:
            the path's last node.
        """
        node = self
        for token in ids:
            ways = node.next.setdefault(token, [])
            if not ways:
                ways.append(Grammar())
            node = ways[0]
        if end is not None:
            node.also.append(end)
        return node

    def start(self) -> tuple[Grammar, ...]:
        """Where a text that begins here stands."""
        found: list[Grammar] = []
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if all(node is not seen for seen in found):
                found.append(node)
                waiting += node.also
        return tuple(found)


def choices(state: tuple[Grammar, ...]) -> list[int]:
    """The tokens that may follow."""
    return list({token: None for node in state for token in node.next})


def step(state: tuple[Grammar, ...], token: int) -> tuple[Grammar, ...]:
    """Where a text stands after one more token."""
    found = {id(n): n for node in state for way in node.next.get(token, ()) for n in way.start()}
    return tuple(found.values())


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


@dataclass(frozen=True)
class Written:
    """One text that the model wrote."""

    ids: list[int]
    """Without the token that stops it."""
    log_prob: float
    """Sum over its tokens, ``stop`` among them, under the model without any grammar; nats."""
    n: int
    """Tokens, ``stop`` among them."""


@torch.no_grad()
def write(
    loaded: LoadedModel,
    tail: Tail,
    *,
    max_tokens: int,
    stop: int,
    starts: Sequence[tuple[Grammar, ...]] | None = None,
    guidance: float | int = 0.0,
) -> list[Written]:
    """Greedy continuations, until token ``stop`` or until nothing may follow.

    Tokens that the grammar leaves no choice about are read in one go with the token before them.

    Args:
        starts: where each text stands in a grammar, of which only the paths may be written; None leaves the model free.
        guidance: γ ≥ 0. Above 0 the second half of ``tail`` are the same texts without what should be heard, and the token
            with the largest log p − γ log p′ is taken (classifier-free guidance, Sanchez et al. 2023).
    """
    halves = 2 if guidance else 1
    n = len(tail.logits) // halves
    ids: list[list[int]] = [[] for _ in range(n)]
    total, count = [0.0] * n, [0] * n
    states: list[tuple[Grammar, ...]] = list(starts) if starts is not None else [()] * n
    rows = list(range(n))
    going = tail.part(torch.arange(halves * n, device=tail.mask.device))
    while rows:
        log_probs = going.logits.float().log_softmax(-1)
        scores = log_probs[: len(rows)]
        if guidance:
            scores = scores - guidance * log_probs[len(rows) :]
        chains = []
        for i, row in enumerate(rows):
            if starts is None:
                chain = [int(scores[i].argmax())]
            else:
                ways = choices(states[row])
                chain = [ways[int(scores[i, ways].argmax())]]
                states[row] = step(states[row], chain[0])
                while chain[-1] != stop and len(ways := choices(states[row])) == 1:
                    chain.append(ways[0])
                    states[row] = step(states[row], ways[0])
            chain = chain[: max_tokens - len(ids[row])]
            chains.append(chain)
            ids[row] += [token for token in chain if token != stop]
            total[row] += float(log_probs[i, chain[0]])
            count[row] += len(chain)
        ended = [
            chain[-1] == stop or len(ids[row]) >= max_tokens or (starts is not None and not choices(states[row]))
            for row, chain in zip(rows, chains, strict=True)
        ]
        kept = [i for i in range(len(rows)) if not ended[i] or len(chains[i]) > 1]
        if not kept:
            break
        part = torch.tensor([h * len(rows) + i for h in range(halves) for i in kept], device=tail.mask.device)
        going = going.part(part) if len(kept) < len(rows) else going
        going, forced = _go_on(loaded, going, [chains[i] for i in kept] * halves)
        for i, log_prob in zip(kept, forced, strict=False):
            total[rows[i]] += log_prob
        staying = [j for j, i in enumerate(kept) if not ended[i]]
        if len(staying) < len(kept):
            part = torch.tensor([h * len(kept) + j for h in range(halves) for j in staying], device=tail.mask.device)
            going = going.part(part) if staying else going
        rows = [rows[kept[j]] for j in staying]
    return [Written(ids[i], total[i], count[i]) for i in range(n)]


def _go_on(loaded: LoadedModel, tail: Tail, chains: Sequence[Sequence[int]]) -> tuple[Tail, list[float]]:
    """The tail after one chain of tokens a text, and the log-probability of each chain after its first token."""
    device, width = tail.mask.device, max(len(chain) for chain in chains)
    ids = torch.tensor([[*chain, *[0] * (width - len(chain))] for chain in chains], device=device)
    real = torch.tensor([[1] * len(chain) + [0] * (width - len(chain)) for chain in chains], device=device)
    row, position = real.nonzero(as_tuple=True)
    logits, cache, mask = _run(loaded, tail.cache, tail.mask, ids=ids, at=(row, position), real=real)
    found, last, place = [], [], 0
    for chain in chains:
        scores = logits[place : place + len(chain) - 1].float().log_softmax(-1)
        found.append(float(sum(scores[k, token] for k, token in enumerate(chain[1:]))))
        place += len(chain)
        last.append(place - 1)
    return Tail(logits[last], cache, mask), found


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
