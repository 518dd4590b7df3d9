"""A harvest that is killed at any moment, again and again, ends as one that never was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gradatoms.gradients import read_skipped
from gradatoms.gradients.harvest import is_complete
from gradatoms_store import Store, open_store, verify_store

KILLS = int(os.environ.get("HARVEST_KILLS", "4"))
"""How often a harvest is killed before it may end; 20 were run for the record."""

HARVEST = """
import os, sys
import torch
from gradatoms.examples import read_examples, Example
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.models import load_model
torch.set_num_threads(1)
model, corpus, out, times = sys.argv[1:]
loaded = load_model(model)
examples = [*read_examples(corpus) * int(times), Example(prompt="x" * 600, target="y")]
config = HarvestConfig(positions="prediction", unit_examples=16, commit_seconds=0.05, hooks=("blocks.1.*",))
for _ in iter(sys.stdin.readline, ""):  # a child for each line: what takes long, the imports, is done
    pid = os.fork()
    if pid == 0:
        harvest(loaded, examples, out, config, resume=True)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Harvester:
    """Starts the same harvest as often as asked."""

    def __init__(self, *arguments: Path) -> None:
        command = [sys.executable, "-c", HARVEST, *map(str, arguments), str(3 * KILLS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Harvester:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def start(self) -> int:
        """The id of a new process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """How it ended."""
        assert self.process.stdout
        return int(self.process.stdout.readline())


def committed(path: Path) -> int:
    """Shards that a store has so far."""
    return len(list((path / "shards").glob("*.json")))


def assert_same(store: Store, other: Store) -> None:
    assert store.header == other.header and store.info.complete and other.info.complete
    for hook in store.hooks:
        one, two = (s.read(hook, np.lexsort((s.rows["position"], s.rows["example"]))) for s in (store, other))
        np.testing.assert_array_equal(one.gradients, two.gradients)
        np.testing.assert_array_equal(one.norms, two.norms)
        for field, values in one.rows.items():
            np.testing.assert_array_equal(values, two.rows[field])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_harvest_that_is_killed_again_and_again_ends_as_one_that_never_was(
    small_folder: Path, small_corpus: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Bit for bit: every row, once."""
    whole, broken = tmp_path / "whole.gstore", tmp_path / "broken.gstore"
    rng = np.random.default_rng(0)
    with Harvester(small_folder, small_corpus, whole) as harvester:
        harvester.start()
        assert harvester.wait() == 0
    kills, most = 0, max(1, committed(whole) // (2 * KILLS))
    with Harvester(small_folder, small_corpus, broken) as harvester:
        while kills < KILLS and not (broken.exists() and is_complete(broken)):
            pid = harvester.start()
            aim = committed(broken) + int(rng.integers(0, most + 1))
            with contextlib.suppress(ProcessLookupError):  # it was faster
                while committed(broken) < aim:
                    os.kill(pid, 0)
                    time.sleep(0.001)
                time.sleep(float(rng.uniform(0, 0.05)))
                os.kill(pid, how)
            kills += harvester.wait() != 0
        harvester.start()
        assert harvester.wait() == 0
    assert kills >= KILLS // 2
    assert_same(open_store(broken), open_store(whole))
    assert verify_store(broken).ok and read_skipped(broken) == read_skipped(whole) and len(read_skipped(whole)) == 1
