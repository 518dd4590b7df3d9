"""Files of a bergson index: rows in a memory map, documents in Arrow files, settings in YAML. Follows bergson 2.5.1."""

from __future__ import annotations

import importlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy import float32, int32, int64
from numpy.typing import NDArray

from gradatoms_store.encoding import directions_to_float32
from gradatoms_store.errors import StoreError, StoreFormatError, StoreNotFoundError, StoreValueError
from gradatoms_store.exchange.source import to_float32
from gradatoms_store.jsonio import Fields, read_json
from gradatoms_store.schema import GradientBlock

DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
"""Dtype of an index to the numpy dtype of its bytes; bfloat16 is read as uint16."""


@dataclass(frozen=True, kw_only=True)
class BergsonIndex:
    """One open index: m documents, n rows."""

    path: Path
    sizes: dict[str, int]
    """Module to its gradient size, in the order of the columns."""
    dtype: str
    per_token: bool
    """Whether a row is a token position; else it is a document."""
    matrix: NDArray[Any]
    """Memory map of shape (n, sum of sizes)."""
    offsets: NDArray[int64]
    """Rows `offsets[i]` to `offsets[i + 1]` are document i's; shape (m + 1,)."""
    documents: Documents | None

    @classmethod
    def open(cls, path: Path) -> BergsonIndex:
        """Read what describes the index in the folder `path`, and map its rows.

        Raises:
            StoreNotFoundError: there is none. StoreValueError: it is unfinished.
            StoreFormatError: a file is damaged or foreign; names it.
        """
        info = _info(path)
        present = set(info.names())
        per_token = "attribute_tokens" in present and info.take("attribute_tokens") is True
        n = info.integer("num_grads")
        m = info.integer("num_items") if per_token else n
        sizes = Fields(info.mapping("grad_sizes"), f"{info.where}: grad_sizes")
        widths = {name: sizes.integer(name, 1) for name in sizes.names()}
        dtype = info.text("base_dtype") if "base_dtype" in present else _structured_dtype(info)
        if dtype not in DTYPES:
            info.fail("base_dtype", f"one of {', '.join(DTYPES)}", dtype)
        return cls(
            path=path,
            sizes=widths,
            dtype=dtype,
            per_token=per_token,
            matrix=_map_matrix(path / "gradients.bin", DTYPES[dtype], (n, sum(widths.values()))),
            offsets=_load_offsets(path / "offsets.npy", m, n) if per_token else np.arange(n + 1),
            documents=Documents.open(path / "data.hf", m) if (path / "data.hf").exists() else None,
        )

    def block(self, low: int, high: int, start: int) -> GradientBlock:
        """The rows of documents low to high, as those of examples `start + low` to `start + high`."""
        counts = np.diff(self.offsets[low : high + 1])
        stored = self.matrix[self.offsets[low] : self.offsets[high]]
        values = directions_to_float32(stored, "bfloat16") if self.dtype == "bfloat16" else stored
        n = len(stored)
        position = token = target = np.full(n, -1, int32)
        if self.per_token:
            position = (np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)).astype(int32)
            if self.documents:
                token, target = self.documents.tokens(low, high, counts)
        loss = self.documents.losses(low, high) if self.documents else np.full(high - low, np.nan, float32)
        ends = np.cumsum(list(self.sizes.values())).tolist()
        return GradientBlock(
            gradients={
                name: to_float32(values[:, end - size : end])
                for (name, size), end in zip(self.sizes.items(), ends, strict=True)
            },
            example=np.repeat(np.arange(start + low, start + high), counts),
            position=position,
            token=token,
            target=target,
            loss=np.repeat(loss, counts),
        )

    def has_optimizer_state(self) -> bool:
        """Whether gradients were divided by an optimizer's second moments: `normalizers.pth` holds tensors.

        It is a zip archive with one member a tensor under `data/`; nothing is unpickled.
        """
        file = self.path / "normalizers.pth"
        if not file.is_file():
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                return any("/data/" in name for name in archive.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            message = f"{file}: expected an archive of tensors, got other content ({error})"
            raise StoreFormatError(f"{message}; restore the index from a copy") from None


class Documents:
    """The documents of an index, memory-mapped Arrow tables of `data.hf`."""

    def __init__(self, folder: Path, files: list[Path], table: Any) -> None:
        """Internal: use `open`."""
        self.folder = folder
        self.files = files
        self._table = table
        self._names = set(table.column_names)

    @classmethod
    def open(cls, folder: Path, m: int) -> Documents:
        """Map the folder that `datasets` saved, which must have m documents.

        Raises:
            StoreFormatError: damaged or foreign. StoreError: pyarrow is missing.
        """
        try:
            arrow: Any = importlib.import_module("pyarrow")
        except ImportError as error:
            raise StoreError(f"expected the package pyarrow, got {error}; run `pip install datasets`") from error
        state = Fields.parse(read_json(folder / "state.json"), str(folder / "state.json"))
        files = []
        for item in state.items("_data_files"):
            name = Fields(item, f"{state.where}: _data_files").text("filename")
            if Path(name).name != name:
                state.fail("_data_files", "names of files in its folder", name)
            files.append(folder / name)
        try:
            tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
            table = arrow.concat_tables(tables)
        except (arrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            message = f"{folder}: expected Arrow files that `datasets` saved, got {reason:.160}"
            raise StoreFormatError(f"{message}; restore the index from a copy") from None
        if table.num_rows != m:
            message = f"{folder}: expected {m} documents as info.json states, found {table.num_rows}"
            raise StoreFormatError(f"{message}; the index is not of one run: build it again")
        return cls(folder, files, table)

    def has(self, column: str) -> bool:
        """Whether there is a column of this name."""
        return column in self._names

    def has_text(self, column: str) -> bool:
        """Whether there is a column of texts of this name."""
        return self.has(column) and str(self._table.schema.field(column).type) in ("string", "large_string")

    def names(self) -> list[str]:
        """The columns."""
        return list(self._table.column_names)

    def column(self, name: str, low: int, high: int) -> list[Any]:
        """Values of a column for documents low to high.

        Raises:
            StoreFormatError: its bytes are damaged.
        """
        part = self._table.column(name).slice(low, high - low)
        try:
            part.validate(full=True)
        except ValueError as error:
            message = f"{self.folder}: column {name!r} expected valid values, got others ({error})"
            raise StoreFormatError(f"{message}; restore the index from a copy") from None
        values: list[Any] = part.to_pylist()
        return values

    def losses(self, low: int, high: int) -> NDArray[float32]:
        """Loss of documents low to high, NaN where it is not kept."""
        values = self.column("loss", low, high) if self.has("loss") else [None] * (high - low)
        return np.array([np.nan if value is None else value for value in values], float32)

    def tokens(self, low: int, high: int, counts: NDArray[int64]) -> tuple[NDArray[int32], NDArray[int32]]:
        """Token at each row's position and the label of the next, of documents low to high; -1 where there is none.

        Raises:
            StoreFormatError: a document has another number of tokens than its rows say.
        """
        unknown = np.full(int(counts.sum()), -1, int32)
        if not self.has("input_ids"):
            return unknown, unknown
        ids = [row or [] for row in self.column("input_ids", low, high)]
        labels = [row or [] for row in self.column("labels", low, high)] if self.has("labels") else ids
        for number, n in enumerate(counts.tolist()):
            lengths = len(ids[number]), len(labels[number])
            if max(lengths[0] - 1, 0) != n or lengths[1] != lengths[0]:
                message = f"{self.folder}: document {low + number} expected tokens and labels for {n} rows"
                raise StoreFormatError(f"{message}, got {lengths}; the index is not of one run: build it again")
        flat = [np.array(row[:-1], int32) for row in ids]
        next_ = [np.array(row[1:], int32) for row in labels]
        token, target = np.concatenate(flat), np.concatenate(next_)
        return token, np.where(target < 0, int32(-1), target)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty one where there is no file.

    Raises:
        StoreFormatError: it holds something else.
    """
    if not path.exists():
        return {}
    try:
        data = yaml.safe_load(read_json(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise StoreFormatError(f"{path}: expected YAML, got other text ({reason:.120}); restore the file") from None
    if not isinstance(data, dict):
        raise StoreFormatError(f"{path}: expected a YAML mapping, got {type(data).__name__}; restore the file")
    return data


def _info(path: Path) -> Fields:
    """The content of `info.json`."""
    if path.name.endswith(".part"):
        message = f"{path}: expected a finished index, got the folder of a run that bergson has not finished"
        raise StoreValueError(f"{message}; let it finish, or build the index again")
    file = path / "info.json"
    if not file.exists():
        parts = sorted(folder.parent.name for folder in path.glob("*/info.json"))
        hint = f"give its parts in order as a list: {', '.join(parts[:10])}" if parts else "check the path"
        raise StoreNotFoundError(f"{path}: expected the folder of a bergson index with info.json, found none; {hint}")
    return Fields.parse(read_json(file), str(file))


def _structured_dtype(info: Fields) -> str:
    """Dtype of an older index, whose `info.json` has the structured dtype of a row: one field a module."""
    formats = Fields(info.mapping("dtype"), f"{info.where}: dtype").items("formats")
    text = str(formats[0]).rpartition(")")[2] if formats else ""
    return {"<f2": "float16", "<f4": "float32", "<f8": "float64"}.get(text, text)


def _map_matrix(file: Path, dtype: str, shape: tuple[int, int]) -> NDArray[Any]:
    expected = np.dtype(dtype).itemsize * shape[0] * shape[1]
    size = file.stat().st_size if file.is_file() else -1
    if size != expected:
        message = f"{file}: expected {expected} bytes as info.json states, found {'no file' if size < 0 else size}"
        raise StoreFormatError(f"{message}; the index is damaged or unfinished: build it again")
    return np.memmap(file, dtype, "r", shape=shape) if size else np.empty(shape, dtype)


def _load_offsets(file: Path, m: int, n: int) -> NDArray[int64]:
    try:
        offsets = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StoreFormatError(
            f"{file}: expected an array, got {error}; the index is damaged: build it again"
        ) from None
    fits = isinstance(offsets, np.ndarray) and offsets.dtype == int64 and offsets.shape == (m + 1,)
    if not fits or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        message = f"{file}: expected {m + 1} int64 that rise from 0 to {n}, got others"
        raise StoreFormatError(f"{message}; the index is damaged: build it again")
    out: NDArray[int64] = offsets
    return out
