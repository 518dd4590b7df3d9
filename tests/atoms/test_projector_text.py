"""Descriptions: atoms to a sentence and back, and its tokens."""

from __future__ import annotations

import pytest
import torch

from gradatoms.models import LoadedModel
from gradatoms.prefix import Grammar, generate_tail, run_prefix
from gradatoms.projector.model import description_grammar, description_ids, stop_id
from gradatoms.projector.text import NO_PRESSURE, PARTLY_FROM, Term, compose, described_terms, parse, pieces

LABELS = {0: "Paris, Oslo", 3: "years: 1815, 1914", 4: "Paris, Oslo (2)", 5: "red", 8: "naïve 🧪", 9: "red, blue"}


@pytest.mark.parametrize(
    "weights, expected",
    [
        ([(5, 0.2), (3, 0.9), (0, 0.5)], [(3, 0.9), (0, 0.5)]),
        ([(5, 0.9), (3, 0.9 * PARTLY_FROM - 0.01)], [(5, 0.9)]),
        ([(5, 0.5), (3, 0.5)], [(3, 0.5), (5, 0.5)]),
        ([(5, 0.5)], [(5, 0.5)]),
        ([(5, 0.0)], []),
        ([], []),
    ],
)
def test_at_most_two_atoms_are_described(weights: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert described_terms(weights) == expected


@pytest.mark.parametrize("terms", [[(0, 0.9)], [(3, 0.8), (8, 0.3)], [(4, 0.5), (0, 0.4)], [(9, 0.5), (5, 0.4)]])
def test_a_description_is_read_back(terms: list[tuple[int, float]]) -> None:
    found = parse(compose(terms, LABELS), LABELS, share=0.7)
    assert [t.atom for t in found] == [atom for atom, _ in terms]
    assert [t.label for t in found] == [LABELS[atom] for atom, _ in terms]
    assert [t.weight for t in found] == pytest.approx([0.7, 0.3] if len(terms) == 2 else [1.0])
    assert parse("".join(pieces(terms, LABELS)), LABELS, share=0.7) == found


@pytest.mark.parametrize("label", ["U.S.", "mostly red", "partly red", "etc.", "Washington D.C."])
def test_awkward_labels_are_read_back(label: str) -> None:
    labels = {0: label, 1: "blue"}
    for terms in ([(0, 0.9)], [(0, 0.9), (1, 0.4)], [(1, 0.9), (0, 0.4)]):
        assert [t.atom for t in parse(compose(terms, labels), labels, share=0.7)] == [atom for atom, _ in terms]


def test_the_words_of_a_description() -> None:
    assert compose([(0, 0.9), (5, 0.4)], LABELS) == "mostly Paris, Oslo; partly red"
    assert compose([(5, 0.9)], LABELS) == "mostly red"
    assert compose([], LABELS) == NO_PRESSURE


def test_an_atom_without_a_label_is_not_described() -> None:
    assert compose([(7, 0.9), (5, 0.4)], LABELS) == "mostly red"
    assert compose([(7, 0.9)], LABELS) == NO_PRESSURE


@pytest.mark.parametrize(
    "text, atoms",
    [
        ("mostly red; partly something else", [5]),
        ("mostly something else; partly red", [5]),
        ("mostly red; partly red", [5]),
        ("red", [5]),
        (" mostly red.\n", [5]),
        ("mostly Red", []),
        (NO_PRESSURE, []),
        (f" {NO_PRESSURE}.", []),
        ("", []),
        ("; ; ", []),
    ],
)
def test_only_labels_are_read(text: str, atoms: list[int]) -> None:
    assert [t.atom for t in parse(text, LABELS, share=0.7)] == atoms


def test_a_dropped_part_keeps_the_weight_of_the_other() -> None:
    assert parse("mostly nothing known; partly red", LABELS, share=0.75) == [Term(5, "red", 0.25)]


def test_a_label_has_the_same_tokens_in_every_description(tiny: LoadedModel) -> None:
    def ids(*terms: tuple[int, float]) -> list[int]:
        return description_ids(tiny, pieces(list(terms), LABELS))

    label = tiny.tokenizer(f" {LABELS[3]}", add_special_tokens=False).input_ids
    mostly, second = ids((3, 0.9), (5, 0.4)), ids((5, 0.9), (3, 0.4))
    start = len(tiny.tokenizer(" mostly", add_special_tokens=False).input_ids)
    assert mostly[start : start + len(label)] == label
    end = len(tiny.tokenizer(".", add_special_tokens=False).input_ids) + 1
    assert second[-end - len(label) : -end] == label
    for sequence in (mostly, second, ids()):
        assert sequence[-1] == stop_id(tiny) and sequence.count(stop_id(tiny)) == 1
    assert tiny.tokenizer.decode(mostly) == " mostly years: 1815, 1914; partly red.\n"


def accepts(node: Grammar, ids: list[int]) -> bool:
    for token in ids:
        if token not in node.next:
            return False
        node = node.next[token]
    return not node.next


@pytest.mark.parametrize("reverse", [False, True])
def test_the_grammar_is_the_set_of_descriptions(tiny: LoadedModel, reverse: bool) -> None:
    grammar = description_grammar(tiny, sorted(LABELS.values(), reverse=reverse))
    for terms in ([], *([(a, 0.9)] for a in LABELS), *([(a, 0.9), (b, 0.4)] for a in LABELS for b in LABELS)):
        assert accepts(grammar, description_ids(tiny, pieces(terms, LABELS)))
    for parts in ([" mostly", " green", "."], [" mostly", " red", "; partly", "."], [" partly", " red", "."], ["."]):
        assert not accepts(grammar, description_ids(tiny, parts))


def test_what_the_grammar_writes_is_read_back(tiny: LoadedModel) -> None:
    embeds = 3 * torch.randn(16, 2, 32, generator=torch.Generator().manual_seed(1))
    prefix = run_prefix(tiny, [[5, 6]] * 16)
    grammar = description_grammar(tiny, LABELS.values())
    found, scores = generate_tail(tiny, prefix, embeds, max_tokens=50, stop=stop_id(tiny), grammar=grammar)
    texts = [tiny.tokenizer.decode(ids) for ids in found]
    assert len(set(texts)) > 1 and all(score <= 0 for score in scores)
    for text in texts:
        terms = parse(text, LABELS, share=0.7)
        assert terms or text == f" {NO_PRESSURE}."
        again = compose([(t.atom, t.weight) for t in terms], LABELS)
        first, *rest = text.strip().removesuffix(".").split("; partly ")
        assert again == text.strip().removesuffix(".") or f"mostly {rest[0]}" == first
