"""What a harvest will do, before it does it: how much there is, how large it becomes, how long it takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradatoms.examples import Example
from gradatoms.gradients.residual import TokenSequence, batch_gradients, batched
from gradatoms.models import HookSite, LoadedModel
from gradatoms_store import StoreHeader, row_bytes


@dataclass(frozen=True, kw_only=True)
class HarvestPlan:
    """The work that a harvest has before it; of a store that is resumed, what is left."""

    hooks: tuple[str, ...]
    examples: int
    tokens: int
    """Tokens to process, without padding."""
    rows: int
    bytes: int
    """Bytes that rows and texts will take in the store."""
    free_bytes: int
    """Bytes free where the store is."""
    seconds: float
    """Expected time, from one batch of middling length that was timed."""


def make_plan(
    loaded: LoadedModel,
    examples: Sequence[Example],
    sequences: Sequence[Sequence[TokenSequence]],
    hooks: Sequence[HookSite],
    header: StoreHeader,
    out: Path,
    *,
    batch_tokens: int,
    autocast: torch.dtype | None,
) -> HarvestPlan:
    """Plan the harvest of ``examples``, which are those that are left to do.

    Args:
        sequences: the token sequences of each example.
        out: path of the store, whose parent exists.
    """
    branches = [branch for example in sequences for branch in example]
    tokens = sum(len(branch.ids) for branch in branches)
    rows = sum(len({position for branch in example for position in branch.rows}) for example in sequences)
    texts = sum(len(f"{e.prompt}{e.target}{e.foil or ''}{e.concept or ''}{e.meta}".encode()) + 50 for e in examples)
    return HarvestPlan(
        hooks=tuple(hook.name for hook in hooks),
        examples=len(examples),
        tokens=tokens,
        rows=rows,
        bytes=rows * row_bytes(header) + texts,
        free_bytes=shutil.disk_usage(out if out.exists() else out.absolute().parent).free,
        seconds=_expected_seconds(loaded, branches, hooks, tokens, batch_tokens, autocast),
    )


def _expected_seconds(
    loaded: LoadedModel,
    branches: Sequence[TokenSequence],
    hooks: Sequence[HookSite],
    tokens: int,
    batch_tokens: int,
    autocast: torch.dtype | None,
) -> float:
    """Time one batch, the second time that it is run, and scale it by the tokens."""
    if not branches:
        return 0.0
    ordered = sorted(branches, key=lambda branch: len(branch.ids))
    middle = len(ordered[len(ordered) // 2].ids)
    start = max(0, len(ordered) // 2 - max(1, batch_tokens // middle) // 2)
    group = ordered[start : start + max(1, batch_tokens // middle)]
    batch = next(batched(group, batch_tokens=batch_tokens, device=loaded.device))
    for _ in range(2):
        started = time.perf_counter()
        batch_gradients(loaded, batch, hooks, autocast=autocast)
        seconds = time.perf_counter() - started
    return seconds * tokens / batch.n_tokens
