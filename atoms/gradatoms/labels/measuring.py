"""What injecting some directions does, as the evidence of their atoms tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradatoms.calibration import calibrate_all, linear
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.labels.places import Places
from gradatoms.labels.selection import Weighted
from gradatoms.lookahead import Shift, logit_lens, lookahead, stepped
from gradatoms.models import LoadedModel

Pairs = Sequence[tuple[int, int]]
"""(direction, context) indices."""


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """How evidence is gathered."""

    kl: float = 0.5
    """What an injection may change: mean KL(plain ‖ steered) of the next token in the atom's own contexts, nats."""
    contexts: int = 4
    """Contexts of each kind that an atom is injected into."""
    tokens: int = 20
    """Tokens kept of each ranking."""
    random: int = 48
    """Random directions that get the same: the null of every score."""
    context_tokens: int = 256
    """Tokens of a context at most; of longer ones the last count. Bounds memory."""
    chunk: int = 64
    """Directions at once; bounds memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kl > 0:
            raise ConfigError(f"expected a KL budget above 0 nats, got {self.kl}")
        for name, least in (("contexts", 1), ("tokens", 1), ("random", 2), ("context_tokens", 1), ("chunk", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"expected {name} of at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Measured:
    """What was measured of K directions."""

    alpha: Float[np.ndarray, " K"]
    """Strengths whose mean KL in the atoms' own contexts is the budget; 0 where an atom has none."""
    moved: dict[tuple[str, float], Shift]
    """By kind of context and sign."""
    unseen: Shift
    """In held-out contexts."""
    gains: Float[np.ndarray, "R 2"]
    """Mean gain over each list of rows, with and against the direction, nats; list i is of direction i mod K; nan without rows."""
    linear: list[tuple[float | None, float | None]]
    """Cosine with the linear prediction at α and at α/20, where there is one."""
    lens: Float[np.ndarray, "K V"] | None
    """Logit lens, where there is one."""


class Lookahead:
    """Directions of the residual stream, injected at the last token of contexts."""

    def __init__(self, loaded: LoadedModel, hook: str) -> None:
        self.loaded, self.hook = loaded, loaded.hook(hook)

    def measure(
        self,
        V: Float[np.ndarray, "K D"],
        contexts: Sequence[tuple[int, ...]],
        pairs: Mapping[str, Pairs],
        places: Places,
        rows: Sequence[Weighted],
        config: EvidenceConfig,
    ) -> Measured:
        """Measure K directions at once.

        Args:
            contexts: token ids.
            pairs: which of them each direction goes into: ``active``, ``inactive``, ``neutral``, ``unseen``.
            rows: whose gains are taken; list i is of direction i mod K.
        """
        active = pairs["active"]
        one = list({k: (k, c) for k, c in reversed(active)}.values())
        slopes = linear(self.loaded, self.hook, V, contexts, one)
        with fast_math(self.loaded):
            found = calibrate_all(
                self.loaded, self.hook, V, contexts, active, kl=config.kl,
                start=np.sqrt(2 * config.kl / np.maximum(slopes.fisher, 1e-12)),
            )  # fmt: skip
            alpha = np.nan_to_num(found.alpha, nan=0.0)
            moved: dict[tuple[str, float], Shift] = {}
            for name in ("active", "inactive", "neutral"):
                moved[name, 1.0], moved[name, -1.0] = self._twice(V, contexts, pairs[name], alpha, -alpha)
            unseen = lookahead(self.loaded, self.hook, V, contexts, pairs["unseen"], alpha=alpha)
            gains = self._gains(places, V, alpha, rows, config.contexts)
        straight, small = self._twice(V, contexts, one, alpha, alpha / 20)
        cosines: list[tuple[float | None, float | None]] = [
            (cosine(slopes.slope[i], straight.log_ratio[i], straight.p[i]), cosine(slopes.slope[i], small.log_ratio[i], small.p[i]))
            for i in range(len(V))
        ]  # fmt: skip
        return Measured(alpha, moved, unseen, gains, cosines, logit_lens(self.loaded, V))

    def _twice(
        self,
        V: Float[np.ndarray, "K D"],
        contexts: Sequence[tuple[int, ...]],
        pairs: Sequence[tuple[int, int]],
        alpha: Float[np.ndarray, " K"],
        other: Float[np.ndarray, " K"],
    ) -> tuple[Shift, Shift]:
        """The lookahead with two strengths; each context is computed once."""
        n = len(V)
        both = [pair for i, c in pairs for pair in ((i, c), (n + i, c))]
        found = lookahead(
            self.loaded, self.hook, np.concatenate([V, V]), contexts, both, alpha=np.concatenate([alpha, other])
        )
        return found.part(0, n), found.part(n, 2 * n)

    def _gains(
        self,
        places: Places,
        V: Float[np.ndarray, "K D"],
        alpha: Float[np.ndarray, " K"],
        rows: Sequence[Weighted],
        most: int,
    ) -> Float[np.ndarray, "R 2"]:
        """Mean J(h) − J(h ± α‖h‖·v) over each list of rows, nats; nan without rows. List i is of direction i mod K."""
        branches, owner = [], []
        for i, chosen in enumerate(rows):
            for row, _ in chosen[:most]:
                found = places.branches(row) if row in places else []
                branches += found
                owner += [(i, row)] * len(found)
        if not branches:
            return np.full((len(rows), 2), np.nan)
        who = np.asarray([i for i, _ in owner])
        of = who % len(V)
        steps = np.stack([V[of], -V[of]], axis=1)
        J = stepped(self.loaded, self.hook, branches, steps, eta=alpha[of]).objective
        sums, counts = np.zeros((len(rows), 2)), np.zeros(len(rows))
        np.add.at(sums, who, J[:, :1] - J[:, 1:])
        np.add.at(counts, [i for i, _ in set(owner)], 1)
        return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)


def cosine(a: Float[np.ndarray, " V"], b: Float[np.ndarray, " V"], p: Float[np.ndarray, " V"] | None = None) -> float:
    """Cosine; with probabilities ``p``, of the deviations from their means under p, weighted by p (the Fisher metric)."""
    if p is not None:
        weight = np.sqrt(np.maximum(p, 0))
        a, b = (a - p @ a) * weight, (b - p @ b) * weight
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
