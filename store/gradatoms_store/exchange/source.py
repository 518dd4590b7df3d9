"""Rows that another program computed, on their way into a store: cut in work units, digested, joined with examples."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy import float32, int64
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError, StoreNotFoundError, StoreValueError
from gradatoms_store.exchange.common import Progress
from gradatoms_store.jsonio import Fields
from gradatoms_store.schema import ExampleRecord, GradientBlock, StoreHeader
from gradatoms_store.writer import StoreWriter

UNIT_BYTES = 32 * 2**20
"""Gradients of a work unit, as float32, unless the caller sets the rows."""

UNKNOWN = {"position": -1, "token": -1, "target": -1, "loss": np.nan}
"""Value of a row field that the source does not have."""


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """What an importer hands over: m examples in order, and their n rows in the same order."""

    counts: NDArray[int64]
    """Rows of each example, shape (m,)."""
    ids_end: int
    """One more than the highest example id."""
    digest: str
    """Digest of the content."""
    read: Callable[[slice, slice], tuple[GradientBlock, list[ExampleRecord]]]
    """Given a range of examples and the range of their rows: those rows, and the examples' records."""


def write_store(
    source: RowSource,
    out: str | os.PathLike[str],
    header: Mapping[str, Any],
    *,
    unit_rows: int | None,
    rows_per_shard: int | None,
    resume: bool,
    progress: Progress | None,
) -> None:
    """Write a source to a new store; `header` has the header's fields but for plan, n_units and n_examples."""
    if unit_rows is not None and unit_rows < 1:
        raise StoreValueError(f"unit_rows expected 1 or more, got {unit_rows}; give the rows of a work unit")
    width = sum(hook.d for hook in header["hooks"])
    # An example without rows weighs one row, so that the texts of a unit are bounded too.
    starts = np.cumsum(np.maximum(source.counts, 1)) - np.maximum(source.counts, 1)
    unit = starts // (unit_rows or max(1, UNIT_BYTES // (4 * width)))
    bounds = np.concatenate([np.flatnonzero(np.diff(unit, prepend=-1)), [len(unit)]]).tolist()
    plan = xxhash.xxh3_128_hexdigest(f"{source.digest} {bounds}".encode())
    full = StoreHeader(**header, plan=plan, n_units=len(bounds) - 1, n_examples=source.ids_end)
    ends = np.concatenate([[0], np.cumsum(source.counts)]).tolist()
    with (StoreWriter.resume if resume else StoreWriter.create)(out, full, rows_per_shard=rows_per_shard) as writer:
        for number in writer.units():
            low, high = bounds[number : number + 2]
            writer.append(number, *source.read(slice(low, high), slice(ends[low], ends[high])))
            if progress is not None:
                progress("rows", ends[high], ends[-1])


def digest_arrays(arrays: Mapping[str, NDArray[Any]], progress: Progress | None) -> str:
    """Hex xxh3_128 of names, dtypes, shapes and bytes; reads the arrays once, about 32 MB at a time.

    Calls `progress` with `hash`, bytes done, and bytes in all.
    """
    state = xxhash.xxh3_128()
    total = sum(array.nbytes for array in arrays.values())
    done = 0
    for name, array in sorted(arrays.items()):
        state.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        size = max(1, UNIT_BYTES // max(1, array[:1].nbytes))
        for low in range(0, len(array), size):
            piece = np.ascontiguousarray(array[low : low + size])
            state.update(piece.view(np.uint8).data)
            done += piece.nbytes
            if progress is not None:
                progress("hash", done, total)
    return state.hexdigest()


def empty_example(id_: int, meta: str = "{}") -> ExampleRecord:
    """A record of which nothing but the id is known."""
    return ExampleRecord(id=id_, prompt="", target="", foil=None, concept=None, meta=meta)


class ExampleFile:
    """A file of examples, one JSON object a line, in any order; memory holds two numbers an example."""

    def __init__(self, path: Path) -> None:
        """Read the file once, to check each line and to find it again.

        Raises:
            StoreNotFoundError: no such file.
            StoreFormatError: a line that is no example, or one id twice; names file and line.
        """
        if not path.is_file():
            raise StoreNotFoundError(f"{path}: expected a file of examples, found none; check the path")
        self.path = path
        self._offsets: dict[int, int] = {}
        state = xxhash.xxh3_128()
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    id_ = _record(line, f"{path}: line {number}").id
                    if self._offsets.setdefault(id_, offset) != offset:
                        message = f"{path}: line {number}: expected one line for each id, got {id_} again"
                        raise StoreFormatError(f"{message}; remove one of them")
                state.update(line)
                offset += len(line)
        self.digest = state.hexdigest()

    def count_rows(self, ids: NDArray[int64], counts: NDArray[int64]) -> tuple[NDArray[int64], NDArray[int64]]:
        """The file's ids, ascending, and the rows of each, given those of the ids that have rows.

        Raises:
            StoreValueError: the file lacks some of them.
        """
        known = np.array(sorted(self._offsets), int64)
        missing = np.setdiff1d(ids, known)
        if len(missing):
            message = (
                f"{self.path}: expected a line for each example of the rows, found none for {missing[:10].tolist()}"
            )
            raise StoreValueError(f"{message}; add them, or import without a file of examples")
        out = np.zeros(len(known), int64)
        out[np.searchsorted(known, ids)] = counts
        return known, out

    def record(self, id_: int) -> ExampleRecord:
        """The example of this id, which the file must have."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[id_])
            return _record(file.readline(), f"{self.path}: example {id_}")


def _record(line: bytes, where: str) -> ExampleRecord:
    """One line of a file of examples."""
    try:
        data = Fields.parse(line.decode(), where)
    except UnicodeDecodeError as error:
        raise StoreFormatError(f"{where}: expected UTF-8, got other bytes ({error.reason}); convert the file") from None
    values: dict[str, str | None] = {"prompt": "", "target": "", "foil": None, "concept": None, "meta": "{}"}
    id_ = data.integer("id")
    for field in set(values) & set(data.names()):
        value = data.take(field)
        if field == "meta" and isinstance(value, dict):
            value = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str) and not (value is None and values[field] is None):
            data.fail(field, "text", value)
        values[field] = value
    data.end()
    return ExampleRecord(id=id_, **values)  # type: ignore[arg-type]


def to_float32(array: NDArray[Any]) -> NDArray[float32]:
    """Floats as float32; what is too large becomes Inf, which the writer refuses with its example's id."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, float32)
