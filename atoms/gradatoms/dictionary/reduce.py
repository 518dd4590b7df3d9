"""Sums over the processes of one ``torchrun``: the only place where fits talk to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True)
class Reduce:
    """This process among those that fit one dictionary; with one process everything stays as it is."""

    rank: int = 0
    world: int = 1

    def sum(self, *values: Shaped[np.ndarray, ...] | Shaped[torch.Tensor, ...]) -> None:
        """Replace each array by its sum over ranks, in place."""
        self._all(dist.ReduceOp.SUM, values)

    def max(self, *values: Shaped[np.ndarray, ...] | Shaped[torch.Tensor, ...]) -> None:
        """Replace each array by its largest over ranks, in place."""
        self._all(dist.ReduceOp.MAX, values)

    def total(self, value: float | int) -> float:
        """The sum of a number over ranks."""
        held = np.asarray([value], dtype=np.float64)
        self.sum(held)
        return float(held[0])

    def gather(self, value: Float[torch.Tensor, "B k"]) -> Float[torch.Tensor, "B kn"]:
        """The columns of every rank, in the order of ranks; of equal shape on each."""
        if self.world == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts, dim=1)

    def before(self, n: int) -> int:
        """The sum of n over the ranks before this one."""
        counts = np.zeros(self.world, dtype=np.int64)
        counts[self.rank] = n
        self.sum(counts)
        return int(counts[: self.rank].sum())

    def largest(
        self, size: Float[np.ndarray, " n"], rows: Float[np.ndarray, "n d"], most: int
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
        """The rows of largest size among all ranks' rows, at most ``most``, largest first; the same on each rank.

        Args:
            size, rows: this rank's, at most ``most`` of them.
        """
        if self.world > 1:
            held = torch.full((most, rows.shape[1] + 1), -torch.inf)
            held[: len(size)] = torch.from_numpy(np.column_stack([size, rows]).astype(np.float32))
            parts = [torch.empty_like(held) for _ in range(self.world)]
            dist.all_gather(parts, held)
            every = torch.cat(parts).numpy()
            every = every[np.isfinite(every[:, 0])]
            size, rows = every[:, 0], every[:, 1:]
        order = np.lexsort((*rows[:, :2].T, -size))[:most]  # equal sizes in an order that does not depend on ranks
        return size[order], rows[order]

    def _all(self, op: dist.ReduceOp.RedOpType, values: tuple[np.ndarray | torch.Tensor, ...]) -> None:
        if self.world > 1:
            for value in values:
                dist.all_reduce(value if isinstance(value, torch.Tensor) else torch.from_numpy(value), op=op)

    def share(self, n: int) -> Int[np.ndarray, " m"]:
        """Which of n things are this rank's, in one piece."""
        return np.arange(n * self.rank // self.world, n * (self.rank + 1) // self.world)
