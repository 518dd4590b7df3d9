"""What every dictionary is: unit atoms, the mean push, and a coder; and what every method that learns one does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.coding import Coder, Codes
from gradatoms.dictionary.reduce import Reduce
from gradatoms.errors import ConfigError

C = TypeVar("C", bound="FitConfig")

Weighting = Literal["none", "loss", "norm", "concept"]
NOISE = 1e-2
"""Length of what is added to first atoms that are rows, so that no two are the same."""
WEIGHTINGS = ("none", "loss", "norm", "concept")


@dataclass(frozen=True, kw_only=True)
class FitConfig(ABC):
    """Settings that every method shares."""

    method: ClassVar[str]
    rotatable: ClassVar[bool] = False
    """Whether the fit of rotated rows is the rotated fit, so that few rows can be learned from in their own span."""

    n_atoms: int = 192
    """Atoms in the dictionary."""
    batch_size: int = 512
    """Rows a step; over all ranks together."""
    epochs: int = 20
    """Passes over the rows."""
    seed: int = 0
    weight: Weighting = "none"
    """What a row counts for: the same, its loss, its gradient's norm, or one over the rows of its concept."""
    patience: int = 0
    """Stop after so many passes in which the FVU of rows kept aside has not fallen by a thousandth; 0 makes all passes."""

    def __post_init__(self) -> None:
        for name in ("n_atoms", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.patience < 0:
            raise ConfigError(f"expected patience of at least 0 passes, got {self.patience}")
        if self.weight not in WEIGHTINGS:
            raise ConfigError(f"expected weight to be one of {', '.join(WEIGHTINGS)}, got {self.weight!r}")

    @abstractmethod
    def learner(self, d: int, steps: int | None, reduce: Reduce) -> Learner:
        """A fit of this kind, not begun.

        Args:
            d: coordinates of a push.
            steps: how many there will be, for what changes over the fit; None if nobody knows.
            reduce: sums over processes.
        """

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method} | {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """A checked config; unknown keys are refused.

        Raises:
            ConfigError: a key that this method does not have.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known - {"method"})
        if unknown:
            raise ConfigError(
                f"expected settings of {cls.method} ({', '.join(sorted(known))}), got {', '.join(unknown)}"
            )
        return cls(**{k: v for k, v in values.items() if k in known})

    def require_k(self, k: int) -> None:
        """Refuse a ``k`` that is not a number of these atoms."""
        if not 1 <= k <= self.n_atoms:
            raise ConfigError(f"expected k from 1 to n_atoms ({self.n_atoms}), got {k}")


class Learner(ABC):
    """A fit under way: it takes batches of centred pushes, and can be put down and taken up again."""

    reduce: Reduce
    sharded: bool = False
    """Whether ranks hold different atoms."""

    @abstractmethod
    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        """Choose first atoms, given a sample of centred pushes (as many as there are atoms, or all)."""

    @abstractmethod
    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        """Learn from one batch (this rank's share of it; it may be empty there).

        Args:
            X: centred pushes.
            weights: what each row counts for, mean 1 over all rows; None for the same.

        Returns:
            what was measured before the step, such as ``loss``, the mean squared error of a row.
        """

    def end_epoch(self) -> None:  # noqa: B027  most methods have nothing to do
        """Called after every pass."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """All that ``restore`` needs to go on to the same bytes."""

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from ``state``."""

    @abstractmethod
    def solution(self) -> Solution:
        """The dictionary as it stands."""


@dataclass(frozen=True)
class Solution:
    """What a learner has found, for centred pushes x ≈ bias + Σ_a c_a · W_dec[a]."""

    W_dec: Float[np.ndarray, "K D"]
    """Unit atoms."""
    bias: Float[np.ndarray, " D"]
    coder: Coder
    """Codes of x − bias."""

    def turned(self, basis: Float[np.ndarray, "D R"]) -> Solution:
        """The same for rows x of which x·basis was learned from (a basis of their span, R ≤ D)."""
        changes = {}
        if hasattr(self.coder, "W_dec"):
            changes["W_dec"] = self.coder.W_dec @ basis.T
        if hasattr(self.coder, "W_enc"):
            changes["W_enc"] = basis @ self.coder.W_enc
        coder = replace(self.coder, **changes)  # type: ignore[type-var]
        return Solution(np.ascontiguousarray(self.W_dec @ basis.T), basis @ self.bias, coder)


@dataclass(frozen=True)
class Atom:
    """One atom: where it lives and its unit direction in the residual stream (+atom lowers the loss of its examples)."""

    index: int
    hook: str
    direction: Float[np.ndarray, " D"]


@dataclass(frozen=True)
class Atoms:
    """A dictionary of gradient atoms.

    A push p is explained as p ≈ b_dec + Σ_a c_a · W_dec[a] with few c_a ≠ 0, and c_a > 0 unless the method is signed.
    """

    W_dec: Float[np.ndarray, "K D"]
    """Unit atoms, shape (n_atoms, d)."""
    b_dec: Float[np.ndarray, " D"]
    """The mean push (and, for sparse autoencoders, the learned decoder bias), shape (d,)."""
    coder: Coder
    hook: str
    config: dict[str, Any] = field(default_factory=dict)
    """What made it: method settings, versions, fingerprints of store and model, the held-out split."""
    path: Path | None = None
    """Its folder, once saved."""

    @property
    def space(self) -> str:
        """``activation``, or ``weights``: what the gradients are by."""
        return str(self.config.get("space", "activation"))

    def __len__(self) -> int:
        return len(self.W_dec)

    def __getitem__(self, index: int) -> Atom:
        if not 0 <= index < len(self):
            raise ConfigError(f"expected an atom from 0 to {len(self) - 1}, got {index}")
        return Atom(index, self.hook, self.W_dec[index])

    def __iter__(self) -> Iterator[Atom]:
        return (self[i] for i in range(len(self)))

    def center(self, pushes: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
        """Pushes minus ``b_dec``."""
        return pushes - self.b_dec

    def encode(self, pushes: Float[np.ndarray, "N D"]) -> Codes:
        """Sparse codes of unit pushes, CSR of shape (rows, n_atoms)."""
        return self.coder.encode(self.center(np.asarray(pushes, dtype=np.float32)))

    def decode(self, codes: Codes) -> Float[np.ndarray, "N D"]:
        """Reconstructed pushes, shape (rows, d); not normalised."""
        return np.asarray(codes @ self.W_dec) + self.b_dec
