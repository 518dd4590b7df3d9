"""The fault tests, in short: `make faults` runs them for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "faults" / "run.py"

KINDS = {
    "kills": (20, ["kill at", "kill during"]),
    "damage": (48, ["damaged", "truncated", "missing", "torn"]),
    "mounted disks": (40, ["disk full", "read-only disk", "rename across"]),
    "folders": (40, ["file-size", "read-only folder"]),
    "meetings": (30, ["reader", "two writers on", "resumes at once", "come and go", "fork"]),
    "refusals": (20, ["another header", "NaN", "zero"]),
}
"""Name to N, and words of the kinds of faults."""


@pytest.mark.skipif(sys.platform != "linux", reason="the harness needs /proc")
@pytest.mark.parametrize("name", KINDS)
def test_faults(name: str) -> None:
    """No committed row is lost, doubled or unreadable; every damage is found, every misuse refused."""
    n, words = KINDS[name]
    command = [sys.executable, str(HARNESS), "-n", str(n), "--only", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    reasons = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    if reasons:
        pytest.skip("; ".join(reasons))
