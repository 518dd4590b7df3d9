"""Gradients without a store: batches straight from the model, for corpora that should never touch the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.rows import finite_rows
from gradatoms.gradients.task import HarvestConfig, HarvestTask
from gradatoms.models import LoadedModel
from gradatoms_store import GradientBatch, GradientBlock


class GradientStream:
    """Batches of gradients of one hook, taken anew in each pass; ``fit`` learns from it as from a store.

    Nothing is kept but a few units of work: memory is that of ``config.unit_examples`` examples, whatever their number.
    The price is a harvest a pass, and learners make several: one for the mean, one an epoch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[Example],
        hook: str | None = None,
        *,
        config: HarvestConfig | None = None,
        reference: LoadedModel | None = None,
    ) -> None:
        """As ``stream``."""
        config = config or HarvestConfig()
        if config.hooks or config.activations:
            raise ConfigError("expected a stream of one hook, got hooks or activations in its config; name it as hook")
        self.hook = loaded.hook(hook or loaded.default_hook()).name
        self._task = HarvestTask.of(loaded, examples, replace(config, hooks=(self.hook,)), reference)
        self._choices = self._task.choose()
        self._take = self._task.make(self._choices)

    @property
    def d(self) -> int:
        """Width of a gradient."""
        return self._task.hooks[0].d

    def __len__(self) -> int:
        """Rows a pass, if all are finite."""
        return sum(len({row for branch in e for row in branch.rows}) for e in self._task.sequences)

    def __iter__(self) -> Iterator[GradientBatch]:
        return self.batches(1024)

    def batches(self, size: int, *, shuffle: int | None = None, epochs: int = 1) -> Iterator[GradientBatch]:
        """Batches of ``size`` rows, the last one smaller; in order, or shuffled.

        Args:
            shuffle: seed; examples are drawn in another order each pass, and rows mixed within a unit of work.

        Raises:
            GradientError: a gradient is not finite, and ``nan`` is ``stop``.
        """
        if size < 1 or epochs < 0:
            raise ConfigError(f"expected a size of at least 1 and epochs of at least 0, got {size} and {epochs}")
        for epoch in range(epochs):
            rng = None if shuffle is None else np.random.default_rng([shuffle, epoch])
            left: list[GradientBlock] = []
            for block in self._blocks(rng):
                left.append(block)
                while sum(len(b.example) for b in left) >= size:
                    whole = _joined(left, self.hook)
                    yield _batch(whole, self.hook, 0, size)
                    left = [_cut(whole, size)]
            if sum(len(b.example) for b in left):
                whole = _joined(left, self.hook)
                yield _batch(whole, self.hook, 0, len(whole.example))

    def _blocks(self, rng: np.random.Generator | None) -> Iterator[GradientBlock]:
        task, n = self._task, len(self._task.examples)
        order = np.arange(n) if rng is None else rng.permutation(n)
        for start in range(0, n, task.config.unit_examples):
            branches = [b for i in order[start : start + task.config.unit_examples] for b in task.sequences[i]]
            block = task.block(self._take, self._choices, branches)
            if block is None:
                continue
            block, _ = finite_rows(block, task.examples, drop=task.config.nan == "drop")
            yield block if rng is None else _taken(block, rng.permutation(len(block.example)))


def stream(
    loaded: LoadedModel,
    examples: Sequence[Example],
    hook: str | None = None,
    *,
    config: HarvestConfig | None = None,
    reference: LoadedModel | None = None,
) -> GradientStream:
    """The gradients of ``examples`` at one hook, in batches, without a store: ``fit(stream(m, examples), config)``.

    Args:
        hook: its name; by default the middle of the network.
        config: objective, positions and the rest; no hooks.
        reference: the second model of objective ``kl``.

    Raises:
        ExampleError, HookError, GradientError: as for ``harvest``.
    """
    return GradientStream(loaded, examples, hook, config=config, reference=reference)


def _batch(block: GradientBlock, hook: str, low: int, high: int) -> GradientBatch:
    g: Float[np.ndarray, "N D"] = np.asarray(block.gradients[hook][low:high])
    norms = np.linalg.norm(g, axis=1).astype(np.float32)
    fields = {name: getattr(block, name)[low:high] for name in _FIELDS}
    unit = g / np.where(norms > 0, norms, 1)[:, None]
    return GradientBatch(unit.astype(np.float32), norms, fields, np.full(high - low, -1, dtype=np.int64))


_FIELDS = ("example", "position", "token", "target", "loss")


def _taken(block: GradientBlock, rows: np.ndarray) -> GradientBlock:
    fields = {name: getattr(block, name)[rows] for name in _FIELDS}
    return GradientBlock(gradients={h: np.asarray(g)[rows] for h, g in block.gradients.items()}, **fields)


def _cut(block: GradientBlock, start: int) -> GradientBlock:
    return _taken(block, np.arange(start, len(block.example)))


def _joined(blocks: Sequence[GradientBlock], hook: str) -> GradientBlock:
    if len(blocks) == 1:
        return blocks[0]
    fields = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in _FIELDS}
    return GradientBlock(gradients={hook: np.concatenate([b.gradients[hook] for b in blocks])}, **fields)
