"""How long work reports where it is: a callable that the caller may draw as a bar."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``; called often, so it must be cheap."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""
