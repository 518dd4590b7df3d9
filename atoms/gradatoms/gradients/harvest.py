"""Harvest: examples in, a gradient store out, resumable unit by unit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gradatoms.errors import ConfigError, ExampleError, GradAtomsError, GradientError, OutputExistsError
from gradatoms.examples import RESERVED, Example
from gradatoms.gradients.batches import PADDINGS
from gradatoms.gradients.plan import HarvestPlan, make_plan
from gradatoms.gradients.ranks import OtherRankError, Ranks
from gradatoms.gradients.residual import BatchGradients, ResidualGradients
from gradatoms.gradients.rows import finite_rows, merge_rows, no_rows
from gradatoms.gradients.sequences import OBJECTIVES, POSITIONS, TokenSequence, Unusable, tokenize_usable
from gradatoms.gradients.skipped import Skipped, counted, list_skipped
from gradatoms.gradients.tuning import Choices, Fidelity, choose, is_out_of_memory
from gradatoms.models import HookSite, LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import (
    ACTIVATION,
    ExampleRecord,
    GradientBlock,
    HookSpec,
    Store,
    StoreError,
    StoreExistsError,
    StoreHeader,
    StoreMismatchError,
    StoreNotFoundError,
    StoreWriter,
    discard_empty,
    open_store,
)

COMPUTE_DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What is harvested, and how."""

    hooks: tuple[str, ...] = ()
    """Hook names, globs, or ``all``; empty for the middle of the network."""
    objective: str = "nll"
    positions: str = "last"
    activations: bool = False
    """Store h beside g, as hooks whose names end in ``:activation``."""
    dtype: str = "float32"
    """Compute dtype: ``float32``; ``bfloat16`` autocast (cosine about 0.999); or ``auto``, which takes bfloat16 where the
    processor has it and a cosine to float32 of at least 0.99 at the 5th percentile of a batch says that it is safe."""
    store_dtype: str = "float16"
    """Dtype of the stored unit directions."""
    batch_tokens: int | None = None
    """Padded tokens in a batch; bounds memory. None finds the fastest; out of memory halves it."""
    padding: str = "auto"
    """``right`` without a mask, ``masked`` to the right, ``left`` with one, or ``auto``, the first that changes no row."""
    share_prefixes: bool = True
    """Compute what prompts begin with alike once, where that saves work and the model allows it."""
    unusable: str = "skip"
    """``skip`` and list examples that cannot be used, or ``stop``."""
    nan: str = "stop"
    """``stop`` at a gradient that is not finite, or ``drop`` and list its row."""
    unit_examples: int = 512
    """Examples in a unit of work; a resume starts at the first unit that is not committed."""
    commit_seconds: float = 30.0
    """A shard is committed, in the background, when it is full or this much time has passed: what a kill can cost."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("positions", POSITIONS),
            ("dtype", COMPUTE_DTYPES),
            ("padding", (*PADDINGS, "auto")),
            ("unusable", ("skip", "stop")),
            ("nan", ("stop", "drop")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_tokens", "unit_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} of at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class HarvestReport:
    """What one call of ``harvest`` did; a resumed call counts only its own work."""

    rows: int
    tokens: int
    """Tokens processed, without padding."""
    seconds: float
    """Time spent on gradients."""
    choices: Choices
    """How they were computed; ``batch_tokens`` as it was at the end."""
    skipped: dict[str, int]
    """Examples that could not be used, and rows that were dropped, by reason; ``skipped.jsonl`` lists them."""

    @property
    def dtype(self) -> str:
        return self.choices.dtype

    @property
    def fidelity(self) -> Fidelity | None:
        """Of bfloat16 gradients to float32, over one batch; None where it was not measured."""
        return self.choices.fidelity

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
    reference: LoadedModel | None = None,
    shard: tuple[int, int] | None = None,
    ranks: Ranks | None = None,
    progress: Progress = silent,
    planned: Callable[[HarvestPlan], None] | None = None,
) -> HarvestReport:
    """Write the gradients of ``examples`` to the store ``out``.

    Args:
        out: path of the ``.gstore`` folder.
        resume: go on with an existing store of the same model, examples and settings, also while other processes do;
            each unit is harvested by one. Without it an existing path is refused.
        reference: the second model, whose next-token distribution objective ``kl`` asks for.
        shard: (i, n): harvest only the i-th of n parts, into a store that the jobs of an array share; a store that is
            there is gone on with.
        ranks: this process among those of ``torchrun``; by default what the environment says.
        planned: told what there is to do, before it is begun.

    Raises:
        OutputExistsError: ``out`` is taken and ``resume`` is off.
        StoreMismatchError: ``out`` was made from something else (the differing fields are named).
        ExampleError: no example can be used, or one cannot and ``unusable`` is ``stop``.
        GradientError: a gradient is NaN or infinite, or depends on the batch that it is computed in; a store that this
            call created goes too, if it is still empty.
    """
    out, ranks = Path(out), ranks or Ranks.here()
    task = HarvestTask.of(loaded, examples, config, reference, ranks)
    fresh = not out.exists()
    with ExitStack() as stack:
        stack.enter_context(ranks.group())
        writer = _open_writer(out, task.header, ranks, resume=resume or shard is not None)
        try:
            with writer:
                return _Harvest(task, out, writer, shard, progress).run(planned)
        except GradientError:
            if fresh:
                discard_empty(out)
            raise


def plan_harvest(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: str | Path,
    config: HarvestConfig,
    *,
    resume: bool = False,
    reference: LoadedModel | None = None,
    shard: tuple[int, int] | None = None,
) -> HarvestPlan:
    """What ``harvest`` with these arguments has to do; writes nothing.

    Raises:
        OutputExistsError, StoreMismatchError, ExampleError, GradientError: as for ``harvest``.
    """
    out = Path(out)
    task = HarvestTask.of(loaded, examples, config, reference)
    done: frozenset[int] = frozenset()
    if out.exists():
        if not resume and shard is None:
            raise _taken(out)
        store = open_store(out, lazy=True)
        differences = store.header.differences(task.header)
        if differences:
            raise StoreMismatchError(f"{out}: expected the header of this store, got another: {'; '.join(differences)}")
        done = store.units
    choices = Choices.load(out) or task.choose()
    return task.plan(out, task.left(done, shard), task.make(choices), choices)


def _taken(out: Path) -> OutputExistsError:
    return OutputExistsError(f"expected a new path, {out} exists; choose another, remove it, or go on with --resume")


@dataclass(frozen=True)
class HarvestTask:
    """The examples as token sequences, in units of work, and what they are harvested with."""

    loaded: LoadedModel
    examples: Sequence[Example]
    config: HarvestConfig
    reference: LoadedModel | None
    ranks: Ranks
    hooks: list[HookSite]
    sequences: list[list[TokenSequence]]
    unusable: list[Unusable]
    units: list[range]
    header: StoreHeader

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        examples: Sequence[Example],
        config: HarvestConfig,
        reference: LoadedModel | None,
        ranks: Ranks | None = None,
    ) -> HarvestTask:
        """Tokenise, and check what can be checked before work.

        Raises:
            ConfigError, HookError, ExampleError: as for ``harvest``.
        """
        if reference is not None and config.objective != "kl":
            raise ConfigError(
                f"expected objective kl with a second model, got {config.objective}; leave one of them out"
            )
        config = replace(config, hooks=config.hooks or (loaded.default_hook(),))
        hooks = loaded.find_hooks(config.hooks)
        sequences, unusable = tokenize_usable(
            loaded,
            examples,
            objective=config.objective,
            positions=config.positions,
            reference=reference is not None,
        )
        if unusable and (config.unusable == "stop" or len(unusable) == len(examples)):
            first = unusable[0]
            others = f" (and {len(unusable) - 1} more that cannot be used)" if len(unusable) > 1 else ""
            raise ExampleError(f"example {first.example + 1} {first.detail}{others}")
        n, step = len(examples), config.unit_examples
        units = [range(start, min(start + step, n)) for start in range(0, n, step)]
        header = _header(loaded, examples, config, hooks, len(units), reference)
        return cls(loaded, examples, config, reference, ranks or Ranks(), hooks, sequences, unusable, units, header)

    def make(self, choices: Choices) -> ResidualGradients:
        """What takes gradients, as chosen."""
        return self._make(choices.dtype, choices.attention)

    def _make(self, dtype: str, attention: Sequence[tuple[int, str]]) -> ResidualGradients:
        return ResidualGradients(
            self.loaded,
            self.hooks,
            autocast=torch.bfloat16 if dtype == "bfloat16" else None,
            reference=self.reference,
            activations=self.config.activations,
            attention=attention,
        )

    def choose(self) -> Choices:
        """Measure what the config leaves open."""
        return choose(
            self.loaded,
            [branch for example in self.sequences for branch in example],
            self._make,
            dtype=self.config.dtype,
            batch_tokens=self.config.batch_tokens,
            padding=self.config.padding,
            share_prefixes=self.config.share_prefixes,
            measure=not self.ranks.together,
        )

    def left(self, done: frozenset[int], shard: tuple[int, int] | None) -> list[int]:
        """Units that are to do, of one part of the store or of all."""
        i, n = shard or (0, 1)
        return [number for number in range(i, len(self.units), n) if number not in done]

    def branches(self, unit: int) -> list[TokenSequence]:
        """The token sequences of a unit."""
        return [branch for i in self.units[unit] for branch in self.sequences[i]]

    def block(
        self, take: ResidualGradients, choices: Choices, branches: Sequence[TokenSequence]
    ) -> GradientBlock | None:
        """The rows of some examples' sequences; None of none."""
        found = [take(choices.batch(group, self.loaded.device)) for group in choices.groups(branches)]
        return merge_rows(found, self.sequences) if found else None

    def plan(self, out: Path, units: Sequence[int], take: ResidualGradients, choices: Choices) -> HarvestPlan:
        """What there is to do of these units."""
        left = [i for number in units for i in self.units[number]]
        reasons = counted(item.reason for item in self.unusable)
        examples, sequences = [self.examples[i] for i in left], [self.sequences[i] for i in left]
        return make_plan(examples, sequences, take, choices, self.header, out, reasons)


class _Harvest:
    """One process at work on one store."""

    def __init__(
        self, task: HarvestTask, out: Path, writer: StoreWriter, shard: tuple[int, int] | None, progress: Progress
    ) -> None:
        self.task, self.out, self.writer, self.progress = task, out, writer, progress
        self.todo = task.left(task.ranks.from_first(writer.done_units), shard)
        self.done = len(task.examples) - sum(len(task.units[u]) for u in self.todo)
        self.rows = self.tokens = 0
        self.seconds = 0.0
        self.dropped: list[Skipped] = []

    def run(self, planned: Callable[[HarvestPlan], None] | None) -> HarvestReport:
        task = self.task
        chosen = Choices.load(self.out)
        self.choices = task.ranks.from_first(chosen if chosen and self._as_asked(chosen) else None) or task.choose()
        if task.ranks.rank == 0:
            list_skipped(self.out, map(Skipped.of, task.unusable))
            if chosen != self.choices:
                self.choices.save(self.out)
        self.take = task.make(self.choices)
        if planned is not None or task.ranks.together:
            plan = task.plan(self.out, self.todo, self.take, self.choices)
            if planned is not None:
                planned(plan)
        committed = time.monotonic()
        for unit in self._together() if task.ranks.together else self._units():
            self._append(unit, self._gradients(task.branches(unit)))
            if time.monotonic() - committed >= task.config.commit_seconds:
                self.writer.flush(wait=False)
                committed = time.monotonic()
        reasons = [item.reason for item in task.unusable] + [item.reason for item in self.dropped]
        return HarvestReport(
            rows=self.rows, tokens=self.tokens, seconds=self.seconds, choices=self.choices, skipped=counted(reasons)
        )

    def _as_asked(self, chosen: Choices) -> bool:
        """Whether what an earlier process chose is what this one was asked for; a batch size given anew counts."""
        config = self.task.config
        return (
            config.dtype in ("auto", chosen.dtype)
            and config.padding in ("auto", chosen.padding)
            and config.batch_tokens in (None, chosen.batch_tokens)
            and (config.share_prefixes or not chosen.shared)
        )

    def _units(self) -> Iterator[int]:
        """The units of this process, each claimed just before it is given."""
        while found := self.writer.claim(self.todo, limit=1):
            yield from found

    def _together(self) -> Iterator[int]:
        """Ranks that share a model take one unit each a round, and passes of the same number."""
        world, rank = self.task.ranks.world, self.task.ranks.rank
        for start in range(0, len(self.todo), world):
            units = self.todo[start : start + world]
            passes = [len(self.choices.groups(self.task.branches(unit))) for unit in units]
            mine = passes[rank] if rank < len(units) else 0
            if rank < len(units) and self.writer.claim([units[rank]]):
                yield units[rank]
            elif mine:  # another process has it, the others wait for this rank's passes all the same
                self._gradients(self.task.branches(units[rank]))
            idle = min((branch for unit in units for branch in self.task.branches(unit)), key=lambda b: len(b.ids))
            for _ in range(max(passes) - mine):
                self.take(self.choices.batch([idle], self.task.loaded.device))

    def _gradients(self, branches: Sequence[TokenSequence]) -> list[BatchGradients]:
        """The gradients of a unit; out of memory halves the batches."""
        found: list[BatchGradients] = []
        queue = self.choices.groups(branches)
        while queue:
            group = queue.pop(0)
            started = time.perf_counter()
            try:
                found.append(self.take(self.choices.batch(group, self.task.loaded.device)))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                queue[:0] = self._smaller(group, error)
                continue
            self.seconds += time.perf_counter() - started
            self.tokens += sum(len(branch.ids) for branch in group)
            self.done += len({branch.example for branch in group})
            total = len(self.task.examples)
            self.progress("harvest", min(self.done, total), total)
        return found

    def _smaller(self, group: Sequence[TokenSequence], error: Exception) -> list[list[TokenSequence]]:
        longest = max(len(branch.ids) for branch in group)
        if len(group) == 1 or self.task.ranks.together:
            raise GradientError(
                f"expected memory for {len(group)} sequence(s) of {longest} tokens, ran out: {str(error).splitlines()[0][:100]}; "
                "use a smaller --batch-tokens, shorter examples, --dtype bfloat16, or a higher hook"
            ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = max(longest, min(self.choices.batch_tokens, longest * len(group)) // 2)
        self.choices = replace(self.choices, batch_tokens=smaller)
        self.choices.save(self.out)
        return self.choices.groups(group)

    def _append(self, unit: int, found: Sequence[BatchGradients]) -> None:
        task = self.task
        if found:
            block = merge_rows(found, task.sequences)
            block, dropped = finite_rows(block, task.examples, drop=task.config.nan == "drop")
            list_skipped(self.out, dropped)
            self.dropped += dropped
        else:
            block = no_rows(task.hooks, activations=task.config.activations)
        self.rows += len(block.example)
        self.writer.append(unit, block, [_record(i, task.examples[i]) for i in task.units[unit]])


def _open_writer(out: Path, header: StoreHeader, ranks: Ranks, *, resume: bool) -> StoreWriter:
    """This process's writer; of several ranks, the first makes the store and the others join it."""
    writer: StoreWriter | None = None
    failure: Exception | None = None
    if ranks.rank == 0:
        try:
            if out.exists() and not resume:
                raise _taken(out)
            writer = _writer(out, header, resume=resume)
        except (GradAtomsError, StoreError, OSError) as error:
            failure = error
    failed = ranks.from_first(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise OtherRankError("expected rank 0 to open the store, it could not; see its message")
    return writer or _writer(out, header, resume=True)


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


def _header(
    loaded: LoadedModel,
    examples: Sequence[Example],
    config: HarvestConfig,
    hooks: Sequence[HookSite],
    n_units: int,
    reference: LoadedModel | None,
) -> StoreHeader:
    digest = hashlib.sha256(f"{config.unit_examples}".encode())
    for e in examples:
        line: list[object] = [e.prompt, e.target, e.foil, e.concept, sorted(e.meta.items())]
        line += [e.extras()] if e.extras() else []
        digest.update(json.dumps(line, ensure_ascii=False).encode())
    return StoreHeader(
        model=loaded.fingerprint.to_dict(),
        hooks=tuple(
            HookSpec(name=h.name + end, hf_name=h.hf_name + end, d=h.d)
            for end in ("", ACTIVATION)[: 1 + config.activations]
            for h in hooks
        ),
        objective=config.objective if reference is None else f"kl:{reference.fingerprint.sha}",
        positions=config.positions,
        dtype=config.store_dtype,
        plan=digest.hexdigest(),
        n_units=n_units,
        n_examples=len(examples),
        seed=config.seed,
    )


def _record(number: int, example: Example) -> ExampleRecord:
    extras = example.extras()
    return ExampleRecord(
        id=number,
        prompt=example.prompt,
        target=example.target,
        foil=example.foil,
        concept=example.concept,
        meta=json.dumps(example.meta | ({RESERVED: extras} if extras else {}), ensure_ascii=False, sort_keys=True),
    )


def examples_of(store: Store) -> list[Example]:
    """The examples of a store, in the order of their ids."""
    found = []
    for record in store.examples:
        meta = json.loads(record.meta)
        extras = meta.pop(RESERVED, {})
        fields = {"prompt": record.prompt, "target": record.target, "foil": record.foil, "concept": record.concept}
        found.append(Example.with_extras(extras, **fields, meta=meta))
    return found
