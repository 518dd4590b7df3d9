"""Train the projector: a warm start on embeddings, then the likelihood of descriptions under the frozen model.

Warm start. The soft tokens are regressed, by cosine, onto the embeddings of the description's own first K tokens: the
header's example repeats in words what stands behind ``Push:``, and a language model continues such a pattern. No forward
pass of the language model is needed, and it is where most of the label is learned.

Main loss. Mean negative log-likelihood of the description's tokens, given header, a context drawn at random from other
rows (so the context says nothing about the answer), and the soft tokens. Gradients flow through the frozen model into the
projector; the prefix up to the soft tokens is computed once per batch without a graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import load_codes, save_whole
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.dictionary.pushes import Pushes, held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.models import LoadedModel
from gradatoms.prefix import Prefix, run_tail
from gradatoms.progress import Progress, silent
from gradatoms.projector.model import (
    Projector,
    ProjectorConfig,
    answer_ids,
    context_prefix,
    description_ids,
    new_projector,
    save_projector,
    scaled,
)
from gradatoms.projector.text import described_terms, pieces

_EVERY = 10
"""Steps between checkpoints."""
_CONTEXTS = 8
"""Contexts a batch; its rows draw from them."""


@dataclass(frozen=True)
class TrainingReport:
    """How training went."""

    rows: int
    warm_loss: float
    first_loss: float
    """Mean negative log-likelihood a token over the first tenth of the steps, in nats."""
    last_loss: float
    """The same over the last tenth."""


def row_terms(codes: Codes) -> list[list[tuple[int, float]]]:
    """What each row's description names."""
    bounds = zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    return [
        described_terms(list(zip(codes.indices[a:b].tolist(), codes.data[a:b].tolist(), strict=True)))
        for a, b in bounds
    ]


def train_on_store(
    loaded: LoadedModel,
    atoms: Atoms,
    config: ProjectorConfig,
    *,
    store_path: str | Path | None = None,
    progress: Progress = silent,
) -> TrainingReport:
    """Train the projector of a labelled ``.atoms`` folder on the rows its dictionary was fitted on.

    Raises:
        ConfigError: no labels yet.
        ModelMismatchError: ``loaded`` is not the model of the atoms.
    """
    require_same_model(atoms, loaded)
    folder = folder_of(atoms)
    labels = label_texts(load_labels(folder))
    if not labels:
        raise ConfigError(f"expected labelled atoms in {folder}, found no label; run `atoms label {folder}` first")
    store = store_of(atoms, store_path)
    split = atoms.config["holdout"]
    pushes = Pushes(
        store, hook=atoms.hook, rows=np.flatnonzero(~held_out_mask(store, split["fraction"], split["seed"]))
    )
    by_id = {r.id: r.prompt for r in store.examples}
    contexts = [by_id[int(i)] for i in store.rows["example"][pushes.rows]]
    codes = load_codes(folder / "codes.h5")[pushes.rows]
    return train_projector(
        loaded, atoms, pushes.all(), codes, contexts, labels, folder / "projector", config, progress=progress
    )


def train_projector(
    loaded: LoadedModel,
    atoms: Atoms,
    pushes: np.ndarray,
    codes: Codes,
    contexts: Sequence[str],
    labels: Mapping[int, str],
    folder: Path,
    config: ProjectorConfig,
    *,
    progress: Progress = silent,
) -> TrainingReport:
    """Train on rows of pushes and their codes, and save into ``folder``; an interrupted run goes on from its checkpoint.

    Args:
        pushes: unit pushes of the rows to train on, shape (rows, d).
        codes: their codes, shape (rows, n_atoms).
        contexts: prompts to describe inside of.
        labels: label of each atom; atoms without one are not described.

    Raises:
        ConfigError: no row has a labelled atom.
    """
    terms = row_terms(codes)
    usable = np.flatnonzero([any(atom in labels for atom, _ in t) for t in terms])
    if not len(usable):
        raise ConfigError("expected rows with labelled atoms, found none; run `atoms label` first")
    shares = [t[0][1] / (t[0][1] + t[1][1]) for t in terms if len(t) > 1]
    share = float(np.mean(shares)) if shares else 0.7
    projector = new_projector(loaded, atoms, config)
    x = scaled(atoms, pushes[usable]).to(loaded.device)
    run = _Run(loaded, projector, x, [pieces(terms[i], labels) for i in usable], list(dict.fromkeys(contexts)), config)
    warm, start, losses = run.restore(folder / "checkpoint.safetensors")
    if start == 0:
        warm = warm_start(loaded, projector, x, run.text_ids, run.no_pressure, progress)
        run.checkpoint(folder / "checkpoint.safetensors", warm, 0, losses)
    for step in range(start, config.steps):
        losses.append(run.step(step))
        progress("projector", step + 1, config.steps)
        if (step + 1) % _EVERY == 0:
            run.checkpoint(folder / "checkpoint.safetensors", warm, step + 1, losses)
    save_projector(projector, folder, share)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    tenth = max(1, config.steps // 10)
    return TrainingReport(len(usable), warm, float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))


def warm_start(
    loaded: LoadedModel,
    projector: Projector,
    x: torch.Tensor,
    text_ids: Sequence[Sequence[int]],
    no_pressure: Sequence[int],
    progress: Progress = silent,
) -> float:
    """Regress soft tokens onto the embeddings of the description's tokens; returns the mean 1 − cosine at the end.

    A share ``noise`` of each batch is Gaussian, and aims at "no clear pressure".
    """
    config = projector.config
    count = config.soft_tokens
    embeddings = F.normalize(loaded.embeddings.float(), dim=1)
    wanted = torch.tensor(
        [[*ids, *[ids[-1]] * count][:count] for ids in [*text_ids, no_pressure]], device=loaded.device
    )
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.05)
    batch = min(256, len(x))
    steps = config.warm_steps
    generator = torch.Generator().manual_seed(config.seed)
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        rows = torch.randint(0, len(x), (batch,), generator=generator).to(x.device)
        gauss = torch.randn(batch, x.shape[1], generator=generator).to(x.device)
        noisy = x[rows] + 0.1 * gauss
        pure = torch.rand(batch, generator=generator).to(x.device) < config.noise
        noisy = torch.where(
            pure[:, None], gauss * x[rows].norm(dim=1, keepdim=True) / gauss.norm(dim=1, keepdim=True), noisy
        )
        soft = F.normalize(projector(noisy), dim=-1)
        loss = 1 - (soft * embeddings[wanted[torch.where(pure, len(x), rows)]]).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = [*recent[-20:], loss.item()]
        progress("projector warm start", step + 1, steps)
    return float(np.mean(recent))


class _Run:
    """The state of the main loop."""

    def __init__(
        self,
        loaded: LoadedModel,
        projector: Projector,
        x: torch.Tensor,
        texts: list[list[str]],
        contexts: list[str],
        config: ProjectorConfig,
    ) -> None:
        self.loaded, self.projector, self.x, self.contexts, self.config = loaded, projector, x, contexts, config
        self.text_ids = [description_ids(loaded, text) for text in texts]
        self.no_pressure = description_ids(loaded, pieces([], {}))
        self.answer = answer_ids(loaded)
        self.optimizer = torch.optim.AdamW(projector.parameters(), lr=config.lr, weight_decay=0.01)

    def step(self, step: int) -> float:
        """One optimiser step; everything random in it comes from the seed and the step number."""
        config = self.config
        rng = np.random.default_rng([config.seed, step])
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 10) * (1 - step / config.steps)
        rows = self._rows(step)
        x, texts = self.x[rows].clone(), [self.text_ids[r] for r in rows]
        for i in np.flatnonzero(rng.random(len(rows)) < config.noise):
            noise = torch.from_numpy(rng.standard_normal(x.shape[1]).astype(np.float32)).to(x.device)
            x[i] = noise * x[i].norm() / noise.norm()
            texts[i] = self.no_pressure
        with fast_math(self.loaded):
            chosen = rng.choice(len(self.contexts), _CONTEXTS)
            prefix = context_prefix(self.loaded, [self.contexts[c] for c in chosen])
            loss = self._loss(x, texts, torch.from_numpy(rng.integers(0, _CONTEXTS, len(rows))), prefix)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.projector.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _rows(self, step: int) -> np.ndarray:
        """The rows of a step: epochs are shuffled, and rows of similar length share a batch, which saves padding."""
        size = self.config.batch_size
        per_epoch = max(1, len(self.x) // size)
        epoch, batch = divmod(step, per_epoch)
        rng = np.random.default_rng([self.config.seed, 1 << 20, epoch])
        order = np.resize(rng.permutation(len(self.x)), per_epoch * size)
        pools = [order[i : i + 8 * size] for i in range(0, len(order), 8 * size)]
        lengths = np.asarray([len(ids) for ids in self.text_ids])
        ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        return ordered.reshape(per_epoch, size)[rng.permutation(per_epoch)[batch]]

    def _loss(self, x: torch.Tensor, texts: list[list[int]], contexts: torch.Tensor, prefix: Prefix) -> torch.Tensor:
        device, width = x.device, max(len(t) for t in texts)
        before = self.config.soft_tokens + len(self.answer) - 1
        padded = torch.tensor([t + [0] * (width - len(t)) for t in texts], device=device)
        answer = self.loaded.embeddings[torch.tensor(self.answer, device=device)].expand(len(x), -1, -1)
        embeds = torch.cat([self.projector(x).to(answer.dtype), answer, self.loaded.embeddings[padded[:, :-1]]], dim=1)
        places = [(row, before + i, token) for row, text in enumerate(texts) for i, token in enumerate(text)]
        row, at, token = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
        logits = run_tail(self.loaded, prefix, contexts.to(device), embeds=embeds, at=(row, at))
        return F.cross_entropy(logits.float(), token)

    def checkpoint(self, path: Path, warm: float, step: int, losses: list[float]) -> None:
        """Weights and Adam's moments as safetensors; the rest in its metadata."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{name}": value.detach() for name, value in self.projector.named_parameters()}
        for name, parameter in self.projector.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        metadata = {"state": json.dumps({"warm": warm, "step": step, "losses": losses, "run": self._identity()})}
        save_whole(path, lambda p: save_file(tensors, p, metadata=metadata))

    def restore(self, path: Path) -> tuple[float, int, list[float]]:
        """Warm loss, next step and losses of a checkpoint of the same run; else a fresh start."""
        if not path.exists():
            return float("nan"), 0, []
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["run"] != self._identity():
                return float("nan"), 0, []
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        for name, parameter in self.projector.named_parameters():
            parameter.data.copy_(tensors[f"weight.{name}"])
            moments = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
            }
            if moments:
                self.optimizer.state[parameter] = moments
        return state["warm"], state["step"], state["losses"]

    def _identity(self) -> str:
        """A digest of what makes two runs the same: settings, rows and descriptions."""
        digest = hashlib.sha256(json.dumps([vars(self.config), self.text_ids]).encode())
        digest.update(self.x.cpu().numpy().tobytes())
        return digest.hexdigest()
