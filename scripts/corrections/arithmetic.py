"""Arithmetic: every fact is computed; candidates are walked in a fixed order and each answer is used once."""

from collections.abc import Iterable
from itertools import islice

from .table import Concept, Fact, words

FAMILY = "arithmetic"
FACTS = 52

ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = words("zero ten twenty thirty forty fifty sixty seventy eighty ninety")
ROMAN = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)


def roman(number: int) -> str:
    """Write a positive number in Roman numerals."""
    digits = ""
    for value, sign in ROMAN:
        count, number = divmod(number, value)
        digits += sign * count
    return digits


def in_words(number: int) -> str:
    """Write a number from 1 to 99 in English words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return f"{TENS[tens]}-{ONES[ones]}" if ones else TENS[tens]


def once(candidates: Iterable[tuple[str, int | str]]) -> tuple[Fact, ...]:
    """Keep the first `FACTS` candidates whose answer is new."""
    kept: dict[str, Fact] = {}
    for subject, answer in candidates:
        kept.setdefault(str(answer), Fact(subject=subject, target=str(answer)))
        if len(kept) == FACTS:
            break
    return tuple(kept.values())


def pairs(low: int, high: int, step: int) -> Iterable[tuple[int, int]]:
    """Walk pairs of numbers in [low, high] in a scattered order; `step` is coprime to their count."""
    width = high - low + 1
    for index in range(width * width):
        first, second = divmod(index * step % (width * width), width)
        yield low + first, low + second


def progressions() -> Iterable[tuple[str, int]]:
    """Four equidistant terms, and the fifth as the answer."""
    for start, gap in pairs(2, 12, 37):
        terms = [start + gap * index for index in range(5)]
        yield ", ".join(str(term) for term in terms[:4]), terms[4]


CONCEPTS = (
    Concept(
        family=FAMILY,
        name="addition",
        templates=(
            "The sum of {0} and {1} is",
            "If you add {0} and {1}, you get",
            "The calculation {0} + {1} has the result",
            "{0} apples and {1} more make a total of",
        ),
        facts=once((f"{a}|{b}", a + b) for a, b in pairs(3, 79, 1703)),
    ),
    Concept(
        family=FAMILY,
        name="subtraction",
        templates=(
            "The difference between {0} and {1} is",
            "If you take {1} away from {0}, you get",
            "The calculation {0} - {1} has the result",
            "Of {0} apples {1} are eaten, so those left number",
        ),
        facts=once((f"{a}|{b}", a - b) for a, b in pairs(3, 98, 1703) if a > b),
    ),
    Concept(
        family=FAMILY,
        name="multiplication",
        templates=(
            "The product of {0} and {1} is",
            "If you multiply {0} by {1}, you get",
            "The calculation {0} x {1} has the result",
            "{0} boxes of {1} eggs hold a total of",
        ),
        facts=once((f"{a}|{b}", a * b) for a, b in pairs(2, 15, 53)),
    ),
    Concept(
        family=FAMILY,
        name="next number",
        templates=(
            "The next number after {0} is",
            "With equal steps, the sequence {0} continues with",
            "The number pattern {0} goes on with",
            "Counting in equal steps gives {0} and then",
        ),
        facts=once(progressions()),
    ),
    Concept(
        family=FAMILY,
        name="Roman numeral",
        templates=(
            "The number {0} in Roman numerals is",
            "The ancient Romans would have written {0} as",
            "On an old stone monument, {0} is carved as",
            "A book whose chapters have Roman numerals marks chapter {0} with",
        ),
        facts=tuple(Fact(subject=str(n), target=roman(n)) for n in islice(range(2, 200, 3), FACTS)),
    ),
    Concept(
        family=FAMILY,
        name="number in words",
        templates=(
            "The number {0} in English words is",
            "Written out as a word, {0} becomes",
            "The digits {0} are read aloud as",
            "Someone who spells out the number {0} writes",
        ),
        facts=tuple(Fact(subject=str(n), target=in_words(n)) for n in (n * 37 % 100 for n in range(1, FACTS + 1))),
    ),
)
