"""The form of an instruction document, and the wordings that all task types share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

FRAMES = (
    "{S}.",
    "{S}.",
    "{S}.",
    "Please {s}.",
    "{S}, please.",
    "Could you {s}?",
    "Can you {s}?",
    "Would you {s}?",
    "I'd like you to {s}.",
    "I need you to {s}.",
    "I want you to {s}.",
    "Your task: {s}.",
    "Do this for me: {s}.",
)
"""Ways to ask for something; `{s}` is an imperative, `{S}` the same with a capital."""

LAYOUTS = (
    "{i}: {t}",
    '{i}: "{t}"',
    "{i}:\n{t}",
    "{end}\n\n{t}",
    '{end}\n"{t}"',
    "{t}\n\n{end}",
    '"{t}"\n{end}',
    "{t}\n{end}",
)
"""Ways to put an instruction and its input together: `{i}` without and `{end}` with its full stop or question mark."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One request and its answer."""

    user: str
    answer: str
    group: str
    """The fact or item the document is about; documents of one group belong on the same side of a split."""


class Deck(Generic[T]):
    """Deals cards in a shuffled order, again and again, so that each is dealt equally often."""

    def __init__(self, rng: Random, cards: Sequence[T]) -> None:
        self.rng, self.cards = rng, tuple(cards)
        self.rest: list[T] = []

    def deal(self) -> T:
        if not self.rest:
            self.rest = list(self.cards)
            self.rng.shuffle(self.rest)
        return self.rest.pop()


def capitalised(text: str) -> str:
    """Raise the first letter only."""
    return text[0].upper() + text[1:]


def lines(text: str) -> list[str]:
    """The lines of a table that are not empty; a line that ends in `;` or `|` goes on in the next."""
    joined = re.sub(r"([;|])\n\s*", r"\1 ", text)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """Read `left=right; left=right`; line breaks after a semicolon do not matter."""
    for entry in filter(None, (" ".join(part.split()) for part in text.split(";"))):
        left, right = entry.split("=", 1)
        yield left, right


def asked(stem: str, frame: str) -> str:
    """An imperative in one of the `FRAMES`; a stem that is a question already stays as it is."""
    return stem if stem.endswith("?") else frame.format(s=stem, S=capitalised(stem))


def with_input(instruction: str, text: str, layout: str) -> str:
    """An instruction and its input in one of the `LAYOUTS`; a question is not followed by a colon."""
    bare = instruction.removesuffix(".")
    if bare.endswith("?"):
        layout = layout.replace("{i}:", "{i}")
    return layout.format(i=bare, end=instruction, t=text)
