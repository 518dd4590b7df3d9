"""What goes in comes out: values, norms, rows, examples, info, and the format as plain h5py sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, StoreHeader, StoreWriter, open_store


def relative_norms(g: np.ndarray) -> np.ndarray:
    return np.linalg.norm(g.astype(np.float64), axis=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 2**-23)])
def test_gradients_and_rows_come_back(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace, dtype: str, tolerance: float
) -> None:
    store = open_store(fill(tmp_path / "s.gstore", dtype=dtype))
    raw = samples.raw()
    order = np.argsort(store.rows["token"])
    assert len(order) == store.n_rows == samples.n_rows
    for field in ("example", "position", "token", "target", "loss"):
        np.testing.assert_array_equal(store.rows[field][order], raw[field])
        assert store.rows[field].dtype == raw[field].dtype
    for hook in samples.hooks:
        batch = store.read(hook, order)
        norms = relative_norms(raw[hook])
        np.testing.assert_array_equal(batch.norms, norms.astype(np.float32))
        assert batch.gradients.dtype == np.float32
        want = raw[hook] / norms[:, None]
        # relative to the largest component of 1: half a unit in the last place of the stored dtype
        assert np.abs(batch.gradients - want).max() <= tolerance * np.abs(want).max()
        assert np.abs(batch.gradients - want).max() > 0 or dtype == "float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-7, 1e-30, 1e4, 1e30])
def test_extreme_norms_keep_float32_precision(
    tmp_path: Path, samples: SimpleNamespace, dtype: str, size: float
) -> None:
    block, examples = samples.unit(0)
    direction = np.random.default_rng(1).standard_normal((len(block.example), samples.d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    g = (direction * size).astype(np.float32)
    block = GradientBlock(**{**vars(block), "gradients": dict.fromkeys(samples.hooks, g)})
    with StoreWriter.create(tmp_path / "s.gstore", samples.header(dtype=dtype)) as writer:
        writer.append(0, block, examples)
    store = open_store(tmp_path / "s.gstore")
    batch = store.read(samples.hooks[0], np.argsort(store.rows["token"]))
    np.testing.assert_array_equal(batch.norms, relative_norms(g).astype(np.float32))
    np.testing.assert_allclose(batch.norms, size, rtol=1e-6)
    np.testing.assert_allclose(batch.gradients, direction, atol=2**-8)


def test_bfloat16_rounds_to_nearest(tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace) -> None:
    exact = open_store(fill(tmp_path / "exact.gstore", dtype="float32"))
    rounded = open_store(fill(tmp_path / "rounded.gstore", dtype="bfloat16"))
    rows = np.arange(samples.n_rows)
    want = exact.read(samples.hooks[0], rows).gradients
    got = rounded.read(samples.hooks[0], rows).gradients
    assert not (got.view(np.uint32) & 0xFFFF).any()
    step = np.abs(want) * 2.0**-8  # half a unit in the last place is at most |x| 2^-8
    assert (np.abs(got - want) <= step).all()
    assert abs(float((np.abs(got) - np.abs(want)).mean())) < 0.1 * float(step.mean())  # truncation would be biased


def test_zero_gradient_is_norm_zero_and_zeros(tmp_path: Path, samples: SimpleNamespace) -> None:
    block, examples = samples.unit(0)
    for g in block.gradients.values():
        g[3] = 0
    with StoreWriter.create(tmp_path / "s.gstore", samples.header()) as writer:
        writer.append(0, block, examples)
    store = open_store(tmp_path / "s.gstore")
    (row,) = np.flatnonzero(store.rows["token"] == 3)
    batch = store.read(samples.hooks[0], np.array([row]))
    assert batch.norms[0] == 0
    assert not batch.gradients.any()
    assert json.loads((tmp_path / "s.gstore/shards/00000.json").read_text())["norms"][samples.hooks[0]]["zeros"] == 1


def test_examples_come_back_sorted(store_path: Path, samples: SimpleNamespace) -> None:
    want = [example for unit in range(samples.n_units) for example in samples.unit(unit)[1]]
    assert open_store(store_path).examples == want


def test_info_comes_from_sidecars(store_path: Path, samples: SimpleNamespace) -> None:
    info = open_store(store_path).info
    shards = sorted((store_path / "shards").glob("*.h5"))
    assert len(shards) == 3
    assert info.bytes == sum(shard.stat().st_size for shard in shards)
    assert (info.rows, info.examples, info.complete, info.d) == (120, 24, True, samples.d)
    assert info.hooks == samples.hooks
    assert info.header == samples.header()
    concepts = [json.loads(file.read_text())["concepts"] for file in sorted((store_path / "shards").glob("*.json"))]
    assert sum(part["concept 1"] for part in concepts) == 8 * 5  # ids 1, 4, ... 22, five rows each


def test_incomplete_and_empty_stores_open(tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace) -> None:
    assert not open_store(fill(tmp_path / "part.gstore", units=range(4))).info.complete
    empty = open_store(fill(tmp_path / "empty.gstore", units=()))
    assert (empty.n_rows, empty.examples, empty.info.complete) == (0, [], False)
    assert list(empty.batches(samples.hooks[0], 4)) == list(empty.batches(samples.hooks[0], 4, shuffle=0)) == []
    assert empty.rows["example"].shape == (0,)
    assert empty.read(samples.hooks[0], np.array([], int)).gradients.shape == (0, samples.d)


def test_unit_without_rows_counts_as_done(tmp_path: Path, samples: SimpleNamespace) -> None:
    block, _ = samples.unit(0, 0)
    with StoreWriter.create(tmp_path / "s.gstore", samples.header(n_units=1)) as writer:
        writer.append(0, block, [])
    store = open_store(tmp_path / "s.gstore")
    assert store.info.complete
    assert store.n_rows == 0
    assert store.examples == []


def test_hooks_of_different_width(tmp_path: Path, samples: SimpleNamespace) -> None:
    hooks = tuple(HookSpec(name=name, hf_name=name, d=d) for name, d in zip(samples.hooks, (3, 5), strict=True))
    block, examples = samples.unit(0)
    gradients = {hook.name: block.gradients[hook.name][:, : hook.d] for hook in hooks}
    with StoreWriter.create(tmp_path / "s.gstore", samples.header(hooks=hooks)) as writer:
        writer.append(0, GradientBlock(**{**vars(block), "gradients": gradients}), examples)
    store = open_store(tmp_path / "s.gstore")
    assert store.info.d is None
    assert [store.read(hook, np.arange(2)).gradients.shape[1] for hook in samples.hooks] == [3, 5]


def test_rows_are_permuted_within_a_shard_by_seed(tmp_path: Path, fill: Callable[..., Path]) -> None:
    tokens = [open_store(fill(tmp_path / f"{n}.gstore", seed=seed)).rows["token"] for n, seed in enumerate((5, 5, 6))]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[0], tokens[2])
    assert not np.array_equal(tokens[0], np.sort(tokens[0]))
    np.testing.assert_array_equal(np.sort(tokens[0][:40]), np.arange(40))


def test_same_input_gives_the_same_bytes(tmp_path: Path, fill: Callable[..., Path]) -> None:
    a, b = fill(tmp_path / "a.gstore"), fill(tmp_path / "b.gstore")
    names = sorted(str(file.relative_to(a)) for file in a.rglob("*") if file.is_file())
    stems = ("shards/00000", "shards/00001", "shards/00002")
    assert names == [*(f"{stem}.{ending}" for stem in stems for ending in ("h5", "json")), "store.json", "writers/lock"]
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_header_json_round_trip_and_fingerprint(samples: SimpleNamespace) -> None:
    header = samples.header()
    assert StoreHeader.from_json(header.to_json()) == header
    same = samples.header(seed=9, n_units=99, n_examples=7)
    assert same.fingerprint == header.fingerprint
    changes = {"model": {"name": "other"}, "objective": "contrast", "positions": "last", "dtype": "float32"}
    changes |= {"space": "weights", "plan": "dead", "hooks": header.hooks[:1]}
    prints = {samples.header(**{field: value}).fingerprint for field, value in changes.items()}
    assert len(prints | {header.fingerprint}) == 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_plain_h5py_reads_the_documented_layout(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace, dtype: str
) -> None:
    """Reads a shard by FORMAT.md alone, without this package's reader."""
    path = fill(tmp_path / "s.gstore", rows_per_shard=1000, dtype=dtype)
    raw = samples.raw()
    with h5py.File(path / "shards" / "00000.h5", "r") as file:
        assert file.attrs["schema_version"] == 2
        assert set(file) == {"gradients", "norms", "rows", "examples"}
        order = np.argsort(file["rows/token"][:])
        np.testing.assert_array_equal(file["rows/example"][:][order], raw["example"])
        for hook in samples.hooks:
            dataset = file["gradients"][hook]
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.id.get_offset() is not None
            stored = dataset[:]
            if dtype == "bfloat16":
                assert dataset.attrs["dtype"] == b"bfloat16"
                assert stored.dtype == np.uint16
                stored = (stored.astype(np.uint32) << 16).view(np.float32)
            else:
                assert stored.dtype == np.float16
            g = stored.astype(np.float64)[order] * file["norms"][hook][:][order][:, None].astype(np.float64)
            error = np.linalg.norm(g - raw[hook], axis=1) / relative_norms(raw[hook])
            assert error.max() < 2**-7
        prompts = file["examples/prompt/data"][:].tobytes()
        offsets = file["examples/prompt/offsets"][:]
        assert prompts[offsets[7] : offsets[8]].decode() == samples.unit(3)[1][1].prompt
        assert file["examples/id"][7] == 7
        assert file["examples/foil/present"][:2].tolist() == [1, 0]
        assert set(file["examples/prompt"]) == {"data", "offsets"}


def test_package_imports_neither_torch_nor_the_library() -> None:
    code = "import sys, gradatoms_store; sys.exit(bool({'torch', 'gradatoms', 'transformers'} & set(sys.modules)))"
    root = Path(sys.modules["gradatoms_store"].__file__ or "").parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_example_record_of_several_rows_is_stored_once(store_path: Path) -> None:
    ids = [example.id for example in open_store(store_path).examples]
    assert ids == sorted(set(ids))
    assert isinstance(open_store(store_path).examples[0], ExampleRecord)
