"""How likely a description names the right leading atom, learned on rows that nothing else was trained on.

    confidence = σ(c_0 + c_1 ℓ + c_2 m)

with ℓ the mean log-probability of the description's tokens and m = log P(pressure) − log P(no pressure), both in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

_ROWS = 20
"""Fewer rows than this, or rows that are all right or all wrong, say only how often."""


@dataclass(frozen=True)
class Confidence:
    """The fitted form; by default nothing is known: 1/2."""

    intercept: float = 0.0
    log_prob: float = 0.0
    margin: float = 0.0

    @classmethod
    def fit(
        cls, log_prob: Float[np.ndarray, " n"], margin: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
    ) -> Self:
        """From rows whose leading atom is known (logistic regression; with few or one-sided rows only the base rate)."""
        from sklearn.linear_model import LogisticRegression

        if len(right) < _ROWS or right.all() or not right.any():
            rate = (right.sum() + 1) / (len(right) + 2)
            return cls(intercept=float(np.log(rate / (1 - rate))))
        model = LogisticRegression(C=1.0).fit(_features(log_prob, margin), right)
        c1, c2 = model.coef_[0].tolist()
        return cls(float(model.intercept_[0]), c1, c2)

    def __call__(self, log_prob: float, margin: float) -> float:
        """From 0 to 1."""
        features = _features(np.asarray([log_prob]), np.asarray([margin]))[0]
        score = self.intercept + self.log_prob * features[0] + self.margin * features[1]
        return float(1 / (1 + np.exp(-score)))


def _features(log_prob: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Both clipped to where they were seen to matter: a push is not surer for a margin of 40 nats than of 20."""
    return np.stack([np.clip(log_prob, -10, 0), np.clip(margin, -20, 20) / 10], axis=1)
