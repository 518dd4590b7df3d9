"""Pushes p = −g/‖g‖ from a store, a stream or an array, in batches, with what each row counts for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.stream import GradientStream
from gradatoms.gradients.task import example_of
from gradatoms_store import ACTIVATION, SKETCH, GradientBatch, Store


@dataclass(frozen=True)
class PushBatch:
    """Rows to learn from."""

    pushes: Float[np.ndarray, "B D"]
    """Unit rows, float32."""
    weights: Float[np.ndarray, " B"] | None
    """What each row counts for, mean 1 over all rows; None where all count the same."""


class Pushes:
    """The rows that a dictionary learns from: unit pushes of one hook, read in batches.

    Args:
        source: a store; a stream of gradients, which is taken whole; or an array of pushes of shape (rows, d), which is
            normalised to unit rows.
        hook: which hook of the store; needed where it has several.
        rows: global row numbers, shape (n,); default all. Rows whose gradient is zero have no direction and are left out.
        weight: what a row counts for: ``none``, its ``loss``, its gradient's ``norm``, or one over the rows of its
            ``concept``; or an array with a number ≥ 0 for each row of ``source``.
        normalize: bring the rows of an array to norm 1; otherwise they are taken as they are.

    Raises:
        ConfigError: no usable row, a hook is needed, or the rows do not carry what ``weight`` asks for.
    """

    def __init__(
        self,
        source: Store | GradientStream | Float[np.ndarray, "N D"],
        *,
        hook: str | None = None,
        rows: Int[np.ndarray, " R"] | None = None,
        weight: str | Float[np.ndarray, " M"] = "none",
        normalize: bool = True,
    ) -> None:
        if isinstance(source, Store):
            hook = _only_hook(source) if hook is None else hook
            numbers = np.arange(source.n_rows) if rows is None else np.asarray(rows)
            norms = np.concatenate(
                [np.zeros(0, np.float32), *(b.norms for b in source.batches(hook, 8192, rows=numbers, fields=()))]
            )
        elif isinstance(source, GradientStream):
            if rows is not None or hook not in (None, source.hook):
                raise ConfigError(
                    f"expected all rows of {source.hook}, which the stream gives, got others; leave them out"
                )
            hook, numbers = source.hook, np.arange(len(source))
            norms = np.ones(len(numbers))
        else:
            array = np.asarray(source, dtype=np.float32)
            if array.ndim != 2 or not np.isfinite(array).all():
                raise ConfigError(
                    f"expected finite pushes of shape (rows, d), got an array of shape {array.shape}; check the array"
                )
            source, hook = array, hook or "array"
            numbers = np.arange(len(array)) if rows is None else np.asarray(rows)
            norms = np.linalg.norm(array[numbers], axis=1) if normalize else np.ones(len(numbers))
        self.source, self.hook, self.rows = source, hook, numbers[norms > 0]
        if not len(self.rows):
            raise ConfigError(
                f"expected rows with a gradient, found none among {len(numbers)} at {hook}; harvest examples first"
            )
        self._normalize = normalize
        self._weigh = self._weighing(weight)
        self._mean: tuple[np.ndarray, float] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def d(self) -> int:
        """Width of a push."""
        if isinstance(self.source, Store):
            return self.source.header.hook(self.hook).d
        return self.source.d if isinstance(self.source, GradientStream) else int(self.source.shape[1])

    def batches(
        self, size: int, *, seed: int | None = None, epochs: int = 1, worker: tuple[int, int] = (0, 1)
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Batches of pushes, float32 unit rows; in order without a seed, shuffled with one.

        Args:
            worker: (i, n) gives batches i, i + n, ... of the stream that (0, 1) gives.
        """
        return (batch.pushes for batch in self.weighted(size, seed=seed, epochs=epochs, worker=worker))

    def weighted(
        self, size: int, *, seed: int | None = None, epochs: int = 1, worker: tuple[int, int] = (0, 1)
    ) -> Iterator[PushBatch]:
        """The same with weights; these are relative until ``mean`` was asked for."""
        factor = 1.0 if self._mean is None else self._mean[1]
        if not isinstance(self.source, np.ndarray):
            if isinstance(self.source, Store):
                stream = self.source.batches(
                    self.hook, size, shuffle=seed, epochs=epochs, rows=self.rows, worker=worker, fields=("example", "loss")
                )  # fmt: skip
            else:
                every = enumerate(self.source.batches(size, shuffle=seed, epochs=epochs))
                stream = (b for i, b in every if i % worker[1] == worker[0])
            for batch in stream:
                keep = batch.norms > 0
                weights = None if self._weigh is None else self._weigh(batch)[keep] * factor
                yield PushBatch(-batch.gradients[keep], weights)
            return
        made = 0
        for epoch in range(epochs):
            order = self.rows if seed is None else np.random.default_rng([seed, epoch]).permutation(self.rows)
            for start in range(0, len(order), size):
                if made % worker[1] == worker[0]:
                    chosen = order[start : start + size]
                    part = self.source[chosen]
                    weights = None if self._array is None else self._array[chosen] * factor
                    if self._normalize:
                        part = part / np.linalg.norm(part, axis=1, keepdims=True)
                    yield PushBatch(part, weights)
                made += 1

    def mean(self) -> Float[np.ndarray, " D"]:
        """The mean push μ, weighted as the rows are, float32."""
        if self._mean is None:
            total, n, weight = np.zeros(self.d), 0, 0.0
            for batch in self.weighted(8192):
                w = batch.weights
                total += (
                    batch.pushes.sum(axis=0, dtype=np.float64) if w is None else (w @ batch.pushes).astype(np.float64)
                )
                n += len(batch.pushes)
                weight += len(batch.pushes) if w is None else float(w.sum(dtype=np.float64))
            if not weight > 0:
                raise ConfigError("expected rows whose weights are not all zero; choose another weight")
            self._mean = (total / weight).astype(np.float32), n / weight
        return self._mean[0]

    def sample(self, n: int, seed: int) -> Float[np.ndarray, "M D"]:
        """At most n pushes, in no order, the same for a seed."""
        if isinstance(self.source, GradientStream) or len(self.rows) <= n:
            return next(self.batches(n, seed=seed))
        rows = np.sort(np.random.default_rng([seed, len(self.rows)]).choice(self.rows, n, replace=False))
        return self.only(rows).all()

    def only(self, rows: Int[np.ndarray, " M"]) -> Pushes:
        """The same with some of its row numbers only.

        Raises:
            ConfigError: of a stream, which has no row numbers.
        """
        if isinstance(self.source, GradientStream):
            raise ConfigError("expected a store or an array, a stream cannot be divided; harvest into a store first")
        other = object.__new__(Pushes)
        other.__dict__ = self.__dict__ | {"rows": rows, "_mean": None}
        return other

    def all(self) -> Float[np.ndarray, "N D"]:
        """Every push at once; for evaluation on a bounded number of rows."""
        return np.concatenate(list(self.batches(8192)))

    def _weighing(self, weight: str | np.ndarray) -> Callable[[GradientBatch], np.ndarray] | None:
        self._array: np.ndarray | None = None
        if isinstance(weight, np.ndarray):
            n = self.source.n_rows if isinstance(self.source, Store) else len(self.source)
            if len(weight) != n or not np.isfinite(weight).all() or (weight < 0).any():
                raise ConfigError(f"expected {n} finite weights of at least 0, got an array of shape {weight.shape}")
            self._array = array = weight.astype(np.float32)
            if isinstance(self.source, GradientStream):
                raise ConfigError("expected no array of weights with a stream, which has no row numbers")
            return lambda batch: array[batch.index]
        if weight == "none":
            return None
        if isinstance(self.source, np.ndarray):
            raise ConfigError(f"expected weight none or an array of weights with an array of pushes, got {weight!r}")
        if weight == "norm":
            return lambda batch: batch.norms
        if weight == "loss":
            return lambda batch: np.maximum(batch.rows["loss"], 0)
        if isinstance(self.source, Store):
            table = _by_concept(self.source, self.rows)
            return lambda batch: table[batch.rows["example"]]
        raise ConfigError(f"expected weight none, loss or norm with a stream, got {weight!r}")


def held_out_mask(store: Store, fraction: float, seed: int) -> Bool[np.ndarray, " N"]:
    """Which rows of ``store`` lie on the held-out side of the split; a hash of the example decides."""
    return example_mask(store, lambda example: example.held_out(fraction, seed))


def example_mask(store: Store, tell: Callable[[Example], bool]) -> Bool[np.ndarray, " N"]:
    """What ``tell`` says of each row's example; holds one shard's examples at a time."""
    ids, told = list[int](), list[bool]()
    for record in store.iter_examples():
        ids.append(record.id)
        told.append(tell(example_of(record)))
    if not ids:
        return np.zeros(0, dtype=bool)
    order = np.argsort(np.asarray(ids))
    return np.asarray(told, dtype=bool)[order][np.searchsorted(np.asarray(ids)[order], store.rows["example"])]


def _by_concept(store: Store, rows: Int[np.ndarray, " R"]) -> Float[np.ndarray, " E"]:
    """One over the rows of an example's concept, by example id."""
    concepts: dict[str, int] = {}
    table: dict[int, int] = {}
    for record in store.iter_examples():
        if record.concept is None:
            raise ConfigError(
                f"expected every example of {store.path} to have a concept, example {record.id} has none; "
                "choose another weight"
            )
        table[record.id] = concepts.setdefault(record.concept, len(concepts))
    number = np.zeros(max(table, default=0) + 1, np.int64)
    number[list(table)] = list(table.values())
    counts = np.bincount(number[store.rows["example"][rows]], minlength=len(concepts))
    return np.asarray(1 / np.maximum(counts, 1), dtype=np.float32)[number]


def _only_hook(store: Store) -> str:
    hooks = [name for name in store.hooks if not name.endswith((ACTIVATION, SKETCH))]
    if len(hooks) != 1:
        raise ConfigError(f"expected --hook, the store has {len(hooks)} of gradients: {', '.join(hooks)}")
    return hooks[0]
