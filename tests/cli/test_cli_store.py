"""``atoms store`` as a user types it: text, JSON, one-line refusals, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gradatoms_store import StoreWriter, open_store, store_info, verify_store

ARCHIVE = Path(__file__).parents[1] / "store" / "archive" / "v1"
MAIN = "from gradatoms_cli.main import main; main()"


def atoms(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "store", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


def printed(*args: object) -> str:
    done = atoms(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(*args: object) -> dict[str, Any]:
    value = json.loads(printed(*args, "--json"))
    assert isinstance(value, dict)
    return value


def refused(*args: object) -> str:
    done = atoms(*args)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 120 rows in two shards."""
    return Path(shutil.copytree(ARCHIVE / "float16.gstore", tmp_path / "a.gstore"))


def test_info(store: Path) -> None:
    value = document("info", store)
    assert (value["rows"], value["examples"], value["shards"], value["complete"]) == (120, 24, 2, True)
    hook = value["hooks"][0]
    assert value["widths"][hook] == value["d"] == 24
    assert value["norms"][hook] == json.loads(json.dumps(vars(store_info(store).norms[hook])))
    assert value["nan"] == {"gradients": 0, "losses": None} and value["units"] == {"done": 12, "planned": 12}
    text = printed("info", store)
    assert max(map(len, text.splitlines())) <= 120
    assert "120 rows of 24 examples" in text and "concept 1" in text
    assert "not complete" in printed("info", ARCHIVE / "unfinished.gstore")
    assert "no gradient store" in refused("info", store.parent)


def test_verify_and_repair(store: Path) -> None:
    assert document("verify", store)["ok"] is True
    shard = store / "shards" / "00001.h5"
    content = bytearray(shard.read_bytes())
    content[open_store(store).shards[1].places["examples/meta/data"].extent[0]] ^= 1
    shard.write_bytes(bytes(content))
    done = atoms("verify", store)
    assert done.returncode == 1
    assert "00001.h5: dataset examples/meta/data" in done.stdout
    found = json.loads(atoms("verify", store, "--json").stdout)
    assert found["problems"][0]["shard"] == "00001.h5" and found["problems"][0]["block"] == "examples/meta/data"
    assert "set aside: 00001.json, 00001.h5" in printed("verify", store, "--repair")
    assert document("verify", store, "--repair")["units"] == list(range(6, 12))
    assert document("verify", store)["ok"] is True


def test_view(store: Path) -> None:
    assert document("view", store) == {"out": str(store / "view.h5")}
    with h5py.File(store / "view.h5") as file:
        np.testing.assert_array_equal(file["rows/token"][:], open_store(store).rows["token"])
    (store / "shards" / "00000.h5").unlink()
    assert "00000.h5" in refused("view", store)


def test_merge(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.gstore"
    part = tmp_path / "b.gstore"
    header = open_store(ARCHIVE / "unfinished.gstore").header
    StoreWriter.create(part, header).close()
    assert document("merge", ARCHIVE / "unfinished.gstore", part, "-o", out)["rows"] == 30
    assert verify_store(out).ok
    assert "exists" in refused("merge", store, part, "-o", out)
    other = refused("merge", store, ARCHIVE / "float32.gstore", "-o", tmp_path / "d.gstore")
    assert "dtype: float16 here, float32 there" in other
    assert not (tmp_path / "d.gstore").exists()


@pytest.mark.parametrize("to", ["hdf5", "safetensors", "dataset"])
def test_export(store: Path, tmp_path: Path, to: str) -> None:
    assert document("export", store, "-o", tmp_path / "out", "--to", to)["rows"] == 120
    assert (tmp_path / "out").is_file() == (to == "hdf5")
    assert "exists" in refused("export", store, "-o", tmp_path / "out", "--to", to)
    assert "one of hdf5, safetensors, dataset" in refused("export", store, "-o", tmp_path / "x", "--to", "zip")


def test_import(tmp_path: Path) -> None:
    gradients = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    np.save(tmp_path / "g.npy", gradients)
    out = tmp_path / "g.gstore"
    assert "--model" in refused("import", tmp_path / "g.npy", "-o", out)
    value = document(
        "import", tmp_path / "g.npy", "-o", out, "--model", "m", "--objective", "nll", "--dtype", "float32"
    )
    assert value["rows"] == 40
    store = open_store(out)
    batch = store.read("g", np.argsort(store.rows["example"]))
    np.testing.assert_allclose(batch.gradients * batch.norms[:, None], gradients, rtol=1e-5)
    assert "none" in refused("import", tmp_path / "no.npy", "-o", tmp_path / "x", "--model", "m", "--objective", "nll")
