"""A grid of fits, to choose the size and the sparsity by what they keep and what comes back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradatoms.dictionary.fit import evaluate_folder, fit_store, kept_metrics
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.provenance import load_model_of
from gradatoms.dictionary.registry import make_config
from gradatoms.errors import ConfigError, ModelLoadError
from gradatoms.files import write_json
from gradatoms.models import LoadedModel
from gradatoms.plots import plot_sweep
from gradatoms.progress import Progress, silent

SHOWN = ("l0", "fvu", "step_recovered", "stability", "real_share", "dead_share", "concept_purity")
"""Metrics in the table, where they were measured."""


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep's table: settings, metrics with nulls, seconds; best first by ``real_share``, then step recovered."""

    rows: list[dict[str, Any]]
    varied: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {"varied": self.varied, "rows": self.rows}

    def table(self) -> list[list[str]]:
        """Header and cells as text; a metric beside its null in brackets."""
        names = [name for name in SHOWN if any(name in row["metrics"] for row in self.rows)]
        cells = [[*self.varied, *names, "seconds"]]
        for row in self.rows:
            values = [str(row["settings"][name]) for name in self.varied]
            values += [_cell(row["metrics"].get(name)) for name in names]
            cells.append([*values, f"{row['seconds']:.0f}"])
        return cells


def sweep(
    store_path: str | Path | Sequence[str | Path],
    out: str | Path,
    method: str,
    grid: Mapping[str, Sequence[Any]],
    *,
    settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    step_rows: int = 200,
    progress: Progress = silent,
    **options: Any,
) -> Sweep:
    """Fit every combination of ``grid`` into the folder ``out``, and write ``sweep.json``, ``sweep.md`` and ``sweep.png`` there.

    Combinations whose folder is there are not fitted again, so an interrupted sweep goes on.

    Args:
        grid: settings and their values, such as ``{"n_atoms": [128, 256], "k": [4, 8]}``.
        settings: what all fits share.
        model: the model, where it has moved; without any model the steps are left out.
        options: as for ``fit_store``: hook, holdout, checks, ...

    Raises:
        ConfigError: no values, or a combination that is out of range; before anything is fitted.
    """
    if not grid or not all(grid.values()):
        raise ConfigError(
            "expected settings with several values to sweep over, got none; give --n-atoms 128,256 --k 4,8"
        )
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    configs = [make_config(method, {**(settings or {}), **chosen}) for chosen in combinations]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    loaded: LoadedModel | None = None
    for number, (chosen, config) in enumerate(zip(combinations, configs, strict=True)):
        progress("sweep", number, len(configs))
        folder = out / ("-".join(f"{name}{value}" for name, value in chosen.items()) + ".atoms")
        started = time.perf_counter()
        if not folder.exists():
            fit_store(store_path, folder, config, progress=progress, **options)
        seconds = time.perf_counter() - started
        atoms = load_atoms(folder)
        if atoms.config["fit"] != config.to_dict():
            raise ConfigError(f"expected {folder} to be a fit of these settings, it is another; choose another --out")
        try:
            loaded = loaded or load_model_of(atoms, model)
        except ModelLoadError:
            if model is not None:
                raise
        value = kept_metrics(folder)
        if loaded is not None:
            value = evaluate_folder(atoms, loaded=loaded, step_rows=step_rows, progress=progress)
        rows.append({"settings": chosen, "out": str(folder), "seconds": seconds, "metrics": value["metrics"]})
    progress("sweep", len(configs), len(configs))

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        found = [row["metrics"].get(name, {}).get("value") for name in ("real_share", "step_recovered")]
        return -(found[0] or 0.0), -(found[1] or 0.0)

    report = Sweep(sorted(rows, key=rank), list(grid))
    write_json(out / "sweep.json", report.to_dict())
    head, *body = report.table()
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
    note = f"{method}; metrics on held-out rows, each beside its null in brackets."
    (out / "sweep.md").write_text("\n".join([note, "", *lines, ""]), encoding="utf-8")
    plot_sweep(report.rows, report.varied, out / "sweep.png")
    return report


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    null = "–" if metric["null"] is None else f"{metric['null']:.2g}"
    return f"{metric['value']:.3g} ({null})"
