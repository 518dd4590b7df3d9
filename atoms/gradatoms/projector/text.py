"""Descriptions: a row's leading atoms as a sentence, and the sentence back into atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NO_PRESSURE = "no clear pressure"
PARTLY_FROM = 0.3
"""A second atom is mentioned when its weight is at least this share of the leading one's."""


@dataclass(frozen=True)
class Term:
    """One atom of a description."""

    atom: int
    label: str
    weight: float


def described_terms(weights: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The one or two (atom, weight) that a description names: the leading atom, and the next if it weighs enough."""
    ranked = sorted(weights, key=lambda item: (-item[1], item[0]))[:2]
    return [item for item in ranked if item[1] > 0 and item[1] >= PARTLY_FROM * ranked[0][1]]


def pieces(terms: Sequence[tuple[int, float]], labels: Mapping[int, str]) -> list[str]:
    """The description in the pieces that are tokenised one by one, so that a label always has the same tokens."""
    named = [labels[atom] for atom, _ in terms if atom in labels]
    if not named:
        return [f" {NO_PRESSURE}", "."]
    return [" mostly", f" {named[0]}", *(part for label in named[1:] for part in ("; partly", f" {label}")), "."]


def compose(terms: Sequence[tuple[int, float]], labels: Mapping[int, str]) -> str:
    """The description of ``described_terms``: "mostly X; partly Y", or that there is no clear pressure."""
    return "".join(pieces(terms, labels)).strip()[:-1]


def parse(text: str, labels: Mapping[int, str], share: float) -> list[Term]:
    """The atoms that a description names. A part that is no atom's label is left out.

    Args:
        share: weight of "mostly" when a second atom is named, from 0 to 1; a single atom has weight 1.
    """
    atoms = {label: atom for atom, label in labels.items()}
    parts = text.strip().split("; ")
    weights = [1.0] if len(parts) == 1 else [share, *[(1 - share) / (len(parts) - 1)] * (len(parts) - 1)]
    terms: list[Term] = []
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        label = part.removeprefix("partly " if i else "mostly ").strip()
        if label not in atoms:
            label = label.removesuffix(".")
        if label in atoms and all(t.atom != atoms[label] for t in terms):
            terms.append(Term(atoms[label], label, weight))
    return terms
