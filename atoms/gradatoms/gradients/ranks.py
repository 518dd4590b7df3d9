"""Several processes on one store: who is who, and what each does.

Ranks (``torchrun``) and shards of a job array claim units of the store as they come to them, so none waits for another:
the only collective tells at the start whether rank 0 could open the store. Ranks that share one model (``fully_shard``)
walk together instead, since every pass of one needs the parameters of all: in each round every rank takes one unit, and
those with fewer batches repeat one, whose rows count for nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gradatoms.errors import ConfigError, GradAtomsError
from gradatoms.models import LoadedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of one ``torchrun``."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Rank on this machine, which is the number of its device."""
    together: bool = False
    """Whether all share one model, so that every pass is everybody's."""

    @classmethod
    def here(cls) -> Ranks:
        """What ``torchrun`` says in the environment; one process without it."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))

    @property
    def device(self) -> str | None:
        """The device of this rank; None leaves the choice to ``load_model``."""
        return f"cuda:{self.local}" if self.world > 1 and torch.cuda.is_available() else None

    def sharing_a_model(self) -> Ranks:
        """The same, with one model divided among all."""
        return replace(self, together=self.world > 1)

    @contextmanager
    def group(self) -> Iterator[None]:
        """While open, the process group exists, where there are several ranks (gloo, with NCCL for a divided model on GPUs)."""
        if self.world == 1 or dist.is_initialized():
            yield
            return
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()

    def from_first(self, value: T) -> T:
        """What rank 0 gave, in every rank."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


def divide(loaded: LoadedModel, ranks: Ranks) -> None:
    """Divide a model's parameters among all ranks, block by block (FSDP2); a pass gathers one block at a time.

    Within ``ranks.group()``. Every rank has loaded the whole model into main memory; block by block its own part goes to
    its device, and the rest is freed.

    Raises:
        ConfigError: there is one rank only.
    """
    if ranks.world == 1:
        raise ConfigError("expected several ranks to divide a model among, got one; start it with torchrun")
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local)
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.world,))
    for block in {id(site.block): site.block for site in loaded.hooks.values()}.values():
        fully_shard(block, mesh=mesh)
    fully_shard(loaded.model, mesh=mesh)


class OtherRankError(GradAtomsError, RuntimeError):
    """Rank 0 could not begin; it says why."""


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` as (i, n), i from 0.

    Raises:
        ConfigError: not of this form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"expected a shard i/n with i from 0 to n - 1, such as 0/4, got {text!r}; correct it")
    return shard
