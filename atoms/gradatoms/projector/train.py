"""Train the projector: a warm start on embeddings, then the likelihood of descriptions under the reading model.

Warm start. The soft tokens of each term are to be its tokens in numbers, filled up with full stops: the header's example
repeats in words what stands behind ``Push:``, and a language model continues such a pattern. No pass through the language
model is needed, and it is where most of the label is learned. With t_k the k-th token and E the normalised embeddings,

    loss = mean_k [ 1 − û_k·E(t_k) − log softmax_t(20 û_k·E(t))(t_k) ]          t over the tokens of all descriptions

Where two atoms weigh nearly the same, either may lead: P(first leads) = σ(20 (z_1 − z_2)), and the loss is the mean.

Main loss. Mean negative log-likelihood of the description's tokens, in a phrasing drawn at random, given header, context
and soft tokens. Most rows are read inside a context of other rows, which says nothing about the answer. Gradients flow
through the model into the projector (and the LoRA, if any); the prefix up to the soft tokens is computed without a graph.
Sampling is settled by the seed and the step alone, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.sparse import vstack
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import save_whole
from gradatoms.dictionary.provenance import folder_of, require_activations, require_same_model
from gradatoms.hooking import fast_math
from gradatoms.models import LoadedModel
from gradatoms.prefix import Prefix, run_tail
from gradatoms.progress import Progress, silent
from gradatoms.projector.confidence import Confidence
from gradatoms.projector.describe import Describer
from gradatoms.projector.model import (
    ProjectorConfig,
    injected,
    inputs,
    new_projector,
    noise_like,
    save_projector,
)
from gradatoms.projector.prompt import ANSWERS, TERMS, slot_ids, term_ids, token_ids
from gradatoms.projector.reader import Reader
from gradatoms.projector.rows import Rows, Splits, described, load_rows, make_splits, synthesize
from gradatoms.projector.text import PHRASINGS, Phrasing
from gradatoms.projector.words import new_words

_EVERY = 10
"""Steps through the language model between checkpoints; ten times as many of the warm start."""
_CONTEXTS = 8
"""Contexts a batch; rows that are read inside another's draw from them."""
_SHARPNESS = 20.0
"""How fast the leading atom is certain: logits per unit of code; also logits per unit of cosine in the warm start."""
_SECOND = 0.3
"""Share of rows of which the second term is read."""
_PHRASINGS = (0.4, 0.1, 0.1, 0.4)
"""How often each phrasing is trained, in the order of ``PHRASINGS``."""


@dataclass(frozen=True)
class TrainingReport:
    """How training went."""

    rows: int
    """Real rows trained on."""
    synthetic: int
    warm_loss: float
    first_loss: float
    """Mean negative log-likelihood a token over the first tenth of the steps, in nats."""
    last_loss: float
    """The same over the last tenth."""


def train_on_store(
    loaded: LoadedModel,
    atoms: Atoms,
    config: ProjectorConfig,
    *,
    store_path: str | Path | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> TrainingReport:
    """Train the projector of a labelled ``.atoms`` folder on the rows its dictionary was fitted on, save and calibrate it.

    Args:
        folder: where to save; by default ``projector/`` in the folder of ``atoms``.

    Raises:
        ConfigError: no labels yet, or nothing left to train on.
        ModelMismatchError: ``loaded`` is not the model of the atoms.
    """
    require_activations(atoms)
    require_same_model(atoms, loaded)
    folder = folder or folder_of(atoms) / "projector"
    rows = load_rows(atoms, store_path, seed=config.seed)
    splits = splits_of(rows, config)
    run = Training(loaded, atoms, rows, splits, config)
    try:
        report = run(folder, progress)
        describer = Describer(run.reader, atoms, rows.labels, Confidence())
        confidence = describer.calibrated(rows, np.flatnonzero(splits.calibrate), config.seed)
        save_projector(run.projector, folder, {"confidence": asdict(confidence)}, run.lora())
    finally:
        run.reader.close()
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return report


def splits_of(rows: Rows, config: ProjectorConfig) -> Splits:
    """Which rows a projector of this config was, or will be, trained on."""
    return make_splits(
        rows,
        concepts=config.hold_concepts,
        targets=config.hold_targets,
        contexts=config.hold_contexts,
        seed=config.seed,
    )


class Training:
    """One training run, on the rows of ``splits.train``."""

    def __init__(self, loaded: LoadedModel, atoms: Atoms, rows: Rows, splits: Splits, config: ProjectorConfig) -> None:
        rng = np.random.default_rng([config.seed, 3])
        real = np.flatnonzero(splits.train)
        if len(real) > config.most_rows:
            real = np.sort(rng.choice(real, config.most_rows, replace=False))
        self.loaded, self.atoms, self.config, self.labels = loaded, atoms, config, rows.labels
        self.pushes, codes = _with_synthetic(atoms, rows, real, splits.hidden_atoms, config, rng)
        self.real = len(real)
        self.projector = new_projector(loaded, atoms, config)
        self.reader = Reader(loaded, self.projector)
        self.x = inputs(atoms, config, self.pushes)
        self.terms, self.weights = described(codes)
        unlabelled = ~np.isin(self.terms, list(rows.labels))
        self.terms[unlabelled], self.weights[unlabelled] = -1, 0
        self.prompts = [rows.prompts[int(i)] for i in real]
        inside = np.flatnonzero(splits.inside)
        self.contexts = list(dict.fromkeys(rows.prompts[int(i)] for i in inside)) or self.prompts
        self.losses: list[float] = []
        self._moments: dict[str, dict[str, torch.Tensor]] = {}
        self.slots = _Slots(self)
        if config.arm == "words":
            units = np.unique(self.terms[self.terms >= 0]).tolist()
            self.projector.words = new_words(loaded, atoms, rows.labels, units, config.soft_tokens)

    def __call__(self, folder: Path, progress: Progress = silent) -> TrainingReport:
        """Train, with a checkpoint in ``folder`` that an interrupted run goes on from."""
        config, path = self.config, folder / "checkpoint.safetensors"
        trained = config.arm != "none" or config.lora_rank > 0
        warm, steps = (config.warm_steps if config.arm != "none" else 0), (config.steps if trained else 0)
        done = self._restore(path)
        for step in range(done, warm + steps):
            if step in (done, warm):
                optimizer = self._optimizer(step)
            loss = self.slots.step(step, optimizer) if step < warm else self._read(step - warm, optimizer)
            self.losses.append(loss)
            if step < warm:
                progress("projector warm start", step + 1, warm)
            else:
                progress("projector", step + 1 - warm, steps)
            if (step + 1) % (_EVERY if step >= warm else 10 * _EVERY) == 0:
                self._checkpoint(path, step + 1, optimizer)
        main = self.losses[warm:]
        tenth = max(1, len(main) // 10)

        def mean(losses: Sequence[float]) -> float:
            return float(np.mean(losses)) if losses else float("nan")

        return TrainingReport(
            self.real,
            len(self.pushes) - self.real,
            mean(self.losses[:warm][-20:]),
            mean(main[:tenth]),
            mean(main[-tenth:]),
        )

    def lora(self) -> dict[str, torch.Tensor]:
        """The LoRA's weights by name."""
        return {name: p.detach() for name, p in self.reader.lora_parameters().items()}

    def order(self, rows: Int[np.ndarray, " B"], rng: np.random.Generator) -> list[list[tuple[str, float]]]:
        """(label, weight) terms of rows; which of two nearly equal atoms leads is drawn."""
        found = []
        swapped = rng.random(len(rows)) > first_leads(self.weights[rows])
        for row, swap in zip(rows, swapped, strict=True):
            terms = [
                (self.labels[int(a)], float(w))
                for a, w in zip(self.terms[row], self.weights[row], strict=True)
                if a >= 0
            ]
            found.append(terms[::-1] if swap else terms)
        return found

    def _read(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """One optimiser step through the language model."""
        config = self.config
        rng = np.random.default_rng([config.seed, 5, step])
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * min(1.0, (step + 1) / 10) * (1 - step / config.steps)
        n = config.batch_size
        rows = rng.choice(len(self.x), n)
        kind = rng.random(n)
        clean = config.clean if config.lora_rank else 0.0
        noisy, empty = np.flatnonzero(kind < config.noise), (kind >= config.noise) & (kind < config.noise + clean)
        terms, x = self.order(rows, rng), self.x[rows].clone()
        if len(noisy):
            x[noisy] = inputs(self.atoms, config, noise_like(self.atoms, self.pushes[rows[noisy]], rng))
        for i in [*noisy, *np.flatnonzero(empty)]:
            terms[i] = []
        phrasing = PHRASINGS[rng.choice(len(PHRASINGS), p=_PHRASINGS)]
        part = (rng.random(n) < _SECOND).astype(np.int64)
        told = [t[k] if k < len(t) else (None, 0.0) for t, k in zip(terms, part, strict=True)]
        texts = [term_ids(self.loaded, label, weight, phrasing) for label, weight in told]
        contexts = [self.contexts[i] for i in rng.choice(len(self.contexts), _CONTEXTS)]
        where = rng.integers(0, _CONTEXTS, n)
        for i in np.flatnonzero((rng.random(n) < config.own) & (rows < self.real)):
            where[i] = len(contexts)
            contexts.append(self.prompts[rows[i]])
        with self.reader.reading():
            prefix = self.reader.prefix(contexts, phrasing, fresh=config.lora_rank > 0)
            u = self.projector(x.to(self.loaded.device))[torch.arange(n), torch.from_numpy(part)]
            u = u * torch.from_numpy(~empty).to(u.device)[:, None, None]
            with injected(self.loaded, self.projector, u) as soft:
                loss = self._likelihood(soft, texts, phrasing, prefix, torch.from_numpy(where).to(soft.device))
            optimizer.zero_grad()
            loss.backward()  # within: a LoRA that is off again takes up no gradient
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        return loss.item()

    def _likelihood(
        self, soft: torch.Tensor, texts: list[list[int]], phrasing: Phrasing, prefix: Prefix, rows: torch.Tensor
    ) -> torch.Tensor:
        """Mean negative log-likelihood of the tokens of the descriptions."""
        device, answer = soft.device, token_ids(self.loaded, ANSWERS[phrasing])
        width = max(len(ids) for ids in texts) - 1
        padded = torch.tensor([[*answer, *ids[:-1], *[0] * (width + 1 - len(ids))] for ids in texts], device=device)
        first = soft.shape[1] + len(answer) - 1
        places = [(row, first + i, token) for row, ids in enumerate(texts) for i, token in enumerate(ids)]
        row, at, token = (torch.tensor(column, device=device) for column in zip(*places, strict=True))
        embeds = torch.cat([soft, self.loaded.embeddings[padded].to(soft.dtype)], dim=1)
        logits = run_tail(self.loaded, prefix, rows, embeds=embeds, at=(row, at))
        return F.cross_entropy(logits.float(), token)

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        lora = {f"lora.{name}": p for name, p in self.reader.lora_parameters().items()}
        return dict(self.projector.named_parameters()) | lora

    def _optimizer(self, step: int) -> torch.optim.Optimizer:
        """AdamW over what is trained: in the warm start the projector alone. Takes up moments that a checkpoint left."""
        warm = step < self.config.warm_steps and self.config.arm != "none"
        parameters = self._parameters()
        lora = [p.requires_grad_(not warm) for name, p in parameters.items() if name.startswith("lora.")]
        fresh = [p for name, p in parameters.items() if name == "words.corrections"]
        own = [p for name, p in parameters.items() if not name.startswith("lora.") and name != "words.corrections"]
        groups = [{"params": own, "most": self.config.lr}, {"params": [*fresh, *lora], "most": self.config.lora_lr}]
        groups = [group for group in groups[: 1 if warm else 2] if group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.05 if warm else 0.01)
        for name, moments in self._moments.items():
            optimizer.state[parameters[name]] = moments
        self._moments = {}
        return optimizer

    def _checkpoint(self, path: Path, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Weights and Adam's moments as safetensors; the rest in its metadata."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, parameter in self._parameters().items():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        state = {"step": step, "losses": self.losses, "run": self._identity()}
        save_whole(path, lambda p: save_file(tensors, p, metadata={"state": json.dumps(state)}))

    def _restore(self, path: Path) -> int:
        """Take up a checkpoint of the same run; returns the next step, 0 for a fresh start."""
        if not path.exists():
            return 0
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["run"] != self._identity():
                return 0
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        for name, parameter in self._parameters().items():
            parameter.data.copy_(tensors[f"weight.{name}"])
            moments = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
            }
            if moments and state["step"] != self.config.warm_steps:
                self._moments[name] = moments
        self.losses = state["losses"]
        return int(state["step"])

    def _identity(self) -> str:
        """A digest of what makes two runs the same: settings, rows and descriptions."""
        digest = hashlib.sha256(json.dumps([asdict(self.config), sorted(self.labels.items())]).encode())
        digest.update(self.pushes.tobytes())
        digest.update(self.terms.tobytes())
        return digest.hexdigest()


class _Slots:
    """The warm start: which token each soft token is to be."""

    def __init__(self, run: Training) -> None:
        self.run = run
        loaded, k = run.loaded, run.config.soft_tokens
        device = loaded.device
        self.leads = torch.from_numpy(first_leads(run.weights).astype(np.float32))

        def row(terms: list[tuple[str, float]]) -> list[list[int]]:
            """The tokens of every term's soft tokens."""
            told = [*terms, *[(None, 0.0)] * TERMS][:TERMS]
            return [slot_ids(loaded, label, weight, k) for label, weight in told]

        ordered = [
            [(run.labels[int(a)], float(w)) for a, w in zip(atoms, weights, strict=True) if a >= 0]
            for atoms, weights in zip(run.terms, run.weights, strict=True)
        ]
        texts = torch.tensor([*(row(t) for t in ordered), *(row(t[::-1]) for t in ordered), row([])])
        used, where = torch.unique(texts, return_inverse=True)
        self.vocabulary = F.normalize(loaded.embeddings[used.to(device)].float(), dim=1)
        self.wanted, self.swapped, self.none = where[: len(ordered)], where[len(ordered) : -1], where[-1]

    def step(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """One optimiser step."""
        run, config = self.run, self.run.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20) * (1 - step / config.warm_steps)
        n = config.warm_batch
        rows = torch.randint(0, len(run.x), (n,), generator=generator)
        x = run.x[rows]
        noisy = torch.rand(n, generator=generator) < config.noise
        if config.arm == "code":
            x = x + 0.1 * torch.randn(x.shape, generator=generator) * (x != 0)
            if noisy.any():
                rng = np.random.default_rng([config.seed, 9, step])
                x[noisy] = inputs(run.atoms, config, noise_like(run.atoms, run.pushes[rows[noisy].numpy()], rng))
        else:
            gauss = torch.randn(x.shape, generator=generator)
            pure = gauss * (x.norm(dim=1, keepdim=True) / gauss.norm(dim=1, keepdim=True))
            x = torch.where(noisy[:, None], pure, x + 0.3 * gauss)
        leads = torch.where(noisy, 1.0, self.leads[rows])
        wanted = torch.where(noisy[:, None, None], self.none, self.wanted[rows])
        with fast_math(run.loaded):
            cosines = (run.projector(x.to(run.loaded.device), mixed=False) @ self.vocabulary.T).float()
        losses = 1 - cosines - (_SHARPNESS * cosines).log_softmax(-1)
        one, two = (
            losses.gather(3, ids[..., None].to(losses.device)).flatten(1).mean(1)
            for ids in (wanted, self.swapped[rows])
        )
        leads = leads.to(losses.device)
        loss = (leads * one + (1 - leads) * two).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


def first_leads(weights: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """How likely the first of two atoms leads the description: σ(20 (z_1 − z_2)); 1 where there is no second."""
    chance = 1 / (1 + np.exp(-_SHARPNESS * (weights[:, 0] - weights[:, 1])))
    return np.where(weights[:, 1] > 0, chance, 1.0)


def _with_synthetic(
    atoms: Atoms,
    rows: Rows,
    real: Int[np.ndarray, " r"],
    hidden: Int[np.ndarray, " h"],
    config: ProjectorConfig,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "n D"], Codes]:
    """The real rows, then synthetic ones; none of them names a hidden atom."""
    pushes, codes = rows.pushes[real], rows.codes[real]
    count = min(config.synthetic * len(real), config.most_rows)
    if count == 0:
        return pushes, codes
    made, coded = synthesize(atoms, pushes, codes, count, rng)
    named = described(coded)[0]
    kept = np.flatnonzero(
        (named[:, 0] >= 0) & np.isin(named[:, 0], list(rows.labels)) & ~np.isin(named, hidden).any(axis=1)
    )
    return np.concatenate([pushes, made[kept]]), vstack([codes, coded[kept]], format="csr")
