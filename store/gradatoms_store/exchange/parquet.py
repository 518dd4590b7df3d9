"""Copying a store to a Hugging Face dataset: Parquet files, one row a row of the store, with a README."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from gradatoms_store.errors import StoreError, StoreFormatError, StoreValueError
from gradatoms_store.exchange.common import Counter, Progress, batch_size, example_batches, file_ranges, new_output
from gradatoms_store.layout import TEXT_FIELDS
from gradatoms_store.reader import Store
from gradatoms_store.schema import ROW_FIELDS, GradientBatch

COLUMNS = {"example": "example", "position": "position", "token": "token_id", "target": "target_id", "loss": "loss"}
"""Row field to its column, as `target` is the example's text."""


def export_dataset(
    store: Store,
    out: str | os.PathLike[str],
    *,
    rows_per_file: int | None = None,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the store as a Hugging Face dataset: a folder for `datasets.load_dataset`, or for a repository of the hub.

    `data/train-00000-of-00003.parquet` has one row a row of the store, in its order: prompt, target, foil, concept,
    meta (texts of its example), example, position, token_id, target_id, loss, and for each hook `gradient_<hook>` (a
    list of d numbers, the unit direction) and `norm_<hook>` (nats per unit of the hook). Characters of a hook's name
    that are not letters, digits or `_` become `_` in its columns. float16 directions stay float16; float32 and
    bfloat16 become float32, as Parquet has no bfloat16. `README.md` names the columns and holds the header.

    Args:
        store: what to export. Memory holds one batch and all examples' texts, twice while they are loaded.
        out: folder to make; nothing is written elsewhere.
        rows_per_file: rows of a file, the last may have fewer; None for about 256 MB of gradients.
        batch_rows: rows read at a time and put in a row group; None for about 32 MB of gradients.
        progress: called after each batch.

    Raises:
        StoreValueError: the store has no rows, which `datasets` cannot load.
        StoreExistsError: `out` exists. StoreNotFoundError: its folder does not.
        StoreError: pyarrow is missing, or the folder could not be written; nothing is left under its name.
    """
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise StoreError(f"expected the package pyarrow, got {error}; run `pip install datasets`") from error
    if not store.n_rows:
        message = f"{store.path}: expected rows to make a dataset of, found none"
        raise StoreValueError(f"{message}; `datasets` cannot load an empty one: export to hdf5 or safetensors")
    columns = _hook_columns(store.hooks)
    ranges, size = file_ranges(store, rows_per_file), batch_size(store, store.hooks, batch_rows)
    count = Counter(progress, "rows", store.n_rows)
    with new_output(out, folder=True) as partial:
        (partial / "data").mkdir()
        texts = _ExampleTexts.load(arrow, store, progress)
        schema = _arrow_schema(arrow, store, columns)
        plain = [name for name in schema.names if not name.startswith("gradient_")]
        for number, (low, high) in enumerate(ranges):
            path = partial / "data" / f"train-{number:05d}-of-{len(ranges):05d}.parquet"
            with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=plain) as writer:
                for start in range(low, high, size):
                    stop = min(start + size, high)
                    writer.write_table(_arrow_table(arrow, schema, columns, _window(store, start, stop), texts))
                    count.add(stop - start)
        (partial / "README.md").write_text(_dataset_card(store, columns), encoding="utf-8")


def _window(store: Store, low: int, high: int) -> dict[str, GradientBatch]:
    """Rows low to high of each hook; the row fields are in the first."""
    index, fields = np.arange(low, high), tuple(ROW_FIELDS)
    out: dict[str, GradientBatch] = {}
    for name in store.hooks:
        (out[name],) = store.batches(name, len(index), rows=index, fields=() if out else fields)
    return out


def _hook_columns(hooks: Iterable[str]) -> dict[str, str]:
    """Hook name to what follows `gradient_` and `norm_` in its columns, each its own."""
    out: dict[str, str] = {}
    for hook in hooks:
        name = base = re.sub(r"\W", "_", hook, flags=re.ASCII)
        number = 1
        while name in out.values():
            number += 1
            name = f"{base}_{number}"
        out[hook] = name
    return out


def _arrow_schema(arrow: Any, store: Store, columns: dict[str, str]) -> Any:
    fields = [(text, arrow.string()) for text in TEXT_FIELDS]
    fields += [(COLUMNS[field], arrow.from_numpy_dtype(np.dtype(dtype))) for field, dtype in ROW_FIELDS.items()]
    number = arrow.float16() if store.header.dtype == "float16" else arrow.float32()
    for hook in store.header.hooks:
        fields.append((f"gradient_{columns[hook.name]}", arrow.list_(number, hook.d)))
        fields.append((f"norm_{columns[hook.name]}", arrow.float32()))
    return arrow.schema(fields)


@dataclass(frozen=True)
class _ExampleTexts:
    """The texts of all examples, found by id."""

    ids: NDArray[int64]
    """Example ids, ascending, shape (m,)."""
    place: NDArray[int64]
    """Row of `table` of each id, shape (m,)."""
    table: Any

    @classmethod
    def load(cls, arrow: Any, store: Store, progress: Progress | None) -> Self:
        schema = arrow.schema([(text, arrow.large_string()) for text in TEXT_FIELDS])
        ids: list[int] = []
        parts = [schema.empty_table()]
        for records in example_batches(store, progress):
            ids += [record.id for record in records]
            columns = {text: [getattr(record, text) for record in records] for text in TEXT_FIELDS}
            parts.append(arrow.table(columns, schema))
        place = np.argsort(np.array(ids, int64))
        return cls(np.array(ids, int64)[place], place, arrow.concat_tables(parts).combine_chunks())

    def take(self, arrow: Any, example: NDArray[int64]) -> Any:
        """A table of the texts of these examples, one row each."""
        found = np.searchsorted(self.ids, example)
        if not len(self.ids) or not np.array_equal(self.ids[np.minimum(found, len(self.ids) - 1)], example):
            message = "rows/example expected ids of the store's examples, got others"
            raise StoreFormatError(f"{message}; the store is damaged: restore it from a copy")
        return self.table.take(arrow.array(self.place[found]))


def _arrow_table(
    arrow: Any, schema: Any, columns: dict[str, str], batches: dict[str, GradientBatch], texts: _ExampleTexts
) -> Any:
    """One batch of all hooks as a table of `schema`."""
    first = next(iter(batches.values()))
    joined = texts.take(arrow, first.rows["example"])
    arrays = [joined[text].combine_chunks().cast(arrow.string()) for text in TEXT_FIELDS]
    arrays += [arrow.array(first.rows[field]) for field in COLUMNS]
    for hook, column in columns.items():
        kind = schema.field(f"gradient_{column}").type
        flat = batches[hook].gradients.reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False)
        arrays += [arrow.FixedSizeListArray.from_arrays(arrow.array(flat), type=kind), arrow.array(batches[hook].norms)]
    return arrow.Table.from_arrays(arrays, schema=schema)


def _dataset_card(store: Store, columns: dict[str, str]) -> str:
    """The text of `README.md`, whose head tells `datasets` where the files are."""
    named = "\n".join(
        f"| `{hook.name}` | `gradient_{columns[hook.name]}`, `norm_{columns[hook.name]}` | {hook.d} |"
        for hook in store.header.hooks
    )
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
tags:
- gradients
- interpretability
---

# Gradients of a language model

{store.n_rows} rows. A row's gradient is `norm * gradient`: g = dJ/dh of the objective J, in nats per unit of the hook;
`gradient` is its unit direction.

| hook | columns | d |
|---|---|---|
{named}

`prompt`, `target`, `foil`, `concept` and `meta` are those of the row's `example`; `token_id` stands at `position`,
`target_id` is to be predicted, `loss` is J in nats. The header of the store:

```json
{store.header.to_json()}```
"""
