"""Descriptions: atoms to a sentence in every phrasing and back, and its tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gradatoms.models import LoadedModel
from gradatoms.prefix import read_tail, run_prefix
from gradatoms.projector.drafts import Drafts
from gradatoms.projector.prompt import header, slot_ids, stop_id, term_grammar, term_ids, token_ids
from gradatoms.projector.text import DEGREES, NO_PRESSURE, PHRASINGS, Parser, Phrasing, compose, degree, number
from gradatoms.writing import Grammar, choices, step, write

LABELS = {0: "Paris, Oslo", 3: "years: 1815, 1914", 4: "Paris, Oslo (2)", 5: "red", 8: "naïve 🧪", 9: "red, blue"}
Terms = list[tuple[str, float]]


def terms(*pairs: tuple[int, float]) -> Terms:
    return [(LABELS[atom], weight) for atom, weight in pairs]


@pytest.mark.parametrize("phrasing", PHRASINGS)
@pytest.mark.parametrize("pairs", [[(0, 0.9)], [(3, 0.8), (8, 0.3)], [(4, 0.5), (0, 0.4)], [(9, 0.7), (5, 0.1)]])
def test_a_description_is_read_back(pairs: list[tuple[int, float]], phrasing: Phrasing) -> None:
    found = Parser(LABELS)(compose(terms(*pairs), phrasing))
    assert [(t.atom, t.label) for t in found] == [(atom, LABELS[atom]) for atom, _ in pairs]
    within = {"name": 1.0, "words": 0.2, "numbers": 0.05, "both": 0.05}[phrasing]
    assert [t.weight for t in found] == pytest.approx([w for _, w in pairs], abs=within)
    assert Parser(LABELS)(f" {compose(terms(*pairs), phrasing)}.\n") == found


AWKWARD = ["U.S.", "red (strongly)", "red 0.7", "etc.", "a; b", "x (0.3)", "Washington D.C.", "(1.0)"]


@pytest.mark.parametrize("phrasing", ["words", "numbers", "both"])
@pytest.mark.parametrize("label", AWKWARD)
def test_awkward_labels_are_read_back(label: str, phrasing: Phrasing) -> None:
    parse = Parser({0: label, 1: "blue", 2: "green"})
    for chosen in itertools.permutations([(label, 0.9), ("blue", 0.4), ("green", 0.2)], 2):
        found = parse(compose(list(chosen), phrasing))
        assert [t.label for t in found] == [name for name, _ in chosen]


def test_the_words_of_a_description() -> None:
    assert compose([("A", 0.72), ("B", 0.3)], "name") == "A; B"
    assert compose([("A", 0.72), ("B", 0.3)], "words") == "A (strongly); B (partly)"
    assert compose([("A", 0.72), ("B", 0.3)], "numbers") == "A (0.7); B (0.3)"
    assert compose([("A", 0.72), ("B", 0.3)], "both") == "A (0.7, strongly); B (0.3, partly)"
    assert [compose([], phrasing) for phrasing in PHRASINGS] == [NO_PRESSURE] * 4


def test_weights_in_words_and_numbers() -> None:
    assert [
        degree(w) for w in (0.6, 0.59, 0.4, 0.25, 0.24, 0.0)
    ] == "strongly clearly clearly partly slightly slightly".split()
    assert [number(w) for w in (0.0, 0.04, 0.16, 0.949, 0.96, 1.7)] == "0.1 0.1 0.2 0.9 1.0 1.0".split()
    for word, least, read in DEGREES:
        assert degree(read) == word and read >= least


@pytest.mark.parametrize(
    "text, atoms",
    [
        ("red (strongly); something else (partly)", [5]),
        ("something else (strongly); red (partly)", [5]),
        ("red (0.7, strongly); red (0.3)", [5]),
        ("red", [5]),
        (" red (clearly).\n", [5]),
        ("red (0.5)", [5]),
        ("Red (clearly)", []),
        ("red (mostly)", []),
        ("red herring", []),
        (NO_PRESSURE, []),
        (f" {NO_PRESSURE}.", []),
        ("", []),
        ("; ; ", []),
    ],
)
def test_only_labels_are_read(text: str, atoms: list[int]) -> None:
    assert [t.atom for t in Parser(LABELS)(text)] == atoms


def test_without_labels_nothing_is_read() -> None:
    assert Parser({})("red (strongly)") == []


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_label_has_the_same_tokens_in_every_phrasing(tiny: LoadedModel, phrasing: Phrasing) -> None:
    label = token_ids(tiny, f" {LABELS[3]}")
    ids = term_ids(tiny, LABELS[3], 0.4, phrasing)
    assert ids[: len(label)] == label
    assert ids[-1] == stop_id(tiny) and ids.count(stop_id(tiny)) == 1
    assert tiny.tokenizer.decode(ids) == f" {compose(terms((3, 0.4)), phrasing)}.\n"


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_the_header_shows_the_phrasing(phrasing: Phrasing) -> None:
    shown = header(phrasing, 3).split("\n\n")
    assert shown[0].startswith("Push: coffee, tea (0.7).\n") and shown[-1] == ""
    assert shown[0].rsplit(": ", 1)[1] == compose([("coffee, tea", 0.7)], phrasing) + "."
    assert any(e.startswith("Push: ? ? ?\n") and e.endswith(f": {NO_PRESSURE}.") for e in shown)


def accepts(grammar: Grammar, ids: list[int]) -> bool:
    state = grammar.start()
    for token in ids:
        state = step(state, token)
    return bool(state) and not choices(state)


@pytest.mark.parametrize("phrasing", PHRASINGS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_grammar_is_the_set_of_terms(tiny: LoadedModel, phrasing: Phrasing, reverse: bool) -> None:
    labels = sorted(LABELS.values(), reverse=reverse)
    grammar, pressed = (term_grammar(tiny, labels, phrasing, null=null) for null in (True, False))
    for label in LABELS.values():
        for weight in np.arange(11) / 10:
            ids = term_ids(tiny, label, float(weight), phrasing)
            assert accepts(grammar, ids) and accepts(pressed, ids)
    nothing = term_ids(tiny, None, 0.0, phrasing)
    assert accepts(grammar, nothing) and not accepts(pressed, nothing)
    for wrong in (" green.", " red", ".", " red;.", " (0.7).", " red (0.7) (0.7).", " red (0.7)"):
        assert not accepts(grammar, [*token_ids(tiny, wrong), stop_id(tiny)])


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_what_the_grammar_writes_is_read_back(tiny: LoadedModel, phrasing: Phrasing) -> None:
    embeds = 3 * torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(1))
    tail = read_tail(tiny, run_prefix(tiny, [[5, 6]]), torch.zeros(16, dtype=torch.long), embeds)
    start = term_grammar(tiny, LABELS.values(), phrasing).start()
    found = write(tiny, tail, max_tokens=90, stop=stop_id(tiny), starts=[start] * 16)
    texts = [tiny.tokenizer.decode(one.ids) for one in found]
    assert len(set(texts)) > 1 and all(one.log_prob <= 0 for one in found)
    parse = Parser(LABELS)
    for text in texts:
        assert len(parse(text)) == 1 or text == f" {NO_PRESSURE}."


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_draft_is_the_term_that_soft_tokens_look_like(tiny: LoadedModel, phrasing: Phrasing) -> None:
    k = 40
    drafts, rng = Drafts(tiny, list(LABELS.values()), k), np.random.default_rng(0)
    asked = [(label, w / 10) for label in LABELS.values() for w in (1, 4, 10)] + [(None, 0.0)]
    embeds = torch.nn.functional.normalize(tiny.embeddings.float(), dim=1)
    soft = torch.stack([embeds[torch.tensor(slot_ids(tiny, label, weight, k))] for label, weight in asked])
    blurred = soft + 0.05 * torch.from_numpy(rng.standard_normal(soft.shape).astype(np.float32))
    assert drafts(blurred, phrasing) == [term_ids(tiny, label, weight, phrasing) for label, weight in asked]
    grammar = term_grammar(tiny, LABELS.values(), phrasing)
    anything = torch.from_numpy(rng.standard_normal((9, k, soft.shape[2])).astype(np.float32))
    assert all(accepts(grammar, ids) for ids in drafts(anything, phrasing))


def test_a_draft_of_few_soft_tokens_is_still_a_term(tiny: LoadedModel) -> None:
    grammar = term_grammar(tiny, LABELS.values(), "both")
    for k in (1, 2, 5):
        assert all(
            accepts(grammar, ids) for ids in Drafts(tiny, list(LABELS.values()), k)(torch.randn(4, k, 32), "both")
        )
