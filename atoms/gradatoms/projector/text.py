"""Descriptions: a combination of labelled atoms as a sentence, in several phrasings, and the sentence back into atoms.

    name      A; B.
    words     A (strongly); B (partly).
    numbers   A (0.7); B (0.3).
    both      A (0.7, strongly); B (0.3, partly).

A weight is a sparse code: the projection, in units of the unit push, that the atom accounts for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

NO_PRESSURE = "no clear pressure"
Phrasing = Literal["name", "words", "numbers", "both"]
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)
DEGREES = (("strongly", 0.6, 0.75), ("clearly", 0.4, 0.5), ("partly", 0.25, 0.32), ("slightly", 0.0, 0.17))
"""Word, the least weight it is used for, and the weight it is read as."""


@dataclass(frozen=True)
class Term:
    """One atom of a description."""

    atom: int
    label: str
    weight: float


def degree(weight: float | int) -> str:
    """The word for a weight."""
    return next(word for word, least, _ in DEGREES if weight >= least or least == 0.0)


def number(weight: float | int) -> str:
    """A weight as it is written: from 0.1 to 1.0 in steps of 0.1."""
    return f"{min(max(round(10 * weight), 1), 10) / 10:.1f}"


def pieces(label: str | None, weight: float | int, phrasing: Phrasing) -> list[str]:
    """One term in pieces that are tokenised one by one, so that a label always has the same tokens.

    Args:
        label: None says that there is no clear pressure.
    """
    if label is None:
        return [f" {NO_PRESSURE}", "."]
    told = number(weight)
    word = degree(float(told))
    said = {"words": [f" ({word})"], "numbers": [f" ({told})"], "both": [f" ({told}, {word})"]}
    return [f" {label}", *said.get(phrasing, []), "."]


def compose(terms: Sequence[tuple[str, float | int]], phrasing: Phrasing = "both") -> str:
    """The description of (label, weight) terms, the leading one first."""
    found = ["".join(pieces(label, weight, phrasing)).strip()[:-1] for label, weight in terms]
    return "; ".join(found) or NO_PRESSURE


class Parser:
    """Reads the atoms out of descriptions, whatever their phrasing. A part that is no atom's label is left out.

    Args:
        labels: the label of each atom.
    """

    def __init__(self, labels: Mapping[int, str]) -> None:
        self._atoms = {label: atom for atom, label in labels.items()}
        known = "|".join(re.escape(label) for label in sorted(self._atoms, key=len, reverse=True)) or r"(?!)"
        words = "|".join(word for word, _, _ in DEGREES)
        weight = rf"(?P<number>0\.[1-9]|1\.0)?(?:, )?(?P<word>{words})?"
        self._term = re.compile(rf"(?P<label>{known})(?: \({weight}\))?(?=; |\.?\s*$)")

    def __call__(self, text: str) -> list[Term]:
        """The terms of a description, in its order; a weight that it does not state is 1. An atom counts once."""
        text, at = text.strip(), 0
        terms: list[Term] = []
        while at < len(text):
            match = self._term.match(text, at)
            if match is None:
                at = text.find("; ", at)
                at = len(text) if at < 0 else at + 2
                continue
            atom = self._atoms[match["label"]]
            if all(term.atom != atom for term in terms):
                terms.append(Term(atom, match["label"], _weight(match["word"], match["number"])))
            at = match.end() + 2
        return terms


def _weight(word: str | None, written: str | None) -> float:
    if written is not None:
        return float(written)
    return next((read for name, _, read in DEGREES if name == word), 1.0)
