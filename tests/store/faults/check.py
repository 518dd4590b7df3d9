"""What a store holds after a fault, compared with what it must hold, row by row and bit by bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from content import ROWS, Content, read_rows

from gradatoms_store import open_store, verify_store


@dataclass
class Finding:
    """What was found in a store."""

    units: frozenset[int] = frozenset()
    """Units in committed shards."""
    rows: int = 0
    lost: int = 0
    """Rows that had to be there and are not, or not exactly."""
    duplicated: int = 0
    unreadable: int = 0
    """1 when the store could not be read."""
    complaints: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Name of each committed file to the digest of its bytes."""

    @property
    def ok(self) -> bool:
        """Whether all is as it must be."""
        return not (self.lost or self.duplicated or self.unreadable or self.complaints)


def inspect(
    path: Path,
    content: Content,
    must: Collection[int] = (),
    before: Finding | None = None,
    moving: bool = False,
) -> Finding:
    """Read a whole store and compare it.

    Args:
        path: the store.
        content: of its plan.
        must: units that must be there, such as those that a writer said were committed.
        before: what was found earlier; all of it must still be there, in the same bytes.
        moving: others write it meanwhile, so that the sidecars on disk may be more than were read.
    """
    found = Finding()
    must = set(must) | (before.units if before else frozenset())
    try:
        store = open_store(path)
        rows, examples, listed = read_rows(store), store.examples, store.rows
        again = store.read(store.hooks[-1], np.arange(store.n_rows)).gradients
    except Exception as error:
        found.unreadable = 1
        found.lost = ROWS * len(must)
        found.complaints.append(f"unreadable: {type(error).__name__}: {error}")
        return found
    found.rows = len(rows.fields["token"])
    found.files = committed_files(path)
    units = [unit for file in sidecars(path) for unit in json.loads(file.read_text())["units"]]
    tokens = rows.fields["token"]
    if moving:
        units = np.unique(tokens // ROWS).tolist()
    found.units = frozenset(units)
    valid = (tokens >= 0) & (tokens < ROWS * content.n_units)
    exact = np.zeros(len(tokens), bool)
    exact[valid] = rows.take(np.flatnonzero(valid)).equal(content.rows.take(tokens[valid]))
    present = np.unique(tokens[exact])
    wanted = np.concatenate([np.arange(u * ROWS, (u + 1) * ROWS) for u in must | found.units] or [np.empty(0, int)])
    found.lost = int((~np.isin(wanted, present)).sum())
    found.duplicated = len(tokens) - len(np.unique(tokens)) + len(units) - len(found.units)
    stray = int((~np.isin(tokens, wanted)).sum())
    _say(found, stray, f"{stray} rows of units that are not committed")
    _say(found, not exact.all(), f"{int((~exact).sum())} rows differ from what was given")
    _say(found, not np.array_equal(again, rows.directions[store.hooks[-1]]), "`read` and `batches` differ")
    same = all(np.array_equal(listed[name], values, equal_nan=True) for name, values in rows.fields.items())
    _say(found, not same, "`rows` and `batches` differ")
    given = {example.id: example for unit in sorted(found.units) for example in content.units[unit][1]}
    _say(found, {example.id: example for example in examples} != given, "examples differ from what was given")
    _say(found, len(examples) != len(given), "examples are lost or doubled")
    if before:
        changed = [name for name, digest in before.files.items() if found.files.get(name) != digest]
        _say(found, changed, f"committed files changed: {changed}")
    return found


def inspect_complete(path: Path, content: Content, before: Finding | None = None, aside: bool = False) -> Finding:
    """As `inspect`, of a store that must be complete, verified without a problem, and without leftovers."""
    found = inspect(path, content, range(content.n_units), before)
    if found.unreadable:
        return found
    _say(found, not open_store(path).info.complete, "the store does not call itself complete")
    report = verify_store(path)
    _say(found, not report.ok, f"verify: {[str(problem) for problem in report.problems[:3]]}")
    _say(found, report.rows != found.rows, f"verify counts {report.rows} rows of {found.rows}")
    extra = sorted(leftovers(path) - ({"aside"} if aside else set()))
    _say(found, extra, f"leftovers: {extra}")
    plain = plain_tokens(path)
    _say(found, not np.array_equal(np.sort(plain), np.arange(ROWS * content.n_units)), "plain h5py reads other rows")
    return found


def _say(found: Finding, wrong: object, text: str) -> None:
    if wrong:
        found.complaints.append(text)


def sidecars(path: Path) -> list[Path]:
    """The sidecars of a store, by number."""
    return sorted((path / "shards").glob("*.json"))


def committed_files(path: Path) -> dict[str, str]:
    """Name of each committed file to the digest of its bytes."""
    files = [file for sidecar in sidecars(path) for file in (sidecar, sidecar.with_suffix(".h5"))]
    return {file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in [*files, path / "store.json"]}


def leftovers(path: Path) -> set[str]:
    """What lies in a store that nobody writes, and belongs neither to its content nor to its locks."""
    allowed = {"store.json", "shards", "writers", "writers/lock"}
    allowed |= {f"shards/{name}" for name in committed_files(path)}
    found = {str(file.relative_to(path)) for file in path.rglob("*")}
    return {name for name in found - allowed if not name.startswith("aside/")}


def plain_tokens(path: Path) -> np.ndarray:
    """`rows/token` of all shards, by plain h5py."""
    parts = [np.empty(0, np.int32)]
    for sidecar in sidecars(path):
        with h5py.File(sidecar.with_suffix(".h5")) as file:
            parts.append(file["rows/token"][:])
    return np.concatenate(parts)
