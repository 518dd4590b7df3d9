"""The arm ``words`` of the projector: units that a push hits, term by term, and the tokens that each of them says.

    u_tk = m̂_tk + Σ_j h_tj R_jk                              a mixture of tokens, and a correction that the likelihood learns
    m_tk = Σ_s softmax_s(60 v̂_tk·E(s)) E(s)                 E the normalised embeddings of the tokens of the descriptions
    q_1 = p − b_dec,   q_{t+1} = q_t − Σ_j h_tj (q_t·d_j) d_j        each term reads what the terms before it left over
    h_t = softmax(4β (q_t·d_j + b_j;  a_t + c_t w_{t−1}))    units start as atoms; the last one says "no clear pressure"
    w_t = Σ_j h_tj q_t·d_j
    v_tk = Σ_j h_tj [ T_jk + Σ_m hat_m(10 w_t) N_m,k−p_j ]   T_j the label's tokens, N_m those of the number m/10, which stand
                                                             behind them, from place p_j on

In the warm start h of v_tk is softmax(β …): there it is the chance that an atom leads. Taking atoms off is matching pursuit
(Mallat and Zhang 1993); the softmax over stored directions is a modern Hopfield layer (Ramsauer et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.models import LoadedModel
from gradatoms.projector.prompt import TERMS, slot_ids, token_ids, weight_ids

PARTS = ("vocabulary", "keys", "table", "numbers", "place", "units")
"""What a ``Words`` is made from, by the names of its tensors."""
_SHARP = 60.0
_BETA = 40.0
"""β at the start, for each unit of the push."""
_PICKY = 4.0


class Words(nn.Module):
    """The arm ``words``: units that are hit by a push, term by term, and the tokens that each of them says.

    Args:
        vocabulary: E.
        keys: d_j, of norm 1.
        table: T; the last row is "no clear pressure".
        numbers: N, of the weights 0.1, 0.2 … 1.0.
        place: p_j, where the weight begins behind the label.
        units: the atom of each unit.
    """

    def __init__(
        self,
        vocabulary: Float[torch.Tensor, "V M"],
        keys: Float[torch.Tensor, "J D"],
        table: Float[torch.Tensor, "J1 K M"],
        numbers: Float[torch.Tensor, "10 W M"],
        place: Int[torch.Tensor, " J"],
        units: Int[torch.Tensor, " J"],
    ) -> None:
        super().__init__()
        self.register_buffer("vocabulary", vocabulary)
        self.register_buffer("place", place)
        self.register_buffer("units", units)
        self.vocabulary: torch.Tensor
        self.place: torch.Tensor
        self.units: torch.Tensor
        self.keys, self.table, self.numbers = nn.Parameter(keys), nn.Parameter(table), nn.Parameter(numbers)
        self.corrections = nn.Parameter(torch.zeros_like(table))
        self.bias = nn.Parameter(torch.zeros(len(keys)))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        self.quiet = nn.Parameter(torch.tensor([[0.2, 0.0]] * TERMS))

    def forward(self, q: Float[torch.Tensor, "N D"], mixed: bool) -> Float[torch.Tensor, "N T K M"]:
        """û; v̂ unless ``mixed``."""
        terms, corrections, before = [], [], torch.zeros(len(q), device=q.device)
        width = self.numbers.shape[1]
        for a, c in self.quiet:
            hits = q @ self.keys.T
            beta = _BETA * self.sharpness
            chance = beta * torch.cat([hits + self.bias, (a + c * before)[:, None]], dim=1)
            sharp = (_PICKY * chance).softmax(-1)
            h = sharp if mixed else chance.softmax(-1)
            weight = sharp[:, :-1] * hits
            q = q - weight @ self.keys
            before = weight.sum(dim=1)
            v = torch.einsum("nj,jkm->nkm", h, self.table)
            said = torch.einsum("ns,swm->nwm", _hats(before), self.numbers)
            starts = torch.zeros(len(q), self.table.shape[1], device=q.device)
            starts = starts.index_add(1, self.place, h[:, :-1])
            for i in range(width):
                v = v + F.pad(starts[:, : v.shape[1] - i], (i, 0))[:, :, None] * said[:, i, None]
            terms.append(v)
            corrections.append(torch.einsum("nj,jkm->nkm", h, self.corrections))
        u = F.normalize(torch.stack(terms, dim=1).float(), dim=-1)
        if mixed:
            u = F.normalize((_SHARP * (u @ self.vocabulary.T)).softmax(-1) @ self.vocabulary, dim=-1)
            u = F.normalize(u + torch.stack(corrections, dim=1), dim=-1)
        return u

    def with_units(self, more: Words) -> Words:
        """These units, and those of ``more`` as they stand there: what an atom says is known from its label, untrained.

        A new unit is hit as easily as the trained ones are on average.
        """
        with torch.no_grad():
            mine, theirs, null = self.table[:-1], more.table[:-1], self.table[-1:]
            made = Words(
                torch.unique(torch.cat([self.vocabulary, more.vocabulary]), dim=0),
                torch.cat([self.keys, more.keys]),
                torch.cat([mine, theirs, null]),
                self.numbers.clone(),
                torch.cat([self.place, more.place]),
                torch.cat([self.units, more.units]),
            )
            made.corrections.copy_(torch.cat([self.corrections[:-1], torch.zeros_like(theirs), self.corrections[-1:]]))
            made.bias.copy_(torch.cat([self.bias, self.bias.mean().expand(len(more.keys))]))
            made.sharpness.copy_(self.sharpness)
            made.quiet.copy_(self.quiet)
        return made.to(self.keys.device)


def new_words(loaded: LoadedModel, atoms: Atoms, labels: Mapping[int, str], units: Sequence[int], k: int) -> Words:
    """Untrained units for some atoms, with the tokens of their labels in K soft tokens.

    Raises:
        ConfigError: K leaves no place for a label before its weight.
    """
    embeddings = F.normalize(loaded.embeddings.float(), dim=1)
    numbers = torch.tensor([weight_ids(loaded, n / 10) for n in range(1, 11)])
    width, table, place = numbers.shape[1], list[torch.Tensor](), list[int]()
    if k <= width:
        raise ConfigError(
            f"expected more than {width} soft tokens for a label and its weight, got {k}; use 18, or arm mlp"
        )
    none = slot_ids(loaded, None, 0.0, k)
    used = {*numbers.flatten().tolist(), *none}
    for atom in units:
        ids = slot_ids(loaded, labels[atom], 1.0, k)
        at = min(len(token_ids(loaded, f" {labels[atom]}")), k - width)
        vectors = embeddings[ids].clone()
        vectors[at : at + width] = 0
        table.append(vectors)
        place.append(at)
        used |= set(ids)
    table.append(embeddings[none].clone())
    keys = torch.from_numpy(np.asarray(atoms.W_dec[list(units)], dtype=np.float32))
    return Words(
        embeddings[sorted(used)],
        keys.to(embeddings.device),
        torch.stack(table),
        embeddings[numbers].clone(),
        torch.tensor(place),
        torch.tensor(list(units)),
    ).to(embeddings.device)


def _hats(weight: Float[torch.Tensor, " N"]) -> Float[torch.Tensor, "N 10"]:
    """Piecewise linear: how much of each weight 0.1, 0.2 … 1.0."""
    steps = torch.arange(1, 11, device=weight.device)
    return (1 - (10 * weight.clamp(0.1, 1.0)[:, None] - steps).abs()).clamp_min(0)
