"""What dictionaries keep of real gradients: methods and L0 on two corpora, each number on held-out rows beside its null.

A classical dictionary is fitted once and coded by orthogonal matching pursuit with 4, 8, 16 and 32 atoms a row; the others
are fitted for each. Verdicts, stability and purity are those of the codes in the row.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.coding import OmpCoder
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.metrics import Evaluation, evaluate
from gradatoms.dictionary.registry import make_config
from gradatoms.examples import read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model
from gradatoms_store import Store, open_store

pytestmark = [pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]

RELATIONS = Path(__file__).parents[3] / "shared" / "data" / "relations.jsonl"
L0 = tuple(int(k) for k in os.environ.get("QUALITY_L0", "4,8,16,32").split(","))
SHOWN = ("l0", "fvu", "step_recovered", "step_kl", "stability", "real_share", "concept_purity")
SHOWN += ("concept_f1", "probe_accuracy", "dead_share")
CLASSICAL: dict[str, dict[str, Any]] = {
    "online, 128 atoms": {"n_atoms": 128},
    "online, 192 atoms (default)": {"n_atoms": 192},
    "online, 512 atoms": {"n_atoms": 512},
    "online, 1,024 atoms": {"n_atoms": 1024},
}
AT_EACH = ("topk", "batchtopk", "matching_pursuit", "abstopk", "matryoshka", "pca")
AT_ONE: dict[str, dict[str, Any]] = {"jumprelu": {}, "gated": {}, "standard": {}, "kmeans": {}}
ROWS = int(os.environ.get("QUALITY_ROWS", "300"))
"""Held-out rows that steps are taken on."""
ONLY = os.environ.get("QUALITY_ONLY", "").split(",")
"""Parts of names of methods, to measure these alone."""


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:  # importing it needs dependencies that are not used
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


@pytest.mark.parametrize("corpus", ["relations", "corrections"])
def test_methods_and_l0(corpus: str, smollm2: LoadedModel, tmp_path: Path) -> None:
    if corpus == "relations" and not RELATIONS.exists():
        pytest.skip("needs the relations beside the project (../shared/data)")
    path = Path(os.environ.get("QUALITY_STORES", str(tmp_path))) / f"{corpus}.gstore"
    if not path.exists():
        examples = read_examples(RELATIONS if corpus == "relations" else "builtin:corrections")
        harvest(smollm2, examples, path, HarvestConfig())
    store = open_store(path)
    print(f"\n{corpus}: {store.n_rows} rows, a quarter held out; value (null)\n")
    print("| method | " + " | ".join(SHOWN) + " | seconds |")
    print("|---" * (len(SHOWN) + 2) + "|", flush=True)
    for name, report, seconds in _measured(store, path, smollm2, tmp_path):
        cells = [_cell(report, metric) for metric in SHOWN]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


def _measured(store: Store, path: Path, loaded: LoadedModel, folder: Path) -> Iterator[tuple[str, Evaluation, float]]:
    def fitted(name: str, config: FitConfig) -> tuple[Atoms, Evaluation, float]:
        started = time.perf_counter()
        atoms, report = fit_store(path, folder / f"{name}-{path.stem}.atoms", config)
        return atoms, report, time.perf_counter() - started

    def scored(atoms: Atoms, fit: Evaluation) -> Evaluation:
        return evaluate(atoms, store, loaded=loaded, stability=fit.stability, step_rows=ROWS)

    for name, settings in CLASSICAL.items():
        if _wanted(name):
            atoms, fit, seconds = fitted(name, make_config("online", settings))
            yield f"{name}, lasso", scored(atoms, fit), seconds
            for k in L0:
                yield f"{name}, {k} a row", scored(replace(atoms, coder=OmpCoder(atoms.W_dec, k)), fit), seconds
    for method in AT_EACH:
        for k in L0 if _wanted(method) else ():
            sizes = {"n_atoms": 192} if method != "pca" else {"n_atoms": 128}
            atoms, fit, seconds = fitted(f"{method}-{k}", make_config(method, {"k": k} | sizes))
            yield f"{method}, {sizes['n_atoms']} atoms, k {k}", scored(atoms, fit), seconds
    for method, settings in AT_ONE.items():
        if _wanted(method):
            atoms, fit, seconds = fitted(method, make_config(method, {"n_atoms": 192} | settings))
            yield f"{method}, 192 atoms", scored(atoms, fit), seconds


def _wanted(name: str) -> bool:
    return any(part in name for part in ONLY)


def _cell(report: Evaluation, name: str) -> str:
    metric = report.metrics.get(name)
    if metric is None or metric.value is None:
        return "–"
    return f"{metric.value:.3g}" + ("" if metric.null is None else f" ({metric.null:.2g})")
