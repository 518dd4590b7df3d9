"""Atoms against ground-truth concepts, where a store has them. For scoring only: no fit, label or projector sees a concept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from gradatoms.dictionary.coding import Codes
from gradatoms.metric import Metric

PURE = 0.8
"""Share of one concept from which a set of rows counts as pure."""
PROBED = 5
"""Atoms that a sparse probe may use for a concept."""
LEAST = 4
"""Rows of a concept, and of others, that are needed in either half to probe it."""


def purity(concepts: Shaped[np.ndarray, " N"]) -> float:
    """Share of the most frequent concept."""
    return float(np.unique(concepts, return_counts=True)[1].max() / len(concepts))


def concept_metrics(
    codes: Codes,
    concepts: Shaped[np.ndarray, " N"],
    half: Bool[np.ndarray, " N"],
    tops: Sequence[Int[np.ndarray, " _"]],
    random_sets: Sequence[Int[np.ndarray, " _"]],
    rng: np.random.Generator,
) -> dict[str, Metric]:
    """Purity of atoms, and how well single atoms or five of them tell a concept.

    Args:
        codes: of N rows that the dictionary was not fitted on.
        half: which of them choose (an atom, a threshold, a probe); the others score the choice.
        tops: top rows of each atom with enough of them; ``random_sets``: as many random rows.
    """
    shuffled = rng.permutation(concepts)
    names, number = np.unique(concepts, return_inverse=True)
    null_number = np.searchsorted(names, shuffled)
    pure = [purity(concepts[t]) >= PURE for t in tops]
    null_pure = [purity(concepts[s]) >= PURE for s in random_sets]
    found = {
        "concept_purity": Metric(
            value=mean(pure), null=mean(null_pure), unit="share of atoms", better="higher", n=len(tops),
            note="top 20 active held-out rows at least 80 % of one concept; concepts are used for scoring only; null: random sets",
        )
    }  # fmt: skip
    counts, null_counts = (_atoms_per_concept(tops, c) for c in (number, null_number))
    found["atoms_per_concept"] = Metric(
        value=mean(counts) if counts else None, null=mean(null_counts) if null_counts else None, unit="atoms",
        better="lower", n=len(counts),
        note=f"pure atoms of a concept that has any ({len(counts)} of {len(names)} concepts have); null: shuffled concepts",
    )  # fmt: skip
    tested = [c for c in range(len(names)) if all(_both(number[h] == c) for h in (half, ~half))]
    halves = "on one half of the held-out rows and scored on the other; null: shuffled concepts"
    for name, score, note in (
        ("concept_f1", lambda *of: best_f1(*of)[1], f"F1 of a concept's best atom, chosen with its threshold {halves}"),
        (
            "probe_accuracy",
            _probe,
            f"balanced accuracy of a logistic probe on {PROBED} atoms a concept, fitted {halves}",
        ),
    ):
        values = [score(codes, number == c, half) for c in tested]
        nulls = [score(codes, null_number == c, half) for c in tested]
        found[name] = Metric(
            value=mean(values) if values else None, null=mean(nulls) if nulls else None, unit="share", better="higher",
            n=len(values), note=note,
        )  # fmt: skip
    return found


def _both(is_concept: Bool[np.ndarray, " n"]) -> bool:
    """Whether enough rows are of a concept, and enough of others, to tell them apart."""
    return bool(LEAST <= is_concept.sum() <= len(is_concept) - LEAST)


def mean(values: Sequence[float | int | bool]) -> float:
    """The mean, 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def _atoms_per_concept(tops: Sequence[np.ndarray], number: Int[np.ndarray, " N"]) -> list[int]:
    counts: dict[int, int] = {}
    for rows in tops:
        if purity(number[rows]) >= PURE:
            concept = int(np.bincount(number[rows]).argmax())
            counts[concept] = counts.get(concept, 0) + 1
    return list(counts.values())


def best_f1(codes: Codes, is_concept: Bool[np.ndarray, " N"], half: Bool[np.ndarray, " N"]) -> tuple[int | None, float]:
    """The atom that, with a threshold, has the best F1 on the rows of ``half``, and its F1 on the others; None if none is active."""
    first, truth = codes[np.flatnonzero(half)].tocsc(), is_concept[half]
    best, atom, threshold = -1.0, None, 0.0
    for a in np.unique(codes[np.flatnonzero(half & is_concept)].indices):
        rows = slice(first.indptr[a], first.indptr[a + 1])
        order = np.argsort(-first.data[rows], kind="stable")
        hits = np.cumsum(truth[first.indices[rows]][order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())
        place = int(f1.argmax())
        if f1[place] > best:
            best, atom, threshold = float(f1[place]), int(a), float(first.data[rows][order][place])
    if atom is None:
        return None, 0.0
    said = codes[np.flatnonzero(~half)][:, [atom]].toarray()[:, 0] >= threshold
    truth = is_concept[~half]
    return atom, float(2 * (said & truth).sum() / max(1, said.sum() + truth.sum()))


def _probe(codes: Codes, is_concept: Bool[np.ndarray, " N"], half: Bool[np.ndarray, " N"]) -> float:
    """Balanced accuracy on the second half of a probe on the atoms whose mean code differs most on the first."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    train, truth = codes[np.flatnonzero(half)], is_concept[half]
    difference = _means(train, truth) - _means(train, ~truth)
    chosen = np.argsort(-np.abs(difference), kind="stable")[:PROBED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not converged is still a probe
        probe = LogisticRegression(class_weight="balanced", C=100.0, max_iter=200).fit(
            train[:, chosen].toarray(), truth
        )
        said = probe.predict(codes[np.flatnonzero(~half)][:, chosen].toarray())
    return float(balanced_accuracy_score(is_concept[~half], said))


def _means(codes: Codes, rows: Bool[np.ndarray, " N"]) -> Float[np.ndarray, " K"]:
    return np.asarray(codes[np.flatnonzero(rows)].sum(axis=0) / max(1, rows.sum()))
