"""Checking a whole store, every byte, and setting aside what is wrong."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gradatoms_store.claims import WRITERS, Claims
from gradatoms_store.commit import remove_leftovers
from gradatoms_store.encoding import directions_to_float32
from gradatoms_store.errors import StoreError, StoreFormatError
from gradatoms_store.files import fsync_path, move
from gradatoms_store.guard import VIEW_FILE, inspect_view
from gradatoms_store.schema import StoreHeader, read_header
from gradatoms_store.select import example_texts, shard_examples
from gradatoms_store.shard import Shard, segment_hash
from gradatoms_store.sidecar import SHARDS, NormSummary, read_sidecar, sidecar_files

ASIDE = "aside"
"""Folder inside a store where bad shards are put."""

PIECE_BYTES = 2**22
UNIT_TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5}
"""How far the norm of a stored direction may be from 1; rounding each of d values gives far less."""

Progress = Callable[[str, int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a store."""

    shard: str | None
    """Name of the file, `00002.h5` or `00002.json`; None for the store as a whole."""
    block: str | None
    """Path of the dataset, when it is one."""
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_store` found."""

    problems: tuple[Problem, ...]
    shards: int
    """Shards looked at, good or bad."""
    rows: int
    """Rows in good shards."""
    bytes: int
    """Bytes of shard files read."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair_store` did."""

    set_aside: tuple[str, ...]
    """Files moved to `aside/`, as they are named there."""
    units: tuple[int, ...]
    """Units of the plan that are not in the store now: a resume harvests them."""
    problems: tuple[Problem, ...]
    """What was wrong before."""


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def verify_store(path: str | os.PathLike[str], *, progress: Progress = _silent) -> VerifyReport:
    """Check every byte of a store: structure, hashes of all datasets and segments, sidecars against rows, ids, units.

    Goes on after a problem, so that the report is whole. Reads each shard once, a few megabytes at a time (its row
    fields and texts whole).

    Args:
        path: the store's folder.
        progress: called with ("verify", shards done, shards).

    Raises:
        StoreNotFoundError: no store there.
        StoreFormatError: `store.json` itself is damaged or of a future version; nothing else can be checked then.
    """
    return _verify(Path(path), Claims(Path(path)), progress)


def _verify(folder: Path, claims: Claims, progress: Progress) -> VerifyReport:
    header = read_header(folder)
    problems: list[Problem] = []
    try:
        inspect_view(folder)
    except StoreFormatError as error:
        problems.append(Problem(VIEW_FILE, None, str(error)))
    files, strays = sidecar_files(folder)
    problems += [Problem(file.name, None, message) for file, message in strays]
    shards = list(_shards(folder, header, files, problems))
    seen = _Seen()
    rows = size = 0
    for number, shard in enumerate(shards):
        progress("verify", number, len(shards))
        found = list(_check(shard, seen))
        problems += found
        rows += 0 if found else shard.sidecar.rows
        size += shard.sidecar.bytes
    progress("verify", len(shards), len(shards))
    problems += _uncommitted(folder, {file.stem for file in files}, claims)
    return VerifyReport(problems=tuple(problems), shards=len(files), rows=rows, bytes=size)


def repair_store(path: str | os.PathLike[str], *, progress: Progress = _silent) -> RepairReport:
    """Verify a store and move its bad shards, with their sidecars, to `aside/`; their units can be harvested again.

    Nothing is deleted but what an interrupted writer left. A view that no longer fits is removed.

    Raises:
        StoreNotFoundError, StoreFormatError: as for `verify_store`.
        StoreError: a writer is at work, or the folder cannot be written.
    """
    folder = Path(path)
    header = read_header(folder)
    claims = Claims(folder)
    try:
        with claims.exclusive():
            if claims.others():
                raise StoreError(f"{folder}: expected no writer at work, found one; repair when it has ended")
            report = _verify(folder, claims, progress)
            moved = [name for stem in sorted(_bad_stems(report)) for name in _set_aside(folder, stem)]
            if moved:
                fsync_path(folder / SHARDS)
            if moved or any(problem.shard == VIEW_FILE for problem in report.problems):
                (folder / VIEW_FILE).unlink(missing_ok=True)
            files, _ = sidecar_files(folder)
            good = [read_sidecar(file, header) for file in files]
            remove_leftovers(folder, [int(file.stem) for file in files], [])
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder}: expected to repair it, got {error}; check the rights of the folder") from error
    done = {unit for sidecar in good for unit in sidecar.units}
    left = tuple(unit for unit in range(header.n_units) if unit not in done)
    return RepairReport(set_aside=tuple(moved), units=left, problems=report.problems)


def _bad_stems(report: VerifyReport) -> set[str]:
    names = {problem.shard for problem in report.problems if problem.shard not in (None, VIEW_FILE)}
    return {name.rsplit(".", 1)[0] for name in names if name is not None}


def _set_aside(folder: Path, stem: str) -> Iterator[str]:
    """Move a sidecar, then its shard: after a kill between the two, the shard is one without commit."""
    aside = folder / ASIDE
    aside.mkdir(exist_ok=True)
    for name in (f"{stem}.json", f"{stem}.h5"):
        file = folder / SHARDS / name
        if not os.path.lexists(file):
            continue
        target = aside / name
        number = 1
        while os.path.lexists(target):
            target, number = aside / f"{name}.{number}", number + 1
        move(file, target)
        fsync_path(aside)
        _log.warning("%s: set aside as %s", file, target)
        yield target.name


def _shards(folder: Path, header: StoreHeader, files: list[Path], problems: list[Problem]) -> Iterator[Shard]:
    """The shards whose sidecars can be read; a unit that came before is a problem of the later shard."""
    owner: dict[int, str] = {}
    for file in files:
        try:
            sidecar = read_sidecar(file, header)
        except StoreFormatError as error:
            shard = file.with_suffix(".h5").name
            problems.append(Problem(shard if f"/{shard}: " in str(error) else file.name, None, str(error)))
            continue
        twice = next((unit for unit in sidecar.units if unit in owner), None)
        if twice is not None:
            message = f"{file}: field 'units' holds unit {twice}, which {owner[twice]} holds too"
            problems.append(Problem(file.name, None, message))
            continue
        owner |= dict.fromkeys(sidecar.units, file.name)
        yield Shard(folder / SHARDS / sidecar.file, sidecar, header, 0, sidecar.example_offset)


class _Seen:
    """What must be unique over all shards."""

    def __init__(self) -> None:
        self.examples: dict[int, str] = {}


def _check(shard: Shard, seen: _Seen) -> Iterator[Problem]:
    """Everything that can be wrong in one shard."""
    name = shard.path.name
    try:
        places = shard.places
    except StoreFormatError as error:
        yield Problem(name, None, str(error))
        return
    bad = False
    summaries: dict[str, NormSummary] = {}
    for block in places:
        try:
            for problem in _check_block(shard, block):
                bad = True
                yield Problem(name, block, problem)
        except StoreFormatError as error:
            bad = True
            yield Problem(name, block, str(error))
    if bad:
        return
    try:
        for hook in shard.header.hooks:
            summaries[hook.name] = NormSummary.of(shard.load(f"norms/{hook.name}"))
        found = [Problem(name, block, f"{shard.path}: {text}") for block, text in _check_rows(shard, seen)]
        yield from found
        for field, want, got in [] if found else _recounted(shard, summaries):
            message = f"{shard.path.with_suffix('.json')}: field {field!r} expected {want!r:.100}, got {got!r:.100}"
            yield Problem(f"{shard.path.stem}.json", None, message)
    except StoreFormatError as error:
        yield Problem(name, None, str(error))


def _check_block(shard: Shard, block: str) -> Iterator[str]:
    """Hash one dataset a piece at a time; when it is wrong, say which rows."""
    place, sidecar = shard.places[block], shard.sidecar
    n = place.shape[0]
    segmented = block in sidecar.segments and sidecar.segment_rows is not None
    row_bytes = max(1, place.length_bytes // max(1, n))
    step = sidecar.segment_rows if segmented and sidecar.segment_rows else max(1, PIECE_BYTES // row_bytes)
    digest = xxhash.xxh3_128()
    wrong: list[int] = []
    with shard.open() as file:
        for low in range(0, n, step):
            piece = np.empty((min(step, n - low), *place.shape[1:]), place.dtype)
            shard.read_into(file, block, low, piece)
            digest.update(piece.reshape(-1).view(np.uint8).data)
            if (
                segmented
                and segment_hash(piece) != sidecar.segments[block][16 * (low // step) : 16 * (low // step) + 16]
            ):
                wrong.append(low)
            elif block.startswith("gradients/"):
                yield from _check_directions(shard, block, low, piece)
    if digest.hexdigest() != sidecar.blocks[block] or wrong:
        rows = ", ".join(f"{low} to {min(low + step, n) - 1}" for low in wrong[:5])
        where = f"in rows {rows} of the shard" if wrong else "by the hash of the whole"
        yield f"{shard.path}: dataset {block} is not what was committed, {where}"


def _check_directions(shard: Shard, block: str, low: int, piece: NDArray[Any]) -> Iterator[str]:
    """A direction is finite and of norm 1, or of zeros."""
    dtype = shard.header.dtype
    bits: NDArray[Any] = piece.view(np.uint32 if dtype == "float32" else np.uint16)
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}[dtype]
    if ((bits & exponent) == exponent).any():
        yield f"{shard.path}: dataset {block} holds NaN or Inf in rows {low} to {low + len(piece) - 1}"
        return
    values = directions_to_float32(piece, dtype)
    norm = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))
    off = np.flatnonzero((np.abs(norm - 1) > UNIT_TOLERANCE[dtype]) & (norm != 0))
    if len(off):
        yield f"{shard.path}: dataset {block} expected norm 1, row {low + off[0]} has {norm[off[0]]:.4f}"


def _check_rows(shard: Shard, seen: _Seen) -> Iterator[tuple[str, str]]:
    """What rows, norms and examples must be beside right bytes: dataset, and what is wrong."""
    ids = shard.load("examples/id")
    if len(np.unique(ids)) != len(ids) or (len(ids) and ids.min() < 0):
        yield "examples/id", "examples/id expected distinct ids from 0"
    if not np.isin(shard.load("rows/example"), ids).all():
        yield "rows/example", "rows/example expected ids of the shard's examples"
    for hook in shard.header.hooks:
        norms = shard.load(f"norms/{hook.name}")
        if not (np.isfinite(norms).all() and (norms >= 0).all()):
            yield f"norms/{hook.name}", f"norms/{hook.name} expected finite numbers of 0 or more"
    for example in shard_examples(shard):
        if not _is_object(example.meta):
            yield (
                "examples/meta/data",
                f"examples/meta expected JSON objects, example {example.id} has {example.meta!a:.80}",
            )
            return
        other = seen.examples.setdefault(example.id, shard.path.name)
        if other != shard.path.name:
            yield "examples/id", f"examples/id holds example {example.id}, which {other} holds too"
            return


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _recounted(shard: Shard, summaries: dict[str, NormSummary]) -> Iterator[tuple[str, object, object]]:
    """Fields of the sidecar that its rows tell otherwise: name, what the rows say, what it says."""
    sidecar = shard.sidecar
    concept_of = dict(zip(shard.load("examples/id").tolist(), example_texts(shard, "concept"), strict=True))
    concepts: Counter[str] = Counter()
    for id_, rows in zip(*np.unique(shard.load("rows/example"), return_counts=True), strict=True):
        name = concept_of[int(id_)]
        if name is not None:
            concepts[name] += int(rows)
    pairs: list[tuple[str, object, object]] = [
        ("concepts", dict(sorted(concepts.items())), sidecar.concepts),
        ("norms", {hook: _rounded(s) for hook, s in summaries.items()}, _all_rounded(sidecar.norms)),
    ]
    if sidecar.nan_losses is not None:
        pairs.append(("nan_losses", int(np.isnan(shard.load("rows/loss")).sum()), sidecar.nan_losses))
    yield from (pair for pair in pairs if pair[1] != pair[2])


def _all_rounded(norms: dict[str, NormSummary]) -> dict[str, object]:
    return {hook: _rounded(summary) for hook, summary in norms.items()}


def _rounded(summary: NormSummary) -> object:
    """A summary to nine digits: other machines interpolate the last ones otherwise."""
    numbers = [summary.min, summary.max, *summary.quantiles.values()]
    return summary.zeros, list(summary.quantiles), [None if x is None else f"{x:.9g}" for x in numbers]


def _uncommitted(folder: Path, committed: set[str], claims: Claims) -> Iterator[Problem]:
    """Shard files without a sidecar, when nobody is writing: a kill left them, or their sidecar was lost."""
    with contextlib.ExitStack() as locked:
        spared: set[int | None] = set()
        if (folder / WRITERS).is_dir() and os.access(folder / WRITERS, os.W_OK):
            locked.enter_context(claims.exclusive())  # nobody claims a number while the files are listed
            spared = {claim.shard for claim in claims.others()}
        files = sorted((folder / SHARDS).glob("*.h5"))
        committed = committed | {file.stem for file in (folder / SHARDS).glob("*.json")}  # meanwhile
    for file in files:
        if file.stem.isdecimal() and file.stem not in committed and int(file.stem) not in spared:
            message = f"{file}: expected a sidecar {file.stem}.json beside it, found none; its rows do not count"
            yield Problem(file.name, None, f"{message}: restore the sidecar, or resume to harvest its units again")
