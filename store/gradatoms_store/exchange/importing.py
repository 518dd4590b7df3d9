"""Making a store of gradients that another program computed: from numpy arrays; `bergson.py` reads a bergson index."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError, StoreNotFoundError, StoreValueError
from gradatoms_store.exchange.common import Progress
from gradatoms_store.exchange.source import (
    UNKNOWN,
    ExampleFile,
    RowSource,
    digest_arrays,
    empty_example,
    to_float32,
    write_store,
)
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBlock, HookSpec


def import_numpy(
    arrays: str | os.PathLike[str] | Mapping[str, NDArray[Any] | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    model: Mapping[str, str | int],
    objective: str,
    positions: str,
    hf_names: Mapping[str, str] | None = None,
    space: str = "activation",
    dtype: str = "float16",
    seed: int = 0,
    examples: str | os.PathLike[str] | None = None,
    unit_rows: int | None = None,
    rows_per_shard: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make a store of raw gradients g = dJ/dh in numpy arrays.

    Rows may be in any order; they are taken sorted by example, and an example's rows go into one work unit.

    Args:
        arrays: a mapping, an `.npz` with such names, or one `.npy` whose file name is the hook's. A hook's name has
            its raw gradients, shape (N, d), float16, float32 or float64 (rounded to float32), in nats per unit of the
            hook. The names of row fields, `example`, `position`, `token`, `target` (integers) and `loss` (nats), have
            shape (N,); without `example` row i is of example i, other fields are then -1 and the loss NaN: unknown.
            A value may be the path of an `.npy`. Files are memory-mapped; only an array of a compressed `.npz` is
            read whole.
        out: folder of the store, `NAME.gstore`.
        model: what identifies the model, such as name and sha.
        objective: J, such as `nll`.
        positions: which positions became rows, such as `last`.
        hf_names: hook name to the name of its Hugging Face module; a hook that is not in it keeps its own name.
        space: `activation` or `weights`.
        dtype: stored dtype of the directions.
        seed: seed of the order of rows within shards.
        examples: a file of one JSON object a line: id, and if known prompt, target, foil, concept, meta (a JSON
            object, or its text); as `export_safetensors` writes it. It must have each example of the rows and may have
            more. None gives each example empty texts.
        unit_rows: rows of a work unit; None for about 32 MB of gradients. Memory holds one unit and one shard, and 24
            bytes a row.
        rows_per_shard: rows of a shard; None as for `StoreWriter.create`.
        resume: go on with an import that was cut off; takes the same arguments and content.
        progress: called with `hash` and bytes, or `rows` and rows: done, and in all.

    Raises:
        StoreValueError: arrays of wrong shapes or dtypes, no hook, NaN or Inf in a gradient, examples that are missing.
        StoreFormatError: a file that is damaged, or holds pickled objects; names it.
        StoreNotFoundError: a file, or the folder of `out`, does not exist.
        StoreExistsError: `out` exists. StoreMismatchError: with `resume`, it is of another import.
        StoreError: the store could not be written; what was committed is intact.
    """
    hooks, fields = _checked_arrays(_opened(arrays))
    n = len(next(iter(hooks.values())))
    example = np.asarray(fields["example"]).astype(int64) if "example" in fields else np.arange(n)
    order = np.argsort(example, kind="stable") if (np.diff(example) < 0).any() else None
    ids, counts = np.unique(example, return_counts=True)
    texts = ExampleFile(Path(examples)) if examples is not None else None
    if texts is not None:
        ids, counts = texts.count_rows(ids, counts)

    def read(which: slice, rows: slice) -> tuple[GradientBlock, list[ExampleRecord]]:
        chosen = rows if order is None else order[rows]
        block = GradientBlock(
            gradients={name: to_float32(array[chosen]) for name, array in hooks.items()},
            example=example[chosen],
            **{field: _row_field(fields, field, chosen, rows.stop - rows.start) for field in UNKNOWN},
        )
        return block, [texts.record(id_) if texts else empty_example(id_) for id_ in ids[which].tolist()]

    names = hf_names or {}
    specs = tuple(HookSpec(name=name, hf_name=names.get(name, name), d=a.shape[1]) for name, a in hooks.items())
    digest = digest_arrays({**hooks, **fields}, progress) + (texts.digest if texts else "")
    header: dict[str, Any] = {
        "model": dict(model),
        "hooks": specs,
        "objective": objective,
        "positions": positions,
        "space": space,
        "dtype": dtype,
        "seed": seed,
    }
    source = RowSource(counts=counts.astype(int64), ids_end=int(ids.max(initial=-1)) + 1, digest=digest, read=read)
    write_store(
        source, out, header, unit_rows=unit_rows, rows_per_shard=rows_per_shard, resume=resume, progress=progress
    )


def _opened(
    arrays: str | os.PathLike[str] | Mapping[str, NDArray[Any] | str | os.PathLike[str]],
) -> dict[str, NDArray[Any]]:
    """Name to array, memory-mapped where it is in a file."""
    if not isinstance(arrays, Mapping):
        path = Path(arrays)
        return _open_npz(path) if path.suffix == ".npz" else {path.stem: _open_npy(path)}
    return {
        name: _open_npy(Path(value)) if isinstance(value, str | os.PathLike) else np.asanyarray(value)
        for name, value in arrays.items()
    }


def _open_npy(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise StoreNotFoundError(f"{path}: expected an .npy file, found none; check the path")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _not_numpy(path, error) from None
    if not isinstance(array, np.ndarray):  # an .npz under another name
        array.close()
        raise StoreFormatError(f"{path}: expected an .npy file, got an archive of several; rename it to end in .npz")
    return array


def _open_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an archive: mapped where they lie uncompressed, else read whole."""
    if not path.is_file():
        raise StoreNotFoundError(f"{path}: expected an .npz file, found none; check the path")
    out: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.compress_type != zipfile.ZIP_STORED:
                    with archive.open(member) as packed:
                        out[name] = np.lib.format.read_array(packed, allow_pickle=False)
                    continue
                file.seek(member.header_offset + 26)  # the lengths of name and extra end the fixed part of 30 bytes
                file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
                out[name] = _map_member(path, file)
    except (ValueError, EOFError, OSError, struct.error, zipfile.BadZipFile) as error:
        raise _not_numpy(path, error) from None
    return out


def _map_member(path: Path, file: Any) -> NDArray[Any]:
    """Map the array whose header begins where the file stands."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Python objects")
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _not_numpy(path: Path, error: Exception) -> StoreFormatError:
    reason = " ".join(str(error).split())
    message = f"{path}: expected arrays of numbers in numpy's format, got other content ({reason:.120})"
    return StoreFormatError(f"{message}; pickled objects are never read: save plain arrays with np.save or np.savez")


def _checked_arrays(arrays: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Hooks and row fields apart, of one length N."""
    hooks = {name: array for name, array in arrays.items() if name not in ROW_FIELDS}
    fields = {name: array for name, array in arrays.items() if name in ROW_FIELDS}
    if not hooks:
        message = f"arrays expected one or more hooks beside the row fields, got {sorted(arrays)}"
        raise StoreValueError(f"{message}; name an array of gradients after its hook")
    for name, array in hooks.items():
        if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
            message = f"array {name!r} expected float16, float32 or float64 of shape (N, d)"
            raise StoreValueError(f"{message}, got {array.dtype} of {array.shape}; give raw gradients, one a row")
    for name, array in fields.items():
        kinds = "fiu" if name == "loss" else "iu"
        if array.ndim != 1 or array.dtype.kind not in kinds:
            message = f"row field {name!r} expected {'numbers' if name == 'loss' else 'integers'} of shape (N,)"
            raise StoreValueError(f"{message}, got {array.dtype} of {array.shape}; convert it")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise StoreValueError(f"arrays expected one length N, got {lengths}; give one row of each for each gradient")
    if "example" in fields and len(fields["example"]) and fields["example"].min() < 0:
        raise StoreValueError(f"example expected ids of 0 or more, got {fields['example'].min()}; number them from 0")
    return hooks, fields


def _row_field(fields: Mapping[str, NDArray[Any]], field: str, chosen: Any, n: int) -> NDArray[Any]:
    return np.asarray(fields[field][chosen]) if field in fields else np.full(n, UNKNOWN[field], ROW_FIELDS[field])
