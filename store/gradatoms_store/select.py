"""Choosing rows by concept, loss, position or norm, without reading a gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from gradatoms_store.encoding import unpack_texts
from gradatoms_store.errors import StoreValueError
from gradatoms_store.layout import OPTIONAL_FIELDS, TEXT_FIELDS
from gradatoms_store.schema import ExampleRecord
from gradatoms_store.shard import Shard

Range = tuple[float | None, float | None]
"""Lowest and highest value taken, both included; None leaves a side open."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What a row must be; None asks nothing."""

    concepts: frozenset[str | None] | None = None
    loss: Range | None = None
    position: Range | None = None
    norm: Range | None = None
    hook: str | None = None
    """Whose norm is meant."""

    @classmethod
    def of(
        cls,
        hooks: Sequence[str],
        concept: str | Collection[str | None] | None,
        any_concept: bool,
        loss: Range | None,
        position: Range | int | None,
        norm: Range | None,
        hook: str | None,
    ) -> Filter:
        """Check a caller's wishes.

        Raises:
            StoreValueError: a range that is none, or a norm without a hook to choose among several.
        """
        concepts = None if any_concept else frozenset([concept] if isinstance(concept, str | None) else concept)
        if norm is not None and hook is None:
            if len(hooks) > 1:
                raise StoreValueError(f"norm expected the hook whose norm is meant, got none; give one of {hooks}")
            hook = hooks[0]
        if isinstance(position, int):
            position = (position, position)
        for name, given in (("loss", loss), ("position", position), ("norm", norm)):
            if given is not None and (len(given) != 2 or not _ordered(*given)):
                raise StoreValueError(f"{name} expected a range (lowest, highest), got {given!r}; order its two ends")
        return cls(concepts=concepts, loss=loss, position=position, norm=norm, hook=hook)


def _ordered(low: float | None, high: float | None) -> bool:
    return low is None or high is None or low <= high


def matching_rows(shards: Sequence[Shard], wanted: Filter) -> NDArray[int64]:
    """Global numbers of the rows that pass, ascending. Holds one shard's fields at a time.

    Sidecars rule shards out; of the rest, only the fields asked about are read, and their hashes are checked.
    """
    found = [np.empty(0, int64)]
    for shard in shards:
        if _ruled_out(shard, wanted):
            continue
        keep = np.ones(shard.sidecar.rows, bool)
        with shard.open() as file:
            for block, wish in (
                ("rows/loss", wanted.loss),
                ("rows/position", wanted.position),
                (f"norms/{wanted.hook}", wanted.norm),
            ):
                if wish is not None:
                    keep &= _within(shard.load(block, file), wish)
            if wanted.concepts is not None and keep.any():
                keep &= _of_concepts(shard, wanted.concepts)
        found.append(shard.start + np.flatnonzero(keep))
    return np.concatenate(found)


def _ruled_out(shard: Shard, wanted: Filter) -> bool:
    sidecar = shard.sidecar
    if wanted.norm is not None and wanted.hook is not None:
        norms, (low, high) = sidecar.norms[wanted.hook], wanted.norm
        if norms.min is None or norms.max is None:
            return True
        if (high is not None and norms.min > high) or (low is not None and norms.max < low):
            return True
    if wanted.concepts is None or (None in wanted.concepts and sum(sidecar.concepts.values()) < sidecar.rows):
        return False
    return not wanted.concepts & set(sidecar.concepts)


def _within(values: NDArray[Any], wish: Range) -> NDArray[np.bool_]:
    """Which values lie in a range; NaN lies in none."""
    low, high = wish
    keep: NDArray[np.bool_] = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), bool)
    if low is not None:
        keep &= values >= low
    if high is not None:
        keep &= values <= high
    return keep


def _of_concepts(shard: Shard, concepts: frozenset[str | None]) -> NDArray[np.bool_]:
    ids = shard.load("examples/id")
    texts = example_texts(shard, "concept")
    matching = ids[np.array([text in concepts for text in texts], bool)]
    return np.isin(shard.load("rows/example"), matching)


def example_texts(shard: Shard, field: str) -> list[str | None]:
    """One text of each example of a shard, hash checked."""
    block = f"examples/{field}"
    present = shard.load(f"{block}/present") if field in OPTIONAL_FIELDS else None
    return unpack_texts(shard.load(f"{block}/data"), shard.load(f"{block}/offsets"), present, f"{shard.path}: {block}")


def shard_examples(shard: Shard) -> Iterator[ExampleRecord]:
    """The examples of one shard, with their ids in the open store."""
    columns: dict[str, list[Any]] = {field: example_texts(shard, field) for field in TEXT_FIELDS}
    for number, id_ in enumerate(shard.load("examples/id").tolist()):
        texts = {field: values[number] for field, values in columns.items()}
        yield ExampleRecord(id=id_ + shard.example_offset, **texts)
