"""What a harvest will do, before it does it: how much there is, how large it becomes, how long it takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradatoms.examples import Example
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.gradients.tuning import PROBE_TOKENS, Choices, speed_within_memory
from gradatoms_store import StoreHeader, row_bytes

PROBE_SEQUENCES = 512
"""Sequences from the middle of the corpus, of which a batch is timed."""


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
    unusable: dict[str, int]
    """Examples that cannot be used, by reason; they are listed in ``skipped.jsonl``."""
    choices: Choices


def make_plan(
    examples: Sequence[Example],
    sequences: Sequence[Sequence[TokenSequence]],
    take: ResidualGradients,
    choices: Choices,
    header: StoreHeader,
    out: Path,
    unusable: dict[str, int],
) -> HarvestPlan:
    """Plan the harvest of ``examples``, which are those that are left to do.

    Args:
        sequences: the token sequences of each example.
        out: path of the store, whose parent exists.
    """
    branches = [branch for example in sequences for branch in example]
    tokens = sum(len(branch.ids) for branch in branches)
    rows = sum(len({position for branch in example for position in branch.rows}) for example in sequences)
    texts = sum(
        len(f"{e.prompt}{e.target}{e.foil or ''}{e.concept or ''}{e.meta}{e.extras() or ''}".encode()) + 50
        for e in examples
    )
    seconds = 0.0
    if branches:
        probe = replace(choices, batch_tokens=min(PROBE_TOKENS, choices.batch_tokens))
        start = max(0, len(branches) // 2 - PROBE_SEQUENCES // 2)
        rate, _ = speed_within_memory(take, branches[start : start + PROBE_SEQUENCES], probe)
        seconds = tokens / rate
    return HarvestPlan(
        hooks=tuple(hook.name for hook in header.hooks),
        examples=len(examples),
        tokens=tokens,
        rows=rows,
        bytes=rows * row_bytes(header) + texts,
        free_bytes=shutil.disk_usage(out if out.exists() else out.absolute().parent).free,
        seconds=seconds,
        unusable=unusable,
        choices=choices,
    )
