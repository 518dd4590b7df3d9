"""Evidence and trials on disk: ``evidence.h5``, all that a teacher or a scorer needs, so that neither needs the model.

Rows of dataclasses become columns, one group a class: numbers and strings as datasets, tuples as subgroups with an
``indptr`` (row i holds items indptr[i] to indptr[i + 1]), an optional record as a subgroup with a mask ``present``.

    /                  attributes: format_version, and ``about``: how it was made, JSON
    /evidence          one row an atom (``evidence.Evidence``)
    /trials            one row an atom (``evidence.Trials``)
    /null/evidence     the same of random directions
    /null/trials
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from gradatoms.errors import AtomsFormatError
from gradatoms.files import save_whole
from gradatoms.labels import evidence as records
from gradatoms.labels.evidence import Evidence, Trials

FORMAT_VERSION = 2
"""1 had the lookahead in active and neutral contexts only; it is gathered again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Gathered:
    """Evidence and trials of every atom, and of random directions."""

    evidence: list[Evidence]
    trials: list[Trials]
    null_evidence: list[Evidence]
    null_trials: list[Trials]
    about: dict[str, Any] = field(default_factory=dict)
    """How it was made: KL budget, contexts, seed, random directions, concepts of the store."""


def save_evidence(path: Path, gathered: Gathered) -> None:
    """Write ``evidence.h5`` whole or not at all."""

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["about"] = json.dumps(gathered.about, ensure_ascii=False)
            _write(file.create_group("evidence"), gathered.evidence, Evidence)
            _write(file.create_group("trials"), gathered.trials, Trials)
            _write(file.create_group("null/evidence"), gathered.null_evidence, Evidence)
            _write(file.create_group("null/trials"), gathered.null_trials, Trials)

    save_whole(path, write)


def load_evidence(path: str | Path) -> Gathered:
    """Read ``evidence.h5``.

    Raises:
        AtomsFormatError: not there, damaged, or of another version.
    """
    try:
        with h5py.File(path, "r") as file:
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                raise AtomsFormatError(
                    f"expected evidence of format {FORMAT_VERSION} at {path}, got {version}; remove it and run `atoms label`"
                )
            return Gathered(
                _read(file["evidence"], Evidence),
                _read(file["trials"], Trials),
                _read(file["null/evidence"], Evidence),
                _read(file["null/trials"], Trials),
                json.loads(file.attrs["about"]),
            )
    except AtomsFormatError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise AtomsFormatError(
            f"expected evidence at {path}, got {type(error).__name__}: {' '.join(str(error).split())}; run `atoms label`"
        ) from error


def _write(group: h5py.Group, rows: Sequence[Any], kind: type) -> None:
    group.attrs["rows"] = len(rows)
    for name, (inner, shape) in _fields(kind).items():
        values = [getattr(row, name) for row in rows]
        if shape == "many":
            sub = group.create_group(name)
            sub["indptr"] = np.cumsum([0, *(len(v) for v in values)]).astype(np.int64)
            _write(sub, [item for v in values for item in v], inner)
        elif dataclasses.is_dataclass(inner):
            sub = group.create_group(name)
            sub["present"] = np.asarray([v is not None for v in values], np.uint8)
            _write(sub, [v for v in values if v is not None], inner)
        elif inner is str:
            if shape == "maybe":
                group[name + "_present"] = np.asarray([v is not None for v in values], np.uint8)
            _strings(group, name, ["" if v is None else v for v in values])
        elif inner is int:
            group[name] = np.asarray(values, np.int64)
        else:
            group[name] = np.asarray([np.nan if v is None else v for v in values], np.float64)


def _read(group: h5py.Group, kind: type[T]) -> list[T]:
    n = int(group.attrs["rows"])
    columns: dict[str, Sequence[Any]] = {}
    for name, (inner, shape) in _fields(kind).items():
        if shape == "many":
            items: list[Any] = _read(group[name], inner)
            bounds = group[name]["indptr"][:].tolist()
            columns[name] = [tuple(items[a:b]) for a, b in itertools.pairwise(bounds)]
        elif dataclasses.is_dataclass(inner):
            there = iter(_read(group[name], inner))
            columns[name] = [next(there) if present else None for present in group[name]["present"][:]]
        elif inner is str:
            texts = group[name].asstr()[:].tolist()
            if shape == "maybe":
                texts = [t if p else None for t, p in zip(texts, group[name + "_present"][:], strict=True)]
            columns[name] = texts
        elif shape == "maybe":
            columns[name] = [None if np.isnan(v) else v for v in group[name][:].tolist()]
        else:
            columns[name] = group[name][:].tolist()
    if any(len(column) != n for column in columns.values()):
        raise ValueError(f"columns of {group.name} have other lengths than {n}")
    names = list(columns)
    return [kind(**dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _fields(kind: type) -> dict[str, tuple[type, str]]:
    """Name → (type, ``one`` | ``maybe`` | ``many``) of a record's fields."""
    hints = typing.get_type_hints(kind, vars(records))
    found: dict[str, tuple[type, str]] = {}
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is tuple:
            found[f.name] = (args[0], "many")
        elif origin in (typing.Union, types.UnionType):
            found[f.name] = (next(a for a in args if a is not type(None)), "maybe")
        else:
            found[f.name] = (hint, "one")
    return found


def _strings(group: h5py.Group, name: str, values: list[str]) -> None:
    clean = [v.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8") for v in values]
    group.create_dataset(
        name, data=np.asarray(clean, dtype=object), dtype=h5py.string_dtype("utf-8"), shape=(len(clean),)
    )
