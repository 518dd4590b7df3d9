"""What comes from a harvest is checked here, before any of it is buffered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.errors import StoreValueError
from gradatoms_store.layout import TEXT_FIELDS
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBlock, StoreHeader


def checked_rows(
    unit: int, block: GradientBlock, examples: Sequence[ExampleRecord], header: StoreHeader
) -> dict[str, NDArray[Any]]:
    """Check one work unit, all but the values of its gradients; its row fields in their dtypes on disk, copied.

    Raises:
        StoreValueError: wrong shapes or dtypes, hooks or examples that do not fit.
    """
    if not 0 <= unit < header.n_units:
        message = f"unit expected 0 to {header.n_units - 1} as the header's n_units states, got {unit}"
        raise StoreValueError(f"{message}; make the store with the plan that is harvested")
    rows = {field: _row_field(field, getattr(block, field), dtype) for field, dtype in ROW_FIELDS.items()}
    lengths = {field: len(array) for field, array in rows.items()}
    if len(set(lengths.values())) != 1:
        raise StoreValueError(f"row fields expected one length, got {lengths}; give one value a row in each")
    _check_examples(unit, rows["example"], examples, header.n_examples)
    _check_shapes(block.gradients, len(rows["example"]), header)
    return rows


def refuse_non_finite(hook: str, norms: NDArray[float32], example: NDArray[Any]) -> None:
    """Refuse gradients whose norms, of shape (n,), are not all finite.

    Raises:
        StoreValueError: names the hook and the first example.
    """
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        message = f"gradients at {hook} expected finite numbers, got NaN or Inf in {len(bad)} row(s)"
        where = f"first at example {int(example[bad[0]])} (row {int(bad[0])} of its unit)"
        raise StoreValueError(f"{message}, {where}; harvest it in float32 or leave the example out")


def _row_field(field: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """One row field of shape (n,) in its dtype on disk; integers must fit exactly."""
    array = np.asarray(values)
    kinds = "iu" if dtype[1] == "i" else "fiu"
    if array.ndim != 1 or (array.dtype.kind not in kinds and len(array)):
        message = (
            f"row field {field!r} expected shape (n,) of {np.dtype(dtype).name}, got {array.shape} of {array.dtype}"
        )
        raise StoreValueError(f"{message}; convert it")
    out = array.astype(dtype)  # always a copy: the caller may reuse its array
    if dtype[1] == "i" and not np.array_equal(out, array):
        raise StoreValueError(
            f"row field {field!r} expected values that fit {np.dtype(dtype).name}, got larger; check it"
        )
    return out


def _check_shapes(gradients: Mapping[str, NDArray[float32]], n: int, header: StoreHeader) -> None:
    valid = [hook.name for hook in header.hooks]
    if set(gradients) != set(valid):
        unknown, missing = sorted(set(gradients) - set(valid)), sorted(set(valid) - set(gradients))
        message = f"gradients expected exactly the hooks {', '.join(valid)}; got unknown {unknown}, missing {missing}"
        raise StoreValueError(f"{message}; harvest the hooks of the header")
    for hook in header.hooks:
        array = np.asarray(gradients[hook.name])
        if array.shape != (n, hook.d) or array.dtype.kind != "f":
            message = f"gradients at {hook.name} expected float of shape {(n, hook.d)}"
            raise StoreValueError(
                f"{message}, got {array.dtype} of {array.shape}; give one row of g for each row field"
            )


def _check_examples(unit: int, example: NDArray[Any], examples: Sequence[ExampleRecord], n_examples: int) -> None:
    """The examples of a unit are distinct, are those its rows name, and hold texts that can be stored."""
    ids = [record.id for record in examples]
    if len(set(ids)) != len(ids) or any(not 0 <= id_ < n_examples for id_ in ids):
        message = f"examples of unit {unit} expected distinct ids from 0 to {n_examples - 1}, as the header's n_examples states"
        raise StoreValueError(f"{message}, got {ids[:20]}; number them once each")
    absent = sorted(set(example.tolist()) - set(ids))
    if absent:
        message = (
            f"examples of unit {unit} expected one record for each example of its rows, got none for {absent[:10]}"
        )
        raise StoreValueError(f"{message}; hand over the unit's examples with its rows")
    for record in examples:
        where = f"example {record.id}"
        try:
            meta = json.loads(record.meta)
        except (ValueError, RecursionError) as error:
            raise StoreValueError(
                f"{where}: meta expected a JSON object as text, got {error}; use json.dumps"
            ) from None
        if not isinstance(meta, dict):
            raise StoreValueError(
                f"{where}: meta expected a JSON object as text, got {record.meta!r:.80}; use json.dumps"
            )
        for field in TEXT_FIELDS:
            text = getattr(record, field)
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                message = f"{where}: {field} expected text with a UTF-8 form, got {text!r:.80}"
                raise StoreValueError(f"{message}; remove the lone surrogates") from None
