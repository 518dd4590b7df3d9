"""The loop of every fit: batches in order, checkpoints, a log, an early stop; on one process or several.

A step of several ranks is the step of one process: the ranks read parts of the same batch (``worker``) and sum what they
find, so that a fit does not depend on how many there are, but for rounding. What each row gives is sent once, so that
memory does not grow with the rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gradatoms.dictionary.base import Atoms, FitConfig, Learner, Solution
from gradatoms.dictionary.pushes import PushBatch, Pushes
from gradatoms.dictionary.reduce import Reduce
from gradatoms.errors import ConfigError
from gradatoms.files import save_whole
from gradatoms.progress import Progress, silent

Log = Callable[[dict[str, Any]], None]
"""Takes one record of a fit: ``step``, ``epoch``, ``seconds``, ``loss``, and what else the method measures."""

FIRST_ROWS = 8192
"""Rows at least from which first atoms are chosen."""
ASIDE_ROWS = 4096
"""Rows at most that an early stop looks at."""
_LOG_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a fit is kept while it runs."""

    path: Path
    seconds: float = 20.0
    """How often; what was done since is done again after an interruption, to the same result."""


def train(
    pushes: Pushes,
    config: FitConfig,
    *,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    reduce: Reduce | None = None,
    progress: Progress = silent,
    stage: str = "fit",
) -> Atoms:
    """Learn a dictionary from ``pushes``.

    Args:
        checkpoints: where to keep the fit; what is there from an interrupted one of the same settings is gone on with.
        log: called every 100 steps and after every pass.
        reduce: the ranks that fit together; all call this.
        stage: its name in ``progress``.

    Raises:
        ConfigError: ranks that do not divide the batch, or a checkpoint of another fit.
    """
    reduce = reduce or Reduce()
    divided = reduce.world > 1 and not getattr(config, "sharded", False)
    if divided and config.batch_size % reduce.world:
        raise ConfigError(f"expected a batch_size that {reduce.world} ranks can divide, got {config.batch_size}")
    aside: Float[np.ndarray, "N D"] | None = None
    if config.patience:
        rng = np.random.default_rng([config.seed, 1])
        chosen = np.sort(rng.choice(pushes.rows, max(1, min(ASIDE_ROWS, len(pushes) // 10)), replace=False))
        aside, pushes = pushes.only(chosen).all(), pushes.only(np.setdiff1d(pushes.rows, chosen))
    mean = pushes.mean()
    basis = _basis(pushes, mean, config)
    a_pass = math.ceil(len(pushes) / config.batch_size)
    total = a_pass * config.epochs
    learner = config.learner(pushes.d if basis is None else basis.shape[1], total, reduce)
    run = _Run(learner, config, pushes, mean, basis, reduce, divided)
    place = _Place()
    signature = _signature(pushes, config, mean)
    if checkpoints is not None and checkpoints.path.exists():
        place = _resume(learner, checkpoints.path, signature)
    else:
        learner.begin(run.turned(pushes.sample(max(FIRST_ROWS, config.n_atoms), config.seed) - mean))
    started = kept = time.perf_counter()
    sums: dict[str, float] = {}
    counted = 0
    while place.epoch < config.epochs and not place.over:
        for batch in islice(run.epoch(place.epoch, a_pass), place.batch, None):
            measured = learner.step(run.turned(batch.pushes), batch.weights)
            place = replace(place, batch=place.batch + 1)
            counted += 1
            for name, value in measured.items():
                sums[name] = sums.get(name, 0.0) + value
            done = place.epoch * a_pass + place.batch
            progress(stage, done, total)
            if log is not None and done % _LOG_STEPS == 0 and place.batch < a_pass:
                log({"step": done, "epoch": place.epoch, "seconds": time.perf_counter() - started, **measured})
            due = checkpoints is not None and time.perf_counter() - kept > checkpoints.seconds
            if learner.sharded:  # parts of one state are kept after the same step
                due = learner.reduce.total(int(due)) > 0
            if due and checkpoints is not None:
                _keep(learner, checkpoints.path, place, signature, reduce)
                kept = time.perf_counter()
        learner.end_epoch()
        place = replace(place, epoch=place.epoch + 1, batch=0)
        record = {"step": place.epoch * a_pass, "epoch": place.epoch, "seconds": time.perf_counter() - started}
        record |= {name: value / max(1, counted) for name, value in sums.items()}
        sums, counted = {}, 0
        if aside is not None:
            fvu = _fvu(run.atoms(), aside)
            record["held_out_fvu"] = fvu
            place = place.after(fvu, config.patience)
        if log is not None:
            log(record)
    progress(stage, total, total)
    return run.atoms()


@dataclass(frozen=True)
class _Place:
    """Where a fit is."""

    epoch: int = 0
    batch: int = 0
    best: float = math.inf
    stale: int = 0
    over: bool = False

    def after(self, fvu: float, patience: int) -> _Place:
        if fvu < self.best * 0.999:
            return replace(self, best=fvu, stale=0)
        return replace(self, stale=self.stale + 1, over=self.stale + 1 >= patience)


@dataclass(frozen=True)
class _Run:
    """A learner with the rows it learns from."""

    learner: Learner
    config: FitConfig
    pushes: Pushes
    mean: np.ndarray
    basis: np.ndarray | None
    reduce: Reduce
    divided: bool

    def epoch(self, number: int, a_pass: int) -> Iterator[PushBatch]:
        """This rank's part of each batch of a pass; empty where the last batch has none for it."""
        size, worker = self.config.batch_size, (0, 1)
        if self.divided:
            size, worker = size // self.reduce.world, (self.reduce.rank, self.reduce.world)
        made = 0
        for batch in self.pushes.weighted(size, seed=_mixed(self.config.seed, number), worker=worker):
            made += 1
            yield PushBatch(batch.pushes - self.mean, batch.weights)
        for _ in range(made, a_pass):
            yield PushBatch(np.zeros((0, self.pushes.d), np.float32), None)

    def turned(self, rows: np.ndarray) -> np.ndarray:
        """Centred rows in the learner's coordinates."""
        return rows if self.basis is None else rows @ self.basis

    def atoms(self) -> Atoms:
        found: Solution = self.learner.solution()
        if self.basis is not None:
            found = found.turned(self.basis)
        config = {"fit": self.config.to_dict()}
        return Atoms(found.W_dec, self.mean + found.bias, found.coder, self.pushes.hook, config)


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _basis(pushes: Pushes, mean: np.ndarray, config: FitConfig) -> Float[np.ndarray, "D N"] | None:
    """An orthonormal basis of the centred rows, where they are so few that working in it pays; products stay as they are.

    The basis costs about 4·d·N² operations, a pass in all coordinates about 4·N·n_atoms·d.
    """
    n, d = len(pushes), pushes.d
    pays = n < d and 4 * d * n * n < config.epochs * 4 * n * config.n_atoms * (d - n)
    if not config.rotatable or not pays:
        return None
    return np.asarray(np.linalg.qr((pushes.all() - mean).T)[0], dtype=np.float32)


def _fvu(atoms: Atoms, rows: np.ndarray) -> float:
    X = atoms.center(rows)
    return float(((X - atoms.coder.encode(X) @ atoms.W_dec) ** 2).sum() / max(float((X**2).sum()), 1e-30))


def _signature(pushes: Pushes, config: FitConfig, mean: np.ndarray) -> str:
    """What a checkpoint must agree with."""
    about = json.dumps([config.to_dict(), pushes.hook, len(pushes), pushes.d], sort_keys=True)
    return hashlib.sha256(about.encode() + mean.tobytes() + pushes.rows.tobytes()).hexdigest()


def _keep(learner: Learner, path: Path, place: _Place, signature: str, reduce: Reduce) -> None:
    """Write the state; ranks that hold parts of it write one file each, all at the same step."""
    about = {"place": json.dumps(place.__dict__), "signature": signature, "world": str(reduce.world)}
    state = {name: np.ascontiguousarray(value) for name, value in learner.state().items()}
    target = _of_rank(path, learner, reduce)
    if target is not None:
        save_whole(target, lambda p: save_file(state, p, metadata=about))


def _of_rank(path: Path, learner: Learner, reduce: Reduce) -> Path | None:
    if reduce.rank == 0:
        return path
    return path.with_name(f"{path.name}.{reduce.rank}") if learner.sharded else None


def _resume(learner: Learner, path: Path, signature: str) -> _Place:
    rank = learner.reduce.rank if learner.sharded else 0
    path = path if rank == 0 else path.with_name(f"{path.name}.{rank}")
    try:
        with safe_open(path, "np") as file:
            about = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        place = _Place(**json.loads(about["place"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected a checkpoint at {path}, got {type(error).__name__}: {error}; remove it to begin again"
        ) from error
    if about["signature"] != signature or (learner.sharded and about["world"] != str(learner.reduce.world)):
        raise ConfigError(
            f"expected a checkpoint of this fit at {path}, it has other settings, rows or ranks; remove it to begin again"
        )
    step = place.epoch * 2**32 + place.batch
    if learner.sharded and learner.reduce.total(step) != step * learner.reduce.world:
        raise ConfigError(f"expected checkpoints of one step at {path}, the ranks' differ; remove them to begin again")
    learner.restore(state)
    return place
