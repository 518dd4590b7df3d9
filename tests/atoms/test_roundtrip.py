"""From a description back to the push, on planted pushes whose descriptions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder
from gradatoms.errors import ConfigError
from gradatoms.models import LoadedModel
from gradatoms.projector.roundtrip import SHUFFLES, Bounded, TextToPush, push_of_terms, round_trip
from gradatoms.projector.text import Term

D, N_ATOMS, TRAIN, ROWS = 24, 8, 300, 120
LABELS = ("Paris, Rome", "four, eight", "cold", "went, gone", "Tokyo", "France, capitale", "past", "opposite of hot")


@dataclass(frozen=True)
class Planted:
    """Pushes of two atoms and a little noise around a mean, and what a perfect projector says of each."""

    atoms: Atoms
    train: np.ndarray
    train_texts: list[str]
    pushes: np.ndarray
    terms: list[list[Term]]
    texts: list[str]


@pytest.fixture(scope="module")
def planted() -> Planted:
    rng = np.random.default_rng(3)
    W = np.linalg.qr(rng.standard_normal((D, N_ATOMS)))[0].T.astype(np.float32)
    b = 0.1 * rng.standard_normal(D).astype(np.float32)
    codes = np.zeros((TRAIN + ROWS, N_ATOMS), dtype=np.float32)
    for row in codes:
        row[rng.choice(N_ATOMS, 2, replace=False)] = 0.7, 0.3
    pushes = (codes @ W + 0.02 * rng.standard_normal((len(codes), D)) + b).astype(np.float32)
    terms = [[Term(int(a), LABELS[a], float(row[a])) for a in np.argsort(-row)[:2]] for row in codes]
    texts = [f"strongly {one.label} (0.7); partly {two.label} (0.3)" for one, two in terms]
    atoms = Atoms(W, b, OmpCoder(W, 2), "blocks.1.hook_resid_post")
    return Planted(atoms, pushes[:TRAIN], texts[:TRAIN], pushes[TRAIN:], terms[TRAIN:], texts[TRAIN:])


@pytest.fixture(scope="module")
def text_map(planted: Planted, tiny: LoadedModel) -> TextToPush:
    return TextToPush().fit(tiny, planted.train_texts, planted.atoms.center(planted.train))


def measured(
    planted: Planted, text_map: TextToPush, terms: Sequence[Sequence[Term]], texts: Sequence[str], seed: int = 0
) -> dict[str, Bounded]:
    mean = planted.atoms.center(planted.train).mean(axis=0)
    rng = np.random.default_rng(seed)
    return round_trip(planted.atoms, planted.pushes, terms, texts, text_map, rng, train_mean=mean)


def test_terms_add_up(planted: Planted) -> None:
    W = planted.atoms.W_dec
    found = push_of_terms(planted.atoms, [[Term(2, "a", 0.7), Term(5, "b", 0.3)], [], [Term(0, "c", 1.0)]])
    np.testing.assert_allclose(found, np.stack([0.7 * W[2] + 0.3 * W[5], 0 * W[0], W[0]]), atol=1e-6)
    assert push_of_terms(planted.atoms, []).shape == (0, D)


def test_true_descriptions_come_near_the_ceiling_and_shuffled_ones_do_not(
    planted: Planted, text_map: TextToPush
) -> None:
    found = measured(planted, text_map, planted.terms, planted.texts)
    terms, text = found["roundtrip_terms"], found["roundtrip_text"]
    x = planted.atoms.center(planted.pushes)
    back = planted.atoms.center(planted.atoms.decode(planted.atoms.encode(planted.pushes)))
    ceiling = np.mean(np.sum(x * back, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(back, axis=1))
    assert terms.value is not None and text.value is not None and text.null is not None
    assert ceiling - 0.03 < terms.value <= ceiling + 1e-6
    assert f"{ceiling:.3f}" in terms.note
    # Two descriptions share atoms by chance: the cosine of two random codes, not 0, is what shuffling leaves.
    mean = x.mean(axis=0)
    assert terms.null == pytest.approx(np.sum(mean**2) / np.mean(np.sum(x**2, axis=1)), abs=0.03)
    assert text.value > text.null + 0.3
    for m in (terms, text):
        assert m.interval is not None and m.interval[0] <= m.value <= m.interval[1]
        assert m.n == ROWS and m.p == pytest.approx(1 / (SHUFFLES + 1))


def test_wrong_descriptions_score_like_shuffled_ones(planted: Planted, text_map: TextToPush) -> None:
    turned = np.roll(np.arange(ROWS), 7)
    found = measured(planted, text_map, [planted.terms[i] for i in turned], [planted.texts[i] for i in turned])
    for m in found.values():
        assert m.value == pytest.approx(m.null, abs=0.15)
        assert m.p is not None and m.p > 0.01


def test_a_row_without_pressure_counts_as_zero(planted: Planted, text_map: TextToPush) -> None:
    full = measured(planted, text_map, planted.terms, planted.texts)
    silent = [[] if i < ROWS // 2 else terms for i, terms in enumerate(planted.terms)]
    half = measured(planted, text_map, silent, planted.texts)
    for name, m in half.items():
        assert m.value == pytest.approx(full[name].value / 2, rel=0.1)
        assert f"{ROWS // 2} of {ROWS} rows named no atom" in m.note
    mute = measured(planted, text_map, [[] for _ in range(ROWS)], planted.texts)
    assert all((m.value, m.null, m.p) == (0, 0, 1) for m in mute.values())


def test_the_mean_push_is_noted(planted: Planted, text_map: TextToPush) -> None:
    x = planted.atoms.center(planted.pushes)
    mean = planted.atoms.center(planted.train).mean(axis=0)
    cosine = np.mean(x @ mean / np.linalg.norm(x, axis=1) / np.linalg.norm(mean))
    found = measured(planted, text_map, planted.terms, planted.texts)
    assert all(f"the mean push {cosine:.3f}" in m.note for m in found.values())


def test_the_same_seed_gives_the_same_numbers(planted: Planted, text_map: TextToPush) -> None:
    one, again, other = (measured(planted, text_map, planted.terms, planted.texts, seed) for seed in (0, 0, 1))
    assert one == again
    assert one["roundtrip_terms"].null != other["roundtrip_terms"].null


def test_the_map_reads_the_words(planted: Planted, text_map: TextToPush, tiny: LoadedModel) -> None:
    """Fitted on shuffled pushes, the same map finds nothing in unseen rows."""
    wrong = np.random.default_rng(0).permutation(TRAIN)
    shuffled = TextToPush().fit(tiny, planted.train_texts, planted.atoms.center(planted.train[wrong]))
    x = planted.atoms.center(planted.pushes)
    centre = x.mean(axis=0)

    def explained(fitted: TextToPush) -> float:
        return float(1 - np.sum((x - fitted.predict(planted.texts)) ** 2) / np.sum((x - centre) ** 2))

    assert explained(text_map) > 0.4
    assert explained(shuffled) < 0.05


def test_a_text_is_the_mean_of_its_embeddings(planted: Planted, text_map: TextToPush, tiny: LoadedModel) -> None:
    """The order of tokens and their repetition change nothing; an empty text is answered too."""
    one, twice, empty = text_map.predict(["Paris cold", "Paris coldParis cold", ""])
    ids = [tiny.tokenizer(t)["input_ids"] for t in ("Paris cold", "Paris coldParis cold")]
    assert ids[1] == 2 * ids[0]
    np.testing.assert_allclose(one, twice, atol=1e-4)
    assert np.isfinite(empty).all() and np.abs(empty - one).max() > 1e-3


def test_no_rows_have_no_number(planted: Planted, text_map: TextToPush) -> None:
    mean = np.zeros(D, dtype=np.float32)
    found = round_trip(planted.atoms, planted.pushes[:0], [], [], text_map, np.random.default_rng(0), train_mean=mean)
    assert {m.value for m in found.values()} == {None} and {m.n for m in found.values()} == {0}


def test_what_cannot_be_fitted_or_read_is_refused(planted: Planted, text_map: TextToPush, tiny: LoadedModel) -> None:
    x = planted.atoms.center(planted.train)
    with pytest.raises(ConfigError, match="expected a fitted text map"):
        TextToPush().predict(["Paris"])
    with pytest.raises(ConfigError, match="expected a push for each of 2 texts"):
        TextToPush().fit(tiny, ["a", "b"], x)
    with pytest.raises(ConfigError, match="expected texts that differ"):
        TextToPush().fit(tiny, ["a"] * TRAIN, x)
    with pytest.raises(ConfigError, match="expected a description for each"):
        measured(planted, text_map, planted.terms[:-1], planted.texts)
