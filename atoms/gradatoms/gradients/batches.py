"""Token sequences as padded batches, with terms and rows as flat index tensors.

Legend: B sequences, L lines, S tokens, P predicted positions, T terms, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

from gradatoms.gradients.sequences import TokenSequence

if TYPE_CHECKING:
    from gradatoms.gradients.sharing import Heads

PADDINGS = ("right", "masked", "left")
"""To the right without a mask, which a causal model never needs; to the right, or left, with a mask."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences in lines of tokens: token p of sequence b is in line ``line_B[b]``, column p + ``shift_B[b]``."""

    ids_LS: Int[torch.Tensor, "L S"]
    mask: torch.Tensor | None
    """(L, S), one where there is a token; or (L, 1, S, K), added to the attention scores; None where none is needed."""
    positions_LS: Int[torch.Tensor, "L S"] | None
    """Where each token is in its sequence; None where the model's own count is the same."""
    heads: Heads | None
    """Trees of tokens that come before the lines, where beginnings are shared."""
    line_B: Int[torch.Tensor, " B"]
    shift_B: Int[torch.Tensor, " B"]
    at_seq_P: Int[torch.Tensor, " P"]
    at_col_P: Int[torch.Tensor, " P"]
    matched_P: Int[torch.Tensor, " P"]
    """One where the second model's distribution is to be met, else zero."""
    term_at_T: Int[torch.Tensor, " T"]
    """Index into the P positions."""
    term_token_T: Int[torch.Tensor, " T"]
    term_weight_T: Float[torch.Tensor, " T"]
    row_seq_R: Int[torch.Tensor, " R"]
    row_col_R: Int[torch.Tensor, " R"]
    constant_B: Float[torch.Tensor, " B"]
    example_B: tuple[int, ...]
    n_tokens: int
    """Tokens of all sequences, without padding, shared ones as often as they are there."""
    logit: bool
    """Whether the terms are of logits, not of log-probabilities."""

    def places(
        self, sequence: Int[torch.Tensor, " N"], column: Int[torch.Tensor, " N"], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (line, column) on a device, of columns of sequences."""
        return self.line_B[sequence].to(device), column.to(device)


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
    """One batch of all sequences, a line each, padded as one of PADDINGS."""
    width = max(len(s.ids) for s in group)
    shifts = [width - len(s.ids) if padding == "left" else 0 for s in group]
    ids = torch.zeros(len(group), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for b, (sequence, shift) in enumerate(zip(group, shifts, strict=True)):
        ids[b, shift : shift + len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[b, shift : shift + len(sequence.ids)] = 1
    whole = padding == "right" or bool(mask.all())
    positions = (mask.cumsum(1) - 1).clamp_min(0) if any(shifts) else None
    return flat(
        group,
        device,
        ids_LS=ids,
        mask=None if whole else mask,
        line_B=list(range(len(group))),
        shift_B=shifts,
        positions_LS=positions,
    )


def flat(
    group: Sequence[TokenSequence],
    device: torch.device,
    *,
    ids_LS: torch.Tensor,
    mask: torch.Tensor | None,
    line_B: list[int],
    shift_B: list[int],
    positions_LS: torch.Tensor | None,
    heads: Heads | None = None,
) -> TokenBatch:
    """A batch of lines laid out already, with terms and rows of their sequences."""
    places: dict[tuple[int, int], int] = {}
    terms: list[tuple[int, int, float]] = []
    matched: set[tuple[int, int]] = set()
    rows: list[tuple[int, int]] = []
    for b, (sequence, shift) in enumerate(zip(group, shift_B, strict=True)):
        for position in sequence.matched:
            places.setdefault((b, position + shift), len(places))
            matched.add((b, position + shift))
        for position, token, weight in sequence.terms:
            terms.append((places.setdefault((b, position + shift), len(places)), token, weight))
        rows += [(b, position + shift) for position in sequence.rows]
    at_seq, at_col = _columns(places, 2, device)
    term_at, term_token, term_weight = _columns(terms, 3, device)
    row_seq, row_col = _columns(rows, 2, device)
    return TokenBatch(
        ids_LS=ids_LS.to(device),
        mask=None if mask is None else mask.to(device),
        positions_LS=None if positions_LS is None else positions_LS.to(device),
        heads=heads,
        line_B=torch.tensor(line_B, device=device),
        shift_B=torch.tensor(shift_B, device=device),
        at_seq_P=at_seq,
        at_col_P=at_col,
        matched_P=torch.tensor([int(place in matched) for place in places], dtype=torch.long, device=device),
        term_at_T=term_at.long(),
        term_token_T=term_token.long(),
        term_weight_T=term_weight.float(),
        row_seq_R=row_seq,
        row_col_R=row_col,
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
