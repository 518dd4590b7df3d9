"""Curvature of linear modules: Kronecker factors of the Fisher matrix, streamed over documents, and their eigenbases.

For a module with inputs x_t and output gradients δ_t, and the gradient G = Σ_t δ_t x_tᵀ of a document's J:

    A = 1/N Σ_d Σ_t x xᵀ      S = 1/T Σ_d Σ_t δ δᵀ      F = E[vec(G) vec(G)ᵀ] ≈ A ⊗ S      (KFAC, arXiv 1503.05671)

N documents, T tokens. With A = Q_A Λ_A Q_Aᵀ and S = Q_S Λ_S Q_Sᵀ, component (j, i) is the direction Q_S[:, j] Q_A[:, i]ᵀ, and its
eigenvalue is λ_ji = Λ_S,j Λ_A,i; or, fitted in a second pass, λ_ji = E[(Q_Sᵀ G Q_A)_ji²], the exact diagonal of F in that basis
(EKFAC, arXiv 1806.03884). With ``fisher="sampled"`` the targets are drawn from the model, which makes F the Fisher matrix;
with ``empirical`` they are the documents' own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from gradatoms.errors import ConfigError, GradientError
from gradatoms.examples import Example
from gradatoms.gradients.batches import TokenBatch, by_budget, pad
from gradatoms.gradients.linear import LinearSite
from gradatoms.gradients.module_files import load_modules, save_modules
from gradatoms.gradients.passes import WatchedPass
from gradatoms.gradients.sequences import TokenSequence, tokenize_usable
from gradatoms.gradients.tuning import document_tokens, return_pages
from gradatoms.hooking import has_bfloat16
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

EIGENVALUES = ("kfac", "ekfac")
FISHERS = ("sampled", "empirical")
DTYPES = ("float32", "bfloat16", "auto")
_TENSORS = ("Q_A", "Q_S", "eigenvalues")
HELD = 2**24
"""Numbers of rotated gradients that are held at once."""
BATCHES = 16
"""After so many, memory that was freed goes back to the system."""


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """How curvature is measured."""

    eigenvalues: str = "kfac"
    """``kfac``, products of the factors' eigenvalues in one pass; or ``ekfac``, fitted in a second."""
    fisher: str = "sampled"
    """Targets drawn from the model (``sampled``), or the documents' own (``empirical``)."""
    examples: int = 1000
    """At most so many documents, spread evenly."""
    damping: float = 0.1
    """ε, as a share of a module's mean eigenvalue; it is added to every eigenvalue."""
    dtype: str = "float32"
    """Compute dtype: ``float32``, ``bfloat16`` autocast, or ``auto``: bfloat16 where the processor has it. Factors are float32."""
    batch_tokens: int | None = None
    """Padded tokens a batch; None: 512, on a GPU 16,384."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("eigenvalues", EIGENVALUES), ("fisher", FISHERS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"expected {name} to be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.examples < 1 or (self.batch_tokens is not None and self.batch_tokens < 1):
            raise ConfigError(
                f"expected examples and batch_tokens of at least 1, got {self.examples}, {self.batch_tokens}"
            )
        if not self.damping > 0:
            raise ConfigError(f"expected a damping above 0, got {self.damping}")


@dataclass(frozen=True)
class ModuleCurvature:
    """The eigenbasis of one module, on the CPU in float32."""

    name: str
    Q_A: Float[torch.Tensor, "I I"]
    """Eigenvectors of A as columns, from the largest eigenvalue."""
    Q_S: Float[torch.Tensor, "O O"]
    eigenvalues: Float[torch.Tensor, "O I"]
    """λ of each component, without damping."""
    epsilon: float
    """What damping adds to each."""

    def precondition(self, gradient: Float[torch.Tensor, "O I"]) -> Float[torch.Tensor, "O I"]:
        """(F + ε)⁻¹ of a gradient of the weight."""
        rotated = self.Q_S.T @ gradient.float() @ self.Q_A
        return self.Q_S @ (rotated / (self.eigenvalues + self.epsilon)) @ self.Q_A.T


@dataclass(frozen=True)
class Curvature:
    """The curvature of some modules of a model."""

    modules: tuple[ModuleCurvature, ...]
    about: dict[str, Any]
    """``model`` (its fingerprint's sha), ``examples`` (their digest), ``config``, ``documents``, ``tokens``."""

    def of(self, name: str) -> ModuleCurvature:
        """The module of this name.

        Raises:
            ConfigError: it is none of them.
        """
        for module in self.modules:
            if module.name == name:
                return module
        raise ConfigError(f"expected curvature of {name}, there is that of {len(self.modules)} other modules")

    def save(self, path: Path) -> None:
        """Write one safetensors file; it is complete or absent at any moment."""
        parts = [{key: getattr(m, key) for key in _TENSORS} for m in self.modules]
        save_modules(path, "curvature", parts, self.about | {"modules": [[m.name, m.epsilon] for m in self.modules]})

    @classmethod
    def load(cls, path: Path) -> Curvature:
        """What ``save`` wrote.

        Raises:
            AtomsFormatError: not there, damaged or something else.
        """
        parts, about = load_modules(path, "curvature", _TENSORS)
        named = zip(about.pop("modules"), parts, strict=True)
        return cls(tuple(ModuleCurvature(name=n, epsilon=e, **part) for (n, e), part in named), about)

    def is_of(self, about: dict[str, Any]) -> bool:
        """Whether it was measured of what ``about`` says (``curvature_about``)."""
        return all(self.about.get(key) == value for key, value in about.items())


def curvature_about(
    loaded: LoadedModel, examples: Sequence[Example], sites: Sequence[LinearSite], config: CurvatureConfig
) -> dict[str, Any]:
    """What identifies a curvature, before it is measured."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(json.dumps([e.prompt, e.target, e.extras()], ensure_ascii=False).encode())
    return {
        "model": loaded.fingerprint.sha,
        "examples": digest.hexdigest()[:16],
        "config": asdict(config),
        "sites": [site.name for site in sites],
    }


def fit_curvature(
    loaded: LoadedModel,
    examples: Sequence[Example],
    sites: Sequence[LinearSite],
    config: CurvatureConfig | None = None,
    *,
    progress: Progress = silent,
) -> Curvature:
    """Measure the curvature of some modules over documents; holds the factors and one batch.

    Raises:
        ConfigError: no modules; GradientError: a factor is not finite, or a module sees no gradient.
    """
    config = config or CurvatureConfig()
    if not sites:
        raise ConfigError("expected at least one linear module, got none; see --modules")
    about = curvature_about(loaded, examples, sites, config)
    step = max(1, -(-len(examples) // config.examples))
    sequences, _ = tokenize_usable(loaded, examples[::step])
    some = [branch for branches in sequences for branch in branches]
    batch_tokens = config.batch_tokens or document_tokens(loaded)
    draw = torch.Generator(device=loaded.device).manual_seed(config.seed) if config.fisher == "sampled" else None
    fast = config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16(loaded.device.type))
    passes = WatchedPass(loaded, sites, draw=draw, autocast=torch.bfloat16 if fast else None)
    A = [torch.zeros(s.d_in, s.d_in, device=loaded.device) for s in sites]
    S = [torch.zeros(s.d_out, s.d_out, device=loaded.device) for s in sites]

    def add(totals: list[torch.Tensor], number: int, rows: torch.Tensor) -> None:
        totals[number] += rows.T @ rows

    done = tokens = 0
    for group in _groups(some, batch_tokens):
        batch = pad(group, loaded.device)
        real = real_tokens(group, batch)
        passes.run(
            batch,
            lambda number, x, real=real: add(A, number, x.float()[real]),  # type: ignore[misc]
            lambda number, _, delta, real=real: add(S, number, delta.float()[real]),  # type: ignore[misc]
        )
        done, tokens = done + len(group), tokens + int(real.sum())
        progress("curvature", done, len(some))
    bases = []
    for site, a, s in zip(sites, A, S, strict=True):
        if not (torch.isfinite(a).all() and torch.isfinite(s).all()) or not s.any():
            raise GradientError(
                f"expected finite factors of {site.name}, got {'NaN or infinite ones' if s.any() else 'no gradient'}; "
                "check the model and the examples, or leave the module out"
            )
        bases.append((_eigen(a / max(1, done)), _eigen(s / max(1, tokens))))
    if config.eigenvalues == "ekfac":
        values = _fitted(passes, some, [(a[1], s[1]) for a, s in bases], batch_tokens, progress)
    else:
        values = [s[0][:, None] * a[0][None, :] for a, s in bases]
    modules = tuple(
        ModuleCurvature(site.name, a[1].cpu(), s[1].cpu(), v.cpu(), config.damping * float(v.mean()))
        for site, (a, s), v in zip(sites, bases, values, strict=True)
    )
    return Curvature(modules, about | {"documents": len(some), "tokens": tokens})


def _groups(sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """``by_budget``, giving freed memory back now and then, and at the end."""
    for i, group in enumerate(by_budget(sequences, batch_tokens)):
        if i % BATCHES == 0:
            return_pages()
        yield group
    return_pages()


def real_tokens(group: Sequence[TokenSequence], batch: TokenBatch) -> torch.Tensor:
    """Which places of a batch that is padded to the right hold a token, (L, S)."""
    lengths = torch.tensor([len(s.ids) for s in group], device=batch.ids_LS.device)
    columns = torch.arange(batch.ids_LS.shape[1], device=batch.ids_LS.device)
    return columns[None] < lengths[:, None]


def _eigen(matrix: Float[torch.Tensor, "D D"]) -> tuple[Float[torch.Tensor, " D"], Float[torch.Tensor, "D D"]]:
    """Eigenvalues from the largest, at least 0, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.flip(0).clamp_min(0).float(), vectors.flip(1).float()


def _fitted(
    passes: WatchedPass,
    sequences: Sequence[TokenSequence],
    bases: Sequence[tuple[torch.Tensor, torch.Tensor]],
    batch_tokens: int,
    progress: Progress,
) -> list[Float[torch.Tensor, "O I"]]:
    """E[(Q_Sᵀ G Q_A)²] of each component over documents."""
    total = [torch.zeros(s.d_out, s.d_in, device=q.device) for s, (q, _) in zip(passes.sites, bases, strict=True)]

    def leave(number: int, x: torch.Tensor, delta: torch.Tensor) -> None:
        site, (Q_A, Q_S) = passes.sites[number], bases[number]
        step = max(1, HELD // (site.d_in * site.d_out))
        for low in range(0, len(x), step):
            rotated = torch.einsum("bto,bti->boi", delta[low : low + step].float() @ Q_S, x[low : low + step] @ Q_A)
            total[number] += rotated.square_().sum(dim=0)

    done = 0
    for group in _groups(sequences, batch_tokens):
        passes.run(pad(group, passes.loaded.device), lambda number, x: x.float(), leave)
        done += len(group)
        progress("eigenvalues", done, len(sequences))
    return [t / max(1, done) for t in total]
