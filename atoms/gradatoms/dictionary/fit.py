"""Fit a dictionary to a store, and write everything later commands need into one ``.atoms`` folder.

A folder is made in ``NAME.atoms.partial`` and renamed when it is whole. The partial folder holds every dictionary that is
fitted on the way (the one asked for, and those that its atoms are compared with) and the checkpoint of the one under way;
an interrupted ``fit_store`` called again with the same settings goes on from there.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import load_atoms, save_atoms, save_codes
from gradatoms.dictionary.log import Logs
from gradatoms.dictionary.metrics import Evaluation, coherences, evaluate, hook_in
from gradatoms.dictionary.provenance import folder_of, load_model_of, require_same_model, store_of
from gradatoms.dictionary.pushes import Pushes, example_mask, held_out_mask
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.stability import Stability, check
from gradatoms.dictionary.training import Checkpoints, Log, train
from gradatoms.errors import AtomsFormatError, ConfigError, OutputExistsError
from gradatoms.files import write_json
from gradatoms.gradients.projection import FILE as PROJECTION
from gradatoms.gradients.ranks import Ranks
from gradatoms.gradients.stream import GradientStream
from gradatoms.metric import peak_memory_bytes
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store, open_store

COHERENCE_ROWS = 4096
"""Unseen rows at most that the null's coherence is measured on."""


def fit(
    source: Store | GradientStream | np.ndarray,
    config: FitConfig,
    *,
    hook: str | None = None,
    rows: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    log: Log | None = None,
    progress: Progress = silent,
) -> Atoms:
    """Learn a dictionary from a store's gradients, a stream of them, or an array of pushes of shape (rows, d).

    Args:
        config: ``OnlineConfig``, ``TopKConfig``, or another of ``registry.METHODS``.
        hook: which hook of the store; needed where it has several.
        rows: global row numbers to learn from; default all.
        weights: what each row of ``source`` counts for, instead of ``config.weight``.
        log: called with a record now and then.

    Raises:
        ConfigError: no usable row, or settings that do not fit them.
    """
    weight = config.weight if weights is None else weights
    return train(Pushes(source, hook=hook, rows=rows, weight=weight), config, log=log, progress=progress)


def fit_store(
    store_path: str | Path | Sequence[str | Path],
    out: str | Path,
    config: FitConfig,
    *,
    hook: str | None = None,
    holdout: float = 0.25,
    holdout_seed: int = 0,
    checks: bool = True,
    log_to: Sequence[str] = (),
    checkpoint_seconds: float = 20.0,
    progress: Progress = silent,
) -> tuple[Atoms, Evaluation]:
    """Fit on the rows of a store that are not held out, find out which atoms are real, measure, and save to ``out``.

    Under ``torchrun`` all ranks fit together; the first one measures and writes, the others return an empty report.

    Args:
        store_path: a store, or several that are read as one.
        holdout: share of examples that no fit sees.
        checks: make the seven other fits that verdicts rest on (another seed, two halves, four of noise); without them no
            atom is real.
        log_to: ``tensorboard`` and ``wandb``, where losses go beside ``log.jsonl`` in the folder.
        checkpoint_seconds: how often the fit under way is kept.

    Raises:
        OutputExistsError: ``out`` exists.
        ConfigError: a setting is out of range, too few rows, or an interrupted fit of other settings in the way.
    """
    out = Path(out)
    paths = [store_path] if isinstance(store_path, str | Path) else list(store_path)
    if out.exists():
        raise OutputExistsError(f"expected a new path, {out} exists; choose another or remove it")
    if not 0 < holdout < 1:
        raise ConfigError(f"expected a held-out share between 0 and 1, got {holdout}")
    store = open_store(paths[0], *paths[1:])
    if store.n_rows == 0:
        raise ConfigError(
            f"expected rows in {paths[0]}, the store is empty; harvest first, or go on with `atoms harvest --resume`"
        )
    held_out = held_out_mask(store, holdout, holdout_seed)
    pushes = Pushes(store, hook=hook, rows=np.flatnonzero(~held_out), weight=config.weight)
    made: dict[str, Any] = {
        "kind": "fit",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("gradatoms", "torch", "transformers", "scikit-learn", "sae-lens")
        },
        "model": dict(store.header.model),
        "store": {"path": str(Path(paths[0]).resolve()), "fingerprint": store.fingerprint, "rows": store.n_rows},
        "hook": pushes.hook,
        "space": store.header.space,
        "fit": config.to_dict(),
        "holdout": {"fraction": holdout, "seed": holdout_seed},
    }
    if len(paths) > 1:
        made["store"] |= {"more": [str(Path(path).resolve()) for path in paths[1:]]}
    partial = out.with_name(out.name + ".partial")
    ranks = Ranks.here()
    with ExitStack() as stack:
        stack.enter_context(ranks.group())
        first = ranks.rank == 0
        if first:
            _begin(partial, made | {"checks": checks})
        ranks.from_first(True)
        logs = stack.enter_context(Logs(partial, out.stem, log_to if first else (), quiet=not first))

        def one(name: str, rows: Pushes, settings: FitConfig) -> Atoms:
            folder, kept = partial / "fits" / name, partial / "fits" / f"{name}.checkpoint"
            if not ranks.from_first(folder.exists()):
                found = train(
                    rows, settings, checkpoints=Checkpoints(path=kept, seconds=checkpoint_seconds),
                    log=logs.of(name), reduce=Reduce(ranks.rank, ranks.world), progress=progress, stage=name,
                )  # fmt: skip
                if first:
                    save_atoms(found, folder.with_name(f".{name}"))
                    folder.with_name(f".{name}").rename(folder)
                for leftover in kept.parent.glob(f"{kept.name}*") if first else ():
                    leftover.unlink()
            ranks.from_first(True)
            return replace(load_atoms(folder), path=None)

        atoms = replace(one("fit", pushes, config), config=made)
        stability: Stability | None = None
        if checks:
            half = example_mask(store, lambda e: e.held_out(0.5, holdout_seed + 2))[pushes.rows]
            if half.all() or not half.any():
                raise ConfigError(
                    "expected examples enough to divide in halves for the check of atoms, got too few; "
                    "harvest more or fit without checks"
                )
            unseen = pushes.only(np.flatnonzero(held_out)).sample(COHERENCE_ROWS, holdout_seed)
            stability = check(
                atoms, pushes, (pushes.only(pushes.rows[half]), pushes.only(pushes.rows[~half])), unseen, config, one,
                coherences,
            )  # fmt: skip
        if not first:
            ranks.from_first(True)
            return load_atoms(out), Evaluation({}, [])
        report = evaluate(atoms, store, stability=stability, progress=progress)
        save_atoms(atoms, partial)
        save_codes(partial / "codes.h5", _coded(atoms, store), len(atoms))
        write_json(partial / "metrics.json", report.to_dict())
        if store.header.space == "weights" and (Path(paths[0]) / PROJECTION).exists():
            shutil.copyfile(Path(paths[0]) / PROJECTION, partial / PROJECTION)
        for leftover in ("fits", "fit.json"):
            shutil.rmtree(partial / leftover) if leftover == "fits" else (partial / leftover).unlink()
        partial.rename(out)
        ranks.from_first(True)
    return load_atoms(out), report


def _begin(partial: Path, made: dict[str, Any]) -> None:
    """Make the partial folder, or find it to be of the same fit."""
    asked = {name: made[name] for name in ("fit", "hook", "holdout", "checks")} | {
        "store": made["store"]["fingerprint"], "rows": made["store"]["rows"]
    }  # fmt: skip
    asked = json.loads(json.dumps(asked))
    plan = partial / "fit.json"
    if plan.exists():
        there = json.loads(plan.read_text(encoding="utf-8"))
        if there != asked:
            differing = [f"{k} {there.get(k)} there, {v} asked" for k, v in asked.items() if there.get(k) != v]
            raise ConfigError(
                f"expected {partial} to be an interrupted fit of these settings, got {'; '.join(differing)}; "
                "ask for the same again, or remove that folder"
            )
        return
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "fits").mkdir(parents=True)
    write_json(plan, asked)


def encode_store(atoms: Atoms, store: Store) -> Codes:
    """Codes of every row of a store; row i of the codes is row i of the store."""
    from scipy.sparse import csr_array, vstack

    parts = list(_coded(atoms, store))
    return csr_array(vstack(parts, format="csr")) if parts else csr_array((0, len(atoms)), dtype=np.float32)


def encode_to(atoms: Atoms, store_path: str | Path, out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Write the codes of every row of a store to ``out``; only a batch is held.

    Raises:
        OutputExistsError: ``out`` exists.
        ConfigError: the store does not have the hook of ``atoms``.
    """
    out, store = Path(out), open_store(store_path)
    if out.exists():
        raise OutputExistsError(f"expected a new file, {out} exists; choose another or remove it")
    seen = np.zeros(2, np.int64)

    def parts() -> Iterator[Codes]:
        for part in _coded(atoms, store):
            seen[:] += (part.shape[0], part.nnz)
            progress("encode", int(seen[0]), store.n_rows)
            yield part

    save_codes(out, parts(), len(atoms))
    return {"out": str(out), "rows": int(seen[0]), "l0": float(seen[1] / max(1, seen[0]))}


def _coded(atoms: Atoms, store: Store) -> Iterator[Codes]:
    return (atoms.encode(-batch.gradients) for batch in store.batches(hook_in(store, atoms), 8192, fields=()))


def evaluate_folder(
    atoms: Atoms,
    *,
    store_path: str | Path | None = None,
    model: str | None = None,
    loaded: LoadedModel | None = None,
    step_rows: int = 200,
    progress: Progress = silent,
) -> dict[str, Any]:
    """All metrics of saved atoms, with the model's; on their own store they are kept in ``metrics.json``.

    How well other fits find the atoms is read from there: it needs no store.

    Args:
        store_path: another store; its held-out side is drawn by the same rule, so no fitted example is in it.
        model: the model, where it has moved; ``loaded`` is one already in memory.
    """
    started = time.perf_counter()
    store = store_of(atoms, store_path)
    if model is None and "model" not in atoms.config and store.header.model.get("name"):
        model = str(store.header.model["name"])  # of a dictionary from elsewhere
    loaded = loaded or load_model_of(atoms, model)
    require_same_model(atoms, loaded)
    kept = kept_metrics(folder_of(atoms))
    stability = Stability.from_dict(kept["stability"]) if "stability" in kept else None
    report = evaluate(atoms, store, loaded=loaded, stability=stability, step_rows=step_rows, progress=progress)
    value = report.to_dict()
    if store_path is None:
        write_json(folder_of(atoms) / "metrics.json", value)
    return value | {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}


def kept_metrics(folder: Path) -> dict[str, Any]:
    """What ``metrics.json`` in an ``.atoms`` folder holds; nothing for a dictionary from elsewhere.

    Raises:
        AtomsFormatError: the file is damaged.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AtomsFormatError(f"expected metrics at {path}, got {type(error).__name__}: {error}; fit again") from error
