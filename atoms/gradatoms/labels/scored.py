"""Score the labels of a folder, and read the scores back: ``scores.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import folder_of
from gradatoms.errors import AtomsFormatError
from gradatoms.files import write_json
from gradatoms.labels.evidence import Trials
from gradatoms.labels.judges import EmbeddingJudge, Judge
from gradatoms.labels.label import NULL, Label, label_texts, load_labels
from gradatoms.labels.scoring import Scores, Summary, interval, score_labels
from gradatoms.labels.storage import Gathered, load_evidence
from gradatoms.progress import Progress, silent

FILE = "scores.json"


def score_folder(
    atoms: Atoms, judge: Judge, *, embedder: EmbeddingJudge | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Score the labels of saved atoms on what ``evidence.h5`` keeps for it; written to ``scores.json``.

    Args:
        embedder: sentence model for the agreement with concepts; without one it is left out.

    Returns:
        ``metrics`` (over all labelled atoms), ``real`` (over those whose verdict is real), ``atoms`` (scores of each label),
        ``lookahead`` (which lookahead foretells the effect in held-out contexts), ``judge``.

    Raises:
        AtomsFormatError: no labels, or no evidence.
    """
    folder = folder_of(atoms)
    labels = load_labels(folder)
    if not labels:
        raise AtomsFormatError(f"expected labels in {folder}, found none; run `atoms label` first")
    gathered = load_evidence(folder / "evidence.h5")
    concepts = gathered.about.get("concepts", [])
    scores = score_labels(
        label_texts(labels),
        gathered.trials,
        judge,
        random_labels=label_texts(load_labels(folder, NULL)),
        random_trials=gathered.null_trials,
        concepts=concepts,
        embedder=embedder,
        progress=progress,
    )
    value = scores_dict(scores, gathered) | {
        "judge": judge.name,
        "teachers": sorted({x.teacher for x in labels.values()}),
    }
    write_json(folder / FILE, value)
    return value


def scores_dict(scores: Scores, gathered: Gathered) -> dict[str, Any]:
    """Scores as JSON."""
    real = {e.atom for e in gathered.evidence if e.verdict == "real"}
    return {
        "metrics": _dict(scores.summary()),
        "real": _dict(scores.summary(real)),
        "lookahead": _dict(foretold(gathered.trials)),
        "atoms": [asdict(s) for s in scores.labels],
    }


def foretold(trials: Sequence[Trials]) -> dict[str, Summary]:
    """How well each lookahead of the evidence foretells what the atom does in held-out contexts: mean cosine of Δp.

    ``gain`` is the in-context lookahead's less the neutral one's, atom by atom.
    """
    known = [t.foretold for t in trials if t.foretold is not None]
    null = [f.null for f in known]
    found = {}
    for name in ("active", "inactive", "neutral", "lens"):
        found[name] = _summary([v for f in known if (v := getattr(f, name)) is not None], null, "cosine")
    found["gain"] = _summary([f.active - f.neutral for f in known], None, "difference of cosines")
    return found


def _summary(values: Sequence[float], null: Sequence[float] | None, unit: str) -> Summary:
    array = np.asarray(values, np.float64)
    return Summary(
        value=float(array.mean()) if len(array) else None,
        null=float(np.mean(null)) if null else None,
        null_random=None,
        interval=interval(array),
        unit=unit,
        n=len(array),
    )


def _dict(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    return {name: s.to_dict() for name, s in summaries.items()}


def kept_scores(folder: Path, labels: Mapping[int, Label]) -> dict[int, dict[str, Any]]:
    """Scores of each atom's present label, from ``scores.json``; those of a label that has changed are left out.

    Raises:
        AtomsFormatError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["atoms"]
        return {
            row["atom"]: {k: v for k, v in row.items() if k not in ("atom", "label")}
            for row in rows
            if row["atom"] in labels and labels[row["atom"]].label == row["label"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtomsFormatError(
            f"expected scores at {path}, got {type(error).__name__}: {error}; run `atoms score`"
        ) from error
