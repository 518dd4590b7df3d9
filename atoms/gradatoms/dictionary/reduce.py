"""Sums over the processes of one ``torchrun``: the only place where fits talk to each other.

One process needs no torch, which is a second to import; so it is imported where there are several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int

T = TypeVar("T")


@dataclass(frozen=True)
class Reduce:
    """This process among those that fit one dictionary; with one process everything stays as it is."""

    rank: int = 0
    world: int = 1

    def sum(self, *values: Any) -> None:
        """Replace each array or tensor by its sum over ranks, in place."""
        self._all("SUM", values)

    def max(self, *values: Any) -> None:
        """Replace each array or tensor by its largest over ranks, in place."""
        self._all("MAX", values)

    def total(self, value: float | int) -> float:
        """The sum of a number over ranks."""
        held = np.asarray([value], dtype=np.float64)
        self.sum(held)
        return float(held[0])

    def gather(self, value: T) -> T:
        """The columns of every rank's tensor, (B, k) to (B, world · k), in the order of ranks; of equal shape on each."""
        if self.world == 1:
            return value
        import torch
        import torch.distributed as dist

        assert isinstance(value, torch.Tensor)
        parts = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts, dim=1)  # type: ignore[return-value]

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
            import torch
            import torch.distributed as dist

            held = torch.full((most, rows.shape[1] + 1), -torch.inf)
            held[: len(size)] = torch.from_numpy(np.column_stack([size, rows]).astype(np.float32))
            parts = [torch.empty_like(held) for _ in range(self.world)]
            dist.all_gather(parts, held)
            every = torch.cat(parts).numpy()
            every = every[np.isfinite(every[:, 0])]
            size, rows = every[:, 0], every[:, 1:]
        order = np.lexsort((*rows[:, :2].T, -size))[:most]  # equal sizes in an order that does not depend on ranks
        return size[order], rows[order]

    def _all(self, op: Literal["SUM", "MAX"], values: tuple[Any, ...]) -> None:
        if self.world > 1:
            import torch
            import torch.distributed as dist

            for value in values:
                held = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                dist.all_reduce(held, op=getattr(dist.ReduceOp, op))

    def share(self, n: int) -> Int[np.ndarray, " m"]:
        """Which of n things are this rank's, in one piece."""
        return np.arange(n * self.rank // self.world, n * (self.rank + 1) // self.world)
