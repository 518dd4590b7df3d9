"""Harvest during somebody's own training: the activation gradients of the batches that a ``Trainer`` trains on.

The backward pass of training gives ∂L/∂h at every block for nothing; this keeps its rows. With N the number that the
model's loss is divided by (tokens of the micro-batch, or of the whole step where the Trainer tells it), and s the factor
that the Trainer puts on the loss (accumulation, loss scaling: what arrives at the loss in the backward pass),

    g = ∂J/∂h = N / s · ∂(s · L)/∂h,     J = Σ −log p(labelled tokens) of one sequence, as everywhere here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradatoms.errors import ConfigError, GradientError, OutputExistsError
from gradatoms.gradients.rows import finite_rows
from gradatoms.gradients.skipped import list_skipped
from gradatoms.hooking import edit_site
from gradatoms.models import HookSite, find_named, find_sites, fingerprint
from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, StoreHeader, StoreWriter, open_store

log = logging.getLogger(__name__)

POSITIONS = ("last", "prediction", "all")
IGNORED = -100


@dataclass
class _Pass:
    """One micro-batch on its way: rows wanted, and what the backward pass brings."""

    ids_BS: torch.Tensor
    predicted_BS: torch.Tensor
    """Whether the token after each position is labelled."""
    start_B: torch.Tensor
    """Padding to the left."""
    text_B: torch.Tensor
    """Whether the first token is labelled too: a text, not a prompt and its answer."""
    seq_R: torch.Tensor
    pos_R: torch.Tensor
    items: float
    """N."""
    scale: float | None = None
    """s."""
    loss_B: torch.Tensor | None = None
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


class HarvestCallback(TrainerCallback):
    """Writes the activation gradients of training batches to a store; ``Trainer(…, callbacks=[HarvestCallback(out)])``.

    A unit of the store is a step, an example is a sequence as it was trained on, with the weights of that step. Rows that
    are not finite are left out and listed, so that training goes on. Of several processes, the first harvests its own
    batches. A training that goes on from a checkpoint goes on with its store. Everything is committed when training
    ends; where it may be interrupted, ``with HarvestCallback(out) as callback: trainer.train()``.

    Args:
        out: path of the ``.gstore`` folder.
        hooks: names, globs, or ``all``; by default the middle of the network.
        positions: ``last`` (the last position before the labelled tokens), ``prediction`` (each that predicts a
            labelled token), or ``all`` up to the last of these.
        every: harvest each so-many-th step.
        losses: keep J of each example, which costs a pass over the logits; else it is NaN.
        commit_seconds: how often a shard is committed.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        hooks: Sequence[str] = (),
        positions: str = "prediction",
        every: int = 1,
        losses: bool = True,
        store_dtype: str = "float16",
        commit_seconds: float = 30.0,
    ) -> None:
        if positions not in POSITIONS:
            raise ConfigError(f"expected positions of {', '.join(POSITIONS)}, got {positions!r}")
        if every < 1:
            raise ConfigError(f"expected every of at least 1, got {every}")
        self.out, self.patterns, self.positions, self.every = Path(out), tuple(hooks), positions, every
        self.losses, self.store_dtype, self.commit_seconds = losses, store_dtype, commit_seconds
        self.rows = 0
        """Rows written."""
        self.seconds = 0.0
        """Time that the callback itself took, beside what its hooks take within the passes."""
        self._writer: StoreWriter | None = None
        self._sites: list[HookSite] = []
        self._undo: list[Callable[[], None]] = []
        self._passes: list[_Pass] = []
        self._current: _Pass | None = None
        self._unit: int | None = None
        self._checked = False

    def __enter__(self) -> HarvestCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is buffered, and leave the model as it was; harmless twice."""
        while self._undo:
            self._undo.pop()()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the hooks, open the store."""
        del control
        if not state.is_world_process_zero:
            return
        model = _base(kwargs["model"])
        sites = {site.name: site for site in find_sites(model)}
        mark = fingerprint(model, str(getattr(model.config, "_name_or_path", "") or type(model).__name__), sites)
        middle = f"blocks.{max(0, mark.n_layers // 2 - 1)}.hook_resid_post"
        self._sites = find_named(sites, self.patterns or (middle,), mark.name)
        self._tokenizer = kwargs.get("processing_class")
        self._batch = args.train_batch_size * args.gradient_accumulation_steps
        units = -(-state.max_steps // self.every)
        plan = [state.max_steps, self.every, self._batch, args.seed, args.data_seed]
        header = StoreHeader(
            model=mark.to_dict(),
            hooks=tuple(HookSpec(name=s.name, hf_name=s.hf_name, d=s.d) for s in self._sites),
            objective="nll",
            positions=self.positions,
            dtype=self.store_dtype,
            plan=hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
            n_units=units,
            n_examples=units * self._batch,
            seed=args.seed,
        )
        if self.out.exists() and not state.global_step:
            raise OutputExistsError(f"expected a new path, {self.out} exists; choose another or remove it")
        if self.out.exists():  # the weights have moved since it was begun, the rest must be as it was
            header = replace(header, model=open_store(self.out, lazy=True).header.model)
            self._writer = StoreWriter.resume(self.out, header)
        else:
            self._writer = StoreWriter.create(self.out, header)
        self._committed = time.monotonic()
        self._attach(model)

    def _attach(self, model: nn.Module) -> None:
        before = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = model.register_forward_hook(self._end)
        self._undo += [before.remove, after.remove]
        for site in self._sites:
            context = edit_site(site, lambda h, site=site: self._see(site, h))  # type: ignore[misc]
            context.__enter__()
            self._undo.append(lambda context=context: context.__exit__(None, None, None))  # type: ignore[misc]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Harvest this step, if it is one of those."""
        del args, control, kwargs
        self._passes, self._unit = [], None
        if self._writer is not None and state.global_step % self.every == 0:
            unit = state.global_step // self.every
            if unit not in self._writer.done_units:
                self._unit = unit

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the step's rows to the store."""
        del args, state, control, kwargs
        if self._unit is None or self._writer is None:
            return
        started = time.perf_counter()
        unit, self._unit = self._unit, None
        block, records = self._rows(unit)
        block, dropped = finite_rows(block, [], drop=True)
        list_skipped(self.out, dropped)
        self._writer.append(unit, block, records)
        self.rows += len(block.example)
        self._passes = []
        if time.monotonic() - self._committed >= self.commit_seconds:
            self._writer.flush(wait=False)
            self._committed = time.monotonic()
        self.seconds += time.perf_counter() - started

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit."""
        del args, state, control, kwargs
        self.close()

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins: which rows does it have?"""
        del args
        self._current = None
        if self._unit is None or not model.training or not torch.is_grad_enabled():
            return
        ids, labels = kwargs.get("input_ids"), kwargs.get("labels")
        if ids is None or labels is None:
            raise GradientError(
                f"expected batches with input_ids and labels, for the model's own loss, got {', '.join(sorted(kwargs))}; train "
                "without label smoothing and without a loss function of your own, or without this callback"
            )
        predicted = torch.zeros_like(labels, dtype=torch.bool)
        predicted[:, :-1] = labels[:, 1:] != IGNORED
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2:
            mask = torch.ones_like(ids)
        seq, pos = _wanted(predicted, mask.bool(), self.positions)
        items = kwargs.get("num_items_in_batch")
        count = float(items) if items is not None else float(predicted.sum())
        start = mask.long().argmax(dim=1)
        text = labels.gather(1, start[:, None])[:, 0] != IGNORED
        self._current = _Pass(ids, predicted, start, text, seq, pos, count)

    def _see(self, site: HookSite, h: torch.Tensor) -> None:
        """A hook in a pass: its rows, when the backward pass comes by."""
        current = self._current
        if current is None:
            return  # not harvested, or computed again for the backward pass
        if not h.requires_grad:  # nothing below it is trained
            h.requires_grad_(True)

        def keep(g: torch.Tensor) -> None:
            current.gradients[site.name] = g[current.seq_R, current.pos_R].detach().float()

        h.register_hook(keep)

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A pass ends: its loss, whose own gradient is the factor that the Trainer puts on it."""
        del model, args
        current, self._current = self._current, None
        if current is None:
            return
        loss, logits, value = output.loss, output.logits.detach(), float(output.loss.detach())
        if self.losses or not self._checked:
            current.loss_B = _losses(logits, current.ids_BS, current.predicted_BS)
        if not self._checked and current.loss_B is not None:
            mean = float(current.loss_B.sum()) / max(current.items, 1.0)
            if not abs(mean - value) <= 0.02 * max(abs(mean), 1e-3):
                raise GradientError(
                    f"expected the model's loss to be the mean of −log p over labelled tokens ({mean:.4f}), it is {value:.4f}; "
                    "this loss has other terms, which cannot be told apart"
                )
            self._checked = True

        def scale(g: torch.Tensor) -> None:
            current.scale = float(g)

        loss.register_hook(scale)
        self._passes.append(current)

    def _rows(self, unit: int) -> tuple[GradientBlock, list[ExampleRecord]]:
        """What the passes of a step brought."""
        parts: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
        records: list[ExampleRecord] = []
        for p in self._passes:
            if p.scale is None or p.gradients.keys() != {site.name for site in self._sites}:
                raise GradientError(
                    "expected a backward pass through every hook, found none; is the model's loss trained on?"
                )
            first = unit * self._batch + len(records)
            factor = p.items / p.scale if p.scale else 0.0
            gradients = {name: (g * factor).cpu().numpy() for name, g in p.gradients.items()}
            seq, pos = p.seq_R, p.pos_R
            following = torch.where(
                p.predicted_BS[seq, pos], p.ids_BS[seq, (pos + 1).clamp_max(p.ids_BS.shape[1] - 1)], -1
            )
            loss = torch.full((len(seq),), torch.nan) if p.loss_B is None or not self.losses else p.loss_B[seq]
            fields: dict[str, np.ndarray] = {
                "example": (first + seq).cpu().numpy().astype(np.int64),
                "position": (pos - p.start_B[seq]).cpu().numpy().astype(np.int32),
                "token": p.ids_BS[seq, pos].cpu().numpy().astype(np.int32),
                "target": following.cpu().numpy().astype(np.int32),
                "loss": loss.float().cpu().numpy(),
            }
            parts.append((gradients, fields))
            records += self._records(first, p)
        names = ("example", "position", "token", "target", "loss")
        return GradientBlock(
            gradients={s.name: np.concatenate([g[s.name] for g, _ in parts]) for s in self._sites},
            **{name: np.concatenate([f[name] for _, f in parts]) for name in names},
        ), records

    def _records(self, first: int, p: _Pass) -> list[ExampleRecord]:
        """The sequences of a pass as examples: the text to the first labelled token, and from there to the last."""
        found = []
        columns = (p.ids_BS.tolist(), p.predicted_BS.tolist(), p.start_B.tolist(), p.text_B.tolist())
        for b, (ids, predicted, start, text) in enumerate(zip(*columns, strict=True)):
            at = [i + 1 for i, flag in enumerate(predicted) if flag]
            cut, end = (at[0], at[-1] + 1) if at else (start, start)
            cut = start if text else cut
            found.append(
                ExampleRecord(
                    id=first + b,
                    prompt=self._text(ids[start:cut]),
                    target=self._text(ids[cut:end]),
                    foil=None,
                    concept=None,
                    meta="{}",
                )
            )
        return found

    def _text(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        return str(self._tokenizer.decode(ids))


def _wanted(predicted: torch.Tensor, mask: torch.Tensor, positions: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(sequence, position) pairs that become rows."""
    if positions == "prediction":
        chosen = predicted
    else:
        before_last = predicted.flip(1).cumsum(1).flip(1) > 0  # a predicted position is here or behind
        chosen = before_last & mask if positions == "all" else predicted & (predicted.cumsum(1) == 1)
    seq, pos = chosen.nonzero(as_tuple=True)
    return seq, pos


@torch.no_grad()
def _losses(logits: torch.Tensor, ids: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """J of each sequence, from the logits of its predicted positions."""
    seq, pos = predicted.nonzero(as_tuple=True)
    total = torch.zeros(len(ids), device=logits.device)
    for low in range(0, len(seq), 256):
        s, p = seq[low : low + 256], pos[low : low + 256]
        total.index_add_(0, s, F.cross_entropy(logits[s, p].float(), ids[s, p + 1], reduction="none"))
    return total


def _base(model: Any) -> Any:
    """The causal language model inside the wrappers that training puts around it."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
