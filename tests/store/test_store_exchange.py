"""Exports are read back with the tools they are for; imports are compared with what was in the source's files."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from gradatoms_store import (
    HookSpec,
    Store,
    StoreError,
    StoreExistsError,
    StoreFormatError,
    StoreHeader,
    StoreMismatchError,
    StoreNotFoundError,
    StoreValueError,
    open_store,
)
from gradatoms_store.exchange.bergson import import_bergson
from gradatoms_store.exchange.exporting import EXPORTS, export_dataset, export_hdf5, export_safetensors
from gradatoms_store.exchange.importing import import_numpy

DTYPES = ("float16", "bfloat16", "float32")
FIELDS = ("example", "position", "token", "target", "loss")
TEXTS = ("prompt", "target", "foil", "concept", "meta")
MODEL = {"name": "tiny", "sha": "ab12"}


def stored(store: Store, hook: str) -> Any:
    return store.read(hook, np.arange(store.n_rows))


def raw(store: Store, hook: str) -> np.ndarray:
    """Gradients in the order of example and position, in which an importer takes them."""
    batch = stored(store, hook)
    order = np.lexsort((batch.rows["token"], batch.rows["position"], batch.rows["example"]))
    return (batch.gradients * batch.norms[:, None])[order]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no progress bars, and no cache outside the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets.disable_progress_bars()


# Exports


@pytest.mark.parametrize("dtype", DTYPES)
def test_hdf5_opens_as_plain_hdf5(tmp_path: Path, fill: Callable[..., Path], dtype: str) -> None:
    store = open_store(fill(tmp_path / "s.gstore", dtype=dtype))
    export_hdf5(store, tmp_path / "s.h5", batch_rows=7)
    with h5py.File(tmp_path / "s.h5") as file:
        for hook in store.hooks:
            data, batch = file[f"gradients/{hook}"], stored(store, hook)
            assert data.chunks is None and data.compression is None
            assert data.dtype == ("float16" if dtype == "float16" else "float32")
            assert data.attrs["stored_dtype"] == dtype
            np.testing.assert_array_equal(data[:], batch.gradients)
            np.testing.assert_array_equal(file[f"norms/{hook}"][:], batch.norms)
        for field in FIELDS:
            np.testing.assert_array_equal(file[f"rows/{field}"][:], batch.rows[field])
        assert StoreHeader.from_json(file.attrs["header"]) == store.header
        assert file.attrs["fingerprint"] == store.fingerprint
        assert file.attrs["texts_with_nul"] == len(store.examples)  # every prompt of the samples has one
        by_id = {example.id: example for example in store.examples}
        assert sorted(file["examples/id"][:].tolist()) == sorted(by_id)
        for text in TEXTS:
            found = file[f"examples/{text}"].asstr()[:]
            wanted = [getattr(by_id[id_], text) for id_ in file["examples/id"][:].tolist()]
            assert list(found) == [(value or "").replace("\0", "␀") for value in wanted]
            if text in ("foil", "concept"):
                assert file[f"examples/{text}_present"][:].tolist() == [value is not None for value in wanted]


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_keep_the_stored_dtype(tmp_path: Path, fill: Callable[..., Path], dtype: str) -> None:
    store = open_store(fill(tmp_path / "s.gstore", dtype=dtype))
    export_safetensors(store, tmp_path / "out", rows_per_file=50, batch_rows=13)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [f"gradients-0000{number}-of-00003.safetensors" for number in range(3)]
    parts: dict[str, list[torch.Tensor]] = {}
    for number, path in enumerate(files):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"fingerprint": store.fingerprint, "first_row": str(50 * number)}
            for name in file.keys():  # noqa: SIM118 -- a handle of safetensors, not a dict
                parts.setdefault(name, []).append(file.get_tensor(name))
    tensors = {name: torch.cat(found) for name, found in parts.items()}
    for hook in store.hooks:
        batch, found = stored(store, hook), tensors[f"gradients.{hook}"]
        assert found.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(found.float().numpy(), batch.gradients)
        np.testing.assert_array_equal(tensors[f"norms.{hook}"].numpy(), batch.norms)
    for field in FIELDS:
        np.testing.assert_array_equal(tensors[f"rows.{field}"].numpy(), batch.rows[field])
    lines = (tmp_path / "out" / "examples.jsonl").read_text(encoding="utf-8").split("\n")
    found_examples = sorted((json.loads(line) for line in lines if line), key=lambda item: item["id"])
    assert found_examples == [vars(example) for example in store.examples]
    assert StoreHeader.from_json((tmp_path / "out" / "header.json").read_text()) == store.header


@pytest.mark.parametrize("dtype", DTYPES)
def test_dataset_loads_offline_from_its_folder(tmp_path: Path, fill: Callable[..., Path], dtype: str) -> None:
    store = open_store(fill(tmp_path / "s.gstore", dtype=dtype))
    before = sorted(tmp_path.rglob("*"))
    export_dataset(store, tmp_path / "out", rows_per_file=50, batch_rows=20)
    written = sorted(path for path in tmp_path.rglob("*") if path not in before)
    assert all(path.is_relative_to(tmp_path / "out") for path in written)
    names = [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    assert [str(path.relative_to(tmp_path / "out")) for path in written if path.is_file()] == ["README.md", *names]

    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert len(rows) == store.n_rows
    examples = {example.id: example for example in store.examples}
    for hook in store.hooks:
        name, batch = hook.replace(".", "_"), stored(store, hook)
        feature = rows.features[f"gradient_{name}"]
        assert feature.length == store.header.hook(hook).d
        assert feature.feature.dtype == ("float16" if dtype == "float16" else "float32")
        np.testing.assert_array_equal(rows.with_format("numpy")[f"gradient_{name}"][:], batch.gradients)
        np.testing.assert_array_equal(rows[f"norm_{name}"][:], batch.norms)
    for field, column in {"token": "token_id", "target": "target_id", "example": "example", "loss": "loss"}.items():
        np.testing.assert_array_equal(rows[column][:], batch.rows[field])
    for text in TEXTS:
        assert rows[text][:] == [getattr(examples[id_], text) for id_ in batch.rows["example"].tolist()]
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_hooks_that_differ_in_punctuation_get_columns_of_their_own(tmp_path: Path) -> None:
    arrays = {"h.0": np.ones((3, 2), "f4"), "h_0": np.full((3, 4), 2, "f4")}
    import_numpy(arrays, tmp_path / "s.gstore", model=MODEL, objective="nll", positions="last")
    export_dataset(open_store(tmp_path / "s.gstore"), tmp_path / "out")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert rows.features["gradient_h_0"].length == 2 and rows.features["gradient_h_0_2"].length == 4


def test_a_store_without_rows(tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace) -> None:
    store = open_store(fill(tmp_path / "s.gstore", units=()))
    export_hdf5(store, tmp_path / "s.h5")
    export_safetensors(store, tmp_path / "out")
    hook = samples.hooks[0]
    with h5py.File(tmp_path / "s.h5") as file:
        assert file[f"gradients/{hook}"].shape == (0, samples.d) and file["examples/id"].shape == (0,)
    with safe_open(tmp_path / "out" / "gradients-00000-of-00001.safetensors", "np") as file:
        assert file.get_tensor(f"gradients.{hook}").shape == (0, samples.d)
    with pytest.raises(StoreValueError, match="expected rows"):
        export_dataset(store, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_appears_whole_or_not_at_all(tmp_path: Path, store_path: Path, name: str) -> None:
    store, out = open_store(store_path), tmp_path / "out"

    def stop(stage: str, done: int, total: int) -> None:
        assert not out.exists() and (tmp_path / "out.partial").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EXPORTS[name](store, out, batch_rows=10, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store_path.name]

    (tmp_path / "out.partial").mkdir()  # left by a kill, perhaps of another export
    (tmp_path / "out.partial" / "half").write_text("x")
    seen: dict[str, list[tuple[int, int]]] = {}
    EXPORTS[name](store, out, batch_rows=50, progress=lambda stage, *n: seen.setdefault(stage, []).append(n))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([store_path.name, "out"])
    assert set(seen) == {"rows", "examples"} and all(done[-1][0] == done[-1][1] for done in seen.values())

    with pytest.raises(StoreExistsError, match="choose another path"):
        EXPORTS[name](store, out)
    with pytest.raises(StoreNotFoundError, match="make it first"):
        EXPORTS[name](store, tmp_path / "none" / "out")
    with pytest.raises(StoreValueError, match="batch_rows expected"):
        EXPORTS[name](store, tmp_path / "other", batch_rows=0)


def test_a_killed_export_leaves_nothing_under_the_final_name(tmp_path: Path, store_path: Path) -> None:
    code = f"""
import os, sys
from gradatoms_store import open_store
from gradatoms_store.exchange import exporting, import_bergson, import_numpy
assert not {{"torch", "transformers", "pyarrow", "datasets", "safetensors"}} & set(sys.modules)
exporting.export_hdf5(open_store({str(store_path)!r}), {str(tmp_path / "s.h5")!r}, batch_rows=10,
    progress=lambda stage, done, total: os._exit(9) if done > 50 else None)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    assert not (tmp_path / "s.h5").exists() and (tmp_path / "s.h5.partial").exists()
    export_hdf5(open_store(store_path), tmp_path / "s.h5")
    assert not (tmp_path / "s.h5.partial").exists()
    with h5py.File(tmp_path / "s.h5") as file:
        assert len(file["rows/token"]) == open_store(store_path).n_rows


def test_an_export_that_another_one_replaced_fails(tmp_path: Path, store_path: Path) -> None:
    store = open_store(store_path)
    started = []

    def meddle(stage: str, done: int, total: int) -> None:
        if not started:
            started.append(stage)
            export_hdf5(store, tmp_path / "other.h5")
            (tmp_path / "s.h5.partial").unlink()
            (tmp_path / "s.h5.partial").touch()

    with pytest.raises(StoreError, match="another export replaced it"):
        export_hdf5(store, tmp_path / "s.h5", progress=meddle)
    assert not (tmp_path / "s.h5").exists()


def test_a_missing_package_is_named(tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(StoreError, match="pip install datasets"):
        export_dataset(open_store(store_path), tmp_path / "out")


def test_a_disk_error_is_a_store_error(tmp_path: Path, store_path: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        export_safetensors(open_store(store_path), tmp_path / "out", progress=fail)
    with pytest.raises(StoreValueError, match="rows_per_file expected"):
        export_safetensors(open_store(store_path), tmp_path / "out", rows_per_file=0)


# Imports of arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exported_store_comes_back(tmp_path: Path, fill: Callable[..., Path], dtype: str) -> None:
    store = open_store(fill(tmp_path / "s.gstore", dtype=dtype))
    export_safetensors(store, tmp_path / "out")
    arrays = {}
    with safe_open(tmp_path / "out" / "gradients-00000-of-00001.safetensors", "pt") as file:
        for hook in store.hooks:
            norms = file.get_tensor(f"norms.{hook}")[:, None]
            arrays[hook] = (file.get_tensor(f"gradients.{hook}").float() * norms).numpy()
        arrays |= {field: file.get_tensor(f"rows.{field}").numpy() for field in FIELDS}
    import_numpy(
        arrays,
        tmp_path / "back.gstore",
        model=store.header.model,
        objective="nll",
        positions="prediction",
        hf_names={hook.name: hook.hf_name for hook in store.header.hooks},
        dtype=dtype,
        examples=tmp_path / "out" / "examples.jsonl",
        unit_rows=16,
    )
    back = open_store(tmp_path / "back.gstore")
    assert back.info.complete and back.examples == store.examples
    assert back.header.hooks == store.header.hooks and back.header.n_units > 3
    rounding = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-22}[dtype]
    for hook in store.hooks:
        here, there = raw(back, hook), raw(store, hook)
        error = np.linalg.norm(here - there, axis=1)
        assert (error <= rounding * np.linalg.norm(there, axis=1)).all()
    order, back_order = np.argsort(store.rows["token"]), np.argsort(back.rows["token"])
    for field in FIELDS:
        np.testing.assert_array_equal(back.rows[field][back_order], store.rows[field][order])


def gradients(n: int = 40, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def imported(tmp_path: Path, arrays: Any, **changes: Any) -> Store:
    values: dict[str, Any] = {"model": MODEL, "objective": "nll", "positions": "last", "dtype": "float32"}
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gstore"
    import_numpy(arrays, path, **(values | changes))
    return open_store(path)


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "compressed", "paths"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_arrays_in_files(tmp_path: Path, kind: str, dtype: str) -> None:
    g = gradients().astype(dtype)
    file = tmp_path / ("h.0.npz" if kind in ("npz", "compressed") else "h.0.npy")
    if file.suffix == ".npz":
        (np.savez_compressed if kind == "compressed" else np.savez)(file, **{"h.0": g, "token": np.arange(40)})
    else:
        np.save(file, np.asfortranarray(g) if kind == "fortran" else g)
    store = imported(tmp_path, {"h.0": str(file)} if kind == "paths" else file, unit_rows=7)
    assert store.hooks == ("h.0",) and store.header.hooks[0] == HookSpec(name="h.0", hf_name="h.0", d=6)
    np.testing.assert_allclose(raw(store, "h.0"), g.astype("f4"), rtol=1e-6, atol=1e-7)
    if file.suffix == ".npz":
        assert sorted(store.rows["token"].tolist()) == list(range(40))
    else:
        assert set(store.rows["token"].tolist()) == {-1}


def test_what_is_not_given_is_unknown(tmp_path: Path) -> None:
    store = imported(tmp_path, {"h": gradients(5)})
    assert sorted(store.rows["example"].tolist()) == [0, 1, 2, 3, 4]
    assert all((store.rows[field] == -1).all() for field in ("position", "token", "target"))
    assert np.isnan(store.rows["loss"]).all()
    assert [vars(example) for example in store.examples] == [
        {"id": id_, "prompt": "", "target": "", "foil": None, "concept": None, "meta": "{}"} for id_ in range(5)
    ]


def test_rows_in_any_order_come_sorted_by_example(tmp_path: Path) -> None:
    g, rng = gradients(60), np.random.default_rng(1)
    example = rng.integers(0, 9, 60) * 3
    store = imported(tmp_path, {"h": g, "example": example, "token": np.arange(60)}, unit_rows=8, rows_per_shard=8)
    assert len(set(example.tolist())) == len(store.examples)
    assert store.header.n_examples == example.max() + 1
    batch = stored(store, "h")
    np.testing.assert_array_equal(batch.rows["example"], example[batch.rows["token"]])
    np.testing.assert_allclose(batch.gradients * batch.norms[:, None], g[batch.rows["token"]], rtol=1e-5, atol=1e-6)


def test_the_plan_follows_content_and_division(tmp_path: Path) -> None:
    g = gradients()
    plans = [imported(tmp_path, {"h": g}).header.plan, imported(tmp_path, {"h": g.copy("F")}).header.plan]
    plans += [imported(tmp_path, {"h": g}, unit_rows=5).header.plan, imported(tmp_path, {"h": g + 1}).header.plan]
    assert plans[0] == plans[1] and len(set(plans)) == 3


def test_no_rows_at_all(tmp_path: Path) -> None:
    store = imported(tmp_path, {"h": np.empty((0, 3), "f4")})
    assert store.n_rows == 0 and store.header.n_units == 0


def test_a_file_of_examples_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    lines = [{"id": 7, "prompt": "b\u2028", "concept": "c", "meta": {"é": [1]}}, {"id": 2}, {"id": 9, "foil": ""}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n", encoding="utf-8")
    store = imported(tmp_path, {"h": gradients(3), "example": np.array([7, 2, 7])}, examples=file)
    two, seven, nine = store.examples  # 9 has no rows
    assert (two.id, two.prompt, two.meta) == (2, "", "{}") and (nine.foil, nine.concept) == ("", None)
    assert (seven.prompt, seven.concept, json.loads(seven.meta)) == ("b\u2028", "c", {"é": [1]})
    with pytest.raises(StoreValueError, match=r"found none for \[8\]"):
        imported(tmp_path, {"h": gradients(1), "example": np.array([8])}, examples=file)
    for line, said in {
        '{"id": -1}': "'id' expected an integer",
        '{"id": 1, "promt": ""}': "promt",
        '{"id": 1, "prompt": null}': "'prompt' expected text",
        '{"id": 1}\n{"id": 1}': "got 1 again",
        "[1]": "a JSON object",
    }.items():
        file.write_text(line)
        with pytest.raises(StoreFormatError, match=said):
            imported(tmp_path, {"h": gradients(1)}, examples=file)
    file.write_bytes(b'{"id": 1, "prompt": "\xff"}')
    with pytest.raises(StoreFormatError, match="expected UTF-8"):
        imported(tmp_path, {"h": gradients(1)}, examples=file)


def test_an_import_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    g, out = gradients(), tmp_path / "s.gstore"
    values: dict[str, Any] = {"model": MODEL, "objective": "nll", "positions": "last", "dtype": "float32"}
    values |= {"unit_rows": 4, "rows_per_shard": 8}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "rows" and done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_numpy({"h": g}, out, **values, progress=stop)
    assert 0 < open_store(out).n_rows < 40
    with pytest.raises(StoreExistsError):
        import_numpy({"h": g}, out, **values)
    with pytest.raises(StoreMismatchError, match="plan"):
        import_numpy({"h": g + 1}, out, **values, resume=True)
    import_numpy({"h": g}, out, **values, resume=True)
    np.testing.assert_allclose(raw(open_store(out), "h"), g, rtol=1e-5, atol=1e-6)
    assert open_store(out).info.complete


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "one or more hooks"),
        ({"token": np.arange(3)}, "one or more hooks"),
        ({"h": np.ones((3, 2), int)}, "float16, float32 or float64"),
        ({"h": np.ones(3)}, r"shape \(N, d\)"),
        ({"h": np.ones((3, 0))}, "d expected 1 or more"),
        ({"a/b": np.ones((3, 2))}, "without '/'"),
        ({"h": np.ones((3, 2)), "k": np.ones((2, 2))}, "one length N"),
        ({"h": np.ones((3, 2)), "token": np.ones(3)}, "'token' expected integers"),
        ({"h": np.ones((3, 2)), "loss": np.ones((3, 1))}, "'loss' expected numbers"),
        ({"h": np.ones((3, 2)), "example": np.array([0, -1, 2])}, "ids of 0 or more"),
        ({"h": np.ones((3, 2)), "token": np.array([0, 2**40, 2])}, "'token' expected values that fit"),
        ({"h": np.array([[1, 2], [np.nan, 1]])}, "first at example 1"),
        ({"h": np.array([[1, 2], [1e300, 1]])}, "first at example 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreValueError, match=said):
        imported(tmp_path, arrays)


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "h.npy"
    np.save(file, np.array([{}]), allow_pickle=True)
    for content in (file.read_bytes(), b"", b"\x80\x04N.", b"\x93NUMPY\x01\x00"):
        file.write_bytes(content)
        with pytest.raises(StoreFormatError, match="pickled objects are never read"):
            imported(tmp_path, file)
    np.savez(tmp_path / "h.npz", h=np.array([{}]), allow_pickle=True)
    packed = (tmp_path / "h.npz").read_bytes()
    for content in (packed, packed[:-9], b"PK"):
        (tmp_path / "h.npz").write_bytes(content)
        with pytest.raises(StoreFormatError, match="pickled objects are never read"):
            imported(tmp_path, tmp_path / "h.npz")
    np.savez(tmp_path / "k.npz", h=gradients())
    (tmp_path / "k.npz").rename(file)
    with pytest.raises(StoreFormatError, match=r"rename it to end in \.npz"):
        imported(tmp_path, file)
    for name in ("none.npy", "none.npz"):
        with pytest.raises(StoreNotFoundError, match="check the path"):
            imported(tmp_path, tmp_path / name)
    with pytest.raises(StoreValueError, match="unit_rows expected"):
        imported(tmp_path, {"h": gradients()}, unit_rows=0)


# Imports of bergson indices: the layout of bergson 2.5.1 made by hand, and where bergson is installed, its own writer

SIZES = {"layers.0.q_proj": 6, "layers.0.o_proj": 4}
SETTINGS: dict[str, Any] = {
    "index_cfg": {
        "model": "tiny",
        "precision": "fp32",
        "loss_fn": "ce",
        "loss_reduction": "sum",
        "label_smoothing": 0.0,
        "logit_scale": 1.0,
        "optimizer_state": "",
        "data": {"prompt_column": "text", "completion_column": "", "reward_column": ""},
    },
    "preprocess_cfg": {"unit_normalize": False, "hessian_path": None, "aggregation": "none"},
}
DOCUMENTS = {
    "text": ["a cat", "b", None, "dé"],
    "input_ids": [[5, 6, 7], [8], [], [9, 10]],
    "labels": [[5, 6, 7], [8], [], [-100, -100]],
    "loss": [1.5, 0.0, 0.0, 2.5],
}


def make_index(path: Path, values: np.ndarray, dtype: str = "float32", offsets: Any = None, **changes: Any) -> Path:
    """An index as bergson 2.5.1 writes it: values of shape (rows, 10)."""
    path.mkdir()
    if dtype == "bfloat16":
        (torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()).tofile(path / "gradients.bin")
    else:
        values.astype(dtype).tofile(path / "gradients.bin")
    info = {
        "attribute_tokens": offsets is not None,
        "num_items": len(values) if offsets is None else len(offsets) - 1,
        "num_grads": len(values),
        "grad_sizes": SIZES,
        "base_dtype": dtype,
    }
    (path / "info.json").write_text(json.dumps(changes.get("info", info), indent=2))
    if offsets is not None:
        np.save(path / "offsets.npy", np.array(offsets))
    documents = changes.get("documents", DOCUMENTS)
    if documents:
        datasets.Dataset.from_dict(documents).save_to_disk(str(path / "data.hf"))
    settings = changes.get("settings", SETTINGS)
    if settings:
        config = {"steps": [{"build": settings}], "metadata": {"bergson_version": "2.5.1"}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        processor = {"projection_dim": None, "include_bias": False} | changes.get("processor", {})
        (path / "processor_config.yaml").write_text(yaml.safe_dump(processor))
    return path


def from_bergson(tmp_path: Path, index: Any, **options: Any) -> Store:
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}.gstore"
    import_bergson(index, out, **({"dtype": "float32"} | options))
    return open_store(out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_bergson_index_of_documents(tmp_path: Path, dtype: str) -> None:
    values = gradients(4, 10).astype("f4")
    values[2] = 0
    store = from_bergson(tmp_path, make_index(tmp_path / "run", values, dtype), unit_rows=3)
    header = store.header
    assert (header.objective, header.positions, header.space) == ("nll", "document", "weights")
    assert [(hook.name, hook.d) for hook in header.hooks] == list(SIZES.items())
    assert header.model["name"] == "tiny" and header.model["bergson_version"] == "2.5.1"
    assert header.model["base_dtype"] == dtype
    rounded = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_allclose(raw(store, "layers.0.q_proj"), rounded[:, :6], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(raw(store, "layers.0.o_proj"), rounded[:, 6:], rtol=1e-6, atol=1e-8)
    assert [example.prompt for example in store.examples] == ["a cat", "b", "", "dé"]
    assert json.loads(store.examples[3].meta) == {"index": "run", "document": 3}
    order = np.argsort(store.rows["example"])
    assert store.rows["loss"][order].tolist() == [1.5, 0.0, 0.0, 2.5]
    assert all((store.rows[field] == -1).all() for field in ("position", "token", "target"))


def test_a_bergson_index_of_tokens(tmp_path: Path) -> None:
    values = gradients(3, 10).astype("f4")
    store = from_bergson(tmp_path, make_index(tmp_path / "run", values, offsets=[0, 2, 2, 2, 3]), unit_rows=1)
    assert store.header.positions == "all" and store.header.n_examples == len(store.examples) == 4
    np.testing.assert_allclose(raw(store, "layers.0.o_proj"), values[:, 6:], rtol=1e-6)
    order = np.lexsort((store.rows["position"], store.rows["example"]))
    found = {field: store.rows[field][order].tolist() for field in FIELDS}
    assert found == {
        "example": [0, 0, 3],
        "position": [0, 1, 0],
        "token": [5, 6, 9],
        "target": [6, 7, -1],
        "loss": [1.5, 1.5, 2.5],
    }
    wrong = DOCUMENTS | {"input_ids": [[5, 6], [8], [], [9, 10]], "labels": [[5, 6], [8], [], [9, 10]]}
    index = make_index(tmp_path / "wrong", values, offsets=[0, 2, 2, 2, 3], documents=wrong)
    with pytest.raises(StoreFormatError, match="document 0 expected tokens"):
        from_bergson(tmp_path, index)


def test_what_bergson_did_to_the_gradients_is_in_the_objective(tmp_path: Path) -> None:
    run, data = SETTINGS["index_cfg"], SETTINGS["index_cfg"]["data"]
    cases: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ("nll (mean over tokens)", {"loss_reduction": "mean"}, {}, {}),
        ("negative log-odds (logits times 2.0)", {"loss_fn": "log_odds", "logit_scale": 2.0}, {}, {}),
        ("nll (label smoothing 0.1)", {"label_smoothing": 0.1}, {}, {}),
        ("kl (weighted by advantage)", {"loss_fn": "kl", "data": data | {"reward_column": "r"}}, {}, {}),
        ("nll (random projection per_module 16)", {}, {}, {"projection_dim": 16}),
        ("nll (normalized by optimizer; preconditioned)", {"optimizer_state": "o"}, {"hessian_path": "h"}, {}),
        ("nll (unit-normalized)", {}, {"unit_normalize": True}, {}),
        ("nll (mean over documents)", {}, {"aggregation": "mean"}, {}),
    ]
    for number, (objective, index_cfg, preprocess_cfg, processor) in enumerate(cases):
        settings = {"index_cfg": run | index_cfg, "preprocess_cfg": SETTINGS["preprocess_cfg"] | preprocess_cfg}
        index = make_index(tmp_path / f"run{number}", gradients(4, 10), settings=settings, processor=processor)
        assert from_bergson(tmp_path, index).header.objective == objective

    bare = make_index(tmp_path / "bare", gradients(4, 10), settings=None, documents=None)
    with pytest.raises(StoreValueError, match="state what the gradients are of"):
        from_bergson(tmp_path, bare)
    torch.save({"q": {"weight_avg_sq": torch.ones(2)}}, bare / "normalizers.pth")
    store = from_bergson(tmp_path, bare, objective="nll", model={"name": "tiny"})
    assert (
        store.header.objective == "nll (normalized by optimizer; projection not recorded; preprocessing not recorded)"
    )
    assert store.header.model == {"name": "tiny", "source": "bergson", "base_dtype": "float32"}
    assert np.isnan(store.rows["loss"]).all() and {example.prompt for example in store.examples} == {""}


def test_parts_of_a_bergson_index(tmp_path: Path) -> None:
    values = gradients(8, 10).astype("f4")
    (tmp_path / "run").mkdir()
    parts = [make_index(tmp_path / "run" / name, values[i : i + 4]) for i, name in ((0, "b"), (4, "a"))]
    with pytest.raises(StoreNotFoundError, match="as a list: a, b"):
        from_bergson(tmp_path, tmp_path / "run")
    store = from_bergson(tmp_path, parts, unit_rows=3)
    np.testing.assert_allclose(raw(store, "layers.0.q_proj"), values[:, :6], rtol=1e-6)
    assert json.loads(store.examples[5].meta) == {"index": "a", "document": 1}
    assert [example.prompt for example in store.examples] == ["a cat", "b", "", "dé"] * 2
    settings = SETTINGS | {"preprocess_cfg": SETTINGS["preprocess_cfg"] | {"unit_normalize": True}}
    other = make_index(tmp_path / "run" / "c", values[:4], settings=settings)
    with pytest.raises(StoreMismatchError, match="objective expected as in"):
        from_bergson(tmp_path, [parts[0], other])
    with pytest.raises(StoreValueError, match="one or more folders"):
        from_bergson(tmp_path, [])


def test_texts_for_a_bergson_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dropped = {"length": [2, 1, 0, 2], "loss": DOCUMENTS["loss"], "answer": ["w", "x", "y", "z"]}
    index = make_index(tmp_path / "run", gradients(4, 10), documents=dropped)
    store = from_bergson(tmp_path, index, target_column="answer")
    assert "no texts in 'text'" in caplog.text
    assert [(example.prompt, example.target) for example in store.examples] == [("", word) for word in "wxyz"]
    with pytest.raises(StoreValueError, match=r"column of texts 'length', got \['length', 'loss', 'answer'\]"):
        from_bergson(tmp_path, index, prompt_column="length")
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps({"id": id_, "prompt": f"p{id_}"}) + "\n" for id_ in (3, 1, 0, 2)))
    assert [
        example.prompt for example in from_bergson(tmp_path, index, examples=file).examples
    ] == "p0 p1 p2 p3".split()
    file.write_text(file.read_text() + '{"id": 4}\n')
    with pytest.raises(StoreValueError, match="a line for each of 4 documents, got 5"):
        from_bergson(tmp_path, index, examples=file)


def test_an_older_bergson_index_with_a_structured_dtype(tmp_path: Path) -> None:
    values = gradients(4, 10).astype("f2")
    dtype = {"names": list(SIZES), "formats": ["(6,)float16", "(4,)float16"], "itemsize": 20}
    info = {"num_grads": 4, "dtype": dtype, "grad_sizes": SIZES}
    index = make_index(tmp_path / "run", values, "float16", info=info)
    np.testing.assert_allclose(raw(from_bergson(tmp_path, index), "layers.0.o_proj"), values[:, 6:], rtol=1e-6)


def test_damaged_bergson_indices_are_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path / "run", gradients(3, 10), offsets=[0, 2, 2, 2, 3])
    whole = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}

    def refused(name: str, content: bytes, said: str) -> None:
        (index / name).write_bytes(content)
        with pytest.raises(StoreFormatError, match=said):
            from_bergson(tmp_path, index)
        (index / name).write_bytes(whole[index / name])

    info = json.loads(whole[index / "info.json"])
    refused("gradients.bin", whole[index / "gradients.bin"][:-1], "expected 120 bytes")
    refused("info.json", b"{", "valid JSON")
    refused("info.json", json.dumps(info | {"base_dtype": "object"}).encode(), "base_dtype")
    refused("info.json", json.dumps(info | {"grad_sizes": {"a": 10**19}}).encode(), "'a' expected an integer")
    refused("info.json", json.dumps(info | {"num_items": 5}).encode(), "offsets.npy: expected 6 int64")
    refused("offsets.npy", b"\x80\x04N.", "expected an array")
    refused("config.yaml", b"[1]", "a YAML mapping")
    refused("config.yaml", b"!!python/object/apply:os.getcwd []", "expected YAML")
    arrow = next(path for path in whole if path.suffix == ".arrow")
    refused(f"data.hf/{arrow.name}", whole[arrow][: len(whole[arrow]) // 2], "Arrow files")
    refused("data.hf/state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}', "names of files in its folder")
    (tmp_path / "run").rename(tmp_path / "run.part")
    with pytest.raises(StoreValueError, match="has not finished"):
        from_bergson(tmp_path, tmp_path / "run.part")
    with pytest.raises(StoreNotFoundError, match="check the path"):
        from_bergson(tmp_path, tmp_path / "none")


def test_indices_that_bergson_itself_wrote(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pytest.importorskip("bergson.data", reason="bergson is not installed")
    values = gradients(5, 10).astype("f4")
    for dtype in ("float16", "bfloat16", "float32"):
        memory = data.create_index(tmp_path / dtype, 5, SIZES, dtype)
        memory[:] = values.astype(memory.dtype)
        memory.flush()
        store = from_bergson(tmp_path, tmp_path / dtype, objective="nll")
        wanted = data.load_module_gradients(tmp_path / dtype)
        for module in SIZES:
            np.testing.assert_allclose(raw(store, module), wanted[module].astype("f4"), rtol=1e-6, atol=1e-8)
    memory, _ = data.create_token_index(tmp_path / "tokens", np.array([2, 0, 3]), SIZES, "float32")
    memory[:] = values
    memory.flush()
    store = from_bergson(tmp_path, tmp_path / "tokens", objective="nll")
    wanted, counts, _ = data.load_token_gradients(tmp_path / "tokens")
    np.testing.assert_allclose(raw(store, "layers.0.o_proj"), wanted[:, 6:], rtol=1e-6)
    assert np.bincount(store.rows["example"], minlength=3).tolist() == counts.tolist()
