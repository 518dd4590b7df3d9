"""The projector: for each of TERMS terms, a push becomes K soft tokens that the model reads and puts into words.

    x = √d · (p − b_dec)                  centred push, about unit variance a coordinate
    x = 4 · z                             arm ``code``: the sparse code of the push instead
    û_k = u_k / ‖u_k‖                     u_1 … u_K of each term, all of width d_model, by arm:

    none        u_k = x                   untrained; needs d = d_model
    affine      u_k = a_k x + c_k         a_k a number, c_k a vector; needs d = d_model
    lowrank     u_k = B_k A x + c_k       A: d → rank
    mlp, code   u_k = W_k GELU(A x + a) + c_k      A: d → hidden; starts with the atoms among the rows of A, save ``code``
    words       units that each say the tokens of one atom's label: ``projector/words.py``

Injection. At the embedding the K placeholder tokens are replaced, e_k = s û_k with s the mean norm of the model's token
embeddings. After block b, ``block=b``, the placeholders stay and the step is added to what block b passes on,
h_k ← h_k + ‖h_k‖ û_k, so that a push never outweighs what it is added to (replacing blew norms up 20–100,000 times;
Activation Oracles, Karvonen et al. 2025). No vector at all leaves the placeholders as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import save_whole, write_json
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.hooking import edit_output
from gradatoms.models import LoadedModel
from gradatoms.projector.prompt import PLACEHOLDER, TERMS, token_ids
from gradatoms.projector.words import PARTS, Words

Arm = Literal["none", "affine", "lowrank", "mlp", "words", "code"]


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Settings of the projector, its training, and what training must not see."""

    arm: Arm = "words"
    soft_tokens: int = 18
    """K."""
    hidden: int = 768
    rank: int = 32
    """Of the arm ``lowrank``."""
    block: int | None = None
    """Inject after this block (0 is the first); None: at the embedding."""
    lora_rank: int = 0
    """Rank of a LoRA on the reading model; 0: the model is frozen. Gradients are always taken without it."""
    warm_steps: int = 300
    """Optimiser steps of the warm start, which needs no language model."""
    warm_batch: int = 128
    steps: int = 30
    """Optimiser steps through the language model."""
    batch_size: int = 24
    lr: float = 1e-4
    """Of the projector behind the warm start; ten times as much undoes it."""
    lora_lr: float = 1e-3
    """Of what starts at zero: the LoRA, and the corrections of the arm ``words``."""
    own: float = 0.25
    """Share of rows described inside their own context; the others, noise aside, are inside another's (mismatch)."""
    noise: float = 0.15
    """Share of rows whose push is Gaussian, of the same norm: "no clear pressure"."""
    clean: float = 0.1
    """Share of rows with no vector, in training with a LoRA (a frozen model cannot learn from them): "no clear pressure"."""
    synthetic: int = 4
    """Synthetic rows for each real one."""
    most_rows: int = 50_000
    """Rows that are trained on at most, and synthetic ones at most; bounds memory."""
    hold_concepts: float = 0.15
    """Share of the concepts that is held out of training, to test on."""
    hold_targets: float = 0.15
    hold_contexts: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arm not in get_args(Arm):
            raise ConfigError(f"expected arm {', '.join(get_args(Arm))}, got {self.arm!r}")
        for name in ("soft_tokens", "hidden", "rank", "warm_batch", "batch_size", "most_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("lora_rank", "warm_steps", "steps", "synthetic"):
            if getattr(self, name) < 0:
                raise ConfigError(f"expected {name} of at least 0, got {getattr(self, name)}")
        for name in ("own", "noise", "clean", "hold_concepts", "hold_targets", "hold_contexts"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"expected {name} from 0 to below 1, got {getattr(self, name)}")
        if self.noise + self.clean >= 1:
            raise ConfigError(f"expected noise and clean below 1 together, got {self.noise} and {self.clean}")
        for name in ("lr", "lora_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"expected {name} above 0, got {getattr(self, name)}")


class Projector(nn.Module):
    """Inputs (N, d_in) to directions (N, TERMS, K, d_model) of norm 1.

    Args:
        d_in: width of a push, or atoms in a code (arm ``code``).
        norm: s, the norm of a soft token.

    Raises:
        ConfigError: an arm that needs d_in = d_model has another width.
    """

    def __init__(self, d_in: int, d_model: int, norm: float, config: ProjectorConfig) -> None:
        super().__init__()
        self.config, self.d_in, self.d_model, self.norm = config, d_in, d_model, norm
        self.net: nn.Sequential
        k = TERMS * config.soft_tokens
        if config.arm in ("none", "affine") and d_in != d_model:
            raise ConfigError(
                f"expected pushes of the model's width {d_model} for arm {config.arm}, got {d_in}; use mlp"
            )
        self.words: Words | None = None
        """Of the arm ``words``: what is trained, once it is known which atoms are named."""
        if config.arm == "affine":
            self.scale = nn.Parameter(torch.ones(k, 1))
            self.shift = nn.Parameter(torch.zeros(k, d_model))
        elif config.arm == "lowrank":
            self.net = nn.Sequential(nn.Linear(d_in, config.rank, bias=False), nn.Linear(config.rank, k * d_model))
        elif config.arm in ("mlp", "code"):
            self.net = nn.Sequential(nn.Linear(d_in, config.hidden), nn.GELU(), nn.Linear(config.hidden, k * d_model))

    def forward(self, x: Float[torch.Tensor, "N D"], *, mixed: bool = True) -> Float[torch.Tensor, "N T K M"]:
        """û of inputs ``x`` (see ``inputs``); of the arm ``words``, v̂ unless ``mixed``."""
        k = TERMS * self.config.soft_tokens
        if self.config.arm == "words":
            assert self.words is not None
            return self.words(x / self.d_in**0.5, mixed)
        if self.config.arm == "none":
            u = x[:, None].expand(-1, k, -1)
        elif self.config.arm == "affine":
            u = self.scale * x[:, None] + self.shift
        else:
            u = self.net(x).view(len(x), k, self.d_model)
        return F.normalize(u.float(), dim=-1).unflatten(1, (TERMS, self.config.soft_tokens))

    def start_at(self, atoms: Atoms) -> None:
        """Arm ``mlp``: the first rows of A become the atoms, scaled like the other rows' input."""
        first = self.net[0]
        assert isinstance(first, nn.Linear)
        count = min(len(atoms), self.config.hidden)
        with torch.no_grad():
            first.weight[:count] = 0.3 * torch.from_numpy(np.asarray(atoms.W_dec[:count], dtype=np.float32))


def new_projector(loaded: LoadedModel, atoms: Atoms, config: ProjectorConfig) -> Projector:
    """An untrained projector for ``atoms`` and the model's embeddings."""
    embeddings = loaded.embeddings
    torch.manual_seed(config.seed)
    norm = float(embeddings.float().norm(dim=1).mean())
    d_in = len(atoms) if config.arm == "code" else atoms.W_dec.shape[1]
    projector = Projector(d_in, embeddings.shape[1], norm, config)
    if config.arm == "mlp":
        projector.start_at(atoms)
    return projector.to(loaded.device)


def inputs(atoms: Atoms, config: ProjectorConfig, pushes: Float[np.ndarray, "N D"]) -> Float[torch.Tensor, "N I"]:
    """x of unit pushes: √d (p − b_dec), or for the arm ``code`` 4 z."""
    if config.arm == "code":
        return torch.from_numpy(4 * np.asarray(atoms.encode(pushes).toarray(), dtype=np.float32))
    return torch.from_numpy(np.ascontiguousarray(atoms.center(pushes) * np.sqrt(pushes.shape[1]), dtype=np.float32))


def noise_like(atoms: Atoms, pushes: Float[np.ndarray, "N D"], rng: np.random.Generator) -> Float[np.ndarray, "N D"]:
    """Gaussian directions with the norm of each centred push, around the mean push: what no pressure looks like."""
    g = rng.standard_normal(pushes.shape).astype(np.float32)
    g *= np.linalg.norm(atoms.center(pushes), axis=1, keepdims=True) / np.linalg.norm(g, axis=1, keepdims=True)
    return (g + atoms.b_dec).astype(np.float32)


def placeholders(loaded: LoadedModel, projector: Projector, rows: int) -> Float[torch.Tensor, "R K M"]:
    """The embeddings of the placeholder tokens: what stands there when there is no vector."""
    token = token_ids(loaded, PLACEHOLDER)[-1]
    return loaded.embeddings[token].expand(rows, projector.config.soft_tokens, -1)


@contextmanager
def injected(
    loaded: LoadedModel, projector: Projector, u: Float[torch.Tensor, "R K M"]
) -> Iterator[Float[torch.Tensor, "R K M"]]:
    """Yields the embeddings to read in place of the K placeholders; while open, pushes enter after their block too.

    Args:
        u: what the projector gives; a row of zeros is no vector.
    """
    plain = placeholders(loaded, projector, len(u))
    if projector.config.block is None:
        empty = (u == 0).all(dim=2).all(dim=1)[:, None, None]
        yield torch.where(empty, plain, (projector.norm * u).to(plain.dtype))
        return

    def add(h: torch.Tensor) -> torch.Tensor:
        k = u.shape[1]
        at = h[:, :k]
        return torch.cat([at + at.norm(dim=-1, keepdim=True) * u.to(h.dtype), h[:, k:]], dim=1)

    with edit_output(block_of(loaded, projector.config.block), add):
        yield plain


def block_of(loaded: LoadedModel, number: int) -> nn.Module:
    """A block of the model, 0 being the first.

    Raises:
        ConfigError: no such block.
    """
    sites = {site.layer: site.block for site in loaded.hooks.values()}
    if number not in sites:
        raise ConfigError(f"expected block from 0 to {max(sites)}, got {number}")
    return sites[number]


def save_projector(projector: Projector, folder: Path, extra: dict[str, Any], lora: dict[str, torch.Tensor]) -> None:
    """Write weights and config into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = projector.state_dict() | {f"lora.{name}": value.contiguous() for name, value in lora.items()}
    weights |= {"norm": torch.tensor(projector.norm)}
    save_whole(folder / "weights.safetensors", lambda p: save_file(weights, p))
    sizes = {"d_in": projector.d_in, "d_model": projector.d_model, "norm": projector.norm}
    write_json(folder / "config.json", asdict(projector.config) | sizes | extra)


def load_projector(folder: Path) -> tuple[Projector, dict[str, Any], dict[str, torch.Tensor]]:
    """The projector in ``folder``, what else its config says, and the reading model's LoRA (empty where it is frozen).

    Raises:
        AtomsFormatError: not there or damaged.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = {f.name for f in fields(ProjectorConfig)}
        config = ProjectorConfig(**{k: v for k, v in values.items() if k in names})
        projector = Projector(values["d_in"], values["d_model"], values["norm"], config)
        weights = load_file(folder / "weights.safetensors")
        weights.pop("norm")
        if config.arm == "words":
            projector.words = Words(*(weights[f"words.{part}"] for part in PARTS))
        lora = {k.removeprefix("lora."): weights.pop(k) for k in list(weights) if k.startswith("lora.")}
        projector.load_state_dict(weights)
        return projector.eval(), values, lora
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise AtomsFormatError(
            f"expected a trained projector in {folder}, got {type(error).__name__}: {error}; run `atoms projector train`"
        ) from error
