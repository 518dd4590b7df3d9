"""Dose–response curves: equal budgets, held-out examples, and numbers that whole forwards give as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder, leading
from gradatoms.dictionary.io import load_atoms, load_codes, save_atoms, save_codes
from gradatoms.dictionary.pushes import Pushes, held_out_mask
from gradatoms.dictionary.steps import unit
from gradatoms.dose import Curve, DoseConfig, dose_all, dose_curve, landing, load_curves, summary
from gradatoms.dose.cases import Cases, activations
from gradatoms.dose.files import FILE
from gradatoms.dose.fluency import perplexities
from gradatoms.dose.neutral import CALIBRATING, UNSEEN
from gradatoms.dose.records import Dose, Unmeasured, safe
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.hooking import edit_site
from gradatoms.labels.label import Label, append_results
from gradatoms.models import LoadedModel, load_model
from gradatoms.steering import Meter, calibrate, effect, steer, steering, strength
from gradatoms_store import open_store

HOOK = "blocks.1.hook_resid_post"
CONFIG = DoseConfig(
    budgets=(0.02, 0.1, 0.5), tokens=3, examples=6, fitted=8, unrelated=6, unrelated_tokens=2, written=5, written_tokens=6,
    randoms=2,
)  # fmt: skip
TARGETS = (" Paris", " two")
CONCEPTS = ("city", "number")


@pytest.fixture(scope="module")
def small(small_folder: Path) -> LoadedModel:
    return load_model(str(small_folder), device="cpu")


def planted(small: LoadedModel, folder: Path, concepts: Sequence[str | None]) -> Atoms:
    """Two kinds of examples, each with one target: atoms 0 and 1 are their mean pushes. Atom 2 is active nowhere.

    Args:
        concepts: of the examples, in turn.
    """
    prompts = [e.prompt for e in read_examples("builtin:corrections", limit=100)]
    examples = [
        Example(prompt=prompt, target=TARGETS[i % 2], concept=concepts[i % len(concepts)])
        for i, prompt in enumerate(prompts)
    ]
    harvest(small, examples, folder / "x.gstore", HarvestConfig(hooks=(HOOK,)))
    store = open_store(folder / "x.gstore")
    fitted, kind = ~held_out_mask(store, 0.25, 0), store.rows["example"] % 2
    own = [Pushes(store, rows=np.flatnonzero(fitted & (kind == k))).all().mean(axis=0) for k in (0, 1)]
    noise = np.random.default_rng(0).standard_normal(32)
    W = unit(np.stack([*own, noise]).astype(np.float32))
    made: dict[str, Any] = {"model": dict(store.header.model), "hook": HOOK, "holdout": {"fraction": 0.25, "seed": 0}}
    made["store"] = {"path": str(store.path), "fingerprint": store.fingerprint, "rows": store.n_rows}
    save_atoms(Atoms(W, np.zeros(32, np.float32), OmpCoder(W, 1), HOOK, made), folder / "x.atoms")
    save_codes(folder / "x.atoms" / "codes.h5", csr_array(np.eye(3, dtype=np.float32)[kind]))
    append_results(folder / "x.atoms", [Label(atom=0, label="zero", teacher="human")])
    return load_atoms(folder / "x.atoms")


@pytest.fixture(scope="module")
def atoms(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Atoms:
    return planted(small, tmp_path_factory.mktemp("dose"), CONCEPTS)


@pytest.fixture(scope="module")
def curves(small: LoadedModel, atoms: Atoms) -> dict[int, Curve]:
    assert atoms.path is not None
    found = dose_all(small, atoms, CONFIG)
    assert isinstance(found[2], Unmeasured) and list(load_curves(atoms.path)) == [0, 1]
    assert load_curves(atoms.path) == {0: found[0], 1: found[1]}  # what is read is what was measured
    return load_curves(atoms.path)


@pytest.fixture(scope="module")
def cases(small: LoadedModel, atoms: Atoms) -> Cases:
    assert atoms.path is not None
    return Cases(small, atoms, open_store(atoms.path.with_name("x.gstore")), CONFIG)


@pytest.fixture
def copied(atoms: Atoms, tmp_path: Path) -> Atoms:
    """The same atoms, without curves."""
    assert atoms.path is not None
    shutil.copytree(atoms.path, tmp_path / "x.atoms", ignore=shutil.ignore_patterns(FILE))
    return load_atoms(tmp_path / "x.atoms")


def test_a_planted_atom_gains_on_target(curves: dict[int, Curve]) -> None:
    assert [curve.concept for curve in curves.values()] == list(CONCEPTS)
    for curve in curves.values():
        assert [dose.budget for dose in curve.doses] == list(CONFIG.budgets)
        for dose in curve.doses:
            assert dose.gain > 0 and dose.beats["random"]
        assert curve.at(0.5).gain > curve.at(0.02).gain
        assert curve.at(0.5).off_target_kl is None or curve.at(0.5).off_target_kl > 0
        assert (curve.prompt is None) == (curve.atom == 1)  # the one without a label
        assert ("prompt" in curve.doses[0].beats) == (curve.atom == 0)


def test_every_rival_has_the_same_budget(curves: dict[int, Curve], small: LoadedModel, atoms: Atoms) -> None:
    for curve in curves.values():
        assert set(curve.baselines) == {"random", "mean_difference", "mean_gradient"}
        for effects in (curve.doses, *curve.baselines.values()):
            for found, budget in zip(effects, CONFIG.budgets, strict=True):
                assert found.budget == budget and found.kl == pytest.approx(budget, rel=0.021)
        for dose in curve.doses:
            known = effect(small, atoms[curve.atom], CALIBRATING, dose.alpha, tokens=CONFIG.tokens)
            assert dose.kl == pytest.approx(known, rel=0.05)  # which may be in other precision


def test_only_held_out_rows_are_scored_and_only_fitted_ones_make_directions(
    curves: dict[int, Curve], cases: Cases, atoms: Atoms
) -> None:
    store = cases.store
    held = held_out_mask(store, 0.25, 0)
    assert atoms.path is not None
    lead = leading(load_codes(atoms.path / "codes.h5"))
    for case in cases.of([0, 1]):
        rows = list(curves[case.atom.index].rows)
        assert rows == case.held and 0 < len(rows) <= CONFIG.examples
        assert held[rows].all() and not held[case.fitted].any()
        assert (lead[rows] == case.atom.index).all() and (lead[case.fitted] == case.atom.index).all()
        fitted = np.flatnonzero(~held & (lead == case.atom.index))
        mean = Pushes(store, rows=fitted).all().mean(axis=0)
        np.testing.assert_allclose(case.others["mean_gradient"].direction, mean / np.linalg.norm(mean), atol=1e-5)
        assert all(np.isclose(np.linalg.norm(v.direction), 1, atol=1e-5) for v in case.others.values())
    prompts, active = cases.unrelated()
    held_prompts = {r.prompt for r in store.examples if held[np.flatnonzero(store.rows["example"] == r.id)].all()}
    assert len(prompts) == len(active) == CONFIG.unrelated and set(prompts) <= held_prompts


def test_the_concept_is_read_for_the_target_rate_alone(
    small: LoadedModel, curves: dict[int, Curve], tmp_path: Path
) -> None:
    """Named without regard to what the examples ask for, everything else stays."""
    other = planted(small, tmp_path, ("p", "p", "q", "q"))
    for atom, curve in dose_all(small, other, CONFIG, chosen=[0, 1]).items():
        assert isinstance(curve, Curve) and curve.concept in ("p", "q")
        known = curves[atom]
        assert curve.rows == known.rows and curve.safe_alpha == known.safe_alpha
        for dosed, before_it in zip(curve.doses, known.doses, strict=True):
            assert replace(dosed, target_rate=0.0) == replace(before_it, target_rate=0.0)
        for name, effects in curve.baselines.items():
            for one, before in zip(effects, known.baselines[name], strict=True):
                assert replace(one, target_rate=0.0) == replace(before, target_rate=0.0)
        if curve.prompt is not None and known.prompt is not None:
            assert replace(curve.prompt, target_rate=0.0) == replace(known.prompt, target_rate=0.0)


def test_without_concepts_the_targets_are_those_of_its_examples(small: LoadedModel, tmp_path: Path) -> None:
    atoms = planted(small, tmp_path, (None,))
    cases = Cases(small, atoms, open_store(tmp_path / "x.gstore"), CONFIG)
    for case, target in zip(cases.of([0, 1]), TARGETS, strict=True):
        assert case.concept is None
        assert case.targets == {small.tokenizer(target, add_special_tokens=False).input_ids[0]}


def test_gains_and_rates_are_those_of_whole_forwards(
    curves: dict[int, Curve], cases: Cases, small: LoadedModel
) -> None:
    records = {record.id: record for record in cases.store.examples}
    for case in cases.of([0, 1]):
        curve = curves[case.atom.index]
        target = TARGETS[case.atom.index]
        first = small.tokenizer(target, add_special_tokens=False).input_ids[0]
        assert case.targets == {first}

        def seen(alpha: float, request: str = "", case: Any = case, target: str = target) -> tuple[float, list[int]]:
            """Mean J, and the likeliest token after each prompt."""
            J, tops = [], []
            for row in case.held:
                record = records[int(cases.store.rows["example"][row])]
                prompt = small.tokenizer(request + record.prompt).input_ids
                after = small.tokenizer(target, add_special_tokens=False).input_ids
                last = len(prompt) - 1

                def step(h: torch.Tensor, last: int = last) -> torch.Tensor:
                    h = h.clone()
                    h[:, last] += alpha * h[:, last].norm() * torch.from_numpy(case.atom.direction)
                    return h

                with torch.no_grad(), edit_site(small.hook(HOOK), step):
                    logits = small.model(input_ids=torch.tensor([prompt + after])).logits[0]
                log_p = logits.log_softmax(-1)
                J.append(-sum(float(log_p[last + i, token]) for i, token in enumerate(after)))
                tops.append(int(logits[last].argmax()))
            return float(np.mean(J)), tops

        plain, tops = seen(0.0)
        assert curve.objective == pytest.approx(plain, rel=0.01)
        assert curve.target_rate == np.mean([top == first for top in tops])
        for dose in curve.doses:
            stepped, tops = seen(dose.alpha)
            assert dose.gain == pytest.approx(plain - stepped, abs=0.03)
            assert dose.target_rate == pytest.approx(np.mean([top == first for top in tops]), abs=0.17)
        if curve.prompt is not None:
            assert curve.prompt.request == "Talk about zero. "
            assert curve.prompt.gain == pytest.approx(plain - seen(0.0, curve.prompt.request)[0], abs=0.03)
            kl = Meter(small, CALIBRATING, tokens=CONFIG.tokens).instead(["Talk about zero. " + p for p in CALIBRATING])
            assert curve.prompt.kl == pytest.approx(kl, rel=0.05) and kl > 0


def test_activations_are_those_at_the_last_token(small: LoadedModel) -> None:
    contexts = [small.tokenizer(text).input_ids for text in ("hot", "The capital of France is", "Two plus two")]
    found = activations(small, small.hook(HOOK), contexts)
    seen: list[torch.Tensor] = []
    for ids, row in zip(contexts, found, strict=True):
        with torch.no_grad(), edit_site(small.hook(HOOK), lambda h: seen.append(h[0, -1].clone())):
            small.model(input_ids=torch.tensor([ids]))
        np.testing.assert_allclose(row, seen.pop().numpy(), atol=1e-4)


# Texts


def test_the_perplexity_is_of_texts_written_with_the_step(small: LoadedModel) -> None:
    """Against whole forwards that draw with the same noise."""
    v = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    v /= np.linalg.norm(v)
    prompts = [small.tokenizer(text).input_ids for text in ("The 1", "The 2")]
    assert len({len(ids) for ids in prompts}) == 1
    alpha, tokens = [0.0, 0.8], 5
    found = perplexities(small, small.hook(HOOK), v, alpha, prompts, tokens=tokens, seed=3)
    for strength_of, value in zip(alpha, found, strict=True):
        texts = [list(ids) for ids in prompts]
        noise = torch.Generator().manual_seed(3 * 1_000_003 + len(prompts[0]))
        for _ in range(tokens):
            drawn = -torch.empty(2, 400).exponential_(generator=noise).clamp_min_(1e-30).log_()
            for i, ids in enumerate(texts):

                def step(h: torch.Tensor, a: float = strength_of) -> torch.Tensor:
                    first = len(prompts[0]) - 1
                    changed = h[:, first:] + a * h[:, first:].norm(dim=-1, keepdim=True) * torch.from_numpy(v)
                    return torch.cat([h[:, :first], changed], dim=1)

                with torch.no_grad(), edit_site(small.hook(HOOK), step):
                    logits = small.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int((logits + drawn[i]).argmax()))
        nll = []
        for ids in texts:
            with torch.no_grad():
                log_p = small.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nll += [-float(log_p[i - 1, ids[i]]) for i in range(len(prompts[0]), len(ids))]
        assert value == pytest.approx(np.exp(np.mean(nll)), rel=1e-3)
    again = perplexities(small, small.hook(HOOK), v, alpha, prompts, tokens=tokens, seed=3)
    np.testing.assert_array_equal(found, again)
    other = perplexities(small, small.hook(HOOK), v, alpha, prompts, tokens=tokens, seed=4)
    assert (other != found).all()


def dose(alpha: float, ratio: float) -> Dose:
    return Dose(
        budget=alpha, alpha=alpha, kl=alpha**2, gain=0.0, target_rate=None, off_target_kl=None, perplexity=ratio,
        perplexity_ratio=ratio,
    )  # fmt: skip


def test_the_safe_range_ends_at_the_first_strength_that_is_not_fluent() -> None:
    assert safe([dose(0.1, 1.6), dose(0.2, 1.0)], 1.5) is None
    assert safe([dose(0.1, 1.0), dose(0.2, 1.4)], 1.5) == (0.2, pytest.approx(0.04))
    found = safe([dose(0.4, 1.2), dose(0.1, 1.0), dose(0.2, 2.25)], 1.5)  # in any order; a later one does not count
    assert found == (pytest.approx(0.1 * 2**0.5), pytest.approx(0.02))


# Many atoms


def lines(atoms: Atoms) -> list[str]:
    assert atoms.path is not None
    return (atoms.path / FILE).read_text(encoding="utf-8").splitlines()


def test_an_interrupted_run_goes_on(copied: Atoms, small: LoadedModel, curves: dict[int, Curve]) -> None:
    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dose_all(small, copied, CONFIG, progress=interrupt)
    first = lines(copied)
    assert len(first) == 1 and not any(m._forward_hooks or m._forward_pre_hooks for m in small.model.modules())
    dose_all(small, copied, CONFIG)
    assert lines(copied)[:1] == first and len(lines(copied)) == 3
    told: list[int] = []
    found = dose_all(small, copied, CONFIG, progress=lambda *at: told.append(at[1]))
    assert len(lines(copied)) == 3 and told == []  # nothing is measured a third time
    timed = {atom: replace(curve, seconds=0.0) for atom, curve in curves.items()}
    assert {atom: replace(c, seconds=0.0) for atom, c in found.items() if isinstance(c, Curve)} == timed


def test_other_settings_or_another_label_are_measured_anew(
    copied: Atoms, small: LoadedModel, curves: dict[int, Curve]
) -> None:
    assert copied.path is not None
    source = json.dumps(curves[0].to_dict()) + "\n"
    (copied.path / FILE).write_text(source + source[: len(source) // 2], encoding="utf-8")  # the last one was cut off
    assert dose_curve(small, copied, 0, CONFIG) == curves[0] and len(lines(copied)) == 2
    append_results(copied.path, [Label(atom=0, label="other", teacher="human")])
    changed = dose_curve(small, copied, 0, CONFIG)
    assert changed.prompt is not None and changed.prompt.request == "Talk about other. "
    assert changed.doses[0].gain == curves[0].doses[0].gain
    narrower = dose_curve(small, copied, 0, replace(CONFIG, budgets=(0.1,)))
    assert load_curves(copied.path) == {0: narrower} and len(lines(copied)) == 4
    with (copied.path / FILE).open("a", encoding="utf-8") as file:
        file.write('{"atom": 0}\n')
    with pytest.raises(AtomsFormatError, match="line 5"):
        load_curves(copied.path)


def test_an_atom_without_held_out_rows_has_no_curve(small: LoadedModel, atoms: Atoms, curves: dict[int, Curve]) -> None:
    before = lines(atoms)
    with pytest.raises(ConfigError, match="atom 2 leads, found none"):
        dose_curve(small, atoms, 2, CONFIG)
    assert lines(atoms) == before and 2 not in curves


def test_a_direction_too_weak_for_its_budget_is_not_compared(small: LoadedModel, copied: Atoms) -> None:
    curve = dose_curve(small, copied, 1, replace(CONFIG, budgets=(0.02, 50.0), most=1.0))
    assert curve.doses[0].met and curve.doses[0].beats
    assert not curve.doses[1].met and curve.doses[1].alpha == 1.0 and curve.doses[1].beats == {}


# Together


def test_the_summary_is_over_atoms(curves: dict[int, Curve]) -> None:
    told = summary(curves.values(), 0.5, least=1)
    assert told["atoms"] == 2 and told["beats"]["random"]["value"] == 1.0
    assert told["beats"]["prompt"]["n"] == 1 and told["beats"]["prompt"]["interval"] is None
    assert told["gain"]["atom"]["value"] == pytest.approx(np.mean([c.at(0.5).gain for c in curves.values()]))
    low, high = told["gain"]["atom"]["interval"]
    assert low <= told["gain"]["atom"]["value"] <= high
    assert told["target_rate"]["plain"]["n"] == 2
    json.dumps(told, allow_nan=False)
    with pytest.raises(ConfigError, match="got 3"):
        summary(curves.values(), 3.0, least=1)
    with pytest.raises(ConfigError, match="at least 100"):
        summary(curves.values(), 0.5, least=100)


def test_landing_is_the_effect_on_prompts_that_set_no_strength(small: LoadedModel, atoms: Atoms) -> None:
    found = landing(small, atoms, [0, 1], budget=0.1, tokens=3)
    assert found.n == 2 and set(found.ratios) == {0, 1} and 0 < found.noise < 1
    assert found.value == np.mean([abs(ratio - 1) <= 0.2 for ratio in found.ratios.values()])
    alpha = calibrate(small, atoms[0], CALIBRATING, kl=0.1, tokens=3)
    known = effect(small, atoms[0], UNSEEN, alpha, tokens=3) / 0.1
    assert found.ratios[0] == pytest.approx(known, rel=0.05)
    again = landing(small, atoms, [0], budget=0.1, tokens=3, alpha={0: alpha})
    assert again.ratios[0] == pytest.approx(known, rel=0.05)
    with pytest.raises(ConfigError, match="2 are among"):
        landing(small, atoms, unseen=CALIBRATING[:2])
    with pytest.raises(ConfigError, match="0 atoms"):
        landing(small, atoms, [])


def test_the_neutral_prompts_are_two_sets() -> None:
    assert len(CALIBRATING) == len(UNSEEN) == 48 == len(set(CALIBRATING)) == len(set(UNSEEN))
    assert not set(CALIBRATING) & set(UNSEEN) and all((*CALIBRATING, *UNSEEN))


# The meter


def test_the_meter_tells_prompts_apart(small: LoadedModel, atoms: Atoms) -> None:
    prompts = ["The capital of France is", "hot", "Two plus two", "cold"]
    meter = Meter(small, prompts, tokens=3)
    what = steering(atoms[0], 0.3)
    alone = [Meter(small, [prompt], tokens=3)(what) for prompt in prompts]
    np.testing.assert_allclose(meter.each(what), alone, atol=1e-5)
    assert meter(what) == pytest.approx(np.mean(alone), abs=1e-5)
    assert meter.instead(prompts) == pytest.approx(0, abs=1e-6)
    assert meter.instead(["x " + prompt for prompt in prompts]) > 0
    with steer(small, atoms[0], alpha=0.0):
        assert meter.instead(prompts) == pytest.approx(0, abs=1e-6)


def test_a_strength_is_what_calibration_finds(small: LoadedModel, atoms: Atoms) -> None:
    meter = Meter(small, CALIBRATING[:5])
    alpha, kl = strength(meter, steering(atoms[0], 1.0), 0.2)
    assert alpha == calibrate(small, atoms[0], CALIBRATING[:5], kl=0.2) and kl == meter(steering(atoms[0], alpha))
    near, _ = strength(meter, steering(atoms[0], 1.0), 0.2, start=alpha)
    assert near == alpha  # one try is enough


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"budgets": ()}, "got none"),
        ({"budgets": (0.2, 0.1)}, "0.2, 0.1"),
        ({"budgets": (0.0, 0.1)}, "above 0"),
        ({"fluent": 1.0}, "above 1"),
        ({"most": 0.0}, "most above 0"),
        ({"request": "Talk. "}, "label"),
        ({"examples": 0}, "examples of at least 1"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DoseConfig(**changes)


def test_an_atom_that_is_not_there_is_refused(small: LoadedModel, atoms: Atoms) -> None:
    with pytest.raises(ConfigError, match="from 0 to 2, got 3"):
        dose_curve(small, atoms, 3, CONFIG)
