"""Token sequences as padded batches, with terms and rows as flat index tensors.

Legend: B sequences, S tokens, P predicted positions, T terms, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from gradatoms.gradients.sequences import TokenSequence

PADDINGS = ("right", "masked", "left")
"""To the right without a mask, which a causal model never needs; to the right, or left, with a mask."""


@dataclass(frozen=True)
class TokenBatch:
    """Padded sequences. Positions are indices into ``ids_BS``; ``shift_B`` brings them back to those of the sequence."""

    ids_BS: Int[torch.Tensor, "B S"]
    mask_BS: Int[torch.Tensor, "B S"] | None
    """One where there is a token; None where the model needs no mask."""
    at_seq_P: Int[torch.Tensor, " P"]
    at_pos_P: Int[torch.Tensor, " P"]
    matched_P: Int[torch.Tensor, " P"]
    """One where the second model's distribution is to be met, else zero."""
    term_at_T: Int[torch.Tensor, " T"]
    """Index into the P positions."""
    term_token_T: Int[torch.Tensor, " T"]
    term_weight_T: Float[torch.Tensor, " T"]
    row_seq_R: Int[torch.Tensor, " R"]
    row_pos_R: Int[torch.Tensor, " R"]
    shift_B: Int[torch.Tensor, " B"]
    """Padding to the left of each sequence."""
    constant_B: Float[torch.Tensor, " B"]
    example_B: tuple[int, ...]
    n_tokens: int
    """Tokens without padding."""
    logit: bool
    """Whether the terms are of logits, not of log-probabilities."""

    def position_ids(self) -> Int[torch.Tensor, "B S"] | None:
        """Where each token is in its sequence; None where the model's own count is the same."""
        if not bool(self.shift_B.any()):
            return None
        return (torch.arange(self.ids_BS.shape[1], device=self.ids_BS.device) - self.shift_B[:, None]).clamp_min(0)


def by_budget(sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """Groups of similar length of at most ``batch_tokens`` padded tokens (at least one sequence each), shortest first."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(sequences[order[stop]].ids) * (stop - start + 1) <= batch_tokens:
            stop += 1
        yield [sequences[i] for i in order[start:stop]]
        start = stop


def batched(
    sequences: Sequence[TokenSequence], *, batch_tokens: int, device: torch.device, padding: str = "right"
) -> Iterator[TokenBatch]:
    """Batches of at most ``batch_tokens`` padded tokens (at least one sequence each)."""
    for group in by_budget(sequences, batch_tokens):
        yield pad(group, device, padding)


def pad(group: Sequence[TokenSequence], device: torch.device, padding: str = "right") -> TokenBatch:
    """One batch of all sequences, padded as one of PADDINGS."""
    width = max(len(s.ids) for s in group)
    shifts = [width - len(s.ids) if padding == "left" else 0 for s in group]
    ids = torch.zeros(len(group), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    places: dict[tuple[int, int], int] = {}
    terms: list[tuple[int, int, float]] = []
    for b, (sequence, shift) in enumerate(zip(group, shifts, strict=True)):
        ids[b, shift : shift + len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[b, shift : shift + len(sequence.ids)] = 1
        for position in sequence.matched:
            places.setdefault((b, position + shift), len(places))
        for position, token, weight in sequence.terms:
            terms.append((places.setdefault((b, position + shift), len(places)), token, weight))
    matched = {(b, q + shifts[b]) for b, s in enumerate(group) for q in s.matched}
    rows = [(b, position + shifts[b]) for b, s in enumerate(group) for position in s.rows]
    whole = padding == "right" or bool(mask.all())
    at_seq, at_pos = _columns(places, 2, device)
    term_at, term_token, term_weight = _columns(terms, 3, device)
    row_seq, row_pos = _columns(rows, 2, device)
    return TokenBatch(
        ids_BS=ids.to(device),
        mask_BS=None if whole else mask.to(device),
        at_seq_P=at_seq,
        at_pos_P=at_pos,
        matched_P=torch.tensor([int(place in matched) for place in places], device=device),
        term_at_T=term_at.long(),
        term_token_T=term_token.long(),
        term_weight_T=term_weight.float(),
        row_seq_R=row_seq,
        row_pos_R=row_pos,
        shift_B=torch.tensor(shifts, device=device),
        constant_B=torch.tensor([s.constant for s in group], dtype=torch.float32, device=device),
        example_B=tuple(s.example for s in group),
        n_tokens=sum(len(s.ids) for s in group),
        logit=group[0].logit,
    )


def _columns(rows: Iterable[tuple[Any, ...]], width: int, device: torch.device) -> list[torch.Tensor]:
    columns = list(zip(*rows, strict=True)) or [()] * width
    return [torch.tensor(column, device=device) if column else _none(device) for column in columns]


def _none(device: torch.device) -> torch.Tensor:
    return torch.zeros(0, dtype=torch.long, device=device)
