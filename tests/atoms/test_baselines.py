"""Ranking labels without a projector: planted structure is found, and is gone when pushes and rows are shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder
from gradatoms.errors import ConfigError
from gradatoms.hooking import edit_output
from gradatoms.labels.evidence import NOTHING_MOVED, Evidence, Injected, Moved, TokenShift
from gradatoms.labels.storage import Gathered, save_evidence
from gradatoms.models import LoadedModel
from gradatoms.projector.baselines import NEVER, baselines, oracle, some, unit, word_tokens
from gradatoms.projector.rows import Rows
from gradatoms.projector.unseen import ridge, unseen_rankers

HOOK = "blocks.1.hook_resid_post"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
BY_TEXT = ("label embedding", "text-to-push alignment", "contrastive")
FAST = ("nearest atom", "nearest centroid", "linear probe")


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def made_up(n: int, seed: int, prefix: str = "") -> list[str]:
    """Labels of three letters or digits, which say nothing but their tokens."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found[prefix + ", ".join(rng.choice(list(LETTERS), 3, replace=False))] = None
    return list(found)


def embedded(loaded: LoadedModel, words: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean token embedding of each label's words, centred and unit."""
    E = loaded.embeddings.detach().numpy()
    phi = np.stack([E[list(w)].mean(axis=0) for w in words])
    return unit(phi - phi.mean(axis=0))


@dataclass(frozen=True)
class World:
    """Rows whose pushes are their atom's direction and noise, far from the origin."""

    atoms: Atoms
    rows: Rows
    train: np.ndarray
    tests: np.ndarray

    def shuffled(self, seed: int = 0) -> World:
        """Which push belongs to which train row is lost."""
        pushes, held = self.rows.pushes.copy(), np.flatnonzero(self.train)
        pushes[held] = pushes[np.random.default_rng(seed).permutation(held)]
        return replace(self, rows=replace(self.rows, pushes=pushes))

    def recall(self, scores: np.ndarray, tests: np.ndarray | None = None) -> float:
        cols = np.asarray(sorted(self.rows.labels))
        return float((cols[scores.argmax(axis=1)] == self.rows.lead[self.tests if tests is None else tests]).mean())


def world(
    directions: np.ndarray,
    labels: Sequence[str],
    hidden: int = 0,
    *,
    each: int = 8,
    noise: float = 0.3,
    targets: Sequence[str] | None = None,
    pushes: np.ndarray | None = None,
) -> World:
    """``each`` rows an atom; the last ``hidden`` atoms have no train row, and theirs are the tests if there are any."""
    n, d = len(directions), directions.shape[1]
    lead = np.arange(n * each) % n
    bias = 3 * normal(d, seed=9)
    atoms = Atoms(directions.astype(np.float32), bias, OmpCoder(directions.astype(np.float32), 1), HOOK)
    x = directions[lead] + noise * normal(len(lead), d, seed=8) / np.sqrt(d) if pushes is None else pushes
    held = lead >= n - hidden if hidden else np.arange(len(lead)) >= len(lead) - 2 * n
    rows = Rows(
        numbers=np.arange(len(lead)),
        pushes=(x + bias).astype(np.float32),
        codes=atoms.encode((x + bias).astype(np.float32)),
        lead=lead,
        fitted=~held,
        prompts=[f"The capital of {i} is" for i in range(len(lead))],
        targets=list(targets) if targets is not None else [" is"] * len(lead),
        concepts=[f"concept {a // 3}" for a in lead.tolist()],
        labels=dict(enumerate(labels)),
    )
    return World(atoms, rows, ~held, np.flatnonzero(held))


# Baselines


def test_planted_atoms_are_found_and_not_when_shuffled(tiny: LoadedModel) -> None:
    w = world(unit(normal(30, 32, seed=1)), made_up(30, 0), noise=1.0)
    found = baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=FAST)
    lost = baselines(tiny, w.atoms, w.shuffled().rows, w.train, w.tests, only=FAST)
    wrong = replace(w.atoms, W_dec=w.atoms.W_dec[::-1].copy())
    lost |= baselines(tiny, wrong, w.rows, w.train, w.tests, only=FAST[:1])
    for name in FAST:
        assert w.recall(found[name]) > 0.85, name
        assert w.recall(lost[name]) < 0.25, name


def test_pushes_are_centred_by_the_dictionary_first(tiny: LoadedModel) -> None:
    w = world(unit(normal(30, 32, seed=1)), made_up(30, 0))
    off = baselines(tiny, replace(w.atoms, b_dec=np.zeros(32, np.float32)), w.rows, w.train, w.tests, only=FAST)
    assert w.recall(off["nearest atom"]) < 0.5


def test_atoms_without_a_label_are_no_columns(tiny: LoadedModel) -> None:
    directions = unit(normal(10, 32, seed=1))
    directions[9] = unit(directions[:1] + 0.01 * directions[1:2])[0]
    w = world(directions, made_up(10, 0))
    keep = w.rows.lead != 9
    rows = replace(w.rows, labels={a: t for a, t in w.rows.labels.items() if a != 9})
    found = baselines(tiny, w.atoms, rows, w.train & keep, w.tests[keep[w.tests]], only=FAST)
    assert all(s.shape[1] == 9 for s in found.values())
    assert replace(w, rows=rows).recall(found["nearest atom"], w.tests[keep[w.tests]]) > 0.95


def test_what_learns_from_rows_cannot_name_a_label_without_any(tiny: LoadedModel) -> None:
    w = world(unit(normal(20, 32, seed=1)), made_up(20, 0), hidden=4)
    found = baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=FAST)
    for name in ("nearest centroid", "linear probe"):
        assert (found[name][:, 16:] == NEVER).all() and (found[name][:, :16] > NEVER / 2).all(), name
    assert w.recall(found["nearest atom"]) > 0.95


def test_concepts_change_nothing_but_the_oracle(tiny: LoadedModel) -> None:
    w = world(unit(normal(12, 32, seed=1)), made_up(12, 0), each=4)
    none = replace(w.rows, concepts=None)
    first, second = (baselines(tiny, w.atoms, r, w.train, w.tests) for r in (w.rows, none))
    assert list(first) == ["nearest atom", "nearest centroid", "linear probe", "logit lens", "lookahead"]
    assert all(s.shape == (len(w.tests), 12) and np.isfinite(s).all() for s in first.values())
    assert all(np.array_equal(first[k], second[k]) for k in first)
    truth = w.rows.kinds()[w.tests]
    assert np.mean(np.asarray(oracle(w.rows, w.train, w.tests)) == truth) > 0.9
    assert np.mean(np.asarray(oracle(w.shuffled().rows, w.train, w.tests)) == truth) < 0.6
    with pytest.raises(ConfigError, match="names the concept"):
        oracle(none, w.train, w.tests)


def test_a_centroid_is_the_mean_of_centred_unit_pushes(tiny: LoadedModel) -> None:
    w = world(unit(normal(6, 32, seed=1)), made_up(6, 0), noise=2.0)
    found = baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=["nearest centroid"])["nearest centroid"]
    x = w.rows.pushes - w.atoms.b_dec
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for label in range(6):
        mean = x[w.train & (w.rows.lead == label)].mean(axis=0)
        np.testing.assert_allclose(found[:, label], x[w.tests] @ mean / np.linalg.norm(mean), atol=1e-5)


def test_two_labels_and_one_are_enough_to_learn_from(tiny: LoadedModel) -> None:
    w = world(unit(normal(2, 32, seed=1)), made_up(2, 0))
    assert w.recall(baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=FAST)["linear probe"]) == 1.0
    alone = w.train & (w.rows.lead == 1)
    scores = baselines(tiny, w.atoms, w.rows, alone, w.tests, only=FAST)["linear probe"]
    assert (scores.argmax(axis=1) == 1).all()


def test_without_train_rows_nothing_is_learned(tiny: LoadedModel) -> None:
    w = world(unit(normal(6, 32, seed=1)), made_up(6, 0))
    nothing = np.zeros_like(w.train)
    for call in (
        lambda: baselines(tiny, w.atoms, w.rows, nothing, w.tests),
        lambda: oracle(w.rows, nothing, w.tests),
        lambda: unseen_rankers(tiny, w.atoms, w.rows, nothing, w.tests),
    ):
        with pytest.raises(ConfigError, match="hold out less"):
            call()
    with pytest.raises(ConfigError, match="got nearest"):
        baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=["nearest"])


def test_word_tokens_leave_out_what_is_no_word(tiny: LoadedModel) -> None:
    (found,) = word_tokens(tiny, ["the capital, the: x1"])
    texts = [tiny.decode([i]) for i in found]
    assert len(set(found)) == len(found) and all(any(c.isalnum() for c in t) for t in texts)
    assert {"x", "1"} <= {t.strip() for t in texts} and not {",", ":"} & {t.strip() for t in texts}
    assert word_tokens(tiny, ["?!"]) == [[]]


def test_the_lens_reads_the_words_of_a_push_along_their_unembedding(tiny: LoadedModel) -> None:
    labels = made_up(30, 3)
    words = word_tokens(tiny, labels)
    U = tiny.model.get_output_embeddings().weight.detach().numpy()
    directions = unit(np.stack([U[w].mean(axis=0) for w in words]))
    w = world(directions, labels)
    found = baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=["logit lens"])["logit lens"]
    norm = tiny.model.model.norm.weight.detach().numpy()
    logits = w.rows.pushes @ (U * norm).T
    by_label = np.stack([logits[:, i].mean(axis=1) for i in words], axis=1)
    by_label -= logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, by_label[w.tests] - by_label[w.train].mean(axis=0), atol=1e-3)
    assert w.recall(found) > 0.8
    assert (
        w.recall(baselines(tiny, w.atoms, w.shuffled().rows, w.train, w.tests, only=["logit lens"])["logit lens"]) > 0.8
    )  # it learns nothing


def test_the_lookahead_is_the_shift_of_words_after_the_rows_own_prompt(tiny: LoadedModel) -> None:
    w = world(unit(normal(5, 32, seed=1)), [*made_up(4, 0), "?!"], each=6)
    found = baselines(tiny, w.atoms, w.rows, w.train, w.tests, only=["lookahead"])["lookahead"]

    def shift(row: int) -> np.ndarray:
        ids = torch.tensor([tiny.tokenizer(w.rows.prompts[row]).input_ids])

        def step(h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            h[0, -1] += 0.1 * h[0, -1].norm() * torch.from_numpy(w.rows.pushes[row])
            return h

        with torch.no_grad():
            plain = tiny.model(input_ids=ids).logits[0, -1].log_softmax(-1)
            with edit_output(tiny.hook(HOOK).module, step):
                moved = tiny.model(input_ids=ids).logits[0, -1].log_softmax(-1) - plain
        return np.asarray([moved[i].mean() for i in word_tokens(tiny, list(w.rows.labels.values()))[:4]])

    usual = np.mean([shift(i) for i in np.flatnonzero(w.train)], axis=0)
    expected = np.stack([shift(i) - usual for i in w.tests])
    assert np.corrcoef(found[:, :4].ravel(), expected.ravel())[0, 1] > 0.98  # products may run in bfloat16
    assert np.abs(found[:, :4] - expected).max() < 0.2 * np.abs(expected).max()
    assert (found[:, 4] == NEVER).all()


def test_some_rows_are_drawn_without_repeats_and_in_order() -> None:
    rows = np.arange(100, 200)
    drawn = some(rows, 10, np.random.default_rng(0))
    assert len(set(drawn)) == 10 and (np.diff(drawn) > 0).all() and np.isin(drawn, rows).all()
    assert some(rows, 100, np.random.default_rng(0)) is rows


# Labels never trained on


def ranked(loaded: LoadedModel, w: World, steps: int = 0, **more: Any) -> dict[str, np.ndarray]:
    """All but the slow ones: without the sentence model, and with ``steps`` of the contrastive maps."""
    return unseen_rankers(loaded, w.atoms, w.rows, w.train, w.tests, sentences=False, steps=steps, **more)


@pytest.fixture(scope="module")
def linear(tiny: LoadedModel) -> World:
    """Atoms that are one linear map of their labels' words; the last 15 of 75 are held out."""
    labels = made_up(75, 5)
    return world(unit(embedded(tiny, word_tokens(tiny, labels)) @ normal(32, 32, seed=4)), labels, hidden=15)


def test_a_planted_map_names_labels_it_was_not_fitted_on(tiny: LoadedModel, linear: World) -> None:
    found, lost = ranked(tiny, linear, 100), ranked(tiny, linear.shuffled(), 100)
    assert set(BY_TEXT) <= set(found) and not {"promoted tokens", "neutral steps", "more concepts"} & set(found)
    for name in BY_TEXT:
        assert found[name].shape == (len(linear.tests), 75)
        assert linear.recall(found[name]) > 0.6, name
        assert linear.recall(lost[name]) < 0.15, name
    assert np.array_equal(found["combined"].argmax(axis=1), found["text-to-push alignment"].argmax(axis=1))


def test_rows_outside_of_training_are_never_fitted_on(tiny: LoadedModel, linear: World) -> None:
    w = replace(linear, tests=linear.tests[::2])
    others = np.setdiff1d(linear.tests, w.tests)
    pushes, lead = w.rows.pushes.copy(), w.rows.lead.copy()
    pushes[others], lead[others] = pushes[others][::-1] + 1, lead[others][::-1]
    targets = [t if i not in set(others.tolist()) else " Paris" for i, t in enumerate(w.rows.targets)]
    changed = replace(w.rows, pushes=pushes, lead=lead, targets=targets, concepts=None)
    first, second = ranked(tiny, w, 5), ranked(tiny, replace(w, rows=changed), 5)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_calibration_lowers_trained_labels_and_changes_no_order_among_the_others(
    tiny: LoadedModel, linear: World
) -> None:
    noisy = replace(
        linear.rows, pushes=linear.rows.pushes + 1.5 * normal(600, 32, seed=6) / np.sqrt(32, dtype=np.float32)
    )
    w = replace(linear, rows=noisy)
    found = ranked(tiny, w)
    less = found["combined"] - found["combined, calibrated"]
    assert (less[:, 60:] == 0).all() and np.allclose(less[:, :60], less[0, 0]) and less[0, 0] > 0
    assert w.recall(found["combined, calibrated"]) > w.recall(found["combined"])


def test_rows_of_other_dictionaries_help_where_own_ones_are_few(tiny: LoadedModel) -> None:
    labels, others = made_up(40, 5), made_up(80, 6, "Q, ")
    directions = unit(embedded(tiny, word_tokens(tiny, labels + others)) @ normal(32, 32, seed=4))
    w = world(directions[:40], labels, hidden=34)
    lead = np.arange(400) % 80
    pushes = (directions[40:][lead] + 0.3 * normal(400, 32, seed=7) / np.sqrt(32)).astype(np.float32)
    names = [others[i] for i in lead]
    found = ranked(tiny, w, more=[(pushes, names)])
    assert w.recall(found["more concepts"]) > 0.5
    assert w.recall(found["text-to-push alignment"]) < 0.35
    lost = ranked(tiny, w, more=[(pushes, names[7:] + names[:7])])
    assert w.recall(lost["more concepts"]) < 0.35


def test_targets_teach_labels_that_no_row_has(tiny: LoadedModel) -> None:
    labels = [", ".join(LETTERS[i : i + 2]) for i in range(0, 60, 2)]
    words = word_tokens(tiny, labels)
    rng = np.random.default_rng(2)
    lead = np.arange(30 * 20) % 30
    token = np.asarray([rng.choice(words[a]) for a in lead])
    U = tiny.model.get_output_embeddings().weight.detach().numpy()
    pushes = unit((U - U.mean(axis=0))[token] @ normal(32, 32, seed=4)) + 0.3 * normal(600, 32, seed=3) / np.sqrt(32)
    w = world(
        unit(normal(30, 32, seed=1)), labels, 8, each=20, pushes=pushes, targets=[tiny.tokenizer.decode([t]) for t in token]
    )  # fmt: skip
    found = ranked(tiny, w)
    swapped = [w.rows.targets[i] for i in rng.permutation(600)]
    lost = ranked(tiny, replace(w, rows=replace(w.rows, targets=swapped)))
    nothing = ranked(tiny, replace(w, rows=replace(w.rows, targets=[""] * 600)))
    for name in ("target token", "average Jacobian"):
        assert w.recall(found[name]) > 0.3, name
        assert w.recall(lost[name]) < 0.12, name
        assert not nothing[name].any()


def evidence_of(atom: int, active: Sequence[str], neutral: Sequence[str]) -> Evidence:
    def moved(tokens: Sequence[str]) -> Moved:
        up = tuple(TokenShift(f" {t}" if t in "ab" else t, 0.1, 1.0) for t in tokens)
        return replace(NOTHING_MOVED, promoted=up, promoted_ratio=up)

    none: dict[str, Any] = dict.fromkeys(("inactive", "active_minus", "inactive_minus"), NOTHING_MOVED)
    gains: dict[str, Any] = dict.fromkeys(("own_gain", "other_gain", "own_gain_minus", "other_gain_minus"), 0.0)
    half = len(neutral) // 2
    injected = Injected(
        alpha=0.1, active=moved(active), neutral=moved(neutral[:half]), neutral_minus=moved(neutral[half:]), lens=(),
        linear_cosine=1.0, linear_cosine_small=1.0, **none, **gains,
    )  # fmt: skip
    return Evidence(atom=atom, injected=injected)


def test_the_measured_effect_of_an_atom_stands_for_its_label(tiny: LoadedModel, tmp_path: Path) -> None:
    """Labels here say nothing; what rises in neutral contexts, or where the atom is active, is planted."""
    rng = np.random.default_rng(3)
    lists = [rng.choice(list(LETTERS), 8, replace=False).tolist() for _ in range(75)]
    counts = np.zeros((75, len(LETTERS)), dtype=np.float32)
    for row, tokens in enumerate(lists):
        counts[row, [LETTERS.index(t) for t in tokens]] = [1] * 4 + [-1] * 4
    by_sign = unit(counts @ normal(len(LETTERS), 32, seed=1))
    for key, planted in (("neutral steps", by_sign), ("promoted tokens", None)):
        if planted is None:
            ids = [[tiny.tokenizer(t).input_ids[0] for t in tokens] for tokens in lists]
            planted = unit(embedded(tiny, ids) @ normal(32, 32, seed=4))
        active, neutral = (lists, [["x"]] * 75) if key == "promoted tokens" else ([["x"]] * 75, lists)
        found = [evidence_of(a, active[a], neutral[a]) for a in range(75)]
        save_evidence(tmp_path / "evidence.h5", Gathered(found, [], [], []))
        w = world(planted, made_up(75, 5), hidden=15)
        w = replace(w, atoms=replace(w.atoms, path=tmp_path))
        scores, lost = ranked(tiny, w), ranked(tiny, w.shuffled())
        assert w.recall(scores[key]) > 0.5, key
        assert w.recall(lost[key]) < 0.15, key
        assert w.recall(scores["text-to-push alignment"]) < 0.15


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_ridge_is_that_of_sklearn_in_both_forms(shape: tuple[int, int]) -> None:
    A, B = normal(*shape, seed=1), normal(shape[0], 3, seed=2)
    for strength, M in zip((0.5, 5.0), ridge(A, B, (0.5, 5.0)), strict=True):
        np.testing.assert_allclose(M, Ridge(alpha=strength, fit_intercept=False).fit(A, B).coef_.T, atol=1e-4)


def test_too_few_labels_to_choose_by_are_refused(tiny: LoadedModel) -> None:
    w = world(unit(normal(6, 32, seed=1)), made_up(6, 0), hidden=2)
    with pytest.raises(ConfigError, match="at least 5 labels"):
        unseen_rankers(tiny, w.atoms, w.rows, w.train, w.tests, sentences=False)
