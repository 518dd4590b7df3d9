"""Scores of labels: against hand counts, with a judge whose answers are known, and with the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import Foretold, Shown, TokenShift, Trial, Trials
from gradatoms.labels.judges import EmbeddingJudge, Item, Judge
from gradatoms.labels.judging import make_judge
from gradatoms.labels.likelihood import LikelihoodJudge
from gradatoms.labels.scored import foretold
from gradatoms.labels.scoring import score_labels
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

Pairs = Sequence[tuple[int, int]]
WORDS = {
    "colours": ["red", "blue", "green", "pink"],
    "animals": ["dog", "cat", "horse", "cow"],
    "numbers": ["one", "two", "three", "four"],
    "fruit": ["apple", "pear", "plum", "cherry"],
}
SENTENCES = pytest.mark.skipif(not EmbeddingJudge.installed(), reason="needs the packaged sentence model")


class WordJudge(Judge):
    """Fit 1 where the target is one of the words that the label stands for, else 0; counts what it is asked."""

    name = "words"

    def __init__(self) -> None:
        self.calls = 0

    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Pairs,
        *,
        progress: Progress = silent,
    ) -> np.ndarray:
        self.calls += 1
        assert len(set(pairs)) == len(pairs)
        return np.asarray([float(items[j].target.strip() in WORDS.get(labels[i], ())) for i, j in pairs], np.float64)


def trials(atom: int, concept: str, other: str) -> Trials:
    words, others = WORDS[concept], WORDS[other]
    return Trials(
        atom=atom,
        active=tuple(
            Trial(f"A word for {i}:", f" {w}", f" {o}", 0.5) for i, (w, o) in enumerate(zip(words, others, strict=True))
        ),
        inactive=tuple(Shown("Another:", f" {o}", None, 0.0) for o in others),
        promoted=tuple(TokenShift(f" {w}", 0.1, 1.0) for w in words),
        foretold=Foretold(active=0.9, inactive=0.4, neutral=0.3, lens=0.1, null=0.0),
        concept=concept,
        concept_share=1.0,
    )


NAMES = list(WORDS)
TRIALS = [trials(i, name, NAMES[(i + 1) % 4]) for i, name in enumerate(NAMES)]
LABELS = dict(enumerate(NAMES))


def test_right_labels_score_full_and_shuffled_ones_score_chance() -> None:
    judge = WordJudge()
    scores = score_labels(
        LABELS, TRIALS, judge, random_labels={0: "zebra"}, random_trials=[trials(0, "fruit", "colours")]
    )
    assert judge.calls == 1
    for score in scores.labels:
        assert (score.detection, score.detection_easy, score.fuzzing, score.output) == (1, 1, 1, 1)
        assert score.output_rank == 1 and score.label == NAMES[score.atom]
    found = scores.summary()
    assert found["detection"].value == 1 and found["detection"].n == 4 and found["detection"].interval == (1, 1)
    assert found["detection"].null is not None and found["detection"].null <= 0.5
    assert found["detection"].null_random == 0.5  # "zebra" fits nothing
    assert found["output"].null is not None and found["output"].null < 0.5
    assert {s.label for s in scores.shuffled} == set(NAMES)
    assert all(s.label != NAMES[s.atom] for s in scores.shuffled)


def test_detection_is_the_area_under_the_curve() -> None:
    class Noise(WordJudge):
        def fit(
            self,
            labels: Sequence[str],
            items: Sequence[Item],
            pairs: Pairs,
            *,
            progress: Progress = silent,
        ) -> np.ndarray:
            return np.asarray([float(abs(hash((labels[i], items[j]))) % 7) for i, j in pairs])

    judge = Noise()
    scores = score_labels(LABELS, TRIALS, judge)
    for trial, score in zip(TRIALS, scores.labels, strict=True):
        items = [Item(t.prompt, t.target) for t in trial.active] + [Item(t.prompt, t.other) for t in trial.active]
        values = judge.fit([score.label], items, [(0, j) for j in range(8)])
        assert score.detection == pytest.approx(roc_auc_score([1] * 4 + [0] * 4, values))
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(values[:4], values[4:], strict=True)]
        assert score.fuzzing == pytest.approx(np.mean(wins))


def test_ties_share_the_first_place() -> None:
    same = dict.fromkeys(range(4), "colours") | {1: "animals"}
    scores = score_labels(same, TRIALS, WordJudge()).labels
    assert scores[1].output == 1
    assert scores[2].output is not None and scores[2].output < 1  # numbers: no label fits


def test_what_cannot_be_measured_is_none() -> None:
    bare = [Trials(atom=0), Trials(atom=1), *TRIALS[2:]]
    scores = score_labels(LABELS, bare, WordJudge())
    first = scores.labels[0]
    assert (first.detection, first.fuzzing, first.output, first.vague, first.concept) == (None,) * 5
    assert scores.summary()["detection"].n == 2 and scores.summary({0})["detection"].value is None


def test_a_label_without_answers_is_not_scored() -> None:
    class Mute(WordJudge):
        def fit(
            self,
            labels: Sequence[str],
            items: Sequence[Item],
            pairs: Pairs,
            *,
            progress: Progress = silent,
        ) -> np.ndarray:
            values = super().fit(labels, items, pairs)
            values[[labels[i] == "colours" for i, _ in pairs]] = np.nan
            return values

    first, second, *_ = score_labels(LABELS, TRIALS, Mute()).labels
    assert first.detection is None and first.fuzzing is None and second.detection == 1


def test_labels_that_fit_random_directions_are_vague() -> None:
    null = [trials(i, "colours", "animals") for i in range(3)]
    scores = score_labels(
        LABELS, TRIALS, WordJudge(), random_labels=dict.fromkeys(range(3), "fruit"), random_trials=null
    )
    assert [s.vague for s in scores.labels] == [
        True,
        False,
        False,
        False,
    ]  # random directions are active on colours too
    other = [trials(0, "fruit", "colours")]
    scores = score_labels(LABELS | {3: "zebra"}, TRIALS, WordJudge(), random_labels={0: "zebra"}, random_trials=other)
    assert [s.vague for s in scores.labels] == [False, False, False, True]


def test_halves_share_no_trial() -> None:
    seen: list[set[Item]] = []

    class Keep(WordJudge):
        def fit(
            self,
            labels: Sequence[str],
            items: Sequence[Item],
            pairs: Pairs,
            *,
            progress: Progress = silent,
        ) -> np.ndarray:
            seen.append({item for item in items if item.prompt.startswith("A word")})
            return super().fit(labels, items, pairs)

    for half in (0, 1):
        score_labels({0: "colours", 1: "animals"}, TRIALS, Keep(), half=half)
    assert seen[0] and seen[1] and not seen[0] & seen[1]


def test_one_label_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least 2 labels"):
        score_labels({0: "colours"}, TRIALS, WordJudge())


def test_which_lookahead_foretells_the_effect() -> None:
    found = foretold(TRIALS)
    assert found["active"].value == pytest.approx(0.9) and found["active"].null == 0
    assert found["gain"].value == pytest.approx(0.6) and found["gain"].interval is not None


@SENTENCES
def test_sentence_embeddings_know_what_a_label_means() -> None:
    judge = EmbeddingJudge()
    scores = score_labels(LABELS, TRIALS, judge, concepts=NAMES, embedder=judge)
    for name in ("detection", "fuzzing"):
        value, null = scores.summary()[name].value, scores.summary()[name].null
        assert value is not None and null is not None and value > 0.9 > 0.6 > null
    assert scores.summary()["concept"].value == 1
    shuffled = scores.summary()["concept"].null
    assert shuffled is not None and shuffled < 0.5


@SENTENCES
def test_a_part_of_a_label_is_enough() -> None:
    whole, part = EmbeddingJudge().fit(
        ["capital: Oslo, Lima", "a long list of other things"], [Item("", " Lima")], [(0, 0), (1, 0)]
    )
    assert whole > 0.7 > 0.5 > part


def test_likelihood_is_what_the_hint_adds(smollm2: LoadedModel) -> None:
    judge = LikelihoodJudge(smollm2)
    items = [
        Item("My favourite is", " red"),
        Item("My favourite is", " horse"),
        Item("", " red"),
        Item("", " blue sky"),
    ]
    labels = ["colours: red, blue", "animals: horse, cow"]
    pairs = [(i, j) for i in range(2) for j in range(4)]
    fit = dict(zip(pairs, judge.fit(labels, items, pairs), strict=True))
    assert fit[0, 0] > fit[1, 0] and fit[1, 1] > fit[0, 1] and fit[0, 2] > fit[1, 2]
    alone = judge.fit(labels[:1], items[3:], [(0, 0)])
    assert alone[0] == pytest.approx(fit[0, 3], abs=0.2)  # whatever else is in the batch


def test_judges_have_names(tiny: LoadedModel) -> None:
    assert make_judge("likelihood", load=lambda: tiny).name.startswith("likelihood:")
    for name in ("oracle", "openai"):
        with pytest.raises(ConfigError):
            make_judge(name, load=lambda: tiny)
    with pytest.raises(ConfigError, match="base_url"):
        make_judge("likelihood", load=lambda: tiny, base_url="http://127.0.0.1:1")
