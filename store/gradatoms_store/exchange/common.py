"""What exports share: an output that appears whole or not at all, and a store's rows and examples in bounded pieces."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradatoms_store.errors import StoreError, StoreExistsError, StoreNotFoundError, StoreValueError
from gradatoms_store.files import PARTIAL, fsync_path
from gradatoms_store.reader import Store
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord

Progress = Callable[[str, int, int], None]
"""Called with a stage, such as `rows` or `examples`, what is done of it, and its total."""

BATCH_BYTES = 32 * 2**20
"""Gradients of a batch, as float32, unless the caller sets the rows."""

BATCH_ROWS = 8192
BATCH_EXAMPLES = 1024
FILE_BYTES = 256 * 2**20
"""Gradients of all hooks in a file of a folder, in the stored dtype, unless the caller sets the rows."""


class Counter:
    """Tells a callback how much of a stage is done."""

    def __init__(self, progress: Progress | None, stage: str, total: int) -> None:
        """`progress`: the callback, if any."""
        self._progress = progress
        self._stage = stage
        self._total = total
        self._done = 0

    def add(self, n: int) -> None:
        """So much more is done."""
        self._done += n
        if self._progress is not None:
            self._progress(self._stage, self._done, self._total)


@contextlib.contextmanager
def new_output(out: str | os.PathLike[str], *, folder: bool) -> Iterator[Path]:
    """An empty file or folder `<out>.partial`, which becomes `out` when the block ends well and is removed when not.

    What a kill left under that name is removed first.

    Raises:
        StoreExistsError: `out` exists. StoreNotFoundError: its folder does not.
        StoreError: it could not be written.
    """
    final = Path(out)
    _check_new(final)
    partial = final.with_name(final.name + PARTIAL)
    try:
        _remove(partial)
        partial.mkdir() if folder else partial.touch(exist_ok=False)
        own = partial.stat().st_ino
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                fsync_path(path)
            _check_new(final)
            if partial.stat().st_ino != own:
                message = f"{partial}: expected to be its only writer, found that another export replaced it"
                raise StoreError(f"{message}; export again")
            partial.rename(final)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(partial)
            raise
        fsync_path(final.parent)
    except (OSError, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        reason = " ".join(str(error).split())
        message = f"{final}: expected to write it, got {type(error).__name__} ({reason:.200})"
        raise StoreError(f"{message}; check space and rights, then export again") from error


def file_ranges(store: Store, rows_per_file: int | None) -> list[tuple[int, int]]:
    """First row and end of each file; one empty file when there are no rows.

    Raises:
        StoreValueError: `rows_per_file` is less than 1.
    """
    if rows_per_file is not None and rows_per_file < 1:
        raise StoreValueError(f"rows_per_file expected 1 or more, got {rows_per_file}; give the rows of a file")
    width = sum(hook.d for hook in store.header.hooks) * (4 if store.header.dtype == "float32" else 2)
    size = rows_per_file or max(1, FILE_BYTES // width)
    return [(low, min(low + size, store.n_rows)) for low in range(0, max(1, store.n_rows), size)]


def batch_size(store: Store, hooks: Collection[str], batch_rows: int | None) -> int:
    """Rows of a batch of these hooks: the caller's, or as many as fit BATCH_BYTES.

    Raises:
        StoreValueError: `batch_rows` is less than 1.
    """
    if batch_rows is not None and batch_rows < 1:
        raise StoreValueError(f"batch_rows expected 1 or more, got {batch_rows}; give the rows of a batch")
    width = 4 * sum(store.header.hook(name).d for name in hooks)
    return batch_rows or max(1, min(BATCH_ROWS, BATCH_BYTES // width))


def named_batches(
    store: Store, low: int, high: int, batch_rows: int | None, count: Counter
) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
    """Rows low to high, hook by hook and batch by batch: their place counted from low, and arrays by name.

    The arrays are `gradients/<hook>`, float32, and `norms/<hook>`, and with the first hook `rows/<field>`.

    Raises:
        StoreFormatError: bytes that are not those that were committed.
    """
    for number, name in enumerate(store.hooks):
        rows = None if high - low == store.n_rows else np.arange(low, high)
        fields = () if number else tuple(ROW_FIELDS)
        done = 0
        for batch in store.batches(name, batch_size(store, [name], batch_rows), rows=rows, fields=fields):
            stop = done + len(batch.index)
            arrays = {f"rows/{field}": values for field, values in batch.rows.items()}
            yield slice(done, stop), {f"gradients/{name}": batch.gradients, f"norms/{name}": batch.norms, **arrays}
            count.add(stop - done)
            done = stop


def example_batches(store: Store, progress: Progress | None) -> Iterator[list[ExampleRecord]]:
    """The store's examples in lists of bounded length, hash checked."""
    count = Counter(progress, "examples", store.info.examples)
    stream = iter(store.iter_examples())
    while records := list(islice(stream, BATCH_EXAMPLES)):
        yield records
        count.add(len(records))


def _check_new(final: Path) -> None:
    if os.path.lexists(final):
        raise StoreExistsError(f"{final}: expected a new path, found that it exists; choose another path")
    if not final.parent.is_dir():
        raise StoreNotFoundError(f"{final}: expected the folder {final.parent}, found none; make it first")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
