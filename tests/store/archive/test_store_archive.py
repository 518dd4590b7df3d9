"""Stores that earlier versions wrote are read, verified and continued by this one, and never change."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradatoms_store import Store, StoreWriter, merge_stores, open_store, store_info, verify_store, write_view
from gradatoms_store.schema import read_header
from gradatoms_store.testing import PlainReader, check_store, check_tidy
from gradatoms_store.testing.reading import assert_rounded

HERE = Path(__file__).parent
FIELDS = ("example", "position", "token", "target", "loss")
ARCHIVED = sorted(HERE.glob("v*/*.gstore"))
ONE_PLAN = [path for path in ARCHIVED if path.stem != "merged"]


def maker() -> Any:
    """The script that made the archives of version 2 and later."""
    spec = importlib.util.spec_from_file_location("archive_make", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = maker()


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def content(path: Path, samples: SimpleNamespace) -> tuple[dict[str, np.ndarray], list[Any]]:
    """What was handed to the writer: hook name to g, and row field to values; and the examples by ascending id."""
    units: list[tuple[int, int, int]] = [
        (unit, 10, 0) for unit in ((0, 1, 5) if path.stem == "unfinished" else range(12))
    ]
    if path.stem == "merged":
        first, second = MAKE.PLAN_UNITS
        rows = MAKE.MERGED_ROWS
        units = [(u, rows[0], 0) for u in range(first)] + [(u, rows[1], 2 * first) for u in range(second)]
    parts: dict[str, list[np.ndarray]] = {}
    examples = []
    for unit, n, offset in units:
        block, found = samples.unit(unit, n)
        for hook, gradients in block.gradients.items():
            parts.setdefault(hook, []).append(gradients)
        for field in FIELDS:
            parts.setdefault(field, []).append(getattr(block, field) + (offset if field == "example" else 0))
        examples += [vars(example) | {"id": example.id + offset} for example in found]
    return {key: np.concatenate(values) for key, values in parts.items()}, examples


def assert_holds(store: Store, raw: dict[str, np.ndarray]) -> None:
    """The store holds these rows, whether streamed or taken by number."""
    given = np.lexsort((raw["position"], raw["example"]))
    order = np.lexsort((store.rows["position"], store.rows["example"]))
    for field in FIELDS:
        np.testing.assert_array_equal(store.rows[field][order], raw[field][given])
    for hook in store.hooks:
        taken = store.read(hook, order)
        assert_rounded(taken.gradients, taken.norms, raw[hook][given], store.header.dtype)
        streamed = list(store.batches(hook, 17, shuffle=1))
        place = np.argsort(np.concatenate([batch.index for batch in streamed]))
        whole = store.read(hook, np.arange(store.n_rows))
        np.testing.assert_array_equal(np.concatenate([b.gradients for b in streamed])[place], whole.gradients)
        np.testing.assert_array_equal(np.concatenate([b.norms for b in streamed])[place], whole.norms)
        for field in FIELDS:
            np.testing.assert_array_equal(np.concatenate([b.rows[field] for b in streamed])[place], store.rows[field])


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = request.param
    return Path(shutil.copytree(path, tmp_path / path.name))


def test_the_archive_is_whole_and_unchanged() -> None:
    known = json.loads(MAKE.MANIFEST.read_text())
    assert MAKE.manifest() == known
    assert MAKE.main() is not None
    assert {"v1/float16.gstore/store.json", "v2/merged.gstore/store.json"} <= set(known)
    assert sum((HERE / file).stat().st_size for file in known) < 400_000


@pytest.mark.parametrize("path", ARCHIVED, ids=name)
def test_an_archived_store_is_read(path: Path, samples: SimpleNamespace) -> None:
    raw, examples = content(path, samples)
    store = open_store(path)
    version = int(path.parent.name[1:])
    assert store.header.schema_version == version
    assert_holds(store, raw)
    assert [vars(example) for example in store.examples] == examples
    assert sorted(example.id for example in store.iter_examples()) == [example["id"] for example in examples]
    concepts = {example["id"]: example["concept"] for example in examples}
    of_rows = np.array([concepts[id_] == "concept 1" for id_ in store.rows["example"].tolist()])
    np.testing.assert_array_equal(store.select(concept="concept 1"), np.flatnonzero(of_rows))
    norms = store.read(store.hooks[1], np.arange(store.n_rows)).norms
    found = store.select(norm=(1.0, None), hook=store.hooks[1], loss=(2, 7))
    loss = store.rows["loss"]
    np.testing.assert_array_equal(found, np.flatnonzero((norms >= 1) & (loss >= 2) & (loss <= 7)))
    info = store_info(path)
    assert (info.rows, info.examples) == (len(raw["loss"]), len(examples))
    assert info.nan_losses == (None if version == 1 else 0)
    assert info.complete == (path.stem != "unfinished")


@pytest.mark.parametrize("path", ARCHIVED, ids=name)
def test_an_archived_store_verifies(path: Path) -> None:
    assert verify_store(path).problems == ()
    check_store(path)
    check_tidy(path)
    reader, store = PlainReader(path), open_store(path)
    for hook in store.hooks:
        np.testing.assert_array_equal(reader.directions(hook), store.read(hook, np.arange(store.n_rows)).gradients)


@pytest.mark.parametrize("copied", ONE_PLAN, ids=name, indirect=True)
def test_an_archived_store_is_continued_in_its_version(copied: Path, samples: SimpleNamespace) -> None:
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    header = samples.header(dtype=read_header(copied).dtype)
    with StoreWriter.resume(copied, header, rows_per_shard=40) as writer:
        assert len(writer.done_units) == (3 if copied.stem == "unfinished" else 12)
        for unit in writer.units():
            writer.append(unit, *samples.unit(unit))
    assert {file: file.read_bytes() for file in before} == before
    sidecars = [json.loads(file.read_text()) for file in sorted((copied / "shards").glob("*.json"))]
    assert len(sidecars) == (5 if copied.stem == "unfinished" else 2)
    assert len({frozenset(sidecar) for sidecar in sidecars}) == 1
    assert {sidecar["schema_version"] for sidecar in sidecars} == {read_header(copied).schema_version}
    check_store(copied)
    check_tidy(copied)
    assert verify_store(copied).ok
    store = open_store(copied)
    assert store.info.complete
    assert_holds(store, samples.raw())
    assert [example.id for example in store.examples] == list(range(24))


@pytest.mark.parametrize("version", [1, 2])
def test_an_archived_store_joins_stores_of_today(tmp_path: Path, samples: SimpleNamespace, version: int) -> None:
    old = Path(shutil.copytree(HERE / f"v{version}" / "unfinished.gstore", tmp_path / "old.gstore"))
    new = tmp_path / "new.gstore"
    with StoreWriter.create(new, samples.header(), rows_per_shard=40) as writer:
        for unit in sorted(set(range(12)) - {0, 1, 5}):
            writer.append(unit, *samples.unit(unit))
    assert_holds(open_store(old, new), samples.raw())
    merged = merge_stores([new, old], tmp_path / "merged.gstore")
    check_store(merged)
    assert_holds(open_store(merged), samples.raw())
    write_view(old)
    assert_holds(open_store(old), content(old.with_name("unfinished.gstore"), samples)[0])


def test_the_script_makes_an_archive(tmp_path: Path) -> None:
    """Today's code still makes stores of the same files."""
    newest = max(HERE.glob("v*"), key=lambda folder: int(folder.name[1:]))
    MAKE.make(tmp_path / "made")
    made, kept = ({str(f.relative_to(folder)) for f in folder.rglob("*")} for folder in (tmp_path / "made", newest))
    assert made == kept
