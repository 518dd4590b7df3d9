"""What a store holds, put together from its header and sidecars; no shard is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradatoms_store.schema import StoreHeader
from gradatoms_store.sidecar import NormSummary, Sidecar


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store holds, from its sidecars alone."""

    rows: int
    bytes: int
    """Size of all shard files."""
    shards: int
    hooks: tuple[str, ...]
    d: int | None
    """Width of a gradient, when all hooks share one; else None, and `header.hooks` has each."""
    examples: int
    units: int
    """Committed work units."""
    complete: bool
    """Whether every work unit of the plan is committed."""
    norms: dict[str, NormSummary]
    """Hook to the distribution of |g|; quantiles over several shards are those of the mixture of the shards'
    distributions, each taken as linear between its own quantiles."""
    nan_losses: int | None
    """Rows whose loss is NaN; None when a shard of format version 1, which does not say, is among them. A gradient is
    never NaN: writers refuse it."""
    concepts: dict[str, int]
    """Concept to number of rows, most first; rows without a concept are not counted."""
    header: StoreHeader


def summarise(headers: Sequence[StoreHeader], sidecars: Sequence[Sidecar]) -> StoreInfo:
    """The info of one or several stores of one kind."""
    header = headers[0]
    widths = {hook.d for hook in header.hooks}
    units = sum(len(sidecar.units) for sidecar in sidecars)
    concepts: Counter[str] = Counter()
    for sidecar in sidecars:
        concepts.update(sidecar.concepts)
    nan = [sidecar.nan_losses for sidecar in sidecars]
    plans = {each.plan: each.n_units for each in headers}
    return StoreInfo(
        rows=sum(sidecar.rows for sidecar in sidecars),
        bytes=sum(sidecar.bytes for sidecar in sidecars),
        shards=len(sidecars),
        hooks=tuple(hook.name for hook in header.hooks),
        d=widths.pop() if len(widths) == 1 else None,
        examples=sum(sidecar.examples for sidecar in sidecars),
        units=units,
        complete=units == sum(plans.values()),
        norms={hook.name: mixture([(s.rows, s.norms[hook.name]) for s in sidecars]) for hook in header.hooks},
        nan_losses=None if None in nan else sum(count for count in nan if count is not None),
        concepts=dict(sorted(concepts.items(), key=lambda item: (-item[1], item[0]))),
        header=header,
    )


def mixture(parts: Sequence[tuple[int, NormSummary]]) -> NormSummary:
    """The distribution of the norms of several shards together.

    Its distribution function is the mean of the parts', weighted by rows, each linear between its minimum, quantiles and
    maximum; its quantiles are exact for one part and interpolated otherwise.

    Args:
        parts: rows and summary of each shard.
    """
    filled = [(n, part) for n, part in parts if part.min is not None and part.max is not None]
    if not filled:
        return NormSummary(zeros=0, min=None, max=None, quantiles={})
    if len(filled) == 1:
        return filled[0][1]
    curves = []
    for n, part in filled:
        share = np.array([0.0, *map(float, part.quantiles), 1.0])
        curves.append((n, np.array([part.min, *part.quantiles.values(), part.max], np.float64), share))
    knots = np.unique(np.concatenate([values for _, values, _ in curves]))
    total = sum(n for n, _, _ in curves)
    mean = sum(n * np.interp(knots, values, share) for n, values, share in curves) / total
    wanted = list(filled[0][1].quantiles)
    return NormSummary(
        zeros=sum(part.zeros for _, part in filled),
        min=float(knots[0]),
        max=float(knots[-1]),
        quantiles={q: float(np.interp(float(q), mean, knots)) for q in wanted},
    )
