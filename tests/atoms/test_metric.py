"""The largest resident size of a process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from gradatoms.metric import peak_memory_bytes


def test_a_process_does_not_inherit_the_size_of_what_started_it() -> None:
    held = np.ones(2**26)  # half a GiB, written to
    peak = peak_memory_bytes()
    assert peak >= held.nbytes
    code = "from gradatoms.metric import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 2**22 < child < held.nbytes
