"""One number, with its unit, its direction, and the same number for a null."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
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
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
