"""Several processes on one store: torchrun ranks, a model divided among them, job arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradatoms.errors import ConfigError
from gradatoms.gradients import parse_shard
from gradatoms_store import Store, open_store, verify_store

TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "127.0.0.1:0",
)
SETTINGS = ("--unit-examples", "10", "--batch-tokens", "128", "--positions", "prediction", "--hook", "blocks.1.*")


def run(*arguments: object, corpus: Path, model: Path, out: Path, more: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *arguments, "-m", "gradatoms_cli", "harvest", corpus, "--model", model, "-o", out]
    done = subprocess.run(
        [*map(str, command), *SETTINGS, *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(store: Store, other: Store) -> None:
    assert store.header == other.header and store.info.complete and other.info.complete
    for hook in store.hooks:
        orders = [np.lexsort((s.rows["position"], s.rows["example"])) for s in (store, other)]
        one, two = store.read(hook, orders[0]), other.read(hook, orders[1])
        np.testing.assert_array_equal(one.gradients, two.gradients)
        np.testing.assert_array_equal(one.norms, two.norms)
        for field in one.rows:
            np.testing.assert_array_equal(one.rows[field], two.rows[field])


@pytest.fixture(scope="module")
def alone(small_folder: Path, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one process harvests."""
    out = tmp_path_factory.mktemp("alone") / "s.gstore"
    run(corpus=small_corpus, model=small_folder, out=out)
    return open_store(out)


@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["ranks", "fully_shard"])
def test_two_ranks_harvest_what_one_process_does(
    alone: Store, small_folder: Path, small_corpus: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Bit for bit, also with each block's parameters divided among the two."""
    said = run(*TORCHRUN, corpus=small_corpus, model=small_folder, out=tmp_path / "s.gstore", more=more)
    rows = [int(line.split(": ")[1].split()[0]) for line in said.splitlines() if "(rank" in line]
    assert len(rows) == 2 and sum(rows) == alone.n_rows
    assert min(rows) > 0 or not more  # a rank that was late may find that the other has done it all
    assert verify_store(tmp_path / "s.gstore").ok
    assert_same(open_store(tmp_path / "s.gstore"), alone)


def test_the_jobs_of_an_array_fill_one_store(
    alone: Store, small_folder: Path, small_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.gstore"
    for i, rows in ((1, 0), (0, 0)):
        said = run(corpus=small_corpus, model=small_folder, out=out, more=("--shard", f"{i}/2"))
        assert int(said.split(": ")[1].split()[0]) > rows
    assert_same(open_store(out), alone)


def test_ranks_do_what_one_process_left(alone: Store, small_folder: Path, small_corpus: Path, tmp_path: Path) -> None:
    """A resume may have another number of processes."""
    out = tmp_path / "s.gstore"
    run(corpus=small_corpus, model=small_folder, out=out, more=("--shard", "1/3"))
    assert not open_store(out).info.complete
    run(*TORCHRUN, corpus=small_corpus, model=small_folder, out=out, more=("--resume",))
    assert_same(open_store(out), alone)


def test_a_taken_path_is_refused_by_every_rank(alone: Store, small_folder: Path, small_corpus: Path) -> None:
    command = [sys.executable, *TORCHRUN, "-m", "gradatoms_cli", "harvest", small_corpus, "--model", small_folder]
    done = subprocess.run(
        [*map(str, command), "-o", str(alone.path), *SETTINGS], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "error: expected a new path" in done.stderr and "error: expected rank 0 to open the store" in done.stderr


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "-1/2", "a/b"])
def test_a_shard_is_one_of_n(text: str) -> None:
    assert parse_shard("0/4") == (0, 4)
    with pytest.raises(ConfigError, match="i/n"):
        parse_shard(text)
