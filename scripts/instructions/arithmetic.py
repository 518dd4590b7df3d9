"""Arithmetic: sums and small word problems with computed answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .document import Deck, Document

TASK = "arithmetic"
PER_KIND = 14

FRAMES = (
    "{q}",
    "{q}",
    "{q}",
    "{q} Show the working in one line.",
    "{q} Only the number, please.",
    "Work this out: {q}",
    "{q} Do it in your head.",
    "Maths homework: {q}",
    "Can you calculate this for me? {q}",
    "{q} I want to check my result.",
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of calculation."""

    name: str
    draw: Callable[[Random], tuple[int, ...]]
    solve: Callable[..., int]
    wordings: tuple[str, ...]
    """`{0}`, `{1}`, … are the numbers drawn."""
    working: str
    """The calculation in one line; `{r}` is the result."""
    unit: str = ""


def ranges(*bounds: tuple[int, int]) -> Callable[[Random], tuple[int, ...]]:
    """Draw one number from each range."""
    return lambda rng: tuple(rng.randint(low, high) for low, high in bounds)


def multiples(quotient: tuple[int, int], divisor: tuple[int, int]) -> Callable[[Random], tuple[int, ...]]:
    """Draw a dividend and a divisor that go without remainder."""

    def draw(rng: Random) -> tuple[int, ...]:
        number = rng.randint(*divisor)
        return number * rng.randint(*quotient), number

    return draw


def shares(rng: Random) -> tuple[int, ...]:
    """Draw a percentage and a number of which it is whole."""
    return rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75)), 20 * rng.randint(2, 40)


def mean_of_three(rng: Random) -> tuple[int, ...]:
    """Draw three numbers whose mean is whole."""
    mean, first, second = rng.randint(10, 60), rng.randint(1, 9), rng.randint(1, 9)
    return mean - first, mean + first + second, mean - second


KINDS = (
    Kind(
        name="sum",
        draw=ranges((12, 480), (12, 480)),
        solve=lambda a, b: a + b,
        wordings=(
            "What is {0} + {1}?",
            "Add {0} and {1}.",
            "A shop sold {0} loaves on one day and {1} on the next. How many in all?",
        ),
        working="{0} + {1} = {r}",
    ),
    Kind(
        name="difference",
        draw=ranges((200, 900), (15, 190)),
        solve=lambda a, b: a - b,
        wordings=(
            "{0} - {1} = ?",
            "Subtract {1} from {0}.",
            "A book has {0} pages and Ana has read {1}. How many are left?",
        ),
        working="{0} - {1} = {r}",
    ),
    Kind(
        name="product",
        draw=ranges((6, 29), (6, 19)),
        solve=lambda a, b: a * b,
        wordings=(
            "Multiply {0} by {1}.",
            "How much is {0} times {1}?",
            "{0} crates hold {1} bottles each. How many bottles is that?",
        ),
        working="{0} × {1} = {r}",
    ),
    Kind(
        name="quotient",
        draw=multiples((4, 30), (3, 15)),
        solve=lambda a, b: a // b,
        wordings=(
            "Divide {0} by {1}.",
            "What is {0} / {1}?",
            "{0} sweets are shared evenly among {1} children. How many does each get?",
        ),
        working="{0} ÷ {1} = {r}",
    ),
    Kind(
        name="percentage",
        draw=shares,
        solve=lambda p, n: p * n // 100,
        wordings=(
            "What is {0}% of {1}?",
            "Find {0} percent of {1}.",
            "Of {1} members, {0}% voted. How many members voted?",
        ),
        working="{1} × {0} / 100 = {r}",
    ),
    Kind(
        name="area",
        draw=ranges((4, 30), (3, 20)),
        solve=lambda a, b: a * b,
        wordings=(
            "A rectangle is {0} m long and {1} m wide. What is its area?",
            "How many square metres of carpet cover a room of {0} m by {1} m?",
        ),
        working="{0} m × {1} m = {r} m²",
        unit=" m²",
    ),
    Kind(
        name="perimeter",
        draw=ranges((9, 60), (4, 40)),
        solve=lambda a, b: 2 * (a + b),
        wordings=(
            "What is the perimeter of a rectangle with sides of {0} cm and {1} cm?",
            "A picture measures {0} cm by {1} cm. How long is its frame all the way round?",
        ),
        working="2 × ({0} + {1}) = {r} cm",
        unit=" cm",
    ),
    Kind(
        name="change",
        draw=ranges((2, 6), (2, 7)),
        solve=lambda n, p: 50 - n * p,
        wordings=(
            "I buy {0} tickets at {1} euros each and pay with a 50 euro note. How much change do I get?",
            "Someone hands over 50 euros for {0} mugs that cost {1} euros apiece. What is the change in euros?",
        ),
        working="50 - {0} × {1} = {r}",
    ),
    Kind(
        name="mean",
        draw=mean_of_three,
        solve=lambda a, b, c: (a + b + c) // 3,
        wordings=(
            "What is the average of {0}, {1} and {2}?",
            "Three tests were marked {0}, {1} and {2}. What is the mean mark?",
        ),
        working="({0} + {1} + {2}) / 3 = {r}",
    ),
    Kind(
        name="square",
        draw=ranges((6, 40)),
        solve=lambda a: a * a,
        wordings=(
            "What is {0} squared?",
            "Compute {0}^2.",
            "A square floor has {0} tiles along each side. How many tiles are there?",
        ),
        working="{0} × {0} = {r}",
    ),
    Kind(
        name="remainder",
        draw=ranges((30, 200), (4, 12)),
        solve=lambda a, b: a % b,
        wordings=(
            "What is the remainder of {0} divided by {1}?",
            "{0} eggs go into boxes of {1}. How many eggs are left over?",
        ),
        working="{0} mod {1} = {r}",
    ),
    Kind(
        name="minutes",
        draw=ranges((2, 9), (3, 57)),
        solve=lambda h, m: 60 * h + m,
        wordings=(
            "How many minutes are {0} hours and {1} minutes?",
            "A train ride takes {0} h {1} min. Give that in minutes.",
        ),
        working="{0} × 60 + {1} = {r}",
        unit=" minutes",
    ),
    Kind(
        name="distance",
        draw=ranges((4, 11), (2, 6)),
        solve=lambda v, t: 10 * v * t,
        wordings=(
            "A car drives at {0}0 km/h for {1} hours. How far does it get?",
            "How many kilometres does a bus cover in {1} hours at a steady {0}0 km/h?",
        ),
        working="{0}0 km/h × {1} h = {r} km",
        unit=" km",
    ),
    Kind(
        name="chain",
        draw=ranges((20, 90), (11, 60), (5, 19)),
        solve=lambda a, b, c: a + b - c,
        wordings=(
            "{0} + {1} - {2} = ?",
            "{0} people are on a bus. {1} get on and {2} get off. How many are on it now?",
        ),
        working="{0} + {1} - {2} = {r}",
    ),
    Kind(
        name="brackets",
        draw=ranges((3, 15), (3, 15), (2, 9)),
        solve=lambda a, b, c: (a + b) * c,
        wordings=("Evaluate ({0} + {1}) * {2}.", "Add {0} to {1}, then multiply the result by {2}. What do you get?"),
        working="({0} + {1}) × {2} = {r}",
    ),
    Kind(
        name="order of operations",
        draw=ranges((5, 60), (3, 12), (3, 12)),
        solve=lambda a, b, c: a + b * c,
        wordings=(
            "What is {0} + {1} * {2}?",
            "Tom has {0} stamps and buys {1} packs of {2}. How many stamps has he now?",
        ),
        working="{0} + {1} × {2} = {r}",
    ),
    Kind(
        name="unknown",
        draw=ranges((4, 60), (5, 90)),
        solve=lambda x, b: x,
        wordings=(
            "Solve x + {1} = {s}.",
            "Which number plus {1} makes {s}?",
            "I think of a number, add {1} and get {s}. What was the number?",
        ),
        working="x = {s} - {1} = {r}",
    ),
    Kind(
        name="next term",
        draw=ranges((1, 40), (3, 14)),
        solve=lambda a, d: a + 4 * d,
        wordings=("What comes next: {terms}?", "Continue the sequence {terms} by one number."),
        working="The step is {1}, so the next number is {r}",
    ),
)


def documents(rng: Random) -> list[Document]:
    """`PER_KIND` calculations of each kind; a third of the answers are one-line workings."""
    frames, styles, found = Deck(rng, FRAMES), Deck(rng, ("number", "number", "working")), []
    for kind in KINDS:
        wordings = Deck(rng, kind.wordings)
        seen: set[tuple[int, ...]] = set()
        while len(seen) < PER_KIND:
            numbers = kind.draw(rng)
            if numbers in seen:
                continue
            seen.add(numbers)
            result = kind.solve(*numbers)
            terms = ", ".join(str(numbers[0] + step * numbers[-1]) for step in range(4))
            total = sum(numbers)
            question = wordings.deal().format(*numbers, s=total, terms=terms)
            frame, style = frames.deal(), styles.deal()
            if "working" in frame or ("Only" not in frame and style == "working"):
                answer = kind.working.format(*numbers, s=total, r=result)
            else:
                answer = f"{result}{kind.unit}"
            group = f"arithmetic: {kind.name} {' '.join(map(str, numbers))}"
            found.append(Document(user=frame.format(q=question), answer=answer, group=group))
    return found
