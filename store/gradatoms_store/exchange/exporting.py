"""Copying a store to files that other tools open: one HDF5 file, safetensors files, a Hugging Face dataset.

Each export streams the store, writes beside its target under a name that ends in `.partial`, and renames at the end:
a kill leaves no half export under the final name. Gradients stay as the store keeps them, unit directions with their
norms: g = norm * direction.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import h5py
import numpy as np
from numpy import float32, int64
from numpy.typing import NDArray

from gradatoms_store.encoding import DISK_DTYPE
from gradatoms_store.exchange.common import (
    BATCH_EXAMPLES,
    Counter,
    Progress,
    example_batches,
    file_ranges,
    named_batches,
    new_output,
)
from gradatoms_store.exchange.parquet import export_dataset
from gradatoms_store.layout import OPTIONAL_FIELDS, TEXT_FIELDS
from gradatoms_store.reader import Store
from gradatoms_store.schema import ROW_FIELDS

__all__ = ["EXPORTS", "Progress", "export_dataset", "export_hdf5", "export_safetensors"]

_log = logging.getLogger(__name__)


def export_hdf5(
    store: Store, out: str | os.PathLike[str], *, batch_rows: int | None = None, progress: Progress | None = None
) -> None:
    """Write the store as one plain HDF5 file, readable from HDF5 1.10 on.

    The file holds, for N rows and M examples: `gradients/<hook>` (N, d), contiguous, unit directions in the stored
    dtype; `norms/<hook>` (N,) float32 in nats per unit of the hook; `rows/<field>` (N,); `examples/id` (M,) and
    `examples/<text>` (M,) as variable-length UTF-8 strings, with a boolean `examples/<text>_present` for foil and
    concept, whose absent texts are empty strings; the root attributes `header` (the text of `store.json`) and
    `fingerprint`. HDF5 has no bfloat16: such directions become float32, exactly, and the attribute `stored_dtype` of
    each gradient dataset says `bfloat16`. HDF5 strings end at a NUL: a NUL in a text becomes U+2400, and the root
    attribute `texts_with_nul` counts the texts it was in.

    Args:
        store: what to export; memory holds one batch and what `batches` reads ahead.
        out: file to make.
        batch_rows: rows read at a time; None for about 32 MB of gradients.
        progress: called after each batch.

    Raises:
        StoreExistsError: `out` exists. StoreNotFoundError: its folder does not.
        StoreError: it could not be written; nothing is left under its name.
    """
    header, n = store.header, store.n_rows
    plain = "float32" if header.dtype == "bfloat16" else header.dtype
    with new_output(out, folder=False) as partial, h5py.File(partial, "w", libver=("v110", "v110")) as file:
        file.attrs.update(format="gradatoms-export", header=header.to_json(), fingerprint=header.fingerprint)
        for hook in header.hooks:
            file.create_dataset(f"gradients/{hook.name}", (n, hook.d), plain).attrs["stored_dtype"] = header.dtype
            file.create_dataset(f"norms/{hook.name}", (n,), "<f4")
        for field, dtype in ROW_FIELDS.items():
            file.create_dataset(f"rows/{field}", (n,), dtype)
        count = Counter(progress, "rows", n * len(store.hooks))
        for rows, arrays in named_batches(store, 0, n, batch_rows, count):
            for name, array in arrays.items():
                file[name][rows] = _stored(array, plain) if name.startswith("gradients/") else array
        file.attrs["texts_with_nul"] = _write_hdf5_examples(file, store, progress)


def export_safetensors(
    store: Store,
    out: str | os.PathLike[str],
    *,
    rows_per_file: int | None = None,
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the store as a folder of safetensors files, with `examples.jsonl` and `header.json`.

    `gradients-00000-of-00003.safetensors` holds for its n rows `gradients.<hook>` (n, d), unit directions in the
    stored dtype (BF16 too), `norms.<hook>` (n,) in nats per unit of the hook, and `rows.<field>` (n,); its metadata
    has `first_row` and the store's `fingerprint`. `examples.jsonl` has one object an example: id, prompt, target,
    foil, concept, meta (the text of a JSON object). `header.json` is the text of `store.json`.

    Args:
        store: what to export; memory holds one file and what `batches` reads ahead.
        out: folder to make.
        rows_per_file: rows of a file, the last may have fewer; None for about 256 MB of gradients.
        batch_rows: rows read at a time; None for about 32 MB of gradients.
        progress: called after each batch.

    Raises:
        StoreExistsError: `out` exists. StoreNotFoundError: its folder does not.
        StoreError: it could not be written; nothing is left under its name.
    """
    from safetensors import SafetensorError, TensorSpec, serialize_file

    ranges = file_ranges(store, rows_per_file)
    count = Counter(progress, "rows", store.n_rows * len(store.hooks))
    with new_output(out, folder=True) as partial:
        for number, (low, high) in enumerate(ranges):
            arrays = _file_arrays(store, low, high, batch_rows, count)
            tensors = {
                name: TensorSpec(
                    dtype="bfloat16" if array.dtype == np.uint16 else array.dtype.name,
                    shape=array.shape,
                    data_ptr=array.ctypes.data,
                    data_len=array.nbytes,
                )
                for name, array in arrays.items()
            }
            metadata = {"fingerprint": store.header.fingerprint, "first_row": str(low)}
            path = partial / f"gradients-{number:05d}-of-{len(ranges):05d}.safetensors"
            try:
                serialize_file(tensors, path, metadata)
            except SafetensorError as error:
                raise OSError(str(error)) from error
            del arrays, tensors
        (partial / "header.json").write_text(store.header.to_json(), encoding="utf-8")
        with (partial / "examples.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for records in example_batches(store, progress):
                file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


EXPORTS: dict[str, Callable[..., None]] = {
    "hdf5": export_hdf5,
    "safetensors": export_safetensors,
    "dataset": export_dataset,
}
"""Name of a format to its export; each takes a store, a path, and at least `batch_rows` and `progress`."""


def _stored(gradients: NDArray[float32], dtype: str) -> NDArray[Any]:
    """Directions back in their stored dtype, which is exact: they came from it."""
    if dtype == "bfloat16":
        return (gradients.view(np.uint32) >> 16).astype(np.uint16)
    return gradients.astype(dtype, copy=False)


def _file_arrays(store: Store, low: int, high: int, batch_rows: int | None, count: Counter) -> dict[str, NDArray[Any]]:
    """Rows low to high as named tensors in the stored dtype; bfloat16 directions are uint16."""
    header, n = store.header, high - low
    arrays: dict[str, NDArray[Any]] = {}
    for hook in header.hooks:
        arrays[f"gradients.{hook.name}"] = np.empty((n, hook.d), DISK_DTYPE[header.dtype])
        arrays[f"norms.{hook.name}"] = np.empty(n, "<f4")
    arrays |= {f"rows.{field}": np.empty(n, dtype) for field, dtype in ROW_FIELDS.items()}
    for rows, found in named_batches(store, low, high, batch_rows, count):
        for name, array in found.items():
            group, _, rest = name.partition("/")
            arrays[f"{group}.{rest}"][rows] = _stored(array, header.dtype) if group == "gradients" else array
    return arrays


def _write_hdf5_examples(file: Any, store: Store, progress: Progress | None) -> int:
    """Write the group `examples`; returns the number of texts in which a NUL was replaced."""

    def column(name: str, dtype: Any) -> Any:
        return file.create_dataset(f"examples/{name}", (0,), dtype, maxshape=(None,), chunks=(BATCH_EXAMPLES,))

    columns = {"id": column("id", "<i8")}
    columns |= {text: column(text, h5py.string_dtype("utf-8")) for text in TEXT_FIELDS}
    columns |= {f"{text}_present": column(f"{text}_present", bool) for text in OPTIONAL_FIELDS}
    start = changed = 0
    for records in example_batches(store, progress):
        stop = start + len(records)
        values: dict[str, Any] = {"id": np.array([record.id for record in records], int64)}
        for text in TEXT_FIELDS:
            given = [getattr(record, text) for record in records]
            changed += sum("\0" in (value or "") for value in given)
            values[text] = np.array([(value or "").replace("\0", "\u2400") for value in given], object)
            values[f"{text}_present"] = np.array([value is not None for value in given])
        for name, data in columns.items():
            data.resize(stop, 0)
            data[start:stop] = values[name]
        start = stop
    if changed:
        _log.warning("%d texts of %s hold a NUL, which HDF5 strings cannot; it became U+2400", changed, store.path)
    return changed
