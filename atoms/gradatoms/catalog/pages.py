"""What there is to know about each atom, gathered from the files of an ``.atoms`` folder; no model is needed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse import csc_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, store_of
from gradatoms.errors import AtomsFormatError, GradAtomsError
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.label import Label, LabelFailure, load_history, load_labels
from gradatoms.labels.scored import kept_scores
from gradatoms.labels.storage import load_evidence
from gradatoms_store import StoreError

CLOSE = 5
"""Neighbours, and opposites, that a page shows."""
BINS = 20
"""Bars of the histogram of codes."""
CONCEPTS = 8
"""Concepts that a page shows."""


class Sources:
    """The files of a folder, each read once and when it is first needed."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms, self.folder = atoms, folder_of(atoms)

    @cached_property
    def labels(self) -> dict[int, Label]:
        return load_labels(self.folder)

    @cached_property
    def history(self) -> dict[int, list[Label | LabelFailure]]:
        """What was said of each atom, the latest first."""
        found: dict[int, list[Label | LabelFailure]] = {}
        for row in reversed(load_history(self.folder)):
            found.setdefault(row.atom, []).append(row)
        return found

    @cached_property
    def evidence(self) -> dict[int, Evidence]:
        path = self.folder / "evidence.h5"
        return {e.atom: e for e in load_evidence(path).evidence} if path.exists() else {}

    @cached_property
    def judged(self) -> dict[int, dict[str, Any]]:
        return kept_scores(self.folder, self.labels)

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.json"
        try:
            scores: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["atoms"]
        except (OSError, ValueError, KeyError) as error:
            raise AtomsFormatError(
                f"expected metrics at {path}, got {type(error).__name__}: {error}; fit again"
            ) from error
        return scores

    @cached_property
    def codes(self) -> csc_array:
        """Codes of the fitted store by atom; empty where they are missing."""
        path = self.folder / "codes.h5"
        if not path.exists():
            return csc_array((0, len(self.atoms)), dtype=np.float32)
        return load_codes(path).tocsc()

    @cached_property
    def concepts(self) -> list[str | None]:
        """The ground-truth concept of each row of the fitted store; empty where the store is not at hand or names none."""
        from gradatoms.gradients.task import examples_of  # brings in transformers

        try:
            store = store_of(self.atoms, None)
            of = {
                record.id: example.concept for record, example in zip(store.examples, examples_of(store), strict=True)
            }
            found = [of[int(i)] for i in store.rows["example"]]
        except (GradAtomsError, StoreError, OSError):
            return []
        return found if len(found) == self.codes.shape[0] and any(found) else []

    def row(self, atom: int) -> dict[str, Any]:
        """One line of the catalog, with the keys that scripts rely on; an atom without a label has an empty one."""
        label, item, score = self.labels.get(atom), self.evidence.get(atom), self.scores[atom]
        return {
            "atom": atom,
            "label": label.label if label else "",
            "verdict": score["verdict"],
            "density": score["density"],
            "coherence": score["coherence"],
            "stability": score["stability"],
            "gain": item.injected.own_gain if item and item.injected else None,
            "concept": next(iter(self.lives_in(atom)), {}).get("concept", ""),
            "promoted": [t.token for t in item.promoted[:8]] if item else [],
            "demoted": [t.token for t in item.demoted[:8]] if item else [],
            "scores": ({"confidence": label.confidence} if label else {}) | self.judged.get(atom, {}),
        }

    def page(self, atom: int) -> dict[str, Any]:
        """Everything about one atom but its neighbours: label, scores, lookahead, examples, codes, concepts."""
        label, item = self.labels.get(atom), self.evidence.get(atom)
        injected = item.injected if item else None
        return self.row(atom) | {
            "hook": self.atoms.hook,
            "model": self.atoms.config.get("model", {}).get("name") or "MODEL",
            "sentence": label.sentence if label else "",
            "teacher": label.teacher if label else "",
            "prompt": label.prompt if label else "",
            "polarity": label.polarity if label else "",
            "history": [asdict(r) for r in self.history.get(atom, [])],
            "promoted": [asdict(t) for t in item.promoted] if item else [],
            "demoted": [asdict(t) for t in item.demoted] if item else [],
            "neutral_promoted": [asdict(t) for t in injected.neutral.promoted] if injected else [],
            "kl": injected.active.kl if injected else None,
            "neutral_kl": injected.neutral.kl if injected else None,
            "lookahead": asdict(injected) if injected else None,
            "examples": [asdict(e) for e in item.top] if item else [],
            "random_examples": [asdict(e) for e in item.active] if item else [],
            "near_misses": [asdict(e) for e in item.near] if item else [],
            "histogram": self.histogram(atom),
            "concepts": self.lives_in(atom),
        }

    def histogram(self, atom: int) -> dict[str, Any]:
        """How often the atom has which code, over the rows of the fitted store that it is active on."""
        start, stop = self.codes.indptr[atom : atom + 2]
        values = self.codes.data[start:stop]
        if not len(values):
            return {"edges": [], "counts": [], "rows": int(self.codes.shape[0])}
        counts, edges = np.histogram(values, bins=BINS)
        return {"edges": edges.tolist(), "counts": counts.tolist(), "rows": int(self.codes.shape[0])}

    def lives_in(self, atom: int) -> list[dict[str, Any]]:
        """The concepts of the rows that the atom is active on, by the sum of its codes; for scoring and display only."""
        if not self.concepts:
            return []
        start, stop = self.codes.indptr[atom : atom + 2]
        total, count = defaultdict[str, float](float), Counter[str]()
        for row, value in zip(self.codes.indices[start:stop], self.codes.data[start:stop], strict=True):
            name = self.concepts[row]
            if name is not None:
                total[name] += float(value)
                count[name] += 1
        every = sum(total.values())
        return [
            {"concept": name, "rows": count[name], "share": weight / every}
            for name, weight in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:CONCEPTS]
            if every > 0
        ]


def catalog(atoms: Atoms) -> list[dict[str, Any]]:
    """One row an atom, with the keys that scripts rely on; unlabelled atoms have an empty label."""
    sources = Sources(atoms)
    return [sources.row(atom) for atom in range(len(atoms))]


def every_page(atoms: Atoms) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The row and the page of each atom, in order."""
    sources = Sources(atoms)
    for atom in range(len(atoms)):
        yield sources.row(atom), sources.page(atom)


def close_atoms(W_dec: Float[np.ndarray, "K D"], atom: int) -> dict[str, list[dict[str, Any]]]:
    """The atoms that point most the same way (``neighbours``), and most the other way (``opposites``), with their cosines."""
    cosines = np.asarray(W_dec @ W_dec[atom])
    cosines[atom] = np.nan
    order = np.argsort(-cosines)[: len(cosines) - 1]  # the atom itself comes last

    def told(chosen: np.ndarray) -> list[dict[str, Any]]:
        return [{"atom": int(a), "cosine": float(cosines[a])} for a in chosen]

    return {"neighbours": told(order[:CLOSE]), "opposites": told(order[::-1][:CLOSE])}


def atom_page(atoms: Atoms, atom: int) -> dict[str, Any]:
    """Everything about one atom: label, scores, lookahead, examples, codes, concepts, closest atoms.

    Raises:
        ConfigError: no such atom.
    """
    index = atoms[atom].index
    return Sources(atoms).page(index) | close_atoms(atoms.W_dec, index)
