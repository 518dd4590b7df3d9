"""How long a person waits: for the packaged model, and for a help page."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time

import pytest

from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE

LOAD = """
import time
started = time.perf_counter()
import torch, transformers
from gradatoms.models import load_model
imported = time.perf_counter()
load_model("smollm2")
print(imported - started, time.perf_counter() - imported)
"""


def test_a_warm_load_of_the_packaged_model() -> None:
    if (
        importlib.util.find_spec(SMOLLM2_PACKAGE) is None
    ):  # present is enough: importing it needs dependencies that are not used
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    found = []
    for _ in range(4):  # the first may convert the weights
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
        found.append([float(part) for part in done.stdout.split()])
    imports, load = (statistics.median(column) for column in zip(*found[1:], strict=True))
    print(f"\nload_model('smollm2'), warm, in a new process: {load:.2f} s (and {imports:.2f} s of imports before it)")
    assert load < 3


@pytest.mark.parametrize("command", ["", "harvest", "store info", "projector train", "demo"])
def test_help(command: str) -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        args = [sys.executable, "-c", "from gradatoms_cli.main import main; main()", *command.split(), "--help"]
        subprocess.run(args, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    print(f"\natoms {command} --help: {median:.2f} s")
    assert median < 0.5
