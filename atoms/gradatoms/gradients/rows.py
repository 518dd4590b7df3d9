"""From the gradients of batches to the rows of a unit of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradatoms.errors import GradientError
from gradatoms.examples import Example
from gradatoms.gradients.residual import BatchGradients
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.gradients.skipped import Skipped
from gradatoms_store import ACTIVATION, GradientBlock, HookSpec


def merge_rows(found: Sequence[BatchGradients], sequences: Sequence[Sequence[TokenSequence]]) -> GradientBlock:
    """One row for each (example, position), in that order; gradients and losses of an example's branches are summed.

    Args:
        found: the gradients of at least one batch.
        sequences: the token sequences of every example, by its number.
    """
    example = np.concatenate([f.example for f in found])
    position = np.concatenate([f.position for f in found])
    keys, inverse = np.unique(np.stack([example, position]), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    n = keys.shape[1]

    def summed(values: np.ndarray) -> np.ndarray:
        total = np.zeros((n, *values.shape[1:]), dtype=np.float32)
        np.add.at(total, inverse, values)
        return total

    def chosen(values: np.ndarray) -> np.ndarray:
        picked = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
        picked[inverse] = values
        return picked

    losses: dict[int, float] = {}
    for f in found:
        for e, loss in zip(f.sequence_example.tolist(), f.sequence_loss.tolist(), strict=True):
            losses[e] = losses.get(e, 0.0) + loss
    targets = {
        (e, p): token
        for e in {int(i) for i in keys[0]}
        for b in sequences[e]
        for p, token, weight in sorted(b.terms, key=lambda term: term[2])
        if weight > 0
    }
    gradients = {hook: summed(np.concatenate([f.gradients[hook] for f in found])) for hook in found[0].gradients}
    activations = {
        hook + ACTIVATION: chosen(np.concatenate([f.activations[hook] for f in found])) for hook in found[0].activations
    }
    return GradientBlock(
        gradients=gradients | activations,
        example=keys[0].astype(np.int64),
        position=keys[1].astype(np.int32),
        token=chosen(np.concatenate([f.token for f in found])).astype(np.int32),
        target=np.asarray([targets.get((int(e), int(p)), -1) for e, p in keys.T], dtype=np.int32),
        loss=np.asarray([losses[int(e)] for e in keys[0]], dtype=np.float32),
    )


def no_rows(hooks: Sequence[HookSpec]) -> GradientBlock:
    """The block of a unit without a usable example."""
    none = np.zeros(0, dtype=np.int32)
    return GradientBlock(
        gradients={hook.name: np.zeros((0, hook.d), np.float32) for hook in hooks},
        example=none.astype(np.int64),
        position=none,
        token=none,
        target=none,
        loss=none.astype(np.float32),
    )


def finite_rows(
    block: GradientBlock, examples: Sequence[Example], *, drop: bool
) -> tuple[GradientBlock, list[Skipped]]:
    """The rows of a block that are finite at every hook, and a list of the others.

    Raises:
        GradientError: there are others, and ``drop`` is off.
    """
    bad = np.zeros(len(block.example), dtype=bool)
    for hook, gradients in block.gradients.items():
        wrong = ~np.isfinite(gradients).all(axis=1)
        if wrong.any() and not drop:
            example = int(block.example[wrong][0])
            raise GradientError(
                f"expected finite gradients, {wrong.sum()} of {len(gradients)} rows at {hook} are NaN or infinite, the first in example "
                f"{example + 1} (prompt {examples[example].prompt[:40]!r}); try --dtype float32, check the model's weights, or leave "
                "such rows out with --nan drop"
            )
        bad |= wrong
    if not bad.any():
        return block, []
    dropped = [
        Skipped(int(e), int(p), "not finite", "the gradient is NaN or infinite")
        for e, p in zip(block.example[bad], block.position[bad], strict=True)
    ]
    keep = ~bad
    fields = ("example", "position", "token", "target", "loss")
    kept = replace(
        block,
        gradients={hook: g[keep] for hook, g in block.gradients.items()},
        **{name: getattr(block, name)[keep] for name in fields},
    )
    return kept, dropped
