"""Commands on whole stores: info, several as one, merge, view, verify and repair."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from gradatoms_store import (
    Store,
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreMismatchError,
    StoreValueError,
    StoreWriter,
    claims,
    merge_stores,
    open_store,
    repair_store,
    store_info,
    verify_store,
    write_view,
)

ARCHIVE = Path(__file__).parent / "archive"


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(bytes(content))


def assert_same_rows(store: Store, other: Store, rows: Any, others: Any) -> None:
    for hook in store.hooks:
        mine, theirs = store.read(hook, rows), other.read(hook, others)
        np.testing.assert_array_equal(mine.gradients, theirs.gradients)
        np.testing.assert_array_equal(mine.norms, theirs.norms)
        np.testing.assert_array_equal(mine.rows["token"], theirs.rows["token"])


def test_info_reads_sidecars_alone(store_path: Path, samples: SimpleNamespace) -> None:
    raw = samples.raw()
    for shard in (store_path / "shards").glob("*.h5"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    info = store_info(store_path)
    assert (info.rows, info.shards, info.units, info.complete) == (120, 3, 12, True)
    assert info.nan_losses == 0
    norms = np.linalg.norm(raw[samples.hooks[0]].astype(float), axis=1)
    summary = info.norms[samples.hooks[0]]
    assert summary.min == pytest.approx(norms.min(), rel=1e-6)
    assert summary.max == pytest.approx(norms.max(), rel=1e-6)
    ranks = [(norms <= value).mean() for value in summary.quantiles.values()]
    np.testing.assert_allclose(ranks, [float(q) for q in summary.quantiles], atol=0.1)
    concepts = [f"concept {i % 3}" for i in raw["example"] if i % 3]
    assert info.concepts == {name: concepts.count(name) for name in set(concepts)}
    assert next(iter(info.concepts.values())) == max(info.concepts.values())


def test_info_of_an_empty_store(tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace) -> None:
    info = store_info(fill(tmp_path / "s.gstore", units=()))
    assert (info.rows, info.complete, info.norms[samples.hooks[0]].min) == (0, False, None)


def test_select_by_concept_loss_position_and_norm(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    rows, concept = store.rows, np.array([f"concept {i % 3}" if i % 3 else None for i in store.rows["example"]])
    norms = store.read(samples.hooks[1], np.arange(store.n_rows)).norms
    np.testing.assert_array_equal(store.select(), np.arange(store.n_rows))
    np.testing.assert_array_equal(store.select(concept="concept 1"), np.flatnonzero(concept == "concept 1"))
    np.testing.assert_array_equal(store.select(concept=None), np.flatnonzero(concept == None))  # noqa: E711
    both = store.select(concept=["concept 2", None])
    np.testing.assert_array_equal(both, np.flatnonzero(concept != "concept 1"))
    np.testing.assert_array_equal(store.select(loss=(2, 5)), np.flatnonzero((rows["loss"] >= 2) & (rows["loss"] <= 5)))
    np.testing.assert_array_equal(store.select(position=3), np.flatnonzero(rows["position"] == 3))
    np.testing.assert_array_equal(
        store.select(position=(None, 4), norm=(1, None), hook=samples.hooks[1]),
        np.flatnonzero((rows["position"] <= 4) & (norms >= 1)),
    )
    assert len(store.select(concept="no such concept")) == 0
    assert len(store.select(norm=(1e30, None), hook=samples.hooks[0])) == 0
    for wrong in ({"norm": (0, 1)}, {"loss": (3, 2)}, {"loss": (1, 2, 3)}, {"norm": (0, 1), "hook": "h"}):
        with pytest.raises(StoreValueError, match="expected"):
            store.select(**wrong)  # type: ignore[arg-type]


def test_parts_of_one_plan_open_and_merge_as_one(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace
) -> None:
    a = fill(tmp_path / "a.gstore", units=range(0, 7))
    b = fill(tmp_path / "b.gstore", units=range(7, 12))
    whole = open_store(a, b)
    assert whole.info.complete
    assert [example.id for example in whole.examples] == list(range(24))
    np.testing.assert_array_equal(np.sort(whole.rows["token"]), np.arange(120))
    merged = open_store(merge_stores([a, b], tmp_path / "c.gstore"))
    assert merged.header.differences(whole.header) == []
    assert_same_rows(merged, whole, np.arange(120), np.arange(120))
    assert verify_store(tmp_path / "c.gstore").ok
    one, other = a / "shards/00000.h5", tmp_path / "c.gstore/shards/00000.h5"
    assert os.path.samefile(one, other)
    with StoreWriter.resume(tmp_path / "c.gstore", samples.header()) as writer:
        assert writer.claim() == []


def test_stores_of_other_examples_keep_them_apart(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace
) -> None:
    a, b = fill(tmp_path / "a.gstore"), fill(tmp_path / "b.gstore", plan="beef", units=range(5), seed=9)
    together = open_store(a, b)
    one, two = open_store(a), open_store(b)
    assert together.n_rows == 170
    assert not together.info.complete
    assert_same_rows(together, two, np.arange(120, 170), np.arange(50))
    np.testing.assert_array_equal(together.rows["example"][120:], two.rows["example"] + 24)
    np.testing.assert_array_equal(together.rows["example"][:120], one.rows["example"])
    assert [e.id for e in together.examples] == [*range(24), *range(24, 34)]
    assert together.examples[24].prompt == one.examples[0].prompt
    for batch in together.batches(samples.hooks[0], 9, shuffle=0):
        np.testing.assert_array_equal(batch.rows["example"], together.rows["example"][batch.index])
    merged = open_store(merge_stores([a, b], tmp_path / "c.gstore"))
    np.testing.assert_array_equal(merged.rows["example"], together.rows["example"])
    assert merged.header.n_units == 24
    assert merged.header.fingerprint not in (one.fingerprint, two.fingerprint)
    assert verify_store(merged.path).ok
    write_view(merged.path)
    with h5py.File(merged.path / "view.h5") as view:
        np.testing.assert_array_equal(view["rows/example"][:], merged.rows["example"])
        np.testing.assert_array_equal(np.sort(view["examples/id"][:]), np.arange(34))


def test_stores_of_other_kinds_are_refused_with_the_fields(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace
) -> None:
    a = fill(tmp_path / "a.gstore")
    b = fill(tmp_path / "b.gstore", dtype="float32", objective="contrast", plan="b")
    for together in (lambda: open_store(a, b), lambda: merge_stores([a, b], tmp_path / "c.gstore")):
        with pytest.raises(StoreMismatchError, match=r"objective: nll here, contrast there; dtype: float16 here"):
            together()
    with pytest.raises(StoreMismatchError, match="unit 0"):
        open_store(a, fill(tmp_path / "copy.gstore"))
    with pytest.raises(StoreMismatchError, match="twice"):
        merge_stores([a, a], tmp_path / "c.gstore")
    with pytest.raises(StoreExistsError):
        merge_stores([a], b)
    with pytest.raises(StoreValueError):
        merge_stores([], tmp_path / "c.gstore")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gstore", "b.gstore", "copy.gstore"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_merge_brings_version_1_up_to_date(tmp_path: Path, dtype: str) -> None:
    old = open_store(ARCHIVE / "v1" / f"{dtype}.gstore")
    new = open_store(merge_stores([old.path], tmp_path / "new.gstore"))
    assert new.header.schema_version == 2
    assert new.info.nan_losses == 0
    assert_same_rows(new, old, np.arange(120), np.arange(120))
    assert verify_store(new.path).ok
    for _ in new.batches(new.hooks[0], 50):
        pass


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_view_opens_in_plain_h5py_from_anywhere(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace, dtype: str
) -> None:
    path = fill(tmp_path / "s.gstore", dtype=dtype)
    store = open_store(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    write_view(path)
    script = """
import sys, h5py, numpy as np
with h5py.File(sys.argv[1]) as f:
    name = sys.argv[2]
    d, o = f["examples/prompt/data"][:].tobytes(), f["examples/prompt/offsets"][:]
    np.savez(sys.argv[3], g=f["gradients/" + name][:], n=f["norms/" + name][:], t=f["rows/token"][:],
             foil=f["examples/foil/present"][:], prompts=[d[a:b].decode() for a, b in zip(o[:-1], o[1:])])
"""
    out = tmp_path / "out.npz"
    command = [sys.executable, "-c", script, str(path / "view.h5"), samples.hooks[1], str(out)]
    subprocess.run(command, check=True, cwd="/")
    found = np.load(out)
    whole = store.read(samples.hooks[1], np.arange(120))
    np.testing.assert_array_equal(found["t"], store.rows["token"])
    np.testing.assert_array_equal(found["n"], whole.norms)
    if dtype == "float16":
        np.testing.assert_array_equal(found["g"].astype(np.float32), whole.gradients)
    assert sorted(found["prompts"]) == sorted(example.prompt for example in store.examples)
    assert found["foil"].sum() == sum(example.foil is not None for example in store.examples)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert open_store(path).n_rows == 120
    write_view(path)


def test_view_is_refused_when_a_shard_is_missing(store_path: Path) -> None:
    write_view(store_path)
    before = (store_path / "view.h5").read_bytes()
    (store_path / "shards/00001.h5").unlink()
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        write_view(store_path)
    assert (store_path / "view.h5").read_bytes() == before


def test_verify_names_shard_dataset_and_rows(store_path: Path, samples: SimpleNamespace) -> None:
    report = verify_store(store_path)
    assert report.ok and report.rows == 120 and report.shards == 3
    shard = store_path / "shards/00001.h5"
    place = open_store(store_path).shards[1].places[f"gradients/{samples.hooks[1]}"]
    flip(shard, place.extent[0] + place.extent[1] - 1)
    (problem,) = verify_store(store_path).problems
    assert (problem.shard, problem.block) == ("00001.h5", f"gradients/{samples.hooks[1]}")
    assert "rows 32 to 39" in problem.message or "rows 0 to 39" in problem.message
    with pytest.raises(StoreFormatError, match=r"00001\.h5: dataset gradients/blocks\.7"):
        list(open_store(store_path).batches(samples.hooks[1], 7, shuffle=0))
    list(open_store(store_path).batches(samples.hooks[0], 7, shuffle=0))


def test_repair_sets_aside_and_resume_completes(store_path: Path, samples: SimpleNamespace) -> None:
    write_view(store_path)
    flip(store_path / "shards/00001.h5", 5000)
    (store_path / "shards/00002.json").unlink()
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        open_store(store_path)
    with StoreWriter.create(store_path.with_name("other.gstore"), samples.header()):
        report = repair_store(store_path)
    assert {p.shard for p in report.problems} == {"00001.h5", "00002.h5", "view.h5"}
    assert sorted(report.set_aside) == ["00001.h5", "00001.json", "00002.h5"]
    assert report.units == tuple(range(4, 12))
    assert sorted(file.name for file in (store_path / "aside").iterdir()) == sorted(report.set_aside)
    assert not (store_path / "view.h5").exists()
    with StoreWriter.resume(store_path, samples.header()) as writer:
        for unit in writer.units():
            writer.append(unit, *samples.unit(unit))
    assert verify_store(store_path).ok
    np.testing.assert_array_equal(np.sort(open_store(store_path).rows["token"]), np.arange(120))
    assert repair_store(store_path).set_aside == ()


def test_verify_spares_a_shard_that_a_writer_begins_meanwhile(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard file that appears as soon as verify lets go of the lock is a writer's, not one without a commit."""
    release, begun = claims.unlock, store_path / "shards/00003.h5"

    def release_and_begin(descriptor: int) -> None:
        release(descriptor)
        begun.touch()

    monkeypatch.setattr(claims, "unlock", release_and_begin)
    assert verify_store(store_path).ok and begun.exists()
    monkeypatch.undo()
    assert [problem.shard for problem in verify_store(store_path).problems] == ["00003.h5"]


def test_repair_removes_a_view_that_is_not_sound(store_path: Path) -> None:
    write_view(store_path)
    os.truncate(store_path / "view.h5", 1000)
    with pytest.raises(StoreFormatError, match=r"view\.h5"):
        open_store(store_path)
    assert repair_store(store_path).set_aside == ()
    assert open_store(store_path).n_rows == 120


def test_repair_waits_for_no_writer(tmp_path: Path, samples: SimpleNamespace) -> None:
    with StoreWriter.create(tmp_path / "s.gstore", samples.header()), pytest.raises(StoreError, match="no writer"):
        repair_store(tmp_path / "s.gstore")


@pytest.mark.parametrize("field", ["units", "concepts", "norms", "example_offset", "segments", "nan_losses"])
def test_a_flip_in_a_sidecar_is_found(store_path: Path, field: str) -> None:
    sidecar = store_path / "shards/00001.json"
    text = sidecar.read_text()
    start = text.index(f'"{field}": ') + len(field) + 4
    at = next(i for i in range(start, len(text)) if text[i].isdigit())
    sidecar.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    assert [p.shard for p in verify_store(store_path).problems if "json" in str(p.shard)] == ["00001.json"]
    with pytest.raises(StoreFormatError, match=r"00001\.json"):
        open_store(store_path)


def test_a_flip_in_store_json_is_found(store_path: Path) -> None:
    file = store_path / "store.json"
    file.write_text(file.read_text().replace('"n_units": 12', '"n_units": 13'))
    for look in (open_store, verify_store, store_info):
        with pytest.raises(StoreFormatError, match=r"store\.json.*'digest'"):
            look(file.parent)


def test_reading_leaves_a_read_only_store_as_it_is(store_path: Path, tmp_path: Path) -> None:
    names = sorted(store_path.rglob("*"))
    shutil.rmtree(store_path / "writers")
    store = open_store(store_path)
    assert verify_store(store_path).ok
    assert len(store.examples) == 24
    assert sorted(store_path.rglob("*")) == [name for name in names if "writers" not in name.parts]
