"""The suite that every reader of the format passes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import h5py
import numpy as np
from numpy import float32
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.schema import ExampleRecord, StoreHeader
from gradatoms_store.testing.contents import CONTENTS, three_shards
from gradatoms_store.testing.forge import Expected, write_store
from gradatoms_store.testing.json_damages import HEADER_DAMAGES, SIDECAR_DAMAGES, VERSION_1_DAMAGES
from gradatoms_store.testing.json_rules import dataset_names, read_object
from gradatoms_store.testing.plain import extents
from gradatoms_store.testing.samples import ROW_DTYPES, SAMPLE_HOOKS, joined, sample_header, sample_unit
from gradatoms_store.testing.shard_damages import BFLOAT16_DAMAGES, SHARD_DAMAGES
from gradatoms_store.testing.suite import Suite, demand
from gradatoms_store.testing.tamper import SHARD, Damage

STRUCTURE_FLIPS = 24
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23}
"""Largest error of a part of a direction, relative to the part; beside the last bit of a float32 and, in float16, half of
the smallest subnormal."""


class OpenStore(Protocol):
    """A store as the suite wants to see it; N rows in the order of the store."""

    def directions(self, hook: str) -> NDArray[float32]:
        """Unit gradients at a hook, shape (N, d), exactly as stored."""

    def norms(self, hook: str) -> NDArray[float32]:
        """Norms at a hook, shape (N,)."""

    def rows(self) -> Mapping[str, NDArray[Any]]:
        """example, position, token, target, loss, each of shape (N,)."""

    def examples(self) -> Sequence[ExampleRecord]:
        """All examples, in any order, with their ids in the store."""


class ContentSuite(Suite):
    """Stores of all kinds are read to the last bit; nothing is asked of what happens to damaged ones."""

    archives: ClassVar[Sequence[Path]] = ()
    """Stores that were kept from earlier versions; what `PlainReader` reads in them must be read."""

    def open(self, path: Path) -> OpenStore:
        """Open a store; to be given by the subclass."""
        raise NotImplementedError

    def cases(self, test: str) -> Sequence[str]:
        """See `Suite`."""
        if test == "test_reads_archives":
            return [str(path) for path in self.archives]
        return list(ROUNDING if test == "test_gives_what_was_measured" else CONTENTS)

    def test_reads(self, tmp_path: Path, case: str) -> None:
        """Every kind of store gives what is in it, and is left as it was."""
        path = tmp_path / "sample.gstore"
        expected = CONTENTS[case](path)
        before = packed(path)
        assert_gives(self.open(path), expected)
        demand(packed(path) == before, "reading changes nothing")

    def test_reads_archives(self, tmp_path: Path, case: str) -> None:
        """Archived stores give what they always gave."""
        path = tmp_path / "archived.gstore"
        unpack(packed(Path(case)), path)
        header = StoreHeader.from_json((path / "store.json").read_text("utf-8"))
        assert_gives(self.open(path), Expected.read(path, header))

    def test_gives_what_was_measured(self, tmp_path: Path, case: str) -> None:
        """norm · direction is the gradient, to the rounding of the dtype."""
        path, header = tmp_path / "sample.gstore", sample_header(dtype=case)
        shards = three_shards(header)
        write_store(path, header, shards)
        given = joined([sample_unit(unit, header) for shard in shards for unit in shard.units], header)
        opened = self.open(path)
        for hook, gradients in given.gradients.items():
            assert_rounded(opened.directions(hook), opened.norms(hook), gradients, case)


class ReaderSuite(ContentSuite):
    """What `ContentSuite` asks, and that every store that breaks a rule is refused."""

    refusals: ClassVar[tuple[type[Exception], ...]] = (StoreFormatError,)
    """What the reader raises when it refuses a store, from `open` or later from any method."""

    checks_data: ClassVar[bool] = True
    """Whether the adapter checks the hashes of what it reads; a reader that says it does not may say so here."""

    def cases(self, test: str) -> Sequence[str]:
        """See `Suite`."""
        if test == "test_refuses":
            return list(_damages())
        if test == "test_refuses_changed_data":
            return dataset_names([hook.name for hook in SAMPLE_HOOKS]) if self.checks_data else []
        return super().cases(test)

    def test_refuses(self, tmp_path: Path, case: str) -> None:
        """A store that breaks one rule is refused."""
        base, damage = _damages()[case]
        path = tmp_path / "sample.gstore"
        unpack(_base(base), path)
        damage(path)
        self._demand_refusal(path, case)

    def test_refuses_changed_data(self, tmp_path: Path, case: str) -> None:
        """One wrong bit in the data is found."""
        path = tmp_path / "sample.gstore"
        unpack(_base("float16"), path)
        with h5py.File(path / SHARD) as file:
            place = file[case].id.get_offset() + file[case].nbytes - 1
        _flip(path / SHARD, place)
        self._demand_refusal(path, f"a wrong bit in {case}")

    def test_refuses_changed_structure(self, tmp_path: Path) -> None:
        """One wrong bit beside the data is found."""
        files = _base("float16")
        path = tmp_path / "sample.gstore"
        unpack(files, path)
        with h5py.File(path / SHARD) as file:
            inside = np.zeros(len(files[SHARD]), bool)
            for start, length in extents(file):
                inside[start : start + length] = True
        outside = np.flatnonzero(~inside)
        for place in outside[:: len(outside) // STRUCTURE_FLIPS].tolist():
            (path / SHARD).write_bytes(files[SHARD])
            _flip(path / SHARD, place)
            self._demand_refusal(path, f"a wrong bit at byte {place}, beside the data")

    def _demand_refusal(self, path: Path, what: str) -> None:
        try:
            opened = self.open(path)
            for hook in SAMPLE_HOOKS:
                opened.directions(hook.name), opened.norms(hook.name)
            opened.rows(), opened.examples()
        except self.refusals:
            return
        demand(False, f"a reader refuses {what}")


def assert_gives(opened: OpenStore, expected: Expected) -> None:
    """Demand exactly the expected content of an open store."""
    for hook, directions in expected.directions.items():
        assert_array_equal(opened.directions(hook), directions, f"directions at {hook}", strict=True)
        assert_array_equal(opened.norms(hook), expected.norms[hook], f"norms at {hook}", strict=True)
    rows = opened.rows()
    demand(set(rows) == set(ROW_DTYPES), f"rows have the fields {list(ROW_DTYPES)}")
    for field, values in expected.rows.items():
        assert_array_equal(rows[field], values, f"rows/{field}", strict=True)
    found = sorted(opened.examples(), key=lambda example: example.id)
    demand(found == expected.examples, f"examples are {expected.examples}, not {found}")


def assert_rounded(
    directions: NDArray[float32], norms: NDArray[float32], gradients: NDArray[float32], dtype: str
) -> None:
    """Demand that rows are gradients, shape (n, d), divided by their norms and rounded to the dtype."""
    exact = gradients.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    assert_allclose(norms, lengths, rtol=2.0**-23, atol=2.0**-149, err_msg="norms, summed in float64")
    unit = exact / np.where(lengths == 0, 1, lengths)[:, None]
    smallest = 2.0**-25 if dtype == "float16" else 0.0
    assert_allclose(directions, unit, rtol=1.001 * ROUNDING[dtype] + 2.0**-22, atol=smallest, err_msg="directions")


def packed(path: Path) -> dict[str, bytes]:
    """The files of a store: path inside it to content."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def unpack(files: Mapping[str, bytes], path: Path) -> None:
    """Write the files of a store to a new folder."""
    (path / "shards").mkdir(parents=True)
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@cache
def _base(name: str) -> dict[str, bytes]:
    """The files of the store that a damage is done to."""
    header = sample_header(dtype="bfloat16" if name == "bfloat16" else "float16")
    shards = [] if name == "no shards" else three_shards(header)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.gstore"
        write_store(path, header, shards, version=1 if name == "version 1" else 2)
        read_object(path / "store.json")
        return packed(path)


def _damages() -> dict[str, tuple[str, Damage]]:
    """Name of a damage to the store that it is done to, and the damage."""
    groups = {
        "no shards": HEADER_DAMAGES,
        "float16": SIDECAR_DAMAGES | SHARD_DAMAGES,
        "bfloat16": BFLOAT16_DAMAGES,
        "version 1": VERSION_1_DAMAGES,
    }
    return {name: (base, damage) for base, group in groups.items() for name, damage in group.items()}
