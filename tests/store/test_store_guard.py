"""Stores from strangers: every attack is refused with its reason, soon, and without libhdf5 looking at the file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gradatoms_store import (
    ExampleRecord,
    GradientBlock,
    HookSpec,
    StoreError,
    StoreHeader,
    StoreValueError,
    StoreWriter,
    open_store,
    verify_store,
    write_view,
)
from gradatoms_store.hdf5.dataset import describe

ATTACKS = Path(__file__).parent / "attacks"

GOLDEN = {
    "external_raw_storage": r"00001\.h5: rows/loss expected storage inside the file, got external storage",
    "external_link": r"00001\.h5: / expected hard links, got the external link norms",
    "soft_link_to_external_link": r"00001\.h5: rows expected hard links, got the (soft link target|external link aside)",
    "virtual_dataset_outside": r"00001\.h5: rows/loss expected contiguous storage, got virtual storage",
    "view_of_parent_folder": r"view\.h5: rows/loss expected sources such as shards/00000\.h5, got \.\./outside\.h5",
    "oversized_deflate_chunk": r"00001\.h5: examples/prompt/data expected no filters",
    "absurd_declared_shape": r"00001\.h5: examples/prompt/data expected 1125899906842624 bytes inside a file of",
    "wrong_dtype": r"00001\.h5: rows/token expected dtype <i4, got floats of 4 bytes",
    "plugin_filter": r"00001\.h5: rows/loss expected no filters",
    "sidecar_path_traversal": r"00001\.json: field 'file' expected '00001\.h5', got '\.\./\.\./outside\.h5'",
    "header_of_future_version": r"store\.json: field 'schema_version' is 999.*upgrade",
    "bytes_beyond_the_end": r"00001\.h5: gradients/\S+ expected \d+ bytes inside a file of \d+, got \d+ bytes at \d+",
    "two_links_to_one_dataset": r"00001\.h5: rows/to\w+ expected one link to each object",
    "group_with_hidden_filtered_links": r"00001\.h5: examples expected groups without filters",
    "json_twice": r"00001\.json: expected valid JSON, got key 'rows' 2 times",
}
"""Attack to the reason that its refusal must name."""

SOUND = {"valid", "bfloat16", "v1", "sidecar_segment_rows_huge"}
"""Stores that are what they should be; the last says in an unusual way that a shard is one segment."""

MAX_SECONDS, MAX_MEGABYTES = 2, 200

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="tells memory and loaded files by means of Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the attacks are built."""
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What the library made of each attack."""
    command = [sys.executable, str(ATTACKS / "run.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["attack"]: result for result in found}


@needs_linux
@pytest.mark.parametrize("attack", GOLDEN)
def test_golden_attacks_are_refused_for_their_reason(results: dict[str, dict[str, Any]], attack: str) -> None:
    result = results[attack]
    assert result["error"] == "StoreFormatError" and result["step"] == "open"
    assert re.search(GOLDEN[attack], result["message"])
    assert result["seconds"] < MAX_SECONDS and result["megabytes"] < MAX_MEGABYTES


@needs_linux
def test_every_attack_is_refused(results: dict[str, dict[str, Any]]) -> None:
    assert len(results) > 200
    failed: dict[str, object] = {}
    for attack, result in results.items():
        found = [result, *([result["verified"]] if result["verified"] else [])]
        wanted = "" if attack in SOUND else "StoreFormatError"
        if any(each["error"] != wanted for each in found):
            failed[attack] = [(each["error"], each.get("message", "")) for each in found]
        elif any(each["seconds"] > MAX_SECONDS or each["megabytes"] > MAX_MEGABYTES for each in found):
            failed[attack] = [(each["seconds"], each["megabytes"]) for each in found]
        elif attack not in SOUND and not re.match(r"[ -~]+/s\.gstore[ -~]*: ", result["message"]):
            failed[attack] = result["message"]
    assert not failed


@needs_linux
def test_no_attack_on_the_structures_gets_as_far_as_the_data(results: dict[str, dict[str, Any]]) -> None:
    late = {attack for attack, result in results.items() if result["step"] in ("read", "verify")}
    assert late and all(attack.startswith(("content_", "sparse_")) for attack in late)


@needs_linux
def test_no_plugin_is_looked_for(folder: Path, results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert results["plugin_filter"]["error"]
    (tmp_path / "libplugin.so").write_text("not a library")
    store = folder / "plugin_filter" / "s.gstore"
    tried = {}
    for name, code in {
        "ours": "import sys, gradatoms_store as g\ntry: g.open_store(sys.argv[1])\nexcept g.StoreError: print('refused')",
        "h5py": "import sys, h5py\ntry: h5py.File(sys.argv[1] + '/shards/00001.h5')['rows/loss'][:]\nexcept OSError: "
        "print('refused')",
    }.items():
        environment = os.environ | {"HDF5_PLUGIN_PATH": str(tmp_path), "LD_DEBUG": "files"}
        command = [sys.executable, "-c", code, str(store)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout == "refused\n"
        tried[name] = f"{tmp_path}/libplugin.so" in done.stderr
    assert tried == {"ours": False, "h5py": True}


def test_reading_never_opens_a_file_with_libhdf5(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_view(store_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"{arguments} {options}")

    monkeypatch.setattr(h5py.File, "__init__", refuse)
    monkeypatch.setattr(h5py.h5f, "open", refuse)
    store = open_store(store_path)
    assert sum(len(batch.gradients) for batch in store.batches(store.hooks[0], 7, shuffle=0)) == store.n_rows
    assert len(store.rows["loss"]) == store.n_rows
    assert verify_store(store_path).ok


def test_a_store_opens_while_h5py_has_its_files_open(store_path: Path) -> None:
    write_view(store_path)
    with h5py.File(store_path / "view.h5") as view, h5py.File(store_path / "shards/00000.h5", locking=False) as shard:
        assert open_store(store_path).n_rows == len(view["rows/loss"]) > len(shard["rows/loss"])


@pytest.mark.parametrize(("n_hooks", "length"), [(8, 20), (9, 20), (60, 20), (700, 40), (939, 255), (2000, 100)])
def test_groups_of_any_size_are_read(tmp_path: Path, n_hooks: int, length: int) -> None:
    """Links are kept in a header, in one block, in several, under an index of several levels."""
    header, unit = _many_hooks(n_hooks, length)
    with StoreWriter.create(tmp_path / "s.gstore", header) as writer:
        writer.append(0, *unit)
    store = open_store(tmp_path / "s.gstore")
    with h5py.File(tmp_path / "s.gstore/shards/00000.h5") as file:
        for name, place in store.shards[0].places.items():
            assert file[name].id.get_offset() == place.offset and file[name].shape == place.shape


def test_a_view_of_many_hooks_is_accepted(tmp_path: Path) -> None:
    header, unit = _many_hooks(60, 20)
    with StoreWriter.create(tmp_path / "s.gstore", header) as writer:
        writer.append(0, *unit)
    write_view(tmp_path / "s.gstore")
    assert open_store(tmp_path / "s.gstore").n_rows == 4


def test_more_hooks_than_a_shard_can_list_are_refused() -> None:
    with pytest.raises(StoreValueError, match="several stores"):
        _many_hooks(940, 255)
    with pytest.raises(StoreValueError, match="at most 255 bytes"):
        _many_hooks(1, 256)


def _many_hooks(n_hooks: int, length: int) -> tuple[Any, Any]:
    names = [f"{number}.hook".ljust(length, "x") for number in range(n_hooks)]
    hooks = tuple(HookSpec(name=name, hf_name="x", d=3) for name in names)
    fields: dict[str, Any] = {"model": {"name": "m"}, "objective": "nll", "positions": "last", "plan": "0" * 32}
    header = StoreHeader(hooks=hooks, n_units=1, n_examples=1, **fields)
    numbers = np.arange(4, dtype=np.int32)
    block = GradientBlock(
        gradients={name: np.ones((4, 3), np.float32) * (1 + at) for at, name in enumerate(names)},
        example=np.zeros(4, np.int64),
        position=numbers,
        token=numbers,
        target=numbers,
        loss=np.ones(4, np.float32),
    )
    return header, (block, [ExampleRecord(id=0, prompt="p", target="t", foil=None, concept=None, meta="{}")])


def test_a_view_that_the_guard_would_refuse_is_not_written(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradatoms_store.view.VIEW_SOURCES", 50)
    with pytest.raises(StoreError, match="too many for a view"):
        write_view(store_path)
    assert not (store_path / "view.h5").exists()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<u2", "<i4", "<i8", "|u1"])
def test_types_are_described_as_libhdf5_does(dtype: str) -> None:
    assert h5py.h5t.py_create(np.dtype(dtype), logical=True).encode()[2:] == describe(dtype)


@needs_linux
def test_damaged_structures_are_refused_or_read_as_libhdf5_reads_them() -> None:
    command = [sys.executable, str(ATTACKS / "fuzz.py"), "-n", "600"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["refused"] > 200 and found["same"] > 100
