"""Label the atoms of a folder, and read the labels back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.errors import AtomsFormatError
from gradatoms.gradients.task import examples_of
from gradatoms.labels.evidence import Evidence, gather_evidence, load_evidence, save_evidence
from gradatoms.labels.teacher import Label, LabelFailure, Teacher
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

Loader = Callable[[], LoadedModel]
"""Gives the model when it is needed."""


@dataclass(frozen=True)
class LabelReport:
    """What one call labelled."""

    labelled: int
    failed: int


def label_atoms(
    atoms: Atoms,
    teacher: Teacher,
    *,
    load: Loader,
    store_path: str | Path | None = None,
    alpha: float = 0.1,
    limit: int | None = None,
    progress: Progress = silent,
) -> LabelReport:
    """Append a label (or a typed failure) for every atom to ``labels.jsonl``.

    The lookahead runs once; its evidence is kept in ``evidence.h5``, and another teacher works from that alone.

    Args:
        load: gives the model; called only if there is no evidence yet.
        limit: label only the first so many atoms.
    """
    folder = folder_of(atoms)
    evidence = ensure_evidence(atoms, load, store_path=store_path, alpha=alpha, progress=progress)[:limit]
    taken: set[str] = set()
    results: list[Label | LabelFailure] = []
    for item in evidence:
        result = teacher.label(item, frozenset(taken))
        if isinstance(result, Label):
            taken.add(result.label)
        results.append(result)
    with (folder / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
    labelled = sum(isinstance(r, Label) for r in results)
    return LabelReport(labelled, len(results) - labelled)


def ensure_evidence(
    atoms: Atoms, load: Loader, *, store_path: str | Path | None = None, alpha: float = 0.1, progress: Progress = silent
) -> list[Evidence]:
    """The evidence on disk, gathered first if there is none."""
    path = folder_of(atoms) / "evidence.h5"
    if not path.exists():
        store, loaded = store_of(atoms, store_path), load()
        require_same_model(atoms, loaded)
        split = atoms.config["holdout"]
        fitted = np.flatnonzero(~held_out_mask(store, split["fraction"], split["seed"]))
        codes = load_codes(folder_of(atoms) / "codes.h5")
        place = {r.id: i for i, r in enumerate(store.examples)}
        row_example = np.asarray([place[int(e)] for e in store.rows["example"]])
        save_evidence(
            path,
            gather_evidence(
                loaded, atoms, codes, examples_of(store), row_example, fitted, alpha=alpha, progress=progress
            ),
        )
    return load_evidence(path)


def load_labels(folder: Path) -> dict[int, Label]:
    """The newest label of each atom; failures are left out. Empty where nothing was labelled.

    Raises:
        AtomsFormatError: a damaged line.
    """
    path = folder / "labels.jsonl"
    if not path.exists():
        return {}
    found: dict[int, Label] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            if "failure" not in record:
                label = Label(**record)
                found[label.atom] = label
        except (ValueError, TypeError) as error:
            raise AtomsFormatError(f"{path}, line {number}: expected a label, got {error}; remove the line") from error
    return found


def label_texts(labels: dict[int, Label]) -> dict[int, str]:
    """Atom → label text."""
    return {atom: label.label for atom, label in labels.items()}


def search_labels(labels: dict[int, Label], evidence: Sequence[Evidence], query: str) -> list[int]:
    """Atoms whose label, promoted tokens or top targets hold every word of ``query``, best match first."""
    words = query.casefold().split()
    scored = []
    for item in evidence:
        label = labels[item.atom].label.casefold() if item.atom in labels else ""
        promoted = " ".join(t.token for t in item.promoted).casefold()
        targets = " ".join(e.target + " " + e.prompt for e in item.examples).casefold()
        score = sum(4 * (w in label) + 2 * (w in promoted) + (w in targets) for w in words)
        if words and all(w in label or w in promoted or w in targets for w in words):
            scored.append((-score, item.atom))
    return [atom for _, atom in sorted(scored)]
