"""Harvest: examples in, a gradient store out, resumable unit by unit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gradatoms.errors import ConfigError, GradientError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.gradients.plan import HarvestPlan, make_plan
from gradatoms.gradients.residual import (
    OBJECTIVES,
    POSITIONS,
    BatchGradients,
    TokenBatch,
    TokenSequence,
    batch_gradients,
    batched,
    tokenize,
)
from gradatoms.models import HookSite, LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import (
    ExampleRecord,
    GradientBlock,
    HookSpec,
    Store,
    StoreExistsError,
    StoreHeader,
    StoreMismatchError,
    StoreNotFoundError,
    StoreWriter,
    discard_empty,
    open_store,
)

_DEPENDENCE = 0.02
"""Relative change of J, or of a gradient's length and direction, that is not rounding; float32 gives about 1e-5."""

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What is harvested, and how."""

    hooks: tuple[str, ...] = ()
    """Hook names, globs, or ``all``; empty for the middle of the network."""
    objective: str = "nll"
    positions: str = "last"
    dtype: str = "float32"
    """Compute dtype: ``float32``, or ``bfloat16`` autocast (faster where the processor has it; cosine about 0.999)."""
    store_dtype: str = "float16"
    """Dtype of the stored unit directions."""
    batch_tokens: int = 1024
    """Padded tokens in a batch; bounds memory."""
    unit_examples: int = 512
    """Examples in a unit of work; a resume starts at the first unit that is not committed."""
    commit_seconds: float = 30.0
    """A shard is committed, in the background, when it is full or this much time has passed: what a kill can cost."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("objective", OBJECTIVES), ("positions", POSITIONS), ("dtype", COMPUTE_DTYPES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_tokens", "unit_examples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class HarvestReport:
    """What one call of ``harvest`` did; a resumed call counts only its own work."""

    rows: int
    tokens: int
    """Tokens processed, without padding."""
    seconds: float
    dtype: str
    fidelity: float | None
    """Lowest cosine between bfloat16 and float32 gradients over the first batch; None in float32."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def harvest(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: str | Path,
    config: HarvestConfig,
    *,
    resume: bool = False,
    progress: Progress = silent,
    planned: Callable[[HarvestPlan], None] | None = None,
) -> HarvestReport:
    """Write the gradients of ``examples`` to the store ``out``.

    Args:
        out: path of the ``.gstore`` folder.
        resume: go on with an existing store of the same model, examples and settings, also while other processes do;
            each unit is harvested by one. Without it an existing path is refused.
        planned: told what there is to do, before it is begun.

    Raises:
        OutputExistsError: ``out`` is taken and ``resume`` is off.
        StoreMismatchError: ``out`` was made from something else (the differing fields are named).
        GradientError: a gradient is NaN or infinite, or depends on the batch that it is computed in; a store that this
            call created goes too, if it is still empty.
    """
    out = Path(out)
    task = _Task.of(loaded, examples, out, config, resume=resume)
    hooks, sequences, units, autocast = task.hooks, task.sequences, task.units, task.autocast
    fresh = not out.exists()
    writer = _writer(out, task.header, resume=resume)
    rows, tokens, seconds, fidelity, independent = 0, 0, 0.0, None, False
    done = sum(len(units[u]) for u in writer.done_units)
    committed = time.monotonic()
    try:
        with writer:
            if planned is not None:
                planned(task.plan(loaded, examples, out, writer.done_units))
            for number in writer.units():
                unit = units[number]
                branches = [branch for i in unit for branch in sequences[i]]
                found: list[BatchGradients] = []
                for batch in batched(branches, batch_tokens=config.batch_tokens, device=loaded.device):
                    if not independent and len(batch.example_B) > 1:
                        _refuse_dependence(loaded, branches)
                        independent = True
                    if autocast is not None and fidelity is None:
                        fidelity = _fidelity(loaded, batch, hooks, autocast)
                    started = time.perf_counter()
                    found.append(batch_gradients(loaded, batch, hooks, autocast=autocast))
                    seconds += time.perf_counter() - started
                    tokens += batch.n_tokens
                    done += len(batch.example_B)
                    progress("harvest", min(done, len(examples)), len(examples))
                block = merge_rows(found, examples, sequences)
                _refuse_non_finite(block, examples)
                rows += len(block.example)
                writer.append(number, block, [_record(i, examples[i]) for i in unit])
                if time.monotonic() - committed >= config.commit_seconds:
                    writer.flush(wait=False)
                    committed = time.monotonic()
    except GradientError:
        if fresh:
            discard_empty(out)
        raise
    return HarvestReport(rows=rows, tokens=tokens, seconds=seconds, dtype=config.dtype, fidelity=fidelity)


def plan_harvest(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: str | Path,
    config: HarvestConfig,
    *,
    resume: bool = False,
) -> HarvestPlan:
    """What ``harvest`` with these arguments has to do; writes nothing.

    Raises:
        OutputExistsError, StoreMismatchError: as for ``harvest``.
    """
    out = Path(out)
    task = _Task.of(loaded, examples, out, config, resume=resume)
    if not out.exists():
        return task.plan(loaded, examples, out, frozenset())
    store = open_store(out, lazy=True)
    differences = store.header.differences(task.header)
    if differences:
        raise StoreMismatchError(f"{out}: expected the header of this store, got another: {'; '.join(differences)}")
    return task.plan(loaded, examples, out, store.units)


@dataclass(frozen=True)
class _Task:
    """The examples as token sequences, in units of work, and what they are harvested with."""

    config: HarvestConfig
    hooks: list[HookSite]
    sequences: list[list[TokenSequence]]
    units: list[range]
    header: StoreHeader
    autocast: torch.dtype | None

    @classmethod
    def of(
        cls, loaded: LoadedModel, examples: Sequence[Example], out: Path, config: HarvestConfig, *, resume: bool
    ) -> _Task:
        if out.exists() and not resume:
            raise OutputExistsError(
                f"expected a new path, {out} exists; choose another, remove it, or go on with --resume"
            )
        config = replace(config, hooks=config.hooks or (loaded.default_hook(),))
        hooks = loaded.find_hooks(config.hooks)
        sequences = tokenize(loaded, examples, objective=config.objective, positions=config.positions)
        n, step = len(examples), config.unit_examples
        units = [range(start, min(start + step, n)) for start in range(0, n, step)]
        header = _header(loaded, examples, config, hooks, len(units))
        autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        return cls(config, hooks, sequences, units, header, autocast)

    def plan(self, loaded: LoadedModel, examples: Sequence[Example], out: Path, done: frozenset[int]) -> HarvestPlan:
        left = [i for number, unit in enumerate(self.units) if number not in done for i in unit]
        return make_plan(
            loaded,
            [examples[i] for i in left],
            [self.sequences[i] for i in left],
            self.hooks,
            self.header,
            out,
            batch_tokens=self.config.batch_tokens,
            autocast=self.autocast,
        )


def _writer(out: Path, header: StoreHeader, *, resume: bool) -> StoreWriter:
    """A writer of a new store or of the one there is; another process may make it at this very moment."""
    for patience in (0.2, 0.5, 1.0, None):
        try:
            return StoreWriter.resume(out, header) if out.exists() else StoreWriter.create(out, header)
        except (StoreExistsError, StoreNotFoundError):
            if patience is None or not resume or not out.exists():
                raise
            time.sleep(patience)
    raise AssertionError("unreachable")


def is_complete(path: str | Path) -> bool:
    """Whether ``path`` is a store with every unit committed."""
    return Path(path).exists() and open_store(path).info.complete


def merge_rows(
    found: Sequence[BatchGradients], examples: Sequence[Example], sequences: Sequence[Sequence[TokenSequence]]
) -> GradientBlock:
    """One row for each (example, position), in that order; gradients and losses of an example's branches are summed."""
    example = np.concatenate([f.example for f in found])
    position = np.concatenate([f.position for f in found])
    keys, inverse = np.unique(np.stack([example, position]), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    n = keys.shape[1]

    def summed(values: np.ndarray) -> np.ndarray:
        total = np.zeros((n, *values.shape[1:]), dtype=np.float32)
        np.add.at(total, inverse, values)
        return total

    def chosen(values: np.ndarray) -> np.ndarray:
        picked = np.zeros(n, dtype=np.int32)
        picked[inverse] = values
        return picked

    losses: dict[int, float] = {}
    for f in found:
        for e, loss in zip(f.sequence_example.tolist(), f.sequence_loss.tolist(), strict=True):
            losses[e] = losses.get(e, 0.0) + loss
    targets = {(e, p): t for e in {int(i) for i in keys[0]} for b in sequences[e] for p, t, sign in b.terms if sign > 0}
    return GradientBlock(
        gradients={hook: summed(np.concatenate([f.gradients[hook] for f in found])) for hook in found[0].gradients},
        example=keys[0].astype(np.int64),
        position=keys[1].astype(np.int32),
        token=chosen(np.concatenate([f.token for f in found])),
        target=np.asarray([targets.get((int(e), int(p)), -1) for e, p in keys.T], dtype=np.int32),
        loss=np.asarray([losses[int(e)] for e in keys[0]], dtype=np.float32),
    )


def _header(
    loaded: LoadedModel, examples: Sequence[Example], config: HarvestConfig, hooks: Sequence[HookSite], n_units: int
) -> StoreHeader:
    digest = hashlib.sha256(f"{config.unit_examples}".encode())
    for e in examples:
        line = [e.prompt, e.target, e.foil, e.concept, sorted(e.meta.items())]
        digest.update(json.dumps(line, ensure_ascii=False).encode())
    return StoreHeader(
        model=loaded.fingerprint.to_dict(),
        hooks=tuple(HookSpec(name=h.name, hf_name=h.hf_name, d=h.d) for h in hooks),
        objective=config.objective,
        positions=config.positions,
        dtype=config.store_dtype,
        plan=digest.hexdigest(),
        n_units=n_units,
        n_examples=len(examples),
        seed=config.seed,
    )


def _record(number: int, example: Example) -> ExampleRecord:
    return ExampleRecord(
        id=number,
        prompt=example.prompt,
        target=example.target,
        foil=example.foil,
        concept=example.concept,
        meta=json.dumps(example.meta, ensure_ascii=False, sort_keys=True),
    )


def examples_of(store: Store) -> list[Example]:
    """The examples of a store, in the order of their ids."""
    return [
        Example(prompt=r.prompt, target=r.target, foil=r.foil, concept=r.concept, meta=json.loads(r.meta))
        for r in store.examples
    ]


def _fidelity(loaded: LoadedModel, batch: TokenBatch, hooks: Sequence[HookSite], autocast: torch.dtype) -> float:
    exact = batch_gradients(loaded, batch, hooks).gradients
    fast = batch_gradients(loaded, batch, hooks, autocast=autocast).gradients
    cosines = []
    for hook in exact:
        a, b = exact[hook], fast[hook]
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append((np.einsum("rd,rd->r", a, b)[norms > 0] / norms[norms > 0]).min(initial=1.0))
    return float(min(cosines))


def _refuse_dependence(loaded: LoadedModel, branches: Sequence[TokenSequence]) -> None:
    """Refuse a model in which a sequence looks at its padding or at others of its batch: shortest alone and beside longest."""
    short, *_, long = sorted(branches, key=lambda branch: len(branch.ids))
    last = loaded.hooks[f"blocks.{loaded.fingerprint.n_layers - 1}.hook_resid_post"]
    losses, gradients = [], []
    for group in ([short], [short, long]):
        (batch,) = batched(group, batch_tokens=2 * len(long.ids), device=loaded.device)
        found = batch_gradients(loaded, batch, [last])
        losses.append(float(found.sequence_loss[0]))
        gradients.append(found.gradients[last.name][: len(short.rows)])
    apart = float(np.linalg.norm(gradients[1] - gradients[0])), float(np.linalg.norm(gradients[0]))
    if abs(losses[1] - losses[0]) > _DEPENDENCE * max(1.0, abs(losses[0])) or apart[0] > _DEPENDENCE * apart[1]:
        raise GradientError(
            f"expected an example's gradient not to depend on its batch, in {type(loaded.model).__name__} J is {losses[0]:.4f} nats "
            f"alone and {losses[1]:.4f} beside a longer example; harvest one at a time with --batch-tokens 1"
        )


def _refuse_non_finite(block: GradientBlock, examples: Sequence[Example]) -> None:
    for hook, gradients in block.gradients.items():
        bad = np.flatnonzero(~np.isfinite(gradients).all(axis=1))
        if len(bad):
            example = int(block.example[bad[0]])
            raise GradientError(
                f"expected finite gradients, {len(bad)} of {len(gradients)} rows at {hook} are NaN or infinite, the first in example "
                f"{example + 1} (prompt {examples[example].prompt[:40]!r}); try --dtype float32, or check the model's weights"
            )
