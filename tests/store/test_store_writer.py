"""Commits, resumes after kills, refusals at append."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradatoms_store
from gradatoms_store import (
    GradientBlock,
    HookSpec,
    StoreError,
    StoreExistsError,
    StoreMismatchError,
    StoreNotFoundError,
    StoreValueError,
    StoreWriter,
    open_store,
)

# A child that writes a store and, at the n-th occurrence of an audit event on a path that ends as given, kills itself
# with SIGKILL or is interrupted: real kills at exact stages of a commit.
CHILD = """
import os, runpy, signal, sys
from gradatoms_store import StoreWriter
helpers, path, how, event, ending, count = *sys.argv[1:6], int(sys.argv[6])
kit = runpy.run_path(helpers)

def hook(name, arguments):
    global count
    if name == event and str(arguments[0]).endswith(ending):
        count -= 1
        if count == 0 and how == "break":
            raise KeyboardInterrupt
        if count == 0:
            os.kill(os.getpid(), signal.SIGINT if how == "interrupt" else signal.SIGKILL)

sys.addaudithook(hook)
with StoreWriter.create(path, kit["make_header"](), rows_per_shard=30) as writer:
    for unit in range(12):
        writer.append(unit, *kit["make_unit"](unit))
"""


def run_child(path: Path, *stage: str) -> int:
    package = Path(gradatoms_store.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(package)}
    helpers = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", CHILD, str(helpers), str(path), *stage]
    return subprocess.run(command, env=environment, check=False, stderr=subprocess.DEVNULL).returncode


def assert_whole(path: Path, samples: SimpleNamespace) -> None:
    """The store holds every row of every unit once, with the right values."""
    store = open_store(path)
    assert store.info.complete
    raw = samples.raw()
    order = np.argsort(store.rows["token"])
    np.testing.assert_array_equal(store.rows["token"][order], np.arange(samples.n_rows))
    batch = store.read(samples.hooks[1], order)
    np.testing.assert_allclose(batch.norms, np.linalg.norm(raw[samples.hooks[1]].astype(float), axis=1), rtol=1e-6)
    np.testing.assert_array_equal(batch.rows["loss"], raw["loss"])
    assert [example.id for example in store.examples] == list(range(24))


STAGES = [
    ("open", "00002.h5.partial", "1", 2),  # written, not yet synced
    ("os.rename", "00002.h5.partial", "1", 2),  # synced, not yet renamed
    ("open", "00002.json.partial", "1", 2),  # shard has its name, no sidecar yet
    ("os.rename", "00002.json.partial", "1", 2),  # sidecar written, not yet renamed: not committed
    ("open", "shards", "6", 3),  # sidecar renamed, folder not yet synced: committed
]


@pytest.mark.parametrize(("event", "ending", "count", "committed"), STAGES)
def test_kill_at_each_stage_then_resume(
    tmp_path: Path, samples: SimpleNamespace, event: str, ending: str, count: str, committed: int
) -> None:
    path = tmp_path / "s.gstore"
    assert run_child(path, "kill", event, ending, count) == -signal.SIGKILL
    before = {file: file.read_bytes() for file in (path / "shards").glob("*.json")}
    before |= {file.with_suffix(".h5"): file.with_suffix(".h5").read_bytes() for file in before}
    assert len(before) == 2 * committed

    survivor = open_store(path)
    assert survivor.n_rows == 30 * committed
    np.testing.assert_array_equal(np.sort(survivor.rows["token"]), np.arange(30 * committed))

    with StoreWriter.resume(path, samples.header(), rows_per_shard=45) as writer:
        assert writer.done_units == frozenset(range(3 * committed))
        names = {file.name for file in (path / "shards").iterdir()}
        assert names == {file.name for file in before}
        for unit in range(samples.n_units):
            if unit not in writer.done_units:
                writer.append(unit, *samples.unit(unit))
    for file, content in before.items():
        assert file.read_bytes() == content
    assert_whole(path, samples)


@pytest.mark.parametrize("how", ["interrupt", "break"])
@pytest.mark.parametrize(("event", "ending", "count", "committed"), STAGES)
def test_interrupt_during_a_commit_loses_and_doubles_nothing(
    tmp_path: Path, samples: SimpleNamespace, how: str, event: str, ending: str, count: str, committed: int
) -> None:
    """Ctrl-C reaches the main thread while the commit runs; `break` raises inside the commit itself."""
    path = tmp_path / "s.gstore"
    assert run_child(path, how, event, ending, count) not in (0, -signal.SIGKILL)
    tokens = np.sort(open_store(path).rows["token"])
    assert len(tokens) >= 30 * committed
    np.testing.assert_array_equal(tokens, np.arange(len(tokens)))
    files = {file.name.split(".")[0] for file in (path / "shards").iterdir()}
    assert len(list((path / "shards").iterdir())) == 2 * len(files)
    with StoreWriter.resume(path, samples.header()) as writer:
        assert len(writer.done_units) == len(tokens) / 10
        for unit in writer.units():
            writer.append(unit, *samples.unit(unit))
    assert_whole(path, samples)


def test_leftovers_are_removed_on_resume_only(store_path: Path, samples: SimpleNamespace) -> None:
    shards = store_path / "shards"
    leftovers = [
        shards / "00003.h5.partial",
        shards / "00003.json.partial",
        shards / "00007.h5",
        store_path / "store.json.partial",
    ]
    for file in leftovers:
        file.write_bytes(b"torn")
    assert open_store(store_path).n_rows == samples.n_rows
    StoreWriter.resume(store_path, samples.header()).close()
    assert not any(file.exists() for file in leftovers)
    assert_whole(store_path, samples)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_commits_what_is_buffered(
    tmp_path: Path, samples: SimpleNamespace, error: type[BaseException]
) -> None:
    path = tmp_path / "s.gstore"

    def write() -> None:
        with StoreWriter.create(path, samples.header()) as writer:
            for unit in range(5):
                writer.append(unit, *samples.unit(unit))
            raise error

    with pytest.raises(error):
        write()
    assert open_store(path).n_rows == 50
    with StoreWriter.resume(path, samples.header()) as writer:
        assert writer.done_units == frozenset(range(5))


def test_done_units_are_those_committed(tmp_path: Path, samples: SimpleNamespace) -> None:
    with StoreWriter.create(tmp_path / "s.gstore", samples.header(), rows_per_shard=20) as writer:
        writer.append(3, *samples.unit(3))
        assert writer.done_units == frozenset()
        writer.append(0, *samples.unit(0))
        writer.flush()
        assert writer.done_units == frozenset({0, 3})
        writer.append(7, *samples.unit(7))
        assert writer.done_units == frozenset({0, 3})
        writer.flush()
        assert writer.done_units == frozenset({0, 3, 7})
        writer.flush()
    assert len(list((tmp_path / "s.gstore/shards").glob("*.h5"))) == 2


def test_mismatch_names_each_field_with_both_values(store_path: Path, samples: SimpleNamespace) -> None:
    other = samples.header(
        model={"name": "tiny", "sha": "ffff", "d_model": 24}, dtype="float32", hooks=samples.header().hooks[:1]
    )
    with pytest.raises(StoreMismatchError) as caught:
        StoreWriter.resume(store_path, other)
    message = str(caught.value)
    assert "model.sha: 'ab12' here, 'ffff' there" in message
    assert "dtype: float16 here, float32 there" in message
    assert "hook blocks.7.hook_resid_post: (model.layers.7, d 24) here, absent there" in message
    assert "model.name" not in message
    assert "objective" not in message
    assert "\n" not in message
    for change in ({"seed": 6}, {"n_units": 13}, {"plan": "ee"}, {"hooks": samples.header().hooks[::-1]}):
        with pytest.raises(StoreMismatchError):
            StoreWriter.resume(store_path, samples.header(**change))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_and_nothing_is_written(tmp_path: Path, samples: SimpleNamespace, value: float) -> None:
    path = tmp_path / "s.gstore"
    block, examples = samples.unit(4)
    block.gradients[samples.hooks[1]][5, 2] = value
    with (
        pytest.raises(StoreValueError, match=r"blocks\.7\.hook_resid_post .* example 9 "),
        StoreWriter.create(path, samples.header(), rows_per_shard=1) as writer,
    ):
        writer.append(4, block, examples)
    assert list((path / "shards").iterdir()) == []
    assert open_store(path).n_rows == 0


def test_a_refused_unit_leaves_the_writer_usable(tmp_path: Path, samples: SimpleNamespace) -> None:
    bad, examples = samples.unit(1)
    bad.gradients[samples.hooks[0]][0, 0] = np.nan
    with StoreWriter.create(tmp_path / "s.gstore", samples.header()) as writer:
        writer.append(0, *samples.unit(0))
        with pytest.raises(StoreValueError):
            writer.append(1, bad, examples)
        writer.append(2, *samples.unit(2))
    np.testing.assert_array_equal(np.unique(open_store(tmp_path / "s.gstore").rows["example"]), [0, 1, 4, 5])


def test_the_block_is_copied(tmp_path: Path, samples: SimpleNamespace) -> None:
    block, examples = samples.unit(0)
    with StoreWriter.create(tmp_path / "s.gstore", samples.header(dtype="float32")) as writer:
        writer.append(0, block, examples)
        block.token[:] = -1
        block.gradients[samples.hooks[0]][:] = 0
    store = open_store(tmp_path / "s.gstore")
    assert store.rows["token"].min() == 0
    assert store.read(samples.hooks[0], np.arange(10)).norms.min() > 0


def refuse(change: dict[str, Any]) -> Callable[[GradientBlock], GradientBlock]:
    return lambda block: GradientBlock(**{**vars(block), **change})


def test_wrong_blocks_are_refused_by_name(tmp_path: Path, samples: SimpleNamespace) -> None:
    block, examples = samples.unit(0)
    one, two = samples.hooks
    g = block.gradients[one]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gradients": {one: g}}, rf"exactly the hooks {one}, {two}; .*missing \['{two}'\]"),
        ({"gradients": {one: g, two: g, "blocks.9": g}}, r"unknown \['blocks\.9'\]"),
        (
            {"gradients": {one: g, two: g[:, :5]}},
            rf"{two} expected float of shape \(10, 24\), got float32 of \(10, 5\)",
        ),
        ({"gradients": {one: g, two: g[:3]}}, "shape"),
        ({"gradients": {one: g, two: g.astype(int)}}, "float"),
        ({"position": block.position[:4]}, "one length"),
        ({"token": np.full(10, 2**40)}, "'token' expected values that fit int32"),
        ({"target": block.loss}, "'target'"),
        ({"example": block.example + 2}, "none for"),
    ]
    with StoreWriter.create(tmp_path / "s.gstore", samples.header()) as writer:
        for change, message in cases:
            with pytest.raises(StoreValueError, match=message):
                writer.append(0, refuse(change)(block), examples)
        for unit in (-1, 12):
            with pytest.raises(StoreValueError, match="unit expected 0 to 11"):
                writer.append(unit, block, examples)
        for field, value in (("meta", "[]"), ("meta", "{"), ("prompt", "\ud800")):
            broken = [type(examples[0])(**{**vars(examples[0]), field: value}), examples[1]]
            with pytest.raises(StoreValueError, match=f"example 0: {field}"):
                writer.append(0, block, broken)
        with pytest.raises(StoreValueError, match="distinct ids"):
            writer.append(0, block, [*examples, examples[0]])
        writer.append(0, block, examples)
        with pytest.raises(StoreValueError, match=r"unit 0 .* appended before"):
            writer.append(0, block, examples)
        with pytest.raises(StoreValueError, match="belongs to one unit"):
            writer.append(1, block, examples)
    assert open_store(tmp_path / "s.gstore").n_rows == 10


def test_wrong_headers_are_refused(samples: SimpleNamespace) -> None:
    hook = samples.header().hooks[0]
    changes: list[dict[str, Any]] = [{"dtype": "int8"}, {"space": "logits"}, {"hooks": ()}, {"hooks": (hook, hook)}]
    changes += [{"plan": ""}, {"n_units": -1}, {"model": {"name": None}}]
    for change in changes:
        with pytest.raises(StoreValueError, match=next(iter(change))):
            samples.header(**change)
    for name in ("", "a/b", "..", "."):
        with pytest.raises(StoreValueError, match="hook name"):
            HookSpec(name=name, hf_name="x", d=1)


def test_create_refuses_an_existing_path_and_resume_a_missing_one(store_path: Path, samples: SimpleNamespace) -> None:
    content = (store_path / "store.json").read_bytes()
    with pytest.raises(StoreExistsError, match="resume it"):
        StoreWriter.create(store_path, samples.header())
    assert (store_path / "store.json").read_bytes() == content
    with pytest.raises(StoreNotFoundError):
        StoreWriter.resume(store_path.with_name("none.gstore"), samples.header())
    with pytest.raises(StoreNotFoundError, match="make it first"):
        StoreWriter.create(store_path / "x" / "y", samples.header())


def test_a_closed_writer_is_refused(tmp_path: Path, samples: SimpleNamespace) -> None:
    writer = StoreWriter.create(tmp_path / "s.gstore", samples.header())
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.append(0, *samples.unit(0))


def test_two_writers_share_the_units(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "s.gstore"
    first = StoreWriter.create(path, samples.header(), rows_per_shard=20)
    second = StoreWriter.resume(path, samples.header(), rows_per_shard=20)
    assert first.claim(limit=3) == [0, 1, 2]
    assert second.claim([1, 2, 3, 4]) == [3, 4]
    for unit in (2, 0):
        first.append(unit, *samples.unit(unit))
    first.flush()
    with pytest.raises(StoreValueError, match="another writer"):
        second.append(1, *samples.unit(1))  # claimed
    with pytest.raises(StoreValueError, match="expected to be new"):
        second.append(2, *samples.unit(2))  # committed
    first.close()  # lets unit 1 go
    for unit in second.units():
        second.append(unit, *samples.unit(unit))
    for unit in (3, 4):
        second.append(unit, *samples.unit(unit))
    second.close()
    assert_whole(path, samples)
    assert [file.name for file in (path / "writers").iterdir()] == ["lock"]


def test_the_claims_of_a_dead_writer_are_free_again(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "s.gstore"
    assert run_child(path, "kill", "open", "00002.h5.partial", "1") == -signal.SIGKILL
    assert len(list((path / "writers").glob("*.json"))) == 1
    with StoreWriter.resume(path, samples.header()) as writer:
        assert len(list((path / "writers").glob("*.json"))) == 1
        for unit in writer.units():
            writer.append(unit, *samples.unit(unit))
    assert_whole(path, samples)


def test_a_fork_cannot_use_its_parents_writer(tmp_path: Path, samples: SimpleNamespace) -> None:
    with StoreWriter.create(tmp_path / "s.gstore", samples.header()) as writer:
        writer._process += 1
        with pytest.raises(StoreError, match="fork"):
            writer.append(0, *samples.unit(0))
        writer._process -= 1


def test_an_io_error_keeps_committed_shards_and_the_buffer(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "s.gstore"
    writer = StoreWriter.create(path, samples.header(), rows_per_shard=1000)
    writer.append(0, *samples.unit(0))
    writer.flush()
    writer.append(1, *samples.unit(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"File too large.*committed shards are intact"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_store(path).n_rows == 10
    assert len(list((path / "shards").iterdir())) == 2
    writer.append(2, *samples.unit(2))
    writer.close()
    np.testing.assert_array_equal(np.sort(open_store(path).rows["token"]), np.arange(30))


def test_a_sidecar_never_outgrows_its_reader(store_path: Path, samples: SimpleNamespace) -> None:
    """Units of very many or very long concepts are spread over shards; one unit of too many is refused."""
    path = store_path.with_name("wordy.gstore")
    units = {unit: samples.unit(unit) for unit in range(12)}
    for unit, (_, examples) in units.items():
        examples[0] = replace(examples[0], concept=f"{unit} " + "é" * 100_000)
    with StoreWriter.create(path, samples.header()) as writer:
        for unit, (block, examples) in units.items():
            writer.append(unit, block, examples)
    store = open_store(path)
    assert store.n_rows == 120 and len(store.shards) == 3
    assert len(store.info.concepts) == 14
    last = store_path.with_name("last.gstore")
    block, examples = units[0]
    examples[0] = replace(examples[0], concept="é" * 3_000_000)
    writer = StoreWriter.create(last, samples.header())
    writer.append(1, *units[1])
    writer.flush()
    writer.append(0, block, examples)
    with pytest.raises(StoreError, match="smaller units"):
        writer.flush()
    assert open_store(last).n_rows == 10
    assert sorted(file.name for file in (last / "shards").iterdir()) == ["00000.h5", "00000.json"]
