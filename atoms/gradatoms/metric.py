"""One number, with its unit, its direction, and the same number for a null."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score beside its null."""

    value: float | None
    null: float | None
    """The same number where there is nothing to find; what was shuffled or random is said in ``note``."""
    unit: str
    better: Literal["higher", "lower"]
    n: int
    """Rows or atoms it is over."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux is asked for VmHWM: what ``getrusage`` gives begins with the size of the process that started this one.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
