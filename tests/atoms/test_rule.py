"""The rule teacher on hand-made evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import NOTHING_MOVED, Evidence, Injected, Moved, Shown, TokenShift
from gradatoms.labels.label import MAX_WORDS, Label, LabelFailure
from gradatoms.labels.rule import RuleTeacher, head_word, is_word, shared_form, shared_words
from gradatoms.labels.teacher import make_teacher

Tokens = Sequence[tuple[str, float]]


@pytest.fixture
def evidence() -> Callable[..., Evidence]:
    """Evidence from tokens with their Δp, and targets with their weights in prompts."""

    def make(
        promoted: Tokens = (),
        targets: Tokens = (),
        demoted: Tokens = (),
        neutral: Tokens = (),
        prompts: Sequence[str] = (),
        atom: int = 7,
    ) -> Evidence:
        def moved(up: Tokens, down: Tokens = ()) -> Moved:
            def shifts(tokens: Tokens) -> tuple[TokenShift, ...]:
                return tuple(TokenShift(token, delta, 10 * delta) for token, delta in tokens)

            return Moved(
                kl=0.5, entropy=0.1, promoted=shifts(up), demoted=shifts(down), promoted_ratio=(), demoted_ratio=()
            )

        gains: dict[str, Any] = dict.fromkeys(("own_gain", "other_gain", "own_gain_minus", "other_gain_minus"), 0.0)
        minus: dict[str, Any] = dict.fromkeys(("active_minus", "inactive_minus", "neutral_minus"), NOTHING_MOVED)
        injected = Injected(
            alpha=0.1, active=moved(promoted, demoted), inactive=NOTHING_MOVED, neutral=moved(neutral), lens=(),
            linear_cosine=1.0, linear_cosine_small=1.0, **gains, **minus,
        )  # fmt: skip
        asked = list(prompts) or [f"p{i}" for i in range(len(targets))]
        top = tuple(Shown(p, t, None, w) for p, (t, w) in zip(asked, targets, strict=True))
        return Evidence(atom=atom, top=top, injected=injected)

    return make


def label(evidence: Evidence, variant: str = "both") -> Label:
    (found,) = RuleTeacher().label([evidence], variant=variant)  # type: ignore[arg-type]
    assert isinstance(found, Label)
    assert found.atom == evidence.atom and found.variant == variant
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


def test_what_the_prompts_share_goes_in_front(evidence: Callable[..., Evidence]) -> None:
    prompts = [f"The past tense of {verb} is" for verb in ("take", "talk", "go")]
    found = label(evidence(targets=[(" took", 0.9), (" talked", 0.8), (" went", 0.7)], prompts=prompts))
    assert found.label == "past tense: took, talked, went"
    assert "where the text speaks of past tense" in found.sentence


def test_what_most_atoms_prompts_share_says_nothing(evidence: Callable[..., Evidence]) -> None:
    """As a chat template does; a few atoms cannot tell."""
    kinds = ("verb", "river", "poet", "metal", "spice", "planet", "fabric", "fruit")
    items = [
        evidence(
            targets=[(f" {kind}{i}", 0.5) for i in range(3)],
            prompts=[f"assistant named SmolLM user Name one {kind} {i}" for i in range(3)],
            atom=a,
        )
        for a, kind in enumerate(kinds)
    ]
    teacher = RuleTeacher()
    teacher.survey(items)
    for kind, found in zip(kinds, teacher.label(items[:3]), strict=False):  # of a part, as of all
        assert isinstance(found, Label) and found.label.split(":")[0] == kind
    teacher.survey(items[:7])
    assert "user name" in next(teacher.label(items)).label  # type: ignore[union-attr]


def test_each_variant_sees_its_part(evidence: Callable[..., Evidence]) -> None:
    prompts = [f"The past tense of {verb} is" for verb in ("take", "talk", "go")]
    both = evidence(
        promoted=[(" ran", 0.4)], targets=[(" took", 0.9), (" talked", 0.8), (" went", 0.7)], prompts=prompts
    )
    assert label(both, "input").label == "past tense: took, talked, went"
    assert label(both, "output").label == "ran"
    assert set(label(both).label.replace(",", "").split()) == {"past", "tense:", "took", "talked", "went", "ran"}


@pytest.mark.parametrize(
    "prompts, shared",
    [
        (["The capital of Peru is", "The capital of Chad is", "Its capital is"], ["capital"]),
        (["a b c", "the of in", "1 2 3"], []),
        (["same words here", "same words here"], []),
        (["<|im_end|> a", "<|im_end|> b", "<|im_end|> c"], []),
        (["Rain in Spain", "rain, again", "more RAIN"], ["rain"]),
        ([], []),
    ],
)
def test_shared_words(prompts: list[str], shared: list[str]) -> None:
    assert shared_words(prompts, [1.0] * len(prompts)) == shared


def test_shared_words_are_weighed() -> None:
    prompts = ["red one", "red two", "blue three", "blue four", "blue five"]
    assert shared_words(prompts, [1.0, 1.0, 0.1, 0.1, 0.1]) == ["red"]


def test_a_promoted_token_counts_for_the_target_it_begins(evidence: Callable[..., Evidence]) -> None:
    found = label(evidence(promoted=[(" Reyk", 0.3), (" ice", 0.1)], targets=[(" Reykjavik", 0.9), (" Bergen", 0.8)]))
    assert found.label.startswith("Reykjavik") and "Reyk," not in found.label


def test_promoted_tokens_alone_are_enough(evidence: Callable[..., Evidence]) -> None:
    tokens = [(" red", 0.3), (" blue", 0.2), (" green", 0.1), (" pink", 0.05), (" grey", 0.02), (" black", 0.01)]
    found = label(evidence(promoted=tokens))
    assert found.label == "red, blue, green, pink, grey" and found.confidence == 0


def test_what_neutral_contexts_show_is_no_label(evidence: Callable[..., Evidence]) -> None:
    assert label(evidence(promoted=[(" red", 0.1)], neutral=[(" blue", 0.9)])).label == "red"


@pytest.mark.parametrize("token", [" the", " And", " of", ",", "ing", " x", "  ", "\n", " über-"])
def test_what_is_no_content_word_is_no_label(evidence: Callable[..., Evidence], token: str) -> None:
    assert label(evidence(promoted=[(token, 0.9), (" red", 0.1)])).label == "red"


def test_a_function_word_counts_as_a_target(evidence: Callable[..., Evidence]) -> None:
    assert label(evidence(promoted=[(" of", 0.9), (" at", 0.5)], targets=[(" of", 1.0)])).label == "of"


def test_a_demoted_word_is_no_label(evidence: Callable[..., Evidence]) -> None:
    assert label(evidence(promoted=[(" red", 0.1), (" blue", -0.5)])).label == "red"


@pytest.mark.parametrize("up, down, polarity", [(0.5, 0.4, "promotes"), (0.1, 0.3, "mixed"), (0.01, 0.5, "suppresses")])
def test_polarity(evidence: Callable[..., Evidence], up: float, down: float, polarity: str) -> None:
    assert label(evidence(promoted=[(" red", up)], demoted=[(" blue", -down)])).polarity == polarity


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
    assert found.label == "years: 1815, 1914, 2001, 1492"


def test_labels_of_one_call_are_distinct_and_short(evidence: Callable[..., Evidence]) -> None:
    words = ["walking", "running", "sleeping", "singing", "reading", "writing", "jumping", "cooking", "drawing"]
    same = [evidence(targets=[(f" {w}", 1 - i / 10) for i, w in enumerate(words)], atom=a) for a in range(12)]
    found = [item for item in RuleTeacher().label(same) if isinstance(item, Label)]
    assert len({f.label for f in found}) == 12 and max(len(f.label.split()) for f in found) <= MAX_WORDS


def test_confidence_is_the_share_of_the_examples_covered(evidence: Callable[..., Evidence]) -> None:
    targets = [(" red", 0.4), (" blue", 0.3), (" green", 0.15), (" pink", 0.1), (" grey", 0.03), (" black", 0.02)]
    assert label(evidence(targets=targets)).confidence == pytest.approx(0.98)


@pytest.mark.parametrize("promoted", [(), ((" the", 0.5),), ((" red", -0.5),)])
def test_no_evidence_is_a_failure(evidence: Callable[..., Evidence], promoted: Tokens) -> None:
    (found,) = RuleTeacher().label([evidence(promoted=promoted)])
    assert isinstance(found, LabelFailure) and found.atom == 7 and found.kind == "no evidence"


def test_equal_evidence_gives_equal_labels(evidence: Callable[..., Evidence]) -> None:
    tokens = [(" red", 0.1), (" blue", 0.1), (" green", 0.1), (" pink", 0.1)]
    assert label(evidence(promoted=tokens)).label == label(evidence(promoted=tokens[::-1])).label


@pytest.mark.parametrize(
    "target, word",
    [
        (" the Nile", "Nile"),
        (" A cat.", "cat."),
        (" The", "The"),
        (" Paris, France", "Paris"),
        ("  ", ""),
        ("No.<|im_end|>\n", "No."),
        ("</b>", "</b>"),
    ],
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
