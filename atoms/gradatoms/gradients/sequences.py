"""From examples to token sequences: which tokens the model reads, what it should predict where, which rows are kept.

For one example J is a sum over predicted positions t of its sequences, with z the logits after token t:

    nll        Σ −log p(target token ∣ tokens to t)
    contrast   nll(target) − nll(foil)
    logit      Σ −z[target token]
    kl         Σ KL(q ‖ p): q given in the example for the prompt's last position, or a second model's distribution at
               each position that predicts a target token

Nll, contrast and a given q are all Σ_i weight_i · −log p(token_i ∣ tokens to t_i) plus a constant: the terms below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradatoms.errors import ConfigError, ExampleError, UnusableExampleError
from gradatoms.examples import Example
from gradatoms.models import LoadedModel

OBJECTIVES = ("nll", "contrast", "logit", "kl")
POSITIONS = ("last", "prediction", "prompt", "all", "span")
"""The prompt's last token, each position that predicts a target token, each of the prompt, both of these, or the span
that the example names."""


@dataclass(frozen=True)
class TokenSequence:
    """One token sequence of an example, the tokens it should predict, and the positions whose gradient is kept."""

    example: int
    ids: tuple[int, ...]
    terms: tuple[tuple[int, int, float], ...]
    """(position, token, weight): J gains weight · −log p(token | ids[: position + 1]), or weight · −logit."""
    rows: tuple[int, ...]
    """Positions whose gradient becomes (part of) a row."""
    matched: tuple[int, ...] = ()
    """Positions where J gains KL(q ‖ p), q the second model's distribution."""
    constant: float = 0.0
    """What J has besides, −H(q) of a given q."""
    logit: bool = False
    """Whether the terms are of logits."""


@dataclass(frozen=True)
class Unusable:
    """An example that cannot be harvested, and why."""

    example: int
    reason: str
    """A few words, the same for all examples of one kind."""
    detail: str


@dataclass(frozen=True)
class _Text:
    """The tokens of a prompt and its target, and which of them are to be predicted."""

    ids: list[int]
    predicted: list[int]
    """Indices of the tokens that J sums over, ascending, above 0."""
    offsets: list[tuple[int, int]] | None
    """Characters of prompt + target that each token covers, where asked for."""


def tokenize(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    objective: str = "nll",
    positions: str = "last",
    reference: bool = False,
) -> list[list[TokenSequence]]:
    """Token sequences of each example: one, or two where a foil of several tokens needs its own branch.

    A foil of one token is predicted from the same position as the target's first, so it shares the target's sequence.

    Args:
        reference: for ``kl``, whether a second model gives q; otherwise each example does.

    Raises:
        ConfigError: unknown objective or positions.
        UnusableExampleError: a missing foil, q or span, a prompt or target without tokens, or more tokens than the
            model's context.
    """
    sequences, unusable = tokenize_usable(
        loaded, examples, objective=objective, positions=positions, reference=reference
    )
    if unusable:
        raise UnusableExampleError(f"example {unusable[0].example + 1} {unusable[0].detail}")
    return sequences


def tokenize_usable(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    objective: str = "nll",
    positions: str = "last",
    reference: bool = False,
) -> tuple[list[list[TokenSequence]], list[Unusable]]:
    """As ``tokenize``, but an example that cannot be used has no sequences and is listed with the reason."""
    if objective not in OBJECTIVES:
        raise ConfigError(f"expected an objective of {', '.join(OBJECTIVES)}, got {objective!r}")
    if positions not in POSITIONS:
        raise ConfigError(f"expected positions of {', '.join(POSITIONS)}, got {positions!r}")
    if not examples:
        raise ExampleError("expected at least one example, got none; check the file and --limit")
    texts = _texts(loaded, examples, offsets=positions == "span")
    foils: Sequence[list[int]] = [[] for _ in examples]
    if objective == "contrast":
        foils = _ids(loaded, [e.foil or "" for e in examples])
    sequences: list[list[TokenSequence]] = []
    unusable: list[Unusable] = []
    for i, (example, text, foil) in enumerate(zip(examples, texts, foils, strict=True)):
        try:
            _check(loaded, example, text, foil, objective, reference)
            if objective == "kl" and not reference:
                text = replace(text, predicted=text.predicted[:1])
            rows = _rows(example, text, positions)
            sequences.append(_sequences(loaded, i, example, text, foil, rows, objective, reference))
        except _UnusableError as error:
            sequences.append([])
            unusable.append(Unusable(i, error.reason, f"({_short(example.prompt or example.target)}): {error.detail}"))
    return sequences, unusable


class _UnusableError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _check(
    loaded: LoadedModel, example: Example, text: _Text, foil: list[int], objective: str, reference: bool
) -> None:
    if not text.predicted:
        raise _UnusableError(
            "no tokens", "expected at least one token in prompt and target, got none; fill or remove it"
        )
    if objective == "contrast":
        if example.foil is None:
            raise _UnusableError(
                "no foil", "objective contrast expects a foil in every example, got none; add foils or use nll"
            )
        if not foil:
            raise _UnusableError("no tokens", "expected at least one token in the foil, got none; fill or remove it")
        if example.loss or not example.prompt:
            raise _UnusableError(
                "no single target", "objective contrast expects a prompt and one target, got a text; use nll"
            )
    if objective == "kl" and not reference and example.distribution is None:
        raise _UnusableError(
            "no distribution",
            "objective kl expects a distribution in every example, or a second model, got neither; add one of them",
        )
    needed = max(text.predicted[-1], text.predicted[0] + len(foil) - 1)
    if needed > loaded.max_tokens:
        raise _UnusableError(
            "too long",
            f"expected at most {loaded.max_tokens} tokens, prompt and target take {needed}; shorten or remove it",
        )


def _rows(example: Example, text: _Text, positions: str) -> tuple[int, ...]:
    last, end = text.predicted[0] - 1, text.predicted[-1]
    if positions == "prediction":
        return tuple(i - 1 for i in text.predicted)
    if positions == "span":
        if example.span is None:
            raise _UnusableError("no span", "positions span expects a span in every example, got none; name one")
        start, stop = example.span
        assert text.offsets is not None
        covered = [i for i, (a, b) in enumerate(text.offsets[:end]) if a < b and a < stop and b > start]
        if not covered:
            raise _UnusableError(
                "span behind the loss",
                "expected a span before the last predicted token, got one behind it, whose gradient is zero; name another",
            )
        return tuple(covered)
    first = 0 if positions in ("prompt", "all") else last
    return tuple(range(first, last + 1 if positions in ("last", "prompt") else end))


def _sequences(
    loaded: LoadedModel,
    number: int,
    example: Example,
    text: _Text,
    foil: list[int],
    rows: tuple[int, ...],
    objective: str,
    reference: bool,
) -> list[TokenSequence]:
    ids, last = tuple(text.ids[: text.predicted[-1]]), text.predicted[0] - 1
    if objective == "kl":
        if reference:
            return [TokenSequence(number, ids, (), rows, matched=tuple(i - 1 for i in text.predicted))]
        q = _distribution(loaded, example)
        terms = tuple((last, token, weight) for token, weight in q.items())
        constant = sum(weight * math.log(weight) for weight in q.values() if weight > 0)
        return [TokenSequence(number, ids, terms, rows, constant=constant)]
    terms = tuple((i - 1, text.ids[i], 1.0) for i in text.predicted)
    if len(foil) == 1:
        terms = (*terms, (last, foil[0], -1.0))
    found = [TokenSequence(number, ids, terms, rows, logit=objective == "logit")]
    if len(foil) > 1:
        against = tuple((last + i, token, -1.0) for i, token in enumerate(foil))
        shared = tuple(row for row in rows if row <= last)  # behind the prompt, the branches are of different tokens
        found.append(TokenSequence(number, (*ids[: last + 1], *foil[:-1]), against, shared))
    return found


def _distribution(loaded: LoadedModel, example: Example) -> dict[int, float]:
    """The given q by token id, of sum 1."""
    assert example.distribution is not None
    texts = list(example.distribution)
    found: dict[int, float] = {}
    for text, ids in zip(texts, _ids(loaded, texts), strict=True):
        if len(ids) != 1:
            raise _UnusableError(
                "distribution over no tokens",
                f"expected each text of the distribution to be one token, {text!r} is {len(ids)}; use the model's tokens",
            )
        found[ids[0]] = found.get(ids[0], 0.0) + example.distribution[text]
    total = sum(found.values())
    return {token: weight / total for token, weight in found.items()}


def _texts(loaded: LoadedModel, examples: Sequence[Example], *, offsets: bool) -> list[_Text]:
    """Prompts and targets are tokenised apart, so that the prompt's tokens never depend on what follows; texts whole."""
    found: list[_Text | None] = [None] * len(examples)
    apart = [i for i, e in enumerate(examples) if e.prompt and not e.loss]
    whole = [i for i, e in enumerate(examples) if not e.prompt or e.loss]
    located = offsets or any(examples[i].loss for i in whole)
    if apart:
        prompts = _encode(loaded, [examples[i].prompt for i in apart], special=True, offsets=offsets)
        targets = _encode(loaded, [examples[i].target for i in apart], special=False, offsets=offsets)
        for i, (prompt, before), (target, after) in zip(apart, prompts, targets, strict=True):
            places = None
            if before is not None and after is not None:
                shift = len(examples[i].prompt)
                places = [*before, *((a + shift, b + shift) for a, b in after)]
            predicted = range(len(prompt), len(prompt) + len(target)) if prompt else range(0)
            found[i] = _Text([*prompt, *target], list(predicted), places)
    if whole:
        texts = [examples[i].prompt + examples[i].target for i in whole]
        for i, (ids, places) in zip(whole, _encode(loaded, texts, special=True, offsets=located), strict=True):
            later, loss = list(range(1, len(ids))), examples[i].loss
            if loss and places is not None:
                later = [t for t in later if any(a <= places[t][0] < b for a, b in loss) and _width(places[t])]
            found[i] = _Text(ids, later, places)
    return [text for text in found if text is not None]


def _width(place: tuple[int, int]) -> int:
    return place[1] - place[0]


def _encode(
    loaded: LoadedModel, texts: list[str], *, special: bool, offsets: bool
) -> Iterable[tuple[list[int], list[tuple[int, int]] | None]]:
    if offsets and not loaded.tokenizer.is_fast:
        raise ConfigError(
            f"expected a tokenizer that knows where its tokens are in the text, {type(loaded.tokenizer).__name__} does "
            "not; use its fast version, or examples without spans and chats"
        )
    options: dict[str, Any] = {"return_offsets_mapping": True} if offsets else {}
    found = loaded.tokenizer(texts, add_special_tokens=special, **options)
    places = found["offset_mapping"] if offsets else [None] * len(texts)
    return zip([list(ids) for ids in found.input_ids], places, strict=True)


def _ids(loaded: LoadedModel, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = loaded.tokenizer(texts, add_special_tokens=False).input_ids
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
