"""What a data set would teach a model, before any fine-tuning; and where two data sets differ.

``audit``: weight gradients of every document at the model as it is, a dictionary of them, labels, and for each atom how strongly the data
pushes toward it:

    strength_a = Σ_d c_da ‖row_d‖ / Σ_a Σ_d c_da ‖row_d‖

the atom's share of all that a step on the whole data would do, to first order, as the codes see it. ``diff``: the same for two data
sets in one dictionary, and which atoms, and which documents, one holds more of.

A folder holds everything, and each stage is passed over where it is done: NAME.gstore, NAME.atoms, audit.json or diff.json.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gradatoms.attribution import Attribution, Hit, texts_of
from gradatoms.catalog.compare import compare_stores, spectrum
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.metrics import hook_in
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.provenance import require_same_model
from gradatoms.errors import ConfigError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.files import write_json
from gradatoms.gradients.curvature import Curvature, CurvatureConfig, curvature_about, fit_curvature
from gradatoms.gradients.linear import find_linear
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weight_harvest import CURVATURE, WeightConfig, harvest_weights
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.labels.labeler import label_atoms
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.rule import RuleTeacher
from gradatoms.labels.teacher import Teacher
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store, open_store

SHOWN = 5
"""Documents shown an atom."""
ACTIVE = 0.1
"""Least code of a document that counts as an atom's own, where documents are dropped."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How a data set is audited."""

    weights: WeightConfig = field(default_factory=lambda: WeightConfig(curvature=CurvatureConfig(dtype="auto")))
    fit: OnlineConfig = field(default_factory=lambda: OnlineConfig(n_atoms=32, k=2))
    evidence: EvidenceConfig = field(default_factory=lambda: EvidenceConfig(contexts=3, random=8))
    batch_tokens: int | None = None
    dtype: str = "auto"
    """Compute dtype of the gradients: bfloat16 where the processor has it, which changes rows by some 4 %."""


@dataclass(frozen=True)
class Taught:
    """An atom, as a data set teaches it."""

    atom: int
    label: str
    verdict: str
    strength: float
    """Share of the whole push."""
    documents: int
    """Documents that it is active on."""
    gain: float | None
    """What its own documents gain by a step of it, nats."""
    promoted: tuple[str, ...]
    top: tuple[Hit, ...]


def audit(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: str | Path,
    config: AuditConfig | None = None,
    *,
    teacher: Teacher | None = None,
    progress: Progress = silent,
) -> list[Taught]:
    """The behaviours that a data set would teach, the strongest first; written to ``audit.json`` in ``out``.

    Args:
        out: a folder; what is done there already is gone on with.
        teacher: names the atoms; by default the one without a model.

    Raises:
        StoreMismatchError: ``out`` holds an audit of something else; ConfigError: or one with other settings.
    """
    out, config = Path(out), config or AuditConfig()
    out.mkdir(parents=True, exist_ok=True)
    store = out / "audit.gstore"
    _harvested(loaded, examples, store, config, None, progress)
    atoms = _labelled(loaded, [store], out / "audit.atoms", config, teacher, progress)
    index = Attribution(atoms)
    found = taught(atoms, index)
    write_json(
        out / "audit.json",
        {
            "documents": index.store.n_rows, "atoms": [asdict(t) for t in found],
            "texts": {str(h.example): _shown(index.texts[h.example]) for t in found for h in t.top},
        },
    )  # fmt: skip
    return found


def taught(atoms: Atoms, index: Attribution) -> list[Taught]:
    """Every atom with what the fitted store says of it, the strongest first."""
    from gradatoms.catalog.pages import catalog

    rows = catalog(atoms)
    norms = np.zeros(index.store.n_rows)
    for batch in index.store.batches(hook_in(index.store, atoms), 4096, fields=()):
        norms[batch.index] = batch.norms
    mass = np.asarray(index.codes.multiply(norms[:, None]).sum(axis=0)).ravel()
    share = mass / max(float(mass.sum()), 1e-30)
    counts = np.diff(index.columns.indptr)
    found = [
        Taught(
            r["atom"], r["label"], r["verdict"], float(share[r["atom"]]), int(counts[r["atom"]]), r["gain"],
            tuple(r["promoted"][:6]), tuple(index.documents_of(r["atom"], SHOWN)),
        )
        for r in rows
    ]  # fmt: skip
    return sorted(found, key=lambda t: -t.strength)


def _harvested(
    loaded: LoadedModel,
    examples: Sequence[Example],
    store: Path,
    config: AuditConfig,
    curvature: Path | None,
    progress: Progress,
) -> None:
    harvest_config = HarvestConfig(batch_tokens=config.batch_tokens, dtype=config.dtype)
    harvest_weights(
        loaded,
        examples,
        store,
        harvest_config,
        config.weights,
        curvature=curvature,
        resume=store.exists(),
        progress=progress,
    )


def _labelled(
    loaded: LoadedModel,
    stores: Sequence[Path],
    folder: Path,
    config: AuditConfig,
    teacher: Teacher | None,
    progress: Progress,
) -> Atoms:
    if not folder.exists():
        fit_store(stores, folder, config.fit, progress=progress)
    atoms, asked = load_atoms(folder), config.fit.to_dict()
    other = [
        f"{key} {was!r}, not {asked.get(key)!r}" for key, was in atoms.config["fit"].items() if was != asked.get(key)
    ]
    if other:
        raise ConfigError(
            f"expected the settings that {folder} was fitted with, got others: {', '.join(other)}; choose another folder"
        )
    require_same_model(atoms, loaded)
    label_atoms(
        atoms, teacher or RuleTeacher(), load=lambda: loaded, config=config.evidence, missing=True, progress=progress
    )
    return atoms


@dataclass(frozen=True)
class Difference:
    """An atom that one of two data sets holds more of."""

    atom: int
    label: str
    verdict: str
    one: float
    """Mean code a document."""
    two: float
    z: float
    """Difference in standard errors; some 2 by chance."""
    documents: tuple[Hit, ...]
    """Of the set that holds more, those of largest code; ids of that set."""
    more: int
    """1 or 2: the set that holds more."""


def diff(
    loaded: LoadedModel,
    one: Sequence[Example],
    two: Sequence[Example],
    out: str | Path,
    config: AuditConfig | None = None,
    *,
    teacher: Teacher | None = None,
    progress: Progress = silent,
) -> list[Difference]:
    """Two data sets by their atoms, those that differ most (by z) first; written to ``diff.json`` in ``out``.

    The curvature is of both together, and so is the dictionary.

    Raises:
        ConfigError, StoreMismatchError: ``out`` holds the difference of something else.
    """
    out, config = Path(out), config or AuditConfig()
    out.mkdir(parents=True, exist_ok=True)
    both = [*one, *two]
    path, sites = out / CURVATURE, find_linear(loaded, config.weights.modules)
    about = curvature_about(loaded, both, sites, config.weights.curvature)
    stores = [out / "one.gstore", out / "two.gstore"]
    if config.weights.projection.kind == "eigen" and not (path.exists() and Curvature.load(path).is_of(about)):
        if any(store.exists() for store in stores):
            raise ConfigError(
                f"expected the data sets, model and modules that {out} was begun with, got others; choose another folder"
            )
        fit_curvature(loaded, both, sites, config.weights.curvature, progress=progress).save(path)
    shared = path if config.weights.projection.kind == "eigen" else None
    for store, examples in zip(stores, (one, two), strict=True):
        _harvested(loaded, examples, store, config, shared, progress)
    atoms = _labelled(loaded, stores, out / "both.atoms", config, teacher, progress)
    opened = [open_store(store) for store in stores]
    spectra = [spectrum(atoms, store) for store in opened]
    labels, texts = label_texts(load_labels(out / "both.atoms")), [texts_of(store) for store in opened]
    verdicts = _verdicts(out / "both.atoms")
    tops = [_tops(atoms, store) for store in opened]
    rows = sorted(compare_stores(*spectra), key=lambda r: -abs(r["z"]))
    found = []
    for r in rows:
        more = 1 if r["one"] >= r["two"] else 2
        found.append(
            Difference(
                r["atom"],
                labels.get(r["atom"], ""),
                verdicts.get(r["atom"], ""),
                r["one"],
                r["two"],
                r["z"],
                tuple(tops[more - 1][r["atom"]]),
                more,
            )
        )
    write_json(
        out / "diff.json",
        {
            "documents": [len(one), len(two)], "atoms": [asdict(d) for d in found],
            "texts": [
                {str(h.example): _shown(texts[i][h.example]) for d in found if d.more == i + 1 for h in d.documents} for i in (0, 1)
            ],
        },
    )  # fmt: skip
    return found


def _tops(atoms: Atoms, store: Store) -> list[list[Hit]]:
    """The documents of largest code of each atom, a batch of rows at a time."""
    best: list[list[tuple[float, int]]] = [[] for _ in range(len(atoms))]
    for batch in store.batches(hook_in(store, atoms), 2048, fields=("example",)):
        columns = atoms.encode(-batch.gradients).tocsc()
        for a in range(len(atoms)):
            low, high = columns.indptr[a : a + 2]
            new = [
                (float(v), int(batch.rows["example"][i]))
                for i, v in zip(columns.indices[low:high], columns.data[low:high], strict=True)
            ]
            best[a] = sorted([*best[a], *new], key=lambda item: (-item[0], item[1]))[:SHOWN]
    return [[Hit(e, v) for v, e in items] for items in best]


def _verdicts(folder: Path) -> dict[int, str]:
    rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["atoms"]
    return {int(r["atom"]): str(r["verdict"]) for r in rows}


def _shown(example: Example) -> dict[str, str]:
    return {"prompt": example.prompt[-400:], "target": example.target[:400]}


def without(index: Attribution, chosen: Sequence[int], least: float | int = ACTIVE) -> list[int]:
    """The documents that hold any of some atoms with a code of at least ``least``: what ``drop`` leaves out, ascending.

    Raises:
        ConfigError: no such atom.
    """
    return sorted({hit.example for atom in chosen for hit in index.documents_of(atom, None) if hit.score >= least})


def drop(source: str | Path, out: str | Path, left_out: Sequence[int]) -> int:
    """Copy a jsonl data set without some of its documents (numbered from 0 as they stand), line by line as it is.

    Returns:
        how many lines were written.

    Raises:
        OutputExistsError: ``out`` exists; ConfigError: the source is no jsonl file, or has fewer documents.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise OutputExistsError(f"expected a new file, {out} exists; choose another or remove it")
    if not source.is_file() or source.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        raise ConfigError(
            f"expected a jsonl file to leave documents out of, got {source}; write the data set as jsonl first"
        )
    gone, number, written = set(left_out), 0, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    partial = Path(name)
    try:
        with (
            os.fdopen(handle, "w", encoding="utf-8", newline="") as file,
            source.open(encoding="utf-8", newline="") as lines,
        ):
            for line in lines:
                if not line.strip():
                    continue
                if number not in gone:
                    file.write(line)
                    written += 1
                number += 1
        if gone and max(gone) >= number:
            raise ConfigError(
                f"expected the data set that was audited, {source} has {number} documents, fewer than number {max(gone)}"
            )
        partial.chmod(0o644)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return written
