"""Steering changes the model while it is open and leaves no trace; calibration meets its budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatoms.dictionary.base import Atom
from gradatoms.errors import ConfigError, HookError
from gradatoms.models import LoadedModel
from gradatoms.steering import calibrate, effect, generate, generate_steered, steer

HOOK = "blocks.1.hook_resid_post"
PROMPTS = ("The capital of France is", "hot", "Two plus two")


@pytest.fixture
def atom() -> Atom:
    v = np.random.default_rng(3).standard_normal(32).astype(np.float32)
    return Atom(0, HOOK, np.asarray(v / np.linalg.norm(v)))


def logits(loaded: LoadedModel, text: str = PROMPTS[0]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0]


def test_steering_steps_the_last_position_by_alpha_norms(tiny: LoadedModel, atom: Atom) -> None:
    seen: list[torch.Tensor] = []
    block = tiny.hook("blocks.2.hook_resid_post").module

    def look() -> torch.Tensor:
        handle = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        try:
            logits(tiny)
        finally:
            handle.remove()
        return seen.pop()[0]

    before = look()
    with steer(tiny, atom, alpha=0.25):
        after = look()
    torch.testing.assert_close(after[:-1], before[:-1])
    expected = before[-1] + 0.25 * before[-1].norm() * torch.from_numpy(atom.direction)
    torch.testing.assert_close(after[-1], expected)


def test_the_model_is_as_before_afterwards(architecture: LoadedModel, atom: Atom) -> None:
    before = logits(architecture)
    with steer(architecture, atom, alpha=0.5):
        assert not torch.allclose(logits(architecture)[-1], before[-1], atol=1e-2)
    assert torch.equal(logits(architecture), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in architecture.model.modules())


def test_an_exception_inside_takes_the_step_away_too(tiny: LoadedModel, atom: Atom) -> None:
    before = logits(tiny)
    with pytest.raises(RuntimeError, match="inside"), steer(tiny, atom, alpha=0.5):
        raise RuntimeError("inside")
    assert not tiny.hook(HOOK).module._forward_hooks
    assert torch.equal(logits(tiny), before)


def test_atoms_add_up_and_opposite_steps_differ(tiny: LoadedModel, atom: Atom) -> None:
    with steer(tiny, atom, alpha=0.3):
        up = logits(tiny)
        with steer(tiny, atom, alpha=0.3):
            assert not torch.allclose(logits(tiny), up, atol=1e-3)
        assert torch.equal(logits(tiny), up)
    with steer(tiny, atom, alpha=-0.3):
        assert not torch.allclose(logits(tiny), up, atol=1e-3)
    with steer(tiny, atom, alpha=0.0):
        torch.testing.assert_close(logits(tiny)[-1], logits(tiny)[-1])


def test_an_atom_of_another_model_is_refused(tiny: LoadedModel, atom: Atom) -> None:
    other = Atom(0, "blocks.99.hook_resid_post", atom.direction)
    with pytest.raises(HookError, match=r"blocks\.99"), steer(tiny, other, alpha=1.0):
        pass


def test_effect_is_the_kl_of_the_steered_model(tiny: LoadedModel, atom: Atom) -> None:
    def kl(text: str) -> float:
        plain = logits(tiny, text)[-1].log_softmax(-1)
        with steer(tiny, atom, alpha=0.4):
            steered = logits(tiny, text)[-1].log_softmax(-1)
        return float((plain.exp() * (plain - steered)).sum())

    assert effect(tiny, atom, PROMPTS, 0.4) == pytest.approx(np.mean([kl(text) for text in PROMPTS]), abs=1e-4)


@pytest.mark.parametrize("budget", [0.01, 0.1, 0.3])
def test_calibration_meets_its_budget(tiny: LoadedModel, atom: Atom, budget: float) -> None:
    alpha = calibrate(tiny, atom, PROMPTS, kl=budget)
    assert 0 < alpha < 4
    assert effect(tiny, atom, PROMPTS, alpha) == pytest.approx(budget, rel=0.1)


def test_calibration_on_smollm2(smollm2: LoadedModel) -> None:
    v = smollm2.model.get_output_embeddings().weight[smollm2.tokenizer(" Paris").input_ids[0]].numpy()
    atom = Atom(0, smollm2.default_hook(), np.asarray(v / np.linalg.norm(v)))
    alpha = calibrate(smollm2, atom, PROMPTS[:1], kl=0.5)
    assert effect(smollm2, atom, PROMPTS[:1], alpha) == pytest.approx(0.5, rel=0.1)


def test_a_budget_out_of_reach_gives_the_most(tiny: LoadedModel, atom: Atom) -> None:
    assert calibrate(tiny, atom, PROMPTS, kl=1e3, most=0.5) == 0.5
    assert calibrate(tiny, atom, PROMPTS, kl=1e3, most=0.02) == 0.02


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_a_budget_of_nothing_is_refused(tiny: LoadedModel, atom: Atom, budget: float) -> None:
    with pytest.raises(ConfigError, match=str(budget)):
        calibrate(tiny, atom, PROMPTS, kl=budget)


def test_a_budget_that_is_no_number_is_refused(tiny: LoadedModel, atom: Atom, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(*args: object) -> float:
        nonlocal calls
        calls += 1
        assert calls < 100, "the bisection does not end"
        return 1.0

    monkeypatch.setattr("gradatoms.steering.effect", counted)
    with pytest.raises(ConfigError, match="nan"):
        calibrate(tiny, atom, PROMPTS, kl=float("nan"))


def test_no_prompts_are_refused(tiny: LoadedModel, atom: Atom) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        calibrate(tiny, atom, [], kl=0.1)


def test_generation_without_and_with_the_atom(tiny: LoadedModel, atom: Atom) -> None:
    found = generate_steered(tiny, atom, PROMPTS[0], alpha=1.0, max_tokens=6)
    assert found.plain == generate(tiny, PROMPTS[0], 6)
    assert found.steered != found.plain
    assert (found.alpha, found.kl) == (1.0, pytest.approx(effect(tiny, atom, PROMPTS[:1], 1.0)))
    with steer(tiny, atom, alpha=1.0):
        assert found.steered == generate(tiny, PROMPTS[0], 6)
    automatic = generate_steered(tiny, atom, PROMPTS[0], kl=0.2, max_tokens=2)
    assert automatic.kl == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("prompt, max_tokens", [("", 5), ("hot", 0)])
def test_nothing_to_generate_is_refused(tiny: LoadedModel, atom: Atom, prompt: str, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match="at least"):
        generate_steered(tiny, atom, prompt, alpha=1.0, max_tokens=max_tokens)
