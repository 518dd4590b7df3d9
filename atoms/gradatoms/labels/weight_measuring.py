"""What steps of the weights do to the next token, for the evidence of atoms of weight gradients.

Each direction is taken back to a natural-gradient step (``weight_steps``), whose strength is found so that the mean KL in the
atom's own contexts is the budget; then its effect is read with the weights stepped to either side. One direction at a time, in
float32: in bfloat16 a step of a few thousandths of a weight is lost in rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.calibration import Search
from gradatoms.dictionary.base import Atoms
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.projection import dense
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import plain_attention, predict_at
from gradatoms.labels.measuring import EvidenceConfig, Measured, Pairs
from gradatoms.labels.places import Places
from gradatoms.labels.selection import Weighted
from gradatoms.lookahead import ShiftSums
from gradatoms.models import LoadedModel
from gradatoms.weight_steps import MOST, START, WeightStep, applied_step, require_weights

KINDS = ("active", "inactive", "neutral")
TOKENS = 4096
"""Padded tokens a pass."""


class WeightLookahead:
    """Directions of weight gradients, taken as steps of the weights."""

    def __init__(self, loaded: LoadedModel, atoms: Atoms) -> None:
        self.loaded, self.projection = loaded, require_weights(atoms)

    @torch.no_grad()
    def measure(
        self,
        V: Float[np.ndarray, "K D"],
        contexts: Sequence[tuple[int, ...]],
        pairs: Mapping[str, Pairs],
        places: Places,
        rows: Sequence[Weighted],
        config: EvidenceConfig,
    ) -> Measured:
        """As ``measuring.Lookahead.measure``."""
        n, device = len(V), self.loaded.device
        sums = {
            key: ShiftSums(n, self.loaded.fingerprint.vocab_size, device)
            for key in [*((kind, sign) for kind in KINDS for sign in (1.0, -1.0)), ("unseen", 1.0)]
        }
        alpha, gains = np.zeros(n), np.full((len(rows), 2), np.nan)
        for i in range(n):
            own = {kind: [contexts[c] for k, c in pairs[kind] if k == i] for kind in (*KINDS, "unseen")}
            if not own["active"]:
                continue
            step = WeightStep.of(dense(self.projection.unproject(V[i], "natural")))
            every = [ids for kind in own for ids in own[kind]]
            plain = self._next(every)
            alpha[i] = self._strength(step, own["active"], plain[: len(own["active"])], config.kl)
            mine = [j for j in range(len(rows)) if j % n == i]
            branches = [
                [b for row, _ in rows[j][: config.contexts] if row in places for b, _ in places.branches(row)]
                for j in mine
            ]
            before = [self._objective(some) for some in branches]
            for side, sign in enumerate((1.0, -1.0)):
                with applied_step(self.loaded, step, sign * alpha[i]):
                    stepped = self._next(every)
                    for j, some, J in zip(mine, branches, before, strict=True):
                        if some:
                            rows_of = len({b.example for b in some})
                            gains[j, side] = (J - self._objective(some)).sum() / rows_of
                start = 0
                for kind, ids in own.items():
                    stop = start + len(ids)
                    if ids and (kind, sign) in sums:
                        chosen = torch.full((len(ids),), i, device=device)
                        sums[kind, sign].add(chosen, plain[start:stop], stepped[start:stop])
                    start = stop
        found = {key: total.mean() for key, total in sums.items()}
        unseen = found.pop(("unseen", 1.0))
        return Measured(alpha, found, unseen, gains, [(None, None)] * n, None)

    def _strength(
        self, step: WeightStep, contexts: Sequence[tuple[int, ...]], plain: Float[torch.Tensor, "C V"], kl: float | int
    ) -> float:
        search = Search(1, float(kl), MOST, 0.05, np.asarray([START]))
        while not search.done.all():
            with applied_step(self.loaded, step, float(search.alpha[0])):
                stepped = self._next(contexts)
            effect = float((plain.exp() * (plain - stepped)).sum(-1).mean())
            search.tell(np.arange(1), np.asarray([effect]))
        return float(search.alpha[0])

    def _next(self, contexts: Sequence[tuple[int, ...]]) -> Float[torch.Tensor, "C V"]:
        """Log-probabilities of the token after each context."""
        found = torch.zeros(len(contexts), self.loaded.fingerprint.vocab_size, device=self.loaded.device)
        sequences = [TokenSequence(i, ids, (), ()) for i, ids in enumerate(contexts)]
        for group in by_budget(sequences, TOKENS):
            at = [len(s.ids) - 1 for s in group]
            found[[s.example for s in group]] = self._log_p(group, list(range(len(group))), at)
        return found

    def _objective(self, branches: Sequence[TokenSequence]) -> Float[np.ndarray, " N"]:
        """J of each sequence, nats (logits where it is of logits)."""
        found = np.zeros(len(branches))
        numbered = [TokenSequence(i, b.ids, b.terms, ()) for i, b in enumerate(branches)]
        for group in by_budget(numbered, TOKENS):
            at = [(row, *term) for row, s in enumerate(group) for term in s.terms]
            row, position, token, weight = (list(column) for column in zip(*at, strict=True))
            log_p = self._log_p(group, row, position, logits=branches[0].logit)
            values = log_p[torch.arange(len(at)), token].cpu().numpy()
            np.add.at(found, [group[r].example for r in row], -np.asarray(weight) * values)
        return found

    def _log_p(
        self, group: Sequence[TokenSequence], row: Sequence[int], position: Sequence[int], *, logits: bool = False
    ) -> Float[torch.Tensor, "P V"]:
        device = self.loaded.device
        at = predict_at(self.loaded, torch.tensor(row, device=device), torch.tensor(position, device=device))
        with plain_attention(self.loaded) if device.type == "cpu" else nullcontext(), at:
            z = self.loaded.model(input_ids=pad(group, device).ids_LS, use_cache=False).logits.float()
        return z if logits else z.log_softmax(-1)
