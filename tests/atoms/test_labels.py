"""The rule teacher on hand-made evidence, and evidence on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.online import LassoCoder
from gradatoms.dictionary.pushes import Pushes
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.sequences import tokenize
from gradatoms.labels.evidence import Evidence, TokenShift, TopExample, gather_evidence, load_evidence, save_evidence
from gradatoms.labels.teacher import (
    MAX_WORDS,
    Label,
    LabelFailure,
    RuleTeacher,
    head_word,
    is_word,
    make_teacher,
    shared_form,
)
from gradatoms.lookahead import lookahead
from gradatoms.models import LoadedModel

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence from tokens with their Δp and targets with their weights."""

    def make(
        promoted: Sequence[tuple[str, float]] = (),
        targets: Sequence[tuple[str, float]] = (),
        demoted: Sequence[tuple[str, float]] = (),
        neutral: Sequence[tuple[str, float]] = (),
        **changes: Any,
    ) -> Evidence:
        def shifts(tokens: Sequence[tuple[str, float]]) -> tuple[TokenShift, ...]:
            return tuple(TokenShift(token, delta, 10 * delta) for token, delta in tokens)

        found = Evidence(
            atom=7,
            promoted=shifts(promoted),
            demoted=shifts(demoted),
            neutral_promoted=shifts(neutral),
            kl=0.5,
            neutral_kl=0.25,
            examples=tuple(TopExample(f"p{i}", target, None, weight) for i, (target, weight) in enumerate(targets)),
            density=0.125,
        )
        return replace(found, **changes)

    return make


def label(evidence: Evidence, taken: frozenset[str] = NOTHING) -> Label:
    found = RuleTeacher().label(evidence, taken)
    assert isinstance(found, Label)
    assert found.atom == evidence.atom and found.label not in taken
    return found


def test_promoted_words_and_targets_make_the_label(evidence: Callable[..., Evidence]) -> None:
    found = label(
        evidence(
            promoted=[(" Paris", 0.2), (" France", 0.1), (" city", 0.01)],
            targets=[(" Paris", 0.6), (" Paris.", 0.2), (" Oslo", 0.2)],
            demoted=[(" the", -0.2), (" banana", -0.1), ("!", -0.1)],
        )
    )
    words = found.label.replace(",", "").split()
    assert words[0] == "Paris" and set(words) <= {"Paris", "Paris.", "France", "Oslo", "city"}
    assert "away from banana." in found.sentence and "the," not in found.sentence
    assert 0.5 < found.confidence <= 1


def test_a_promoted_token_counts_for_the_target_it_begins(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(promoted=[(" Reyk", 0.3), (" ice", 0.1)], targets=[(" Reykjavik", 0.9), (" Bergen", 0.8)]))
    assert found.label.startswith("Reykjavik") and "Reyk," not in found.label


def test_promoted_tokens_alone_are_enough(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(promoted=[(" red", 0.3), (" blue", 0.2), (" green", 0.1), (" pink", 0.05)]))
    assert found.label == "red, blue, green" and found.confidence == 0


def test_neutral_contexts_weigh_less_than_active_ones(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(promoted=[(" red", 0.1)], neutral=[(" blue", 0.9)]))
    assert found.label == "red, blue"


@pytest.mark.parametrize("token", [" the", " And", " of", ",", "ing", " x", "  ", "\n", " über-"])
def test_what_is_no_content_word_is_no_label(evidence: Callable[..., Evidence], token: str) -> None:
    assert label(evidence(promoted=[(token, 0.9), (" red", 0.1)])).label == "red"


def test_a_function_word_counts_as_a_target(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(promoted=[(" of", 0.9), (" at", 0.5)], targets=[(" of", 1.0)]))
    assert found.label == "of"


def test_a_demoted_word_is_no_label(evidence: Callable[..., Evidence]) -> None:
    assert label(evidence(promoted=[(" red", 0.1), (" blue", -0.5)])).label == "red"


@pytest.mark.parametrize(
    "targets, form",
    [
        (["1815", "1914", "2001", "1492", "1066"], "years"),
        (["7", "12", "305"], "numbers"),
        (["2021-03-04", "1999-12-31", "2000-01-01"], "dates"),
        (["9:30", "12:05", "23:59"], "times"),
        ([".org", ".com", ".net"], "text starting with ."),
        (["NATO", "UNESCO", "EU"], "capital letters"),
        (["walking", "running", "sleeping"], "words in -ing"),
        (["walking", "running", "sleeping", "singing", "red"], "words in -ing"),
        (["walking", "running", "blue", "red"], ""),
        (["the 7", "a 12", "305,"], "numbers"),
        (["7", "7", "7"], ""),
        (["7", "8"], ""),
        ([], ""),
    ],
)
def test_what_the_targets_share(targets: list[str], form: str) -> None:
    assert shared_form([f" {t}" for t in targets]) == form


def test_the_shared_form_goes_in_front(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(targets=[(" 1815", 0.9), (" 1914", 0.8), (" 2001", 0.7), (" 1492", 0.6)]))
    assert found.label == "years: 1815, 1914"


def test_taken_labels_get_distinct_names(evidence: Callable[..., Evidence]) -> None:
    same = evidence(promoted=[(f" {w}", 0.1) for w in ("red", "blue", "green", "pink", "black", "white")])
    taken: set[str] = set()
    for _ in range(20):
        taken.add(label(same, frozenset(taken)).label)
    assert len(taken) == 20


def test_a_label_has_at_most_eight_words(evidence: Callable[..., Evidence]) -> None:
    words = ["walking", "running", "sleeping", "singing", "reading", "writing", "jumping", "cooking", "drawing"]
    same = evidence(targets=[(f" {w}", 1 - i / 10) for i, w in enumerate(words)])
    taken: set[str] = set()
    for _ in range(8):
        taken.add(label(same, frozenset(taken)).label)
    named = [text.split(" (")[0] for text in taken]  # without the serial number
    assert max(len(text.split()) for text in named) <= MAX_WORDS


def test_confidence_is_the_share_of_the_examples_covered(evidence: Callable[..., Evidence]) -> None:
    targets = [(" red", 0.4), (" blue", 0.3), (" green", 0.2), (" pink", 0.1)]
    assert label(evidence(targets=targets)).confidence == pytest.approx(0.9)


@pytest.mark.parametrize("promoted", [(), ((" the", 0.5),), ((" red", -0.5),)])
def test_no_evidence_is_a_failure(evidence: Callable[..., Evidence], promoted: Sequence[tuple[str, float]]) -> None:
    found = RuleTeacher().label(evidence(promoted=promoted), NOTHING)
    assert isinstance(found, LabelFailure) and found.atom == 7 and found.failure


def test_equal_evidence_gives_equal_labels(evidence: Callable[..., Evidence]) -> None:
    tokens = [(" red", 0.1), (" blue", 0.1), (" green", 0.1), (" pink", 0.1)]
    assert label(evidence(promoted=tokens)).label == label(evidence(promoted=tokens[::-1])).label


@pytest.mark.parametrize(
    "target, word",
    [(" the Nile", "Nile"), (" A cat.", "cat."), (" The", "The"), (" Paris, France", "Paris"), ("  ", "")],
)
def test_head_words(target: str, word: str) -> None:
    assert head_word(target) == word


@pytest.mark.parametrize(
    "text, yes", [("red", True), ("42", True), ("naïve", True), ("x", False), ("a b", False), ("r2", True)]
)
def test_words(text: str, yes: bool) -> None:
    assert is_word(text) is yes


def test_teachers_have_names() -> None:
    assert isinstance(make_teacher("rule"), RuleTeacher)
    with pytest.raises(ConfigError, match="rule"):
        make_teacher("oracle")


# Evidence


def test_evidence_comes_back(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    full = evidence(
        promoted=[(" naïve", 0.5), ("🧪", 0.25), ("\n", 0.125), ("", 0.0625)],
        demoted=[("ض", -0.5)],
        neutral=[(" red", 0.5)],
        atom=0,
        examples=(TopExample("Was ist\nHeiß?", " ß", " ss", 0.5), TopExample("p", " t", None, 0.25)),
    )
    saved = [full, evidence(atom=1), replace(full, atom=2, kl=2.0, promoted=())]
    save_evidence(tmp_path / "evidence.h5", saved)
    assert load_evidence(tmp_path / "evidence.h5") == saved
    save_evidence(tmp_path / "evidence.h5", [])
    assert load_evidence(tmp_path / "evidence.h5") == []


def test_damaged_evidence_is_refused(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    path = tmp_path / "evidence.h5"
    save_evidence(path, [evidence(atom=0)])
    path.write_bytes(path.read_bytes()[:-100])
    for name in ("evidence.h5", "none.h5"):
        with pytest.raises(AtomsFormatError, match=name) as error:
            load_evidence(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def gathered(tiny: LoadedModel, examples: list[Example]) -> tuple[Atoms, list[Evidence]]:
    """Three atoms of the tiny model and their evidence: two pushes of its own, and one that no fitted row uses."""
    sequences = [branch for e in tokenize(tiny, examples) for branch in e]
    hook = tiny.hook("blocks.1.hook_resid_post")
    (batch,) = batched(sequences, batch_tokens=4096, device=tiny.device)
    found = ResidualGradients(tiny, [hook])(batch)
    X = Pushes(-found.gradients[hook.name][np.argsort(found.example)]).all()
    W = np.stack([X[0], X[1], -X[:6].mean(axis=0) / np.linalg.norm(X[:6].mean(axis=0))])
    atoms = Atoms(W, np.zeros(32, np.float32), LassoCoder(W, 0.3), hook.name)
    X[6] = X[1]  # the last row is held out, and would be a top example of atom 1
    fitted = np.arange(6)
    return atoms, gather_evidence(tiny, atoms, atoms.encode(X), examples, np.arange(7), fitted, alpha=0.2)


def test_evidence_of_an_atom_is_its_shift_where_it_is_active(
    gathered: tuple[Atoms, list[Evidence]], tiny: LoadedModel, examples: list[Example]
) -> None:
    atoms, evidence = gathered
    assert [e.atom for e in evidence] == [0, 1, 2]
    for e, example in zip(evidence[:2], examples, strict=False):
        assert (e.examples[0].prompt, e.examples[0].target) == (example.prompt, example.target)
        assert [x.weight for x in e.examples] == sorted((x.weight for x in e.examples), reverse=True)
        contexts = [tiny.tokenizer(x.prompt).input_ids for x in e.examples]
        pairs = [(e.atom, c) for c in range(len(contexts))]
        shift = lookahead(tiny, tiny.hook(atoms.hook), atoms.W_dec, contexts, pairs, alpha=0.2)
        order = np.argsort(-shift.delta_p[e.atom])
        for shown, best in ((e.promoted, order[:20]), (e.demoted, order[::-1][:20])):  # gathered in bfloat16
            delta = shift.delta_p[e.atom, best]
            np.testing.assert_allclose([t.delta_p for t in shown], delta, atol=0.1 * np.abs(delta).max())
            assert len({tiny.tokenizer.decode([t]) for t in best.tolist()} - {t.token for t in shown}) <= 4
        assert e.kl == pytest.approx(float(shift.kl[e.atom]), rel=0.1)
        assert e.density == pytest.approx(len(e.examples) / 6) and e.neutral_kl > 0


def test_evidence_sees_no_held_out_row_and_no_concept(
    gathered: tuple[Atoms, list[Evidence]], examples: list[Example]
) -> None:
    shown = [x for e in gathered[1] for x in e.examples]
    assert shown and all(x.prompt != examples[6].prompt and not hasattr(x, "concept") for x in shown)


def test_an_atom_without_rows_has_neutral_evidence_only(gathered: tuple[Atoms, list[Evidence]]) -> None:
    unused = gathered[1][2]
    assert (unused.examples, unused.promoted, unused.demoted, unused.density) == ((), (), (), 0.0)
    assert unused.neutral_promoted and unused.neutral_kl > 0
