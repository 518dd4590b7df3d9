"""Fit a dictionary to a store, and write everything later commands need into one ``.atoms`` folder."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import save_atoms, save_codes, write_json
from gradatoms.dictionary.metrics import Evaluation, evaluate, held_out_mask
from gradatoms.dictionary.online import OnlineConfig, fit_online
from gradatoms.dictionary.provenance import folder_of, load_model_of, require_same_model, store_of
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.sae import TopKConfig, fit_topk
from gradatoms.errors import ConfigError, OutputExistsError
from gradatoms.gradients.stream import GradientStream
from gradatoms.metric import peak_memory_bytes
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store, open_store


@dataclass(frozen=True)
class Method:
    """A way to learn a dictionary: its settings and its fit."""

    config: type[FitConfig]
    fit: Callable[..., Atoms]


METHODS: Mapping[str, Method] = {
    OnlineConfig.method: Method(OnlineConfig, fit_online),
    TopKConfig.method: Method(TopKConfig, fit_topk),
}


def make_config(method: str, settings: Mapping[str, Any]) -> FitConfig:
    """The config of ``method`` from plain settings; those that are None keep their default.

    Raises:
        ConfigError: unknown method or setting, or a value out of range.
    """
    if method not in METHODS:
        raise ConfigError(f"expected a method of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method].config.from_dict({k: v for k, v in settings.items() if v is not None})


def fit(
    source: Store | GradientStream | np.ndarray,
    config: FitConfig,
    *,
    hook: str | None = None,
    rows: np.ndarray | None = None,
    progress: Progress = silent,
) -> Atoms:
    """Learn a dictionary from a store's gradients, a stream of them, or an array of pushes of shape (rows, d).

    Args:
        config: ``OnlineConfig`` or ``TopKConfig``.
        hook: which hook of the store; needed where it has several.
        rows: global row numbers to learn from; default all.
    """
    pushes = Pushes(source, hook=hook, rows=rows)
    atoms = METHODS[config.method].fit(pushes, config, progress=progress)
    return replace(atoms, config={"fit": config.to_dict()})


def fit_store(
    store_path: str | Path,
    out: str | Path,
    config: FitConfig,
    *,
    hook: str | None = None,
    holdout: float = 0.25,
    holdout_seed: int = 0,
    progress: Progress = silent,
) -> tuple[Atoms, Evaluation]:
    """Fit on the rows of a store that are not held out, fit once more with another seed, measure, and save to ``out``.

    Raises:
        OutputExistsError: ``out`` exists.
        ConfigError: a setting is out of range, or too few rows.
    """
    out = Path(out)
    if out.exists():
        raise OutputExistsError(f"expected a new path, {out} exists; choose another or remove it")
    if not 0 < holdout < 1:
        raise ConfigError(f"expected a held-out share between 0 and 1, got {holdout}")
    store = open_store(store_path)
    if store.n_rows == 0:
        raise ConfigError(
            f"expected rows in {store_path}, the store is empty; harvest first, or go on with `atoms harvest --resume`"
        )
    rows = np.flatnonzero(~held_out_mask(store, holdout, holdout_seed))
    atoms = fit(store, config, hook=hook, rows=rows, progress=progress)
    other = fit(store, replace(config, seed=config.seed + 1), hook=hook, rows=rows, progress=progress)
    atoms = replace(
        atoms,
        config={
            "kind": "fit",
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("gradatoms", "torch", "transformers", "scikit-learn", "sae-lens")
            },
            "model": dict(store.header.model),
            "store": {"path": str(Path(store_path).resolve()), "fingerprint": store.fingerprint, "rows": store.n_rows},
            "hook": atoms.hook,
            "fit": config.to_dict(),
            "holdout": {"fraction": holdout, "seed": holdout_seed},
        },
    )
    report = evaluate(atoms, store, other=other)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_atoms(atoms, partial)
        save_codes(partial / "codes.h5", encode_store(atoms, store))
        write_json(partial / "metrics.json", report.to_dict())
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(atoms, path=out, config={"format_version": 1, **atoms.config}), report


def encode_store(atoms: Atoms, store: Store) -> Codes:
    """Codes of every row of a store; row i of the codes is row i of the store."""
    from scipy.sparse import csr_array, vstack

    parts = [atoms.encode(-batch.gradients) for batch in store.batches(atoms.hook, 8192)]
    return csr_array(vstack(parts, format="csr")) if parts else csr_array((0, len(atoms)), dtype=np.float32)


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

    ``stability`` and ``real_share`` need a second fit, so they are carried over from the first.

    Args:
        store_path: another store; its held-out side is drawn by the same rule, so no fitted example is in it.
        model: the model, where it has moved; ``loaded`` is one already in memory.
    """
    started = time.perf_counter()
    store = store_of(atoms, store_path)
    loaded = loaded or load_model_of(atoms, model)
    require_same_model(atoms, loaded)
    value = evaluate(atoms, store, loaded=loaded, step_rows=step_rows, progress=progress).to_dict()
    if store_path is None:
        path = folder_of(atoms) / "metrics.json"
        fitted = json.loads(path.read_text(encoding="utf-8"))
        value = {"metrics": fitted["metrics"] | value["metrics"], "atoms": fitted["atoms"]}
        write_json(path, value)
    return value | {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
