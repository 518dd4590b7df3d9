"""Let a model write after texts it has read: freely, or within a grammar, and with a draft that it need only check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float

from gradatoms.models import LoadedModel
from gradatoms.prefix import Tail, go_on


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
class Written:
    """One text that the model wrote."""

    ids: list[int]
    """Without the token that stops it."""
    log_prob: float
    """Sum over its tokens, ``stop`` among them, under the model without any grammar; nats."""
    n: int
    """Tokens, ``stop`` among them."""


@dataclass
class _Text:
    """A text that is being written."""

    state: tuple[Grammar, ...] | None
    """Where it stands in a grammar; None: free."""
    draft: Sequence[int]
    most: int
    stop: int
    told: list[int] = field(default_factory=list)
    log_prob: float = 0.0

    def chain(self, scores: Float[torch.Tensor, " V"]) -> tuple[list[int], tuple[Grammar, ...] | None]:
        """The best next token and those that the grammar then leaves no choice about; and where the text would stand."""
        if self.state is None:
            return [int(scores.argmax())], None
        ways = choices(self.state)
        found = [ways[int(scores[ways].argmax())]]
        state = step(self.state, found[0])
        while found[-1] != self.stop and len(ways := choices(state)) == 1:
            found.append(ways[0])
            state = step(state, ways[0])
        return found[: self.most - len(self.told)], state

    def take(self, chain: Sequence[int], state: tuple[Grammar, ...] | None) -> None:
        self.told += chain
        self.state = state

    def guess(self) -> list[int]:
        """What the draft has still to say, as long as the text agrees with it."""
        agrees = len(self.told) < self.most and list(self.draft[: len(self.told)]) == self.told
        return list(self.draft[len(self.told) : self.most]) if agrees else []

    @property
    def ended(self) -> bool:
        full = len(self.told) >= self.most or self.told[-1] == self.stop
        return full or (self.state is not None and not choices(self.state))


@torch.no_grad()
def write(
    loaded: LoadedModel,
    tail: Tail,
    *,
    max_tokens: int,
    stop: int,
    starts: Sequence[tuple[Grammar, ...]] | None = None,
    guidance: float | int = 0.0,
    drafts: Sequence[Sequence[int]] | None = None,
) -> list[Written]:
    """Greedy continuations, until token ``stop`` or until nothing may follow.

    Tokens that the grammar leaves no choice about are read in one go with the token before them.

    Args:
        starts: where each text stands in a grammar, of which only the paths may be written; None leaves the model free.
        guidance: γ ≥ 0. Above 0 the second half of ``tail`` are the same texts without what should be heard, and the token
            with the largest log p − γ log p′ is taken (classifier-free guidance, Sanchez et al. 2023).
        drafts: a guess of each text. It is read in one go and kept as far as it is what would have been written anyway
            (speculative decoding, Leviathan et al. 2023); a wrong one costs time, and changes nothing.
    """
    halves = 2 if guidance else 1
    n = len(tail.logits) // halves
    texts = [
        _Text(None if starts is None else starts[i], () if drafts is None else drafts[i], max_tokens, stop)
        for i in range(n)
    ]

    def scored(last: torch.Tensor, beside: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = last.float().log_softmax(-1)
        return log_probs, log_probs if beside is None else log_probs - guidance * beside.float().log_softmax(-1)

    going, rows = tail.part(torch.arange(halves * n, device=tail.mask.device)), list(range(n))
    while rows:
        feeds, fixed = [], []
        for i, row in enumerate(rows):
            text = texts[row]
            log_probs, scores = scored(going.logits[i], going.logits[len(rows) + i] if guidance else None)
            chain, state = text.chain(scores)
            text.log_prob += float(log_probs[chain[0]])
            text.take(chain, state)
            guess = [] if text.ended else text.guess()
            feed = [*chain, *guess]
            feeds.append(feed[:-1] if text.ended or feed[-1] == stop else feed)
            fixed.append(len(chain))
        reading = [i for i, feed in enumerate(feeds) if feed]
        if not reading:
            break
        part = torch.tensor([h * len(rows) + i for h in range(halves) for i in reading], device=tail.mask.device)
        going = going.part(part) if len(reading) < len(rows) else going
        cache, mask, after = go_on(loaded, going, [feeds[i] for i in reading] * halves)
        staying, seen = [], []
        for j, i in enumerate(reading):
            text, feed, at = texts[rows[i]], feeds[i], fixed[i]
            known = after[j].float().log_softmax(-1)
            text.log_prob += float(sum(known[k, token] for k, token in enumerate(text.told[-at:][1:])))
            while not text.ended:
                log_probs, scores = scored(after[j][at - 1], after[len(reading) + j][at - 1] if guidance else None)
                chain, state = text.chain(scores)
                rest = feed[at:]
                if chain != rest[: len(chain)] and chain != [*rest, stop]:
                    break
                text.log_prob += float(sum(known[at - 1 + k, token] for k, token in enumerate(chain)))
                text.take(chain, state)
                at += len(chain)
            if not text.ended:
                staying.append(j)
                seen.append(at)
        if not staying:
            break
        for half in range(halves):
            for j, at in zip(staying, seen, strict=True):
                row = half * len(reading) + j
                mask[row, going.mask.shape[1] + at :] = 0
        last = [after[h * len(reading) + j][at - 1] for h in range(halves) for j, at in zip(staying, seen, strict=True)]
        part = torch.tensor([h * len(reading) + j for h in range(halves) for j in staying], device=tail.mask.device)
        everyone = Tail(torch.stack([a[-1] for a in after]), cache, mask)
        going = everyone.part(part) if len(staying) < len(reading) else everyone
        going = Tail(torch.stack(last), going.cache, going.mask)
        rows = [rows[reading[j]] for j in staying]
    return [Written([t for t in text.told if t != stop], text.log_prob, len(text.told)) for text in texts]
