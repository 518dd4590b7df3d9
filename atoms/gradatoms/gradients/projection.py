"""Which few components of the weight gradients are kept, and the way from them back to a step of the weights.

Of each module the components with the largest eigenvalues λ_ji (``curvature``) are kept. A document's row holds, for each,

    c_ji = (Q_Sᵀ G Q_A)_ji / √(λ_ji + ε)

G the gradient of its J by the weight: gradients in units of their own spread. An atom d (a direction of such rows, of pushes) goes
back to a step of the weights in two ways:

    sqrt      Δ = Q_S (√(λ+ε) ∘ d) Q_Aᵀ      undoes the division: d as a gradient (the paper's way, arXiv 2603.14665)
    natural   Δ = Q_S (d / √(λ+ε)) Q_Aᵀ      (F+ε)⁻¹ of that: the natural-gradient step

With kind ``random`` the sides are seeded sign matrices over √p in place of eigenvectors, and λ + ε is 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.errors import ConfigError
from gradatoms.gradients.curvature import Curvature
from gradatoms.gradients.linear import LinearSite
from gradatoms.gradients.module_files import load_modules, save_modules

FILE = "projection.safetensors"
_TENSORS = ("V_A", "V_S", "at_A", "at_S", "scale")
KINDS = ("eigen", "random")
Scaling = Literal["sqrt", "natural"]
Factors = tuple[torch.Tensor, torch.Tensor]
"""B (d_out, r) and A (r, d_in) of a step Δ = B A."""


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """Which components are kept."""

    kind: str = "eigen"
    """``eigen``, or ``random``."""
    top_k: int = 50
    """Components a module."""
    variance: float | None = None
    """Keep, of a module's ``top_k`` components, only as many as together have this share of its eigenvalues; None keeps all."""
    seed: int = 0
    """Of random sides."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"expected a projection of kind {' or '.join(KINDS)}, got {self.kind!r}")
        if self.top_k < 1:
            raise ConfigError(f"expected top_k of at least 1, got {self.top_k}")
        if self.variance is not None and not 0 < self.variance <= 1:
            raise ConfigError(f"expected a share of the variance above 0 and up to 1, got {self.variance}")


@dataclass(frozen=True)
class ModuleProjection:
    """The kept components of one module; component n is (``at_S[n]``, ``at_A[n]``)."""

    name: str
    V_A: Float[torch.Tensor, "I a"]
    V_S: Float[torch.Tensor, "O s"]
    at_A: Int[torch.Tensor, " k"]
    at_S: Int[torch.Tensor, " k"]
    scale: Float[torch.Tensor, " k"]
    """√(λ + ε)."""
    share: float
    """Of the module's eigenvalues that the kept ones have; nan of random sides."""

    def factors(self, coordinates: Float[torch.Tensor, " k"], scaling: Scaling) -> Factors:
        """The step that coordinates stand for."""
        c = coordinates * self.scale if scaling == "sqrt" else coordinates / self.scale
        return self.V_S[:, self.at_S] * c, self.V_A[:, self.at_A].T


@dataclass(frozen=True)
class Projection:
    """The kept components of all modules; a row has them end to end."""

    modules: tuple[ModuleProjection, ...]
    about: dict[str, Any]

    @property
    def d(self) -> int:
        """Width of a row."""
        return sum(len(m.scale) for m in self.modules)

    @property
    def digest(self) -> str:
        """Hex digest of bases and scales."""
        found = hashlib.sha256()
        for m in self.modules:
            found.update(m.name.encode())
            for tensor in (m.V_A, m.V_S, m.at_A, m.at_S, m.scale):
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def slices(self) -> dict[str, slice]:
        """Where each module's components are in a row."""
        found, start = {}, 0
        for m in self.modules:
            found[m.name] = slice(start, start + len(m.scale))
            start += len(m.scale)
        return found

    def unproject(self, row: Float[np.ndarray, " D"], scaling: Scaling) -> dict[str, Factors]:
        """The step of each module's weight that a row of pushes stands for, as low-rank factors."""
        if len(row) != self.d:
            raise ConfigError(f"expected {self.d} coordinates, got {len(row)}; these atoms are of another projection")
        whole = torch.from_numpy(np.asarray(row, dtype=np.float32))
        return {
            m.name: m.factors(whole[at], scaling) for m, at in zip(self.modules, self.slices().values(), strict=True)
        }

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        parts = [{key: getattr(m, key) for key in _TENSORS} for m in self.modules]
        save_modules(path, "projection", parts, self.about | {"modules": [[m.name, m.share] for m in self.modules]})

    @classmethod
    def load(cls, path: Path) -> Projection:
        """What ``save`` wrote.

        Raises:
            AtomsFormatError: not there, damaged or something else.
        """
        parts, about = load_modules(path, "projection", _TENSORS)
        named = zip(about.pop("modules"), parts, strict=True)
        return cls(tuple(ModuleProjection(name=n, share=s, **part) for (n, s), part in named), about)


def eigen_projection(curvature: Curvature, config: ProjectionConfig) -> Projection:
    """The components with the largest eigenvalues of each module."""
    modules = []
    for m in curvature.modules:
        values = m.eigenvalues.reshape(-1)
        top, index = values.topk(min(config.top_k, len(values)))
        total = float(values.sum())
        if config.variance is not None and total > 0:
            enough = torch.searchsorted(top.cumsum(0) / total, config.variance).item() + 1
            top, index = top[:enough], index[:enough]
        used_S, at_S = torch.unique(index // m.eigenvalues.shape[1], return_inverse=True)
        used_A, at_A = torch.unique(index % m.eigenvalues.shape[1], return_inverse=True)
        scale = (top + m.epsilon).sqrt()
        share = float(top.sum()) / total if total > 0 else float("nan")
        modules.append(ModuleProjection(m.name, m.Q_A[:, used_A], m.Q_S[:, used_S], at_A, at_S, scale, share))
    about = {"config": asdict(config), "curvature": {k: v for k, v in curvature.about.items() if k != "sites"}}
    return Projection(tuple(modules), about)


def random_projection(sites: Sequence[LinearSite], config: ProjectionConfig) -> Projection:
    """Sign matrices on both sides, of about ``top_k`` components a module; inner products of gradients are kept in the mean."""
    modules = []
    for site in sites:
        b = min(site.d_out, max(1, round(config.top_k**0.5)))
        a = min(site.d_in, max(1, config.top_k // b))
        V_A, V_S = (
            signs(site.name, "in", site.d_in, a, config.seed),
            signs(site.name, "out", site.d_out, b, config.seed),
        )
        at = torch.cartesian_prod(torch.arange(b), torch.arange(a)).reshape(-1, 2)
        ones = torch.ones(len(at))
        modules.append(ModuleProjection(site.name, V_A, V_S, at[:, 1].clone(), at[:, 0].clone(), ones, float("nan")))
    return Projection(tuple(modules), {"config": asdict(config)})


def signs(name: str, side: str, d: int, p: int, seed: int) -> Float[torch.Tensor, "d p"]:
    """A matrix P with E[P Pᵀ] = 1: random signs over √p; the unit matrix where p is d."""
    if p >= d:
        return torch.eye(d)
    number = int.from_bytes(hashlib.sha256(f"{seed}:{side}:{name}".encode()).digest()[:8]) >> 1
    generator = torch.Generator().manual_seed(number)
    return (torch.randint(0, 2, (d, p), generator=generator).float() * 2 - 1) / p**0.5


def dense(factors: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """Steps in full, (d_out, d_in) each."""
    return {name: B @ A for name, (B, A) in factors.items()}
