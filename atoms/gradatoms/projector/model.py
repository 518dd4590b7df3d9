"""The projector: a push becomes K soft tokens that the frozen model reads and puts into words.

    x = √d · (p − b_dec)                      centred push, about unit variance a coordinate
    u_1 … u_K = MLP(x)                        d → hidden → K·d, GELU
    e_k = s · u_k / ‖u_k‖                     s = mean norm of the model's token embeddings

The model then sees, as one sequence: a header with one made-up example (it shows how an answer is written, and names no
atom), the context, ``Push:``, the K soft tokens, ``In words:``; and writes the description.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import save_whole, write_json
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.models import LoadedModel
from gradatoms.prefix import Grammar, Prefix, run_prefix
from gradatoms.projector.text import NO_PRESSURE

HEADER = "Push: mostly coffee, tea; partly red.\nIn words: mostly coffee, tea; partly red.\n\n"
QUERY = "\nPush:"
ANSWER = "\nIn words:"


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Settings of the projector and its training."""

    soft_tokens: int = 14
    """K."""
    hidden: int = 512
    warm_steps: int = 300
    """Optimiser steps of the warm start, which needs no language model."""
    steps: int = 60
    """Optimiser steps through the frozen language model."""
    batch_size: int = 32
    lr: float = 1e-3
    noise: float = 0.15
    """Share of rows whose push is replaced by Gaussian noise of the same norm; their description says there is no clear pressure."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("soft_tokens", "hidden", "warm_steps", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.noise < 1:
            raise ConfigError(f"expected noise from 0 to below 1, got {self.noise}")


class Projector(nn.Module):
    """Pushes (N, d) to soft tokens (N, K, d_model), each of the norm of a token embedding."""

    def __init__(self, d_in: int, d_model: int, norm: float, config: ProjectorConfig) -> None:
        super().__init__()
        self.config, self.d_in, self.d_model, self.norm = config, d_in, d_model, norm
        self.net = nn.Sequential(
            nn.Linear(d_in, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.soft_tokens * d_model)
        )

    def forward(self, x: Float[torch.Tensor, "N D"]) -> Float[torch.Tensor, "N K M"]:
        """Soft tokens of centred, scaled pushes ``x`` (see ``scaled``)."""
        u = self.net(x).float().view(len(x), self.config.soft_tokens, self.d_model)
        return self.norm * F.normalize(u, dim=-1)


def new_projector(loaded: LoadedModel, atoms: Atoms, config: ProjectorConfig) -> Projector:
    """An untrained projector for ``atoms`` and the model's embeddings."""
    embeddings = loaded.embeddings
    torch.manual_seed(config.seed)
    norm = float(embeddings.float().norm(dim=1).mean())
    return Projector(atoms.W_dec.shape[1], embeddings.shape[1], norm, config).to(loaded.device)


def scaled(atoms: Atoms, pushes: Float[np.ndarray, "N D"]) -> Float[torch.Tensor, "N D"]:
    """x = √d · (p − b_dec)."""
    return torch.from_numpy(np.ascontiguousarray(atoms.center(pushes) * np.sqrt(pushes.shape[1]), dtype=np.float32))


def context_prefix(loaded: LoadedModel, contexts: list[str]) -> Prefix:
    """The cached prefix of each context: header, context, query."""
    tokenize = loaded.tokenizer
    header = run_prefix(loaded, [tokenize(HEADER).input_ids])
    return run_prefix(
        loaded, [tokenize(text + QUERY, add_special_tokens=False).input_ids for text in contexts], after=header
    )


def answer_ids(loaded: LoadedModel) -> list[int]:
    """Token ids between the soft tokens and the description."""
    ids: list[int] = loaded.tokenizer(ANSWER, add_special_tokens=False).input_ids
    return ids


def description_ids(loaded: LoadedModel, parts: Sequence[str]) -> list[int]:
    """Token ids of a description given in pieces (``text.pieces``), with the line break that ends it."""
    return [
        *(i for ids in loaded.tokenizer(list(parts), add_special_tokens=False).input_ids for i in ids),
        stop_id(loaded),
    ]


def description_grammar(loaded: LoadedModel, labels: Iterable[str]) -> Grammar:
    """All descriptions that can be read back: mostly one label, perhaps partly another, or no clear pressure."""

    def ids(text: str) -> list[int]:
        found: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
        return found

    end, after_first, first, second, root = Grammar(), Grammar(), Grammar(), Grammar(), Grammar()
    end.add([*ids("."), stop_id(loaded)])
    named = [ids(f" {label}") for label in labels]
    for label in named:
        second.add(label, end)
    after_first.add([*ids("."), stop_id(loaded)])
    after_first.add(ids("; partly"), second)
    for label in named:
        first.add(label, after_first)
    root.add(ids(" mostly"), first)
    root.add(ids(f" {NO_PRESSURE}"), end)
    return root


def stop_id(loaded: LoadedModel) -> int:
    """The token that ends a description: a line break."""
    return int(loaded.tokenizer("\n", add_special_tokens=False).input_ids[-1])


def save_projector(projector: Projector, folder: Path, share: float) -> None:
    """Write weights and config into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(folder / "weights.safetensors", lambda p: save_file(projector.state_dict(), p))
    sizes = {"d_in": projector.d_in, "d_model": projector.d_model, "norm": projector.norm, "mostly_share": share}
    write_json(folder / "config.json", asdict(projector.config) | sizes)


def load_projector(folder: Path) -> tuple[Projector, float]:
    """The projector in ``folder`` and the weight that "mostly" stands for.

    Raises:
        AtomsFormatError: not there or damaged.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = {f.name for f in fields(ProjectorConfig)}
        config = ProjectorConfig(**{k: v for k, v in values.items() if k in names})
        projector = Projector(values["d_in"], values["d_model"], values["norm"], config)
        projector.load_state_dict(load_file(folder / "weights.safetensors"))
        return projector.eval(), float(values["mostly_share"])
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise AtomsFormatError(
            f"expected a trained projector in {folder}, got {type(error).__name__}: {error}; run `atoms projector train`"
        ) from error
