"""Harvest: examples in, a gradient store out, resumable unit by unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from gradatoms.errors import GradAtomsError, GradientError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.gradients.plan import HarvestPlan
from gradatoms.gradients.ranks import OtherRankError, Ranks
from gradatoms.gradients.residual import BatchGradients
from gradatoms.gradients.rows import finite_rows, merge_rows, no_rows
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.gradients.skipped import Skipped, counted, list_skipped
from gradatoms.gradients.task import HarvestConfig, HarvestTask, record_of
from gradatoms.gradients.tuning import Choices, Fidelity, free_memory, is_out_of_memory, return_pages
from gradatoms.gradients.weights import Weights
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import (
    StoreError,
    StoreExistsError,
    StoreHeader,
    StoreMismatchError,
    StoreNotFoundError,
    StoreWriter,
    discard_empty,
    open_store,
)


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
    weights: Weights | None = None,
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
        weights: take gradients of these modules' weights, one row a document, in place of activation gradients
            (``weight_harvest.harvest_weights`` makes them).
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
    task = HarvestTask.of(loaded, examples, config, reference, ranks, weights)
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
    weights: Weights | None = None,
    shard: tuple[int, int] | None = None,
) -> HarvestPlan:
    """What ``harvest`` with these arguments has to do; writes nothing.

    Raises:
        OutputExistsError, StoreMismatchError, ExampleError, GradientError: as for ``harvest``.
    """
    out = Path(out)
    task = HarvestTask.of(loaded, examples, config, reference, weights=weights)
    done: frozenset[int] = frozenset()
    if out.exists():
        if not resume and shard is None:
            raise taken(out)
        store = open_store(out, lazy=True)
        differences = store.header.differences(task.header)
        if differences:
            raise StoreMismatchError(f"{out}: expected the header of this store, got another: {'; '.join(differences)}")
        done = store.units
    choices = Choices.load(out) or task.choose()
    return task.plan(out, task.left(done, shard), task.make(choices), choices)


def taken(out: Path) -> OutputExistsError:
    """What is said where the store is there already."""
    return OutputExistsError(f"expected a new path, {out} exists; choose another, remove it, or go on with --resume")


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
            return_pages()
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
                reason = str(error).splitlines()[0][:100]
            else:
                self.seconds += time.perf_counter() - started
                self.tokens += sum(len(branch.ids) for branch in group)
                self.done += len({branch.example for branch in group})
                total = len(self.task.examples)
                self.progress("harvest", min(self.done, total), total)
                continue
            queue[:0] = self._smaller(group, reason)  # out here the error, and what its frames held, is gone
        return found

    def _smaller(self, group: Sequence[TokenSequence], reason: str) -> list[list[TokenSequence]]:
        longest = max(len(branch.ids) for branch in group)
        if len(group) == 1 or self.task.ranks.together:
            raise GradientError(
                f"expected memory for {len(group)} sequence(s) of {longest} tokens, ran out: {reason}; "
                "use a smaller --batch-tokens, shorter examples, --dtype bfloat16, or a higher hook"
            )
        free_memory()
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
            block = no_rows(task.header.hooks)
        self.rows += len(block.example)
        self.writer.append(unit, block, [record_of(i, task.examples[i]) for i in task.units[unit]])


def _open_writer(out: Path, header: StoreHeader, ranks: Ranks, *, resume: bool) -> StoreWriter:
    """This process's writer; of several ranks, the first makes the store and the others join it."""
    writer: StoreWriter | None = None
    failure: Exception | None = None
    if ranks.rank == 0:
        try:
            if out.exists() and not resume:
                raise taken(out)
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
