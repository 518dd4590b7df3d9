"""What there is to know about each atom, gathered from the files of an ``.atoms`` folder; no model is needed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import folder_of
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.label import Label, load_history, load_labels
from gradatoms.labels.scored import kept_scores
from gradatoms.labels.storage import load_evidence

SORTS = ("atom", "density", "coherence", "label")


def catalog(atoms: Atoms) -> list[dict[str, Any]]:
    """One row an atom, with the keys that scripts rely on; unlabelled atoms have an empty label."""
    labels, evidence, scores = load_labels(folder_of(atoms)), _evidence(atoms), _scores(atoms)
    judged = kept_scores(folder_of(atoms), labels)
    rows = []
    for atom in range(len(atoms)):
        label, item, score = labels.get(atom), evidence.get(atom), scores[atom]
        rows.append(
            {
                "atom": atom,
                "label": label.label if label else "",
                "verdict": score["verdict"],
                "density": score["density"],
                "coherence": score["coherence"],
                "stability": score["stability"],
                "promoted": [t.token for t in item.promoted[:8]] if item else [],
                "demoted": [t.token for t in item.demoted[:8]] if item else [],
                "scores": ({"confidence": label.confidence} if label else {}) | judged.get(atom, {}),
            }
        )
    return rows


def sort_rows(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Rows by one column: numbers from the largest, the rest ascending; missing values last.

    Raises:
        ConfigError: no such column to sort by.
    """
    if by not in SORTS:
        raise ConfigError(f"expected a sort of {', '.join(SORTS)}, got {by!r}")
    if by in ("density", "coherence"):
        return sorted(rows, key=lambda r: (r[by] is None, -(r[by] or 0.0), r["atom"]))
    return sorted(rows, key=lambda r: (r[by] == "", r[by], r["atom"]))


def search_catalog(atoms: Atoms, query: str) -> list[dict[str, Any]]:
    """Rows whose label, promoted tokens or examples hold every word of ``query``, best match first.

    Raises:
        AtomsFormatError: the atoms have no labels and no evidence yet.
    """
    evidence = _evidence(atoms)
    if not evidence:
        raise AtomsFormatError(
            f"expected labelled atoms in {folder_of(atoms)}, found no evidence; run `atoms label` first"
        )
    rows = catalog(atoms)
    return [rows[atom] for atom in _search(load_labels(folder_of(atoms)), list(evidence.values()), query)]


def atom_page(atoms: Atoms, atom: int) -> dict[str, Any]:
    """Everything about one atom: label, scores, lookahead, top examples, closest atoms.

    Raises:
        ConfigError: no such atom.
    """
    direction = atoms[atom].direction
    row = catalog(atoms)[atom]
    label, item = load_labels(folder_of(atoms)).get(atom), _evidence(atoms).get(atom)
    cosines = atoms.W_dec @ direction
    cosines[atom] = -np.inf
    nearest = np.argsort(-cosines)[:5]
    history = [r for r in load_history(folder_of(atoms)) if r.atom == atom]
    injected = item.injected if item else None
    return row | {
        "hook": atoms.hook,
        "sentence": label.sentence if label else "",
        "teacher": label.teacher if label else "",
        "prompt": label.prompt if label else "",
        "polarity": label.polarity if label else "",
        "history": [asdict(r) for r in reversed(history)],
        "promoted": [asdict(t) for t in item.promoted] if item else [],
        "demoted": [asdict(t) for t in item.demoted] if item else [],
        "neutral_promoted": [asdict(t) for t in injected.neutral.promoted] if injected else [],
        "kl": injected.active.kl if injected else None,
        "neutral_kl": injected.neutral.kl if injected else None,
        "lookahead": asdict(injected) if injected else None,
        "examples": [asdict(e) for e in item.top] if item else [],
        "random_examples": [asdict(e) for e in item.active] if item else [],
        "near_misses": [asdict(e) for e in item.near] if item else [],
        "neighbours": [{"atom": int(a), "cosine": float(cosines[a])} for a in nearest],
    }


def _search(labels: dict[int, Label], evidence: list[Evidence], query: str) -> list[int]:
    """Atoms whose label, promoted tokens or top examples hold every word of ``query``, best match first."""
    words = query.casefold().split()
    scored = []
    for item in evidence:
        label = labels[item.atom].label.casefold() if item.atom in labels else ""
        promoted = " ".join(t.token for t in item.promoted).casefold()
        targets = " ".join(e.target + " " + e.prompt for e in item.top).casefold()
        score = sum(4 * (w in label) + 2 * (w in promoted) + (w in targets) for w in words)
        if words and all(w in label or w in promoted or w in targets for w in words):
            scored.append((-score, item.atom))
    return [atom for _, atom in sorted(scored)]


def _evidence(atoms: Atoms) -> dict[int, Evidence]:
    path = folder_of(atoms) / "evidence.h5"
    return {e.atom: e for e in load_evidence(path).evidence} if path.exists() else {}


def _scores(atoms: Atoms) -> list[dict[str, Any]]:
    path = folder_of(atoms) / "metrics.json"
    try:
        scores: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["atoms"]
    except (OSError, ValueError, KeyError) as error:
        raise AtomsFormatError(f"expected metrics at {path}, got {type(error).__name__}: {error}; fit again") from error
    return scores
