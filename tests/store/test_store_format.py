"""Reader and writer pass the conformance suites; the suites fail what breaks a rule; `FORMAT.md` says what is done."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from gradatoms_store import (
    ExampleRecord,
    GradientBatch,
    GradientBlock,
    HookSpec,
    StoreFormatError,
    StoreHeader,
    StoreWriter,
    merge_stores,
    open_store,
    write_view,
)
from gradatoms_store.schema import read_header
from gradatoms_store.testing import (
    ContentSuite,
    OpenStore,
    PlainReader,
    ReaderSuite,
    RuleBrokenError,
    WriterSuite,
    check_store,
    sample_unit,
)
from gradatoms_store.testing.forge import reseal, write_json
from gradatoms_store.testing.json_rules import by_row, dataset_names
from gradatoms_store.testing.plain import digest, structure_hash
from gradatoms_store.testing.reading import packed
from gradatoms_store.testing.samples import SAMPLE_HOOKS, TEXTS

FORMAT = Path(__file__).parents[2] / "store" / "FORMAT.md"
ARCHIVES = sorted((Path(__file__).parent / "archive").glob("v*/*.gstore"))


# The reader and the writer of this package, and the page itself as a reader


class Reader:
    """This package's reader as the suites want it: rows through streams, which check every segment."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(path)

    def directions(self, hook: str) -> np.ndarray:
        d = self._store.header.hook(hook).d
        return np.concatenate([np.empty((0, d), np.float32), *(b.gradients for b in self._store.batches(hook, 7))])

    def norms(self, hook: str) -> np.ndarray:
        return np.concatenate([np.empty(0, np.float32), *(batch.norms for batch in self._store.batches(hook, 1000))])

    def rows(self) -> dict[str, np.ndarray]:
        rows = self._store.rows
        for batch in self._store.batches(self._store.hooks[0], 4, shuffle=1):
            for field, values in batch.rows.items():
                np.testing.assert_array_equal(values, rows[field][batch.index])
        return rows

    def examples(self) -> Sequence[ExampleRecord]:
        return self._store.examples


class TestReader(ReaderSuite):
    archives = ARCHIVES

    def open(self, path: Path) -> OpenStore:
        return Reader(path)


class CheckedPlainReader(ReaderSuite):
    """What the page says, with h5py and json alone."""

    archives = ARCHIVES
    refusals = (RuleBrokenError,)

    def open(self, path: Path) -> OpenStore:
        check_store(path)
        return PlainReader(path)


def test_the_page_itself_passes(tmp_path: Path) -> None:
    """A reader of the page's own words reads all, and `check_store` finds every damage; run without pytest's help."""
    assert CheckedPlainReader.failures(tmp_path) == {}


class TestWriter(WriterSuite):
    def create(self, path: Path, header: StoreHeader) -> Any:
        return StoreWriter.create(path, header, rows_per_shard=25)

    def resume(self, path: Path, header: StoreHeader) -> Any:
        return StoreWriter.resume(path, header, rows_per_shard=25)

    def append(self, writer: Any, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        writer.append(unit, block, examples)

    def close(self, writer: Any) -> None:
        writer.close()


# Readers with one fault each


class ForgetsOffset(PlainReader):
    def _offsets(self) -> list[int]:
        return [0] * len(self._shards)


class SortsByName(PlainReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._shards.sort(key=lambda shard: shard[1].name)


class CountsPartials(PlainReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for file in (path / "shards").glob("*2.json.partial"):
            self._shards.append((json.loads(file.read_text()), path / "shards/00002.h5"))


class CutsAtNul(PlainReader):
    def examples(self) -> list[ExampleRecord]:
        return [ExampleRecord(**(vars(e) | {"prompt": e.prompt.split("\0")[0]})) for e in super().examples()]


class TakesAbsentForEmpty(PlainReader):
    def examples(self) -> list[ExampleRecord]:
        return [ExampleRecord(**(vars(e) | {"foil": e.foil or ""})) for e in super().examples()]


class DropsZeroRows(PlainReader):
    def norms(self, hook: str) -> np.ndarray:
        norms = super().norms(hook)
        return norms[norms > 0]


class RoundsSmallNorms(PlainReader):
    def norms(self, hook: str) -> np.ndarray:
        norms = super().norms(hook)
        return np.where(norms < 1e-40, 0, norms).astype(np.float32)


class ReadsTheView(PlainReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._view = path / "view.h5"

    def rows(self) -> dict[str, np.ndarray]:
        rows = super().rows()
        if self._view.exists():
            with h5py.File(self._view) as view:
                rows["loss"] = view["rows/loss"][:]
        return rows


class LeavesTraces(PlainReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        (path / "index.json").write_text("{}")


BROKEN_CONTENT: list[tuple[type[PlainReader], set[str]]] = [
    (ForgetsOffset, {"widest numbers", "merged", "written by merge_stores"}),
    (SortsByName, {"six digits"}),
    (CountsPartials, {"leftovers"}),
    (CutsAtNul, {"float16", "float32"}),
    (TakesAbsentForEmpty, {"float16", "float32"}),
    (DropsZeroRows, {"float16", "float32"}),
    (RoundsSmallNorms, {"extreme gradients"}),
    (ReadsTheView, {"view of other rows"}),
    (LeavesTraces, {"no shards", "float32"}),
]


@pytest.mark.parametrize(("reader", "where"), BROKEN_CONTENT, ids=lambda x: getattr(x, "__name__", ""))
def test_the_suite_fails_a_broken_reader(tmp_path: Path, reader: type[PlainReader], where: set[str]) -> None:
    class Broken(ContentSuite):
        def open(self, path: Path) -> OpenStore:
            return reader(path)

    cases = {*where, "float32", "no shards"}
    found = Broken.failures(tmp_path, "|".join(rf"test_reads\[{case}\]" for case in cases))
    assert set(found) == {f"test_reads[{case}]" for case in where}


class AcceptsUnknownKeys(Reader):
    def __init__(self, path: Path) -> None:
        for file in json_files(path):
            data = json.loads(file.read_text("utf-8"))
            if data.pop("more", None) is not None:
                write_json(file, data)
        super().__init__(path)


class IgnoresDigests(Reader):
    def __init__(self, path: Path) -> None:
        for file in json_files(path):
            data = json.loads(file.read_text("utf-8"))
            if data["schema_version"] == 2 and data.get("digest", "") not in ("", digest(data)):
                write_json(file, data)
        super().__init__(path)


class IgnoresStructure(Reader):
    def __init__(self, path: Path) -> None:
        file = path / "shards/00001.json"
        data = json.loads(file.read_text("utf-8"))
        with contextlib.suppress(OSError, KeyError, RuntimeError):
            data["structure"] = structure_hash(file.with_suffix(".h5"))
        write_json(file, data)
        super().__init__(path)


class ReadsAtRandom(Reader):
    """Random access, of which this package's reader says that it does not check."""

    def _all(self, hook: str) -> GradientBatch:
        return self._store.read(hook, np.arange(self._store.n_rows))

    def directions(self, hook: str) -> np.ndarray:
        return self._all(hook).gradients

    def norms(self, hook: str) -> np.ndarray:
        return self._all(hook).norms

    def rows(self) -> dict[str, np.ndarray]:
        return self._all(self._store.hooks[0]).rows


class Crashes(Reader):
    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path)
        except StoreFormatError as error:
            raise KeyError(path) from error


BROKEN_REFUSALS = [
    (
        AcceptsUnknownKeys,
        "unknown key|digest",
        {f"test_refuses[{name}: unknown key]" for name in ("store.json", "sidecar", "version 1")},
    ),
    (
        IgnoresDigests,
        "digest|unknown key",
        {
            f"test_refuses[{name}: {change}]"
            for name in ("store.json", "sidecar")
            for change in ("other digest", "changed, digest as before")
        },
    ),
    (
        IgnoresStructure,
        "changed_structure|structure = .0|a byte long",
        {"test_refuses_changed_structure", 'test_refuses[sidecar: structure = "00000000000000000000000000000]'},
    ),
    (
        ReadsAtRandom,
        "changed_data",
        {f"test_refuses_changed_data[{name}]" for name in by_row([hook.name for hook in SAMPLE_HOOKS])},
    ),
    (Crashes, "soft link|missing key", {"test_refuses[shard: soft link]", "test_refuses[version 1: missing key]"}),
]


@pytest.mark.parametrize(("reader", "select", "where"), BROKEN_REFUSALS, ids=lambda x: getattr(x, "__name__", ""))
def test_the_suite_fails_a_reader_that_trusts(
    tmp_path: Path, reader: type[Reader], select: str, where: set[str]
) -> None:
    class Broken(ReaderSuite):
        def open(self, path: Path) -> OpenStore:
            return reader(path)

    assert set(Broken.failures(tmp_path, select)) == where


def json_files(path: Path) -> list[Path]:
    return [path / "store.json", *(path / "shards").glob("*.json")]


# Writers with one fault each


class BrokenWriter(TestWriter):
    __test__ = False


class FlipsAByte(BrokenWriter):
    def close(self, writer: Any) -> None:
        super().close(writer)
        for shard in (writer.path / "shards").glob("*.h5"):
            content = bytearray(shard.read_bytes())
            content[-1] ^= 1
            shard.write_bytes(content)


class LeavesAPartial(BrokenWriter):
    def close(self, writer: Any) -> None:
        super().close(writer)
        (writer.path / "shards/00099.h5.partial").touch()


class WritesAgain(BrokenWriter):
    def resume(self, path: Path, header: StoreHeader) -> Any:
        for file in (path / "shards").glob("*.json"):
            file.write_bytes(file.read_bytes())
        return super().resume(path, header)


class AcceptsAnyHeader(BrokenWriter):
    def resume(self, path: Path, header: StoreHeader) -> Any:
        return super().resume(path, read_header(path))


class SwallowsNaN(BrokenWriter):
    def append(self, writer: Any, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        finite = {hook: np.clip(np.nan_to_num(g), -1e30, 1e30) for hook, g in block.gradients.items()}
        super().append(writer, unit, replace(block, gradients=finite), examples)


class ClaimsLate(BrokenWriter):
    """Holds nothing while it gathers units, and takes them when it is closed."""

    def __init__(self) -> None:
        self.gathered: list[tuple[int, GradientBlock, Sequence[ExampleRecord]]] = []
        self.path, self.header = Path(), None

    def create(self, path: Path, header: StoreHeader) -> Any:
        super().close(super().create(path, header))
        return self.resume(path, header)

    def resume(self, path: Path, header: StoreHeader) -> Any:
        super().close(super().resume(path, header))
        self.gathered.clear()
        return SimpleNamespace(path=path, header=header)

    def append(self, writer: Any, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        self.gathered.append((unit, block, examples))

    def close(self, writer: Any) -> None:
        real = super().resume(writer.path, writer.header)
        for unit in self.gathered:
            super().append(real, *unit)
        super().close(real)


class Hurries(BrokenWriter):
    """Writes elsewhere, and copies to the store without locks, a piece at a time."""

    def create(self, path: Path, header: StoreHeader) -> Any:
        writer = super().create(path.with_name("elsewhere"), header)
        (path / "shards").mkdir(parents=True)
        (path / "writers").mkdir()
        (path / "writers/lock").touch()
        shutil.copy(writer.path / "store.json", path)
        return writer

    def resume(self, path: Path, header: StoreHeader) -> Any:
        return super().resume(path.with_name("elsewhere"), header)

    def close(self, writer: Any) -> None:
        super().close(writer)
        for file in sorted((writer.path / "shards").iterdir(), key=self.order):
            target = writer.path.with_name("sample.gstore") / "shards" / file.name
            if not target.exists():
                self.copy(file, target)

    def order(self, file: Path) -> Any:
        return file.name

    def copy(self, file: Path, target: Path) -> None:
        content = file.read_bytes()
        with open(target, "wb") as out:
            out.write(content[:100])
            out.flush()
            time.sleep(0.01)
            out.write(content[100:])


class SidecarsFirst(Hurries):
    def order(self, file: Path) -> Any:
        return file.suffix == ".h5", file.name

    def copy(self, file: Path, target: Path) -> None:
        shutil.copy(file, target.with_suffix(".partial"))
        target.with_suffix(".partial").rename(target)
        time.sleep(0.01)


class IgnoresClaims(BrokenWriter):
    def resume(self, path: Path, header: StoreHeader) -> Any:
        for claim in (path / "writers").glob("*.json"):
            claim.unlink()
        return super().resume(path, header)


class KeepsLeftovers(BrokenWriter):
    def close(self, writer: Any) -> None:
        super().close(writer)
        (writer.path / "shards/00006.h5").write_bytes(b"of a writer that died")


class UpgradesTheStore(BrokenWriter):
    def close(self, writer: Any) -> None:
        super().close(writer)
        file = writer.path / "store.json"
        write_json(file, json.loads(file.read_text("utf-8")) | {"schema_version": 2})


class MarksItsShards(BrokenWriter):
    """Adds an attribute, which is no dataset; hashes made to fit."""

    def close(self, writer: Any) -> None:
        super().close(writer)
        for shard in (writer.path / "shards").glob("*.h5"):
            with h5py.File(shard, "r+", libver=("v110", "v110")) as file:
                file["rows/loss"].attrs["unit"] = "nats"
            reseal(shard)


BROKEN_WRITERS: list[tuple[type[BrokenWriter], str, set[str]]] = [
    (FlipsAByte, r"\[float16", {"test_writes[float16]"}),
    (LeavesAPartial, r"\[float16", {"test_writes[float16]"}),
    (MarksItsShards, r"\[float16", {"test_writes[float16]"}),
    (IgnoresClaims, r"living|\[float16", {"test_leaves_living_writers_alone"}),
    (KeepsLeftovers, "clears_up", {"test_clears_up_after_dead_writers"}),
    (UpgradesTheStore, r"version_1|\[float16", {"test_continues_version_1"}),
    (WritesAgain, r"never|\[float16", {"test_never_changes_what_is_committed"}),
    (
        AcceptsAnyHeader,
        r"seed|another order|\[float16",
        {f"test_refuses_another_header[{x}]" for x in ("seed", "hooks in another order")},
    ),
    (
        SwallowsNaN,
        r"finite",
        {f"test_refuses_what_is_not_finite[{x}]" for x in ("nan", "inf", "-inf", "a norm beyond float32")},
    ),
    (
        ClaimsLate,
        r"claims_what|not_free|living|\[float16",
        {"test_claims_what_it_writes", "test_refuses_units_that_are_not_free", "test_leaves_living_writers_alone"},
    ),
    (Hurries, r"whole_files|waits|\[float16", {"test_commits_whole_files", "test_waits_for_the_lock"}),
    (SidecarsFirst, r"whole_files|\[float16", {"test_commits_whole_files"}),
]


@pytest.mark.parametrize(("writer", "select", "where"), BROKEN_WRITERS, ids=lambda x: getattr(x, "__name__", ""))
def test_the_suite_fails_a_broken_writer(
    tmp_path: Path, writer: type[BrokenWriter], select: str, where: set[str]
) -> None:
    assert set(writer.failures(tmp_path, select)) == where


def off_by_one(data: dict[str, Any]) -> None:
    data["nan_losses"] += 1


def miscounted(data: dict[str, Any]) -> None:
    data["concepts"]["concept 1"] -= 1


def with_every_concept(data: dict[str, Any]) -> None:
    data["concepts"]["of no row"] = 0


def forgets_zeros(data: dict[str, Any]) -> None:
    data["norms"][SAMPLE_HOOKS[0].name]["zeros"] = 0


def takes_the_nearest(data: dict[str, Any]) -> None:
    summary = data["norms"][SAMPLE_HOOKS[1].name]
    summary["quantiles"]["0.95"] = summary["max"]


def unsorted(data: dict[str, Any]) -> None:
    data["units"] = data["units"][::-1]


def upper_case(data: dict[str, Any]) -> None:
    data["structure"] = data["structure"].upper()


def one_long_segment(data: dict[str, Any]) -> None:
    data["segments"] = dict.fromkeys(data["segments"], "0" * 16)


def without_offset(data: dict[str, Any]) -> None:
    del data["example_offset"]


def of_the_shard_alone(data: dict[str, Any]) -> None:
    data["fingerprint"] = digest(data)


@pytest.mark.parametrize(
    "change",
    [
        off_by_one,
        miscounted,
        with_every_concept,
        forgets_zeros,
        takes_the_nearest,
        unsorted,
        upper_case,
        one_long_segment,
        without_offset,
        of_the_shard_alone,
    ],
)
def test_the_suite_fails_a_writer_of_wrong_sidecars(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    class Broken(BrokenWriter):
        def close(self, writer: Any) -> None:
            super().close(writer)
            file = max((writer.path / "shards").glob("*.json"))
            data = json.loads(file.read_text("utf-8"))
            change(data)
            write_json(file, data)

    assert set(Broken.failures(tmp_path, "never|many_rows|float32")) >= {"test_writes[float32]"}


# The page


def section(title: str) -> str:
    """The text under a heading of FORMAT.md, up to the next."""
    (found,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", FORMAT.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(found)


def table(title: str) -> list[tuple[list[str], str]]:
    """Rows of a section's table: what is named in the first column, and the last column."""
    lines = [line.split(" | ") for line in section(title).splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", cells[0]), cells[-1]) for cells in lines]


@pytest.fixture
def written(tmp_path: Path, fill: Callable[..., Path]) -> Path:
    return fill(tmp_path / "written.gstore")


def test_tables_name_every_key_that_is_written(written: Path) -> None:
    for title, file in (("`store.json`", "store.json"), ("`shards/NNNNN.json`, the sidecar", "shards/00000.json")):
        named = [key for keys, _ in table(title) for key in keys]
        assert sorted(named) == sorted(json.loads((written / file).read_text()))
    header, sidecar = (json.loads((written / name).read_text()) for name in ("store.json", "shards/00000.json"))
    texts = {key: text for keys, text in table("`store.json`") for key in keys}
    assert set(re.findall(r'"(\w+)"', texts["hooks"])) == set(header["hooks"][0])
    assert f'"{header["format"]}"' in texts["format"]
    assert texts["schema_version"].strip(" |") == str(header["schema_version"])
    texts = {key: text for keys, text in table("`shards/NNNNN.json`, the sidecar") for key in keys}
    (summary, _) = sidecar["norms"].values()
    assert set(re.findall(r'"([\w.]+)"', texts["norms"])) == {*summary, *summary["quantiles"]}


def test_table_names_every_dataset_of_a_shard(written: Path) -> None:
    rows = [line for line in section("`shards/NNNNN.h5`").splitlines() if line.startswith("| `")]
    hooks = [hook.name for hook in read_header(written).hooks]
    named: dict[str, tuple[int, set[str]]] = {}
    for line in rows:
        name, shape, dtype, meaning = [cell.strip() for cell in line.strip("|").split(" | ")]
        (path,) = re.findall(r"`([^`]+)`", name)
        some = re.findall(r"`(\w+)`", meaning.partition("only for")[2])
        texts = some or re.findall(
            r"`(\w+)`", section("`shards/NNNNN.h5`").partition("is each of ")[2].partition(";")[0]
        )
        for hook in hooks if "<hook>" in path else [""]:
            for text in texts if "<text>" in path else [""]:
                full = path.replace("<hook>", hook).replace("<text>", text)
                named[full] = (len(shape.strip("()").strip(",").split(", ")), set(re.findall(r"`([^`]+)`", dtype)))
    found: dict[str, h5py.Dataset] = {}
    with h5py.File(written / "shards/00000.h5") as file:
        file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        assert set(named) == set(found)
        for name, (rank, dtypes) in named.items():
            assert len(found[name].shape) == rank, name
            assert found[name].dtype.str.strip("|") in dtypes, name
        assert dict(file.attrs) == {"format": b"gradatoms-shard", "schema_version": 2}


def test_page_names_what_version_2_added(written: Path) -> None:
    old = Path(__file__).parent / "archive/v1/float16.gstore"
    text = section("Versions").partition("**Version 1**")[2]
    for file in ("store.json", "shards/00000.json"):
        added = set(json.loads((written / file).read_text())) - set(json.loads((old / file).read_text()))
        assert added
        assert added <= set(re.findall(r"`(\w+)`", text))


def examples_of_the_page() -> Iterator[str]:
    yield from re.findall(r"^```python\n(.*?)^```", FORMAT.read_text("utf-8"), re.DOTALL | re.MULTILINE)


RUN = """
import sys, numpy
assert not [name for name in sys.modules if name.startswith("gradatoms")]
numpy.savez(sys.argv[1], **{k: v for k, v in globals().items() if isinstance(v, (numpy.ndarray, list))})
"""


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_examples_of_the_page_run_with_plain_h5py(tmp_path: Path, dtype: str) -> None:
    """Each in its own process, on a store made to fit the names in them; what they read is what this reader reads."""
    hook = "blocks.14.hook_resid_post"
    header = StoreHeader(
        model={"name": "tiny"},
        hooks=(HookSpec(name=hook, hf_name="model.layers.14", d=6),),
        objective="nll",
        positions="last",
        dtype=dtype,
        plan="c0ffee",
        n_units=4,
        n_examples=8,
    )
    path = tmp_path / "NAME.gstore"
    with StoreWriter.create(path, header, rows_per_shard=20) as writer:
        for unit in range(4):
            writer.append(unit, *sample_unit(unit, header))
    write_view(path)
    before = packed(path)
    found: dict[str, Any] = {}
    codes = list(examples_of_the_page())
    for number, code in enumerate(codes):
        assert code.startswith("import h5py\n")
        out = tmp_path / f"{number}.npz"
        command = [sys.executable, "-W", "error", "-c", code + RUN, str(out)]
        subprocess.run(command, check=True, cwd=tmp_path)
        found |= np.load(out)
    assert set(found) == {"g", "offsets", "prompts", "losses", "first"}
    store = open_store(path)
    first = store.read(hook, np.arange(20))
    np.testing.assert_array_equal(found["g"], first.gradients * first.norms[:, None])
    assert found["prompts"].tolist() == [example.prompt.rstrip("\0") for example in store.iter_examples()][:4]
    np.testing.assert_array_equal(found["losses"], store.rows["loss"])
    np.testing.assert_array_equal(found["first"], first.gradients[:8])
    assert packed(path) == before


def test_rows_lie_in_the_order_that_the_page_states(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "s.gstore"
    with StoreWriter.create(path, samples.header(seed=11), rows_per_shard=30) as writer:
        for unit in range(6):
            writer.append(unit, *samples.unit(unit))
    tokens = [30 * shard + np.random.default_rng([11, shard]).permutation(30) for shard in range(2)]
    np.testing.assert_array_equal(open_store(path).rows["token"], np.concatenate(tokens))


def test_example_offsets_are_what_the_page_states(tmp_path: Path, fill: Callable[..., Path]) -> None:
    parts = [fill(tmp_path / f"{plan}.gstore", units=[0], plan=plan) for plan in "abc"]
    merged = merge_stores([*parts, fill(tmp_path / "more.gstore", units=[1], plan="a")], tmp_path / "merged.gstore")
    sidecars = [json.loads(file.read_text()) for file in sorted((merged / "shards").glob("*.json"))]
    assert [(sidecar["example_offset"], sidecar["units"]) for sidecar in sidecars] == [
        (0, [0]),
        (24, [12]),
        (48, [24]),
        (0, [1]),
    ]
    check_store(merged)


@pytest.mark.parametrize("merged", [False, True])
def test_view_is_what_the_page_states(tmp_path: Path, fill: Callable[..., Path], merged: bool) -> None:
    path = fill(tmp_path / "s.gstore", dtype="bfloat16")
    if merged:
        path = merge_stores([path, fill(tmp_path / "t.gstore", dtype="bfloat16", plan="b")], tmp_path / "m.gstore")
    store, reader = open_store(path), PlainReader(path)
    hooks = list(store.hooks)
    own = {f"examples/{text}/offsets" for text in TEXTS} | ({"examples/id", "rows/example"} if merged else set())
    with h5py.File(write_view(path)) as view:
        assert dict(view.attrs) == {
            "format": b"gradatoms-view",
            "schema_version": 2,
            "rows": store.n_rows,
            "shards": len(store.shards),
        }
        found: dict[str, Any] = {}
        view.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        assert sorted(found) == sorted(dataset_names(hooks))
        for name, dataset in found.items():
            assert dataset.is_virtual == (name not in own and dataset.size > 0), name
            assert dataset.is_virtual or dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
            files = {source.file_name for source in dataset.virtual_sources()} if dataset.is_virtual else set()
            assert files <= {f"shards/{shard.path.name}" for shard in store.shards}
        for hook in hooks:
            assert found[f"gradients/{hook}"].attrs["dtype"] == b"bfloat16"
            np.testing.assert_array_equal(
                (found[f"gradients/{hook}"][:].astype("u4") << 16).view("f4"), reader.directions(hook)
            )
        for field, values in reader.rows().items():
            np.testing.assert_array_equal(found[f"rows/{field}"][:], values)
        assert found["examples/id"][:].tolist() == [example.id for example in reader.examples()]
