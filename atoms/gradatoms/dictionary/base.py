"""What every dictionary is: unit atoms, the mean push, and a coder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.coding import Codes
from gradatoms.errors import ConfigError

C = TypeVar("C", bound="FitConfig")


@dataclass(frozen=True, kw_only=True)
class FitConfig(ABC):
    """Settings that every method shares."""

    method: ClassVar[str]

    n_atoms: int = 128
    """Atoms in the dictionary."""
    batch_size: int = 256
    """Rows a step."""
    epochs: int = 10
    """Passes over the rows."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_atoms", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")

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


class Coder(ABC):
    """From centred pushes to sparse codes."""

    @abstractmethod
    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        """Codes of centred pushes ``X``, CSR of shape (rows, n_atoms), non-negative."""


@dataclass(frozen=True)
class Atom:
    """One atom: where it lives and its unit direction in the residual stream (+atom lowers the loss of its examples)."""

    index: int
    hook: str
    direction: Float[np.ndarray, " D"]


@dataclass(frozen=True)
class Atoms:
    """A dictionary of gradient atoms.

    A push p is explained as p ≈ b_dec + Σ_a c_a · W_dec[a] with few c_a > 0.
    """

    W_dec: Float[np.ndarray, "K D"]
    """Unit atoms, shape (n_atoms, d)."""
    b_dec: Float[np.ndarray, " D"]
    """The mean push (and, for ``topk``, the learned decoder bias), shape (d,)."""
    coder: Coder
    hook: str
    config: dict[str, Any] = field(default_factory=dict)
    """What made it: method settings, versions, fingerprints of store and model, the held-out split."""
    path: Path | None = None
    """Its folder, once saved."""

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
