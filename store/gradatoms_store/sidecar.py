"""The sidecar `shards/NNNNN.json`: what a shard holds. Its presence under this name is the commit of the shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy import float32
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.jsonio import DIGEST, Fields, digest_of, read_json
from gradatoms_store.layout import MAX_SEGMENT_BYTES, SEGMENT_ROWS, segmented, widest_bytes
from gradatoms_store.schema import SCHEMA_VERSION, VERSION_FIELD, StoreHeader

SHARD_FORMAT = "gradatoms-shard"
SHARDS = "shards"
"""Folder of the shards inside a store."""

NEW_IN_2 = ("structure", "segment_rows", "segments", "nan_losses", "example_offset")
"""Keys that version 2 added."""

MAX_EXAMPLE_OFFSET = 2**62
"""So that no sum with an example id overflows."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_STEM = re.compile(r"[0-9]{5,9}")


def shard_stem(number: int) -> str:
    """File name of shard `number` without its ending: 7 is `00007`."""
    return f"{number:05d}"


@dataclass(frozen=True, kw_only=True)
class NormSummary:
    """Distribution of |g| at one hook over the rows of a shard; None where the shard has no rows."""

    zeros: int
    min: float | None
    max: float | None
    quantiles: dict[str, float]
    """Quantile as text (`"0.5"`) to norm."""

    @classmethod
    def of(cls, norms: NDArray[float32]) -> NormSummary:
        """Summary of norms of shape (n,)."""
        if not len(norms):
            return cls(zeros=0, min=None, max=None, quantiles={})
        values = np.quantile(norms.astype(np.float64), QUANTILES)
        quantiles = {str(q): float(value) for q, value in zip(QUANTILES, values, strict=True)}
        return cls(zeros=int((norms == 0).sum()), min=float(norms.min()), max=float(norms.max()), quantiles=quantiles)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The contents of one sidecar."""

    file: str
    """Name of the shard beside it, `00000.h5`; never a path."""
    fingerprint: str
    """Fingerprint of the store it belongs to."""
    rows: int
    examples: int
    bytes: int
    """Size of the shard file."""
    units: tuple[int, ...]
    """Work units whose rows it holds, ascending."""
    blocks: dict[str, str]
    """Dataset path in the shard to hex xxh3_128 of its bytes."""
    norms: dict[str, NormSummary]
    """Hook name to the distribution of its norms."""
    concepts: dict[str, int]
    """Concept to number of rows; rows without a concept are not counted."""
    structure: str | None = None
    """Hex xxh3_128 of the shard's bytes outside the datasets; None in version 1."""
    segment_rows: int | None = None
    """Rows of a segment, the last of which may be shorter; None in version 1."""
    segments: dict[str, str] = field(default_factory=dict)
    """Path of each dataset of gradients, norms and row fields to the xxh3_64 of each segment's bytes, as 16 hex digits
    each, end to end; empty in version 1."""
    nan_losses: int | None = None
    """Rows whose loss is NaN; None in version 1."""
    example_offset: int = 0
    """Added to every example id in the shard to give the id in the store."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The text of the sidecar, in its version."""
        data = asdict(self)
        version = data.pop(VERSION_FIELD)
        if version == 1:
            for key in NEW_IN_2:
                del data[key]
        data = {"format": SHARD_FORMAT, VERSION_FIELD: version, **data}
        return json.dumps(data if version == 1 else data | {DIGEST: digest_of(data)}) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Sidecar:
        """Read a sidecar; `where` is its path, for messages.

        Raises:
            StoreFormatError: damaged, foreign or of a future version; names the file and the field.
        """
        data = Fields.parse(text, where)
        digest = digest_of(data.without(DIGEST))
        version = data.version(SHARD_FORMAT, SCHEMA_VERSION)
        blocks = Fields(data.mapping("blocks"), f"{where}: blocks")
        concepts = Fields(data.mapping("concepts"), f"{where}: concepts")
        norms = data.mapping("norms")
        sidecar = cls(
            file=data.text("file"),
            fingerprint=data.text("fingerprint"),
            rows=data.integer("rows"),
            examples=data.integer("examples"),
            bytes=data.integer("bytes", 1),
            units=tuple(data.integers("units")),
            blocks={key: blocks.text(key) for key in blocks.names()},
            norms={hook: _norm_summary(value, f"{where}: norms[{hook!r}]") for hook, value in norms.items()},
            concepts={key: concepts.integer(key) for key in concepts.names()},
            schema_version=version,
            **(_new_in_2(data, where) if version > 1 else {}),
        )
        if version > 1:
            data.equal(DIGEST, digest)
        data.end()
        return sidecar


def _new_in_2(data: Fields, where: str) -> dict[str, Any]:
    segments = Fields(data.mapping("segments"), f"{where}: segments")
    return {
        "structure": data.text("structure"),
        "segment_rows": data.integer("segment_rows", 1),
        "segments": {key: segments.text(key) for key in segments.names()},
        "nan_losses": data.integer("nan_losses"),
        "example_offset": data.integer("example_offset"),
    }


def _norm_summary(value: object, where: str) -> NormSummary:
    data = Fields(value, where)
    quantiles = Fields(data.mapping("quantiles"), f"{where}: quantiles")
    summary = NormSummary(
        zeros=data.integer("zeros"),
        min=data.optional_number("min"),
        max=data.optional_number("max"),
        quantiles={key: quantiles.number(key) for key in quantiles.names()},
    )
    data.end()
    return summary


def read_sidecars(path: Path, header: StoreHeader) -> dict[int, Sidecar]:
    """The committed shards of the store at `path`: shard number to sidecar, ascending.

    Checks each sidecar against the store's header and the size of its shard file; opens no shard.

    Raises:
        StoreFormatError: a sidecar is damaged or foreign, a shard is missing or has another size, two shards
            hold the same unit; names the file.
    """
    files, strays = sidecar_files(path)
    for _, message in strays:
        raise StoreFormatError(message)
    sidecars: dict[int, Sidecar] = {}
    owner: dict[int, str] = {}
    for file in files:
        sidecar = read_sidecar(file, header)
        for unit in sidecar.units:
            if unit in owner:
                message = f"{file}: field 'units' holds unit {unit}, which {owner[unit]} holds too"
                raise StoreFormatError(f"{message}; run `atoms store verify --repair` to set the later one aside")
            owner[unit] = file.name
        sidecars[int(file.stem)] = sidecar
    return sidecars


def sidecar_files(path: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The sidecars of the store at `path`, ascending by number; and files that only look like one, with what is wrong.

    Raises:
        StoreFormatError: there is no folder of shards.
    """
    folder = path / SHARDS
    if folder.is_symlink() or not folder.is_dir():
        raise StoreFormatError(f"{folder}: expected a folder, found none; the store is damaged, restore it from a copy")
    good: list[Path] = []
    bad: list[tuple[Path, str]] = []
    for file in sorted(folder.glob("*.json"), key=lambda file: (len(file.stem), file.stem)):
        if _STEM.fullmatch(file.stem) and shard_stem(int(file.stem)) == file.stem:
            good.append(file)
        else:
            shown = f"{folder}/{ascii(file.name)[1:-1]:.100}"
            bad.append((file, f"{shown}: expected a name such as 00000.json, found another; move the file away"))
    return good, bad


def read_sidecar(file: Path, header: StoreHeader) -> Sidecar:
    """One sidecar, checked against its name, its store's header and the size of its shard file.

    Raises:
        StoreFormatError: it does not fit; names the file.
    """
    sidecar = Sidecar.from_json(read_json(file), str(file))
    _check(file, sidecar, header)
    return sidecar


def _check(file: Path, sidecar: Sidecar, header: StoreHeader) -> None:
    """Refuse a sidecar that does not fit its name, its store or its shard file."""
    expected: dict[str, tuple[object, object]] = {
        "file": (f"{file.stem}.h5", sidecar.file),
        "fingerprint": (header.fingerprint, sidecar.fingerprint),
        "units": (sorted({unit for unit in sidecar.units if unit < header.n_units}), list(sidecar.units)),
        "norms": ([hook.name for hook in header.hooks], list(sidecar.norms)),
        "schema_version": (header.schema_version, sidecar.schema_version),
    }
    if sidecar.segment_rows is not None:
        expected["segments"] = (sorted(segmented(header)), sorted(sidecar.segments))
        digits = 16 * -(-sidecar.rows // sidecar.segment_rows)
        for block, hashes in sidecar.segments.items():
            expected[f"segments[{block!r}]"] = (digits, len(hashes))
    for hook, norms in sidecar.norms.items():
        wanted = ([str(q) for q in QUANTILES] if sidecar.rows else [], not sidecar.rows, not sidecar.rows)
        expected[f"norms[{hook!r}]"] = (wanted, (list(norms.quantiles), norms.min is None, norms.max is None))
    for key, (want, got) in expected.items():
        if want != got:
            message = f"{file}: field {key!r} expected {_short(want)}, got {_short(got)}"
            raise StoreFormatError(f"{message}; the sidecar is damaged or of another store: move it and its shard away")
    for key, limit in _limits(sidecar, header):
        message = f"{file}: field {key!r} expected {limit}, got another"
        raise StoreFormatError(f"{message}; the sidecar is damaged or not to be trusted: move it and its shard away")
    shard = file.with_suffix(".h5")
    if shard.is_symlink() or not shard.is_file():
        message = f"{shard}: expected the shard of {file.name}, found no regular file"
        raise StoreFormatError(f"{message}; restore it, or delete the sidecar and harvest its units again")
    size = shard.stat().st_size
    if size != sidecar.bytes:
        message = f"{shard}: expected {sidecar.bytes} bytes as {file.name} states, found {size}"
        raise StoreFormatError(f"{message}; the shard is truncated or damaged: restore it, or delete both and resume")


def _limits(sidecar: Sidecar, header: StoreHeader) -> Iterator[tuple[str, str]]:
    """Fields whose values no shard can have, with what they can be."""
    if sum(sidecar.concepts.values()) > sidecar.rows:
        yield "concepts", f"at most {sidecar.rows} rows"
    if (sidecar.nan_losses or 0) > sidecar.rows:
        yield "nan_losses", f"at most {sidecar.rows} rows"
    if sidecar.example_offset > MAX_EXAMPLE_OFFSET:
        yield "example_offset", f"at most {MAX_EXAMPLE_OFFSET}"
    for hook, norms in sidecar.norms.items():
        numbers = [x for x in (0.0, norms.min, *norms.quantiles.values(), norms.max) if x is not None]
        if norms.zeros > sidecar.rows or any(b < a * (1 - 1e-9) for a, b in pairwise(numbers)):
            yield f"norms[{hook!r}]", f"at most {sidecar.rows} zeros, and quantiles that rise from 0 or more"
    rows = sidecar.segment_rows or 1
    if rows > SEGMENT_ROWS[0] and min(rows, sidecar.rows) * widest_bytes(header) > MAX_SEGMENT_BYTES:
        yield "segment_rows", f"segments of at most {MAX_SEGMENT_BYTES} bytes a dataset"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
