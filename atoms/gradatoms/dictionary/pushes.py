"""Pushes p = −g/‖g‖ from a store or an array, streamed in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from gradatoms.errors import ConfigError
from gradatoms.gradients.stream import GradientStream
from gradatoms_store import ACTIVATION, Store


class Pushes:
    """The rows that a dictionary learns from: unit pushes of one hook, read in batches.

    Args:
        source: a store; a stream of gradients, which is taken whole; or an array of pushes of shape (rows, d), which is
            normalised to unit rows.
        hook: which hook of the store; needed where it has several.
        rows: global row numbers, shape (n,); default all. Rows whose gradient is zero have no direction and are left out.

    Raises:
        ConfigError: no usable row, or a hook is needed.
    """

    def __init__(
        self,
        source: Store | GradientStream | Float[np.ndarray, "N D"],
        *,
        hook: str | None = None,
        rows: Int[np.ndarray, " R"] | None = None,
    ) -> None:
        if isinstance(source, Store):
            if hook is None:
                hooks = [name for name in source.hooks if not name.endswith(ACTIVATION)]
                if len(hooks) != 1:
                    raise ConfigError(f"expected --hook, the store has {len(hooks)} of gradients: {', '.join(hooks)}")
                hook = hooks[0]
            numbers = np.arange(source.n_rows) if rows is None else np.asarray(rows)
            norms = np.concatenate([np.zeros(0), *(b.norms for b in source.batches(hook, 65536, rows=numbers))])
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
            norms = np.linalg.norm(array[numbers], axis=1)
        self.source, self.hook, self.rows = source, hook, numbers[norms > 0]
        if not len(self.rows):
            raise ConfigError(
                f"expected rows with a gradient, found none among {len(numbers)} at {hook}; harvest examples first"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def d(self) -> int:
        """Width of a push."""
        if isinstance(self.source, Store):
            return self.source.header.hook(self.hook).d
        return self.source.d if isinstance(self.source, GradientStream) else int(self.source.shape[1])

    def batches(self, size: int, *, seed: int | None = None, epochs: int = 1) -> Iterator[Float[np.ndarray, "B D"]]:
        """Batches of pushes, float32 unit rows; in order without a seed, shuffled with one."""
        if isinstance(self.source, Store):
            for batch in self.source.batches(self.hook, size, shuffle=seed, epochs=epochs, rows=self.rows):
                yield -batch.gradients
            return
        if isinstance(self.source, GradientStream):
            for batch in self.source.batches(size, shuffle=seed, epochs=epochs):
                yield -batch.gradients[batch.norms > 0]
            return
        for epoch in range(epochs):
            order = self.rows if seed is None else np.random.default_rng([seed, epoch]).permutation(self.rows)
            for start in range(0, len(order), size):
                part = self.source[order[start : start + size]]
                yield part / np.linalg.norm(part, axis=1, keepdims=True)

    def mean(self) -> Float[np.ndarray, " D"]:
        """The mean push μ, float32."""
        total, n = np.zeros(self.d), 0
        for batch in self.batches(8192):
            total += batch.sum(axis=0, dtype=np.float64)
            n += len(batch)
        return (total / max(1, n)).astype(np.float32)

    def all(self) -> Float[np.ndarray, "N D"]:
        """Every push at once; for evaluation on a bounded number of rows."""
        return np.concatenate(list(self.batches(8192)))
