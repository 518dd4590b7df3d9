"""What the model reads around one term of a push, and what it may write.

    header                          made-up examples in the wanted phrasing, and one of no vector; they name no atom
    context                         any prompt: the answer should not depend on it
    Push: e_1 … e_K                 the soft tokens of the term
    In full: A (0.7, strongly).     or ``Mainly:``, ``In words:``, ``In numbers:``, one for each phrasing

A language model continues a pattern: behind ``Push:`` the examples show a term in numbers, so soft tokens that are like the
words of one are repeated: SmolLM2 repeats 98 % of labels after four examples, 75 % after one. Each term of a push has soft
tokens of its own and is read on its own: a small model that is shown two labels with the same beginning mixes them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradatoms.models import LoadedModel
from gradatoms.projector.text import NO_PRESSURE, Phrasing, pieces
from gradatoms.writing import Grammar

TERMS = 2
"""Terms of a description at most: the leading atom and a second. Each is read on its own."""
PLACEHOLDER = " ?"
QUERY = "\nPush:"
ANSWERS: Mapping[Phrasing, str] = {
    "name": "\nMainly:",
    "words": "\nIn words:",
    "numbers": "\nIn numbers:",
    "both": "\nIn full:",
}
_EXAMPLES: tuple[tuple[str | None, float], ...] = (
    ("coffee, tea", 0.7),
    ("past tense, early", 0.4),
    (None, 0.0),
    ("Rather north of the river", 0.3),
    ("quietly, old → new", 0.6),
)


def header(phrasing: Phrasing, soft_tokens: int) -> str:
    """The made-up examples; no vector is shown as it is read, ``soft_tokens`` placeholders."""
    shown = [PLACEHOLDER * soft_tokens if e is None else "".join(pieces(e, w, "numbers")) for e, w in _EXAMPLES]
    said = ["".join(pieces(e, w, phrasing)) for e, w in _EXAMPLES]
    return "".join(
        f"{QUERY.lstrip()}{push}{ANSWERS[phrasing]}{text}\n\n" for push, text in zip(shown, said, strict=True)
    )


def token_ids(loaded: LoadedModel, text: str) -> list[int]:
    """Token ids of a piece of text, with nothing put before or after it."""
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def term_ids(loaded: LoadedModel, label: str | None, weight: float | int, phrasing: Phrasing) -> list[int]:
    """Token ids of a term, with the line break that ends it; ``label`` None: no clear pressure."""
    return [*(i for piece in pieces(label, weight, phrasing) for i in token_ids(loaded, piece)), stop_id(loaded)]


def weight_ids(loaded: LoadedModel, weight: float) -> list[int]:
    """Token ids of a weight in numbers, and the full stop behind it."""
    return [i for piece in pieces("", weight, "numbers")[1:] for i in token_ids(loaded, piece)]


def slot_ids(loaded: LoadedModel, label: str | None, weight: float, k: int) -> list[int]:
    """The token that each of K soft tokens of a term is to be: label, weight, full stops. A long label is cut, not its weight."""
    pad = token_ids(loaded, ".")[-1]
    if label is None:
        return [*term_ids(loaded, None, 0.0, "numbers")[:-1], *[pad] * k][:k]
    told = weight_ids(loaded, weight)
    return [*token_ids(loaded, f" {label}")[: max(0, k - len(told))], *told, *[pad] * k][:k]


def stop_id(loaded: LoadedModel) -> int:
    """The token that ends a description: a line break."""
    return token_ids(loaded, "\n")[-1]


def term_grammar(loaded: LoadedModel, labels: Iterable[str], phrasing: Phrasing, *, null: bool = True) -> Grammar:
    """All terms of one phrasing.

    Args:
        null: whether "no clear pressure" is among them.
    """
    stop, told, root = Grammar(), Grammar(), Grammar()
    stop.add([*token_ids(loaded, "."), stop_id(loaded)])
    weights = [0.0] if phrasing == "name" else [n / 10 for n in range(1, 11)]
    for weight in weights:
        told.add([i for piece in pieces("", weight, phrasing)[1:-1] for i in token_ids(loaded, piece)], stop)
    for label in labels:
        root.add(token_ids(loaded, f" {label}"), told)
    if null:
        root.add(token_ids(loaded, f" {NO_PRESSURE}"), stop)
    return root
