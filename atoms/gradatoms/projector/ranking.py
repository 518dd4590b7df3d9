"""Rank all labels for a push, as a closed set.

    s(y) = log p(y | v, ctx) − log p(y | no v, ctx),   p(y) = ½ q(y) + ½ / L

with q the reading model's probability of writing label y in the phrasing ``name``, renormalised at every token over what
still leads to a label (as constrained decoding is), so that q sums to 1 over the labels and long labels have no handicap.
What the context alone makes likely cancels. Half of p is spread over all L labels: what is less likely than chance counts as
chance. Without it (s of q itself) a label that the context makes very unlikely wins by an unlikely one under the push, one
nat being worth as much in either; recall@1 of 24 relations inside other contexts was 0.46, with it 0.92. Of the tree of
labels only the nodes where two labels part are computed, and under a push only
those likelier than chance times e^−``BELOW``: the others' p is ½ / L within 2 %.

Source of the score: pointwise mutual information, as in Holtzman et al. 2021; generation against a no-vector baseline
alone is not evidence that a vector was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.prefix import Tail, next_logits
from gradatoms.progress import Progress, silent
from gradatoms.projector.describe import Describer
from gradatoms.projector.model import inputs
from gradatoms.projector.prompt import token_ids

BELOW = 4.0
"""How far below chance, −log L, log q may fall before a branch is no longer followed under a push, nats."""


@dataclass
class _Fork:
    """A place where labels part: the tokens that lead here, and what each next token leads to."""

    path: list[int]
    labels: list[int] = field(default_factory=list)
    """All labels below."""
    ways: dict[int, int | _Fork] = field(default_factory=dict)
    """Next token to the one label it leads to, or to the next fork."""


class Ranker:
    """Scores of all labels of a describer, in the order of its labels' atoms.

    Args:
        forks: forks read at once; bounds memory.
    """

    def __init__(self, describer: Describer, forks: int = 128) -> None:
        self.describer, self._forks = describer, forks
        self.atoms = sorted(describer.labels)
        ids = [
            [*token_ids(describer.loaded, f" {describer.labels[a]}"), *token_ids(describer.loaded, ".")]
            for a in self.atoms
        ]
        self._root = _fork(ids, list(range(len(ids))), [])
        self._floor = -np.log(len(self.atoms)) - BELOW
        self._plain: dict[str, np.ndarray] = {}

    @torch.no_grad()
    def scores(
        self,
        pushes: Float[np.ndarray, "N D"],
        contexts: Sequence[str],
        *,
        batch: int = 16,
        progress: Progress = silent,
    ) -> Float[np.ndarray, "N L"]:
        """s of every label for unit pushes, each inside its context."""
        x = inputs(self.describer.atoms, self.describer.reader.projector.config, pushes)
        found = np.zeros((len(contexts), len(self.atoms)), dtype=np.float32)
        for start in range(0, len(contexts), batch):
            chosen = list(contexts[start : start + batch])
            under = self._log_q(chosen, x[start : start + batch], self._floor)
            found[start : start + batch] = _smoothed(under) - _smoothed(self.without(chosen))
            progress("ranking", min(start + batch, len(contexts)), len(contexts))
        return found

    def without(self, contexts: Sequence[str]) -> Float[np.ndarray, "N L"]:
        """log q(y | no v, ctx) of every label in each context: how it is ranked with no vector at all."""
        return np.stack([self.plain(context) for context in contexts])

    def plain(self, context: str) -> Float[np.ndarray, " L"]:
        """log q(y | no v, ctx) of every label."""
        if context not in self._plain:
            self._plain[context] = self._log_q([context], None, -np.inf)[0]
        return self._plain[context]

    def _log_q(self, contexts: list[str], x: torch.Tensor | None, floor: float) -> np.ndarray:
        reader = self.describer.reader
        found = np.full((len(contexts), len(self.atoms)), self._floor, dtype=np.float32)
        with torch.no_grad(), reader.reading():
            tail = reader.read(contexts, None if x is None else reader.soft(x), "name")
            waiting = [(row, self._root, 0.0) for row in range(len(contexts))]
            while waiting:
                now, waiting = waiting[: self._forks], waiting[self._forks :]
                for (row, fork, so_far), log_q in zip(now, self._step(tail, now), strict=True):
                    for ahead, value in zip(fork.ways.values(), log_q.tolist(), strict=True):
                        total = so_far + value
                        if isinstance(ahead, int):
                            found[row, ahead] = max(total, floor) if np.isfinite(floor) else total
                        elif total > floor:
                            waiting.append((row, ahead, total))
                        else:
                            found[row, ahead.labels] = floor
        return found

    def _step(self, tail: Tail, now: list[tuple[int, _Fork, float]]) -> list[torch.Tensor]:
        """Log-probabilities of the ways on from each fork, over these ways."""
        device = tail.mask.device
        rows = torch.tensor([row for row, _, _ in now], device=device)
        logits = next_logits(self.describer.loaded, tail, rows, [fork.path for _, fork, _ in now])
        return [
            one[list(fork.ways)].float().log_softmax(-1).cpu() for one, (_, fork, _) in zip(logits, now, strict=True)
        ]


def _smoothed(log_q: Float[np.ndarray, "N L"]) -> Float[np.ndarray, "N L"]:
    """log p."""
    return np.asarray(np.logaddexp(log_q, -np.log(log_q.shape[1])) - np.log(2), dtype=np.float32)


def _fork(ids: list[list[int]], labels: list[int], path: list[int]) -> _Fork:
    """The first place from ``path`` on where the labels part."""
    while len(labels) > 1 and len({ids[i][len(path)] for i in labels}) == 1:
        path = [*path, ids[labels[0]][len(path)]]
    fork = _Fork(path, labels)
    for token in dict.fromkeys(ids[i][len(path)] for i in labels):
        below = [i for i in labels if ids[i][len(path)] == token]
        fork.ways[token] = below[0] if len(below) == 1 else _fork(ids, below, [*path, token])
    return fork
