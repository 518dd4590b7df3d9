"""Steering changes the model while it is open and leaves no trace; calibration meets its budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradatoms.dictionary.base import Atom
from gradatoms.errors import ConfigError, HookError
from gradatoms.hooking import edit_site
from gradatoms.models import LoadedModel
from gradatoms.steering import Operator, Positions, calibrate, effect, generate, generate_steered, steer

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


# Operators, positions, sets


def seen_after(loaded: LoadedModel, text: str = PROMPTS[0], layer: int = 2) -> torch.Tensor:
    """What block ``layer`` is given, (S, d)."""
    seen: list[torch.Tensor] = []
    block = loaded.hook(f"blocks.{layer}.hook_resid_post").module
    handle = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    try:
        logits(loaded, text)
    finally:
        handle.remove()
    return seen[0][0]


@pytest.fixture
def pair(atom: Atom) -> list[Atom]:
    """Two atoms that are not at right angles."""
    v = atom.direction + 0.7 * np.random.default_rng(4).standard_normal(32).astype(np.float32) / np.sqrt(32)
    return [atom, Atom(1, HOOK, np.asarray(v / np.linalg.norm(v), np.float32))]


def test_a_weighted_set_adds_each_atom_with_its_strength(tiny: LoadedModel, pair: list[Atom]) -> None:
    before = seen_after(tiny)
    with steer(tiny, pair, alpha=[0.3, -0.1], positions="all"):
        after = seen_after(tiny)
    direction = torch.from_numpy(0.3 * pair[0].direction - 0.1 * pair[1].direction)
    torch.testing.assert_close(after, before + before.norm(dim=-1, keepdim=True) * direction, atol=1e-4, rtol=1e-4)


def test_clamped_components_are_what_was_asked(tiny: LoadedModel, pair: list[Atom]) -> None:
    before, D = seen_after(tiny), torch.from_numpy(np.stack([a.direction for a in pair]))
    with steer(tiny, pair, alpha=[0.4, 0.2], operator="clamp", positions="all"):
        after = seen_after(tiny)
    asked = before.norm(dim=-1, keepdim=True) * torch.tensor([0.4, 0.2])
    torch.testing.assert_close(after @ D.T, asked, atol=1e-4, rtol=1e-4)
    change = after - before
    within = change @ torch.linalg.pinv(D) @ D
    torch.testing.assert_close(within, change, atol=1e-4, rtol=1e-4)  # nothing beside the atoms changes


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_ablation_takes_components_away(tiny: LoadedModel, pair: list[Atom], share: float) -> None:
    before, D = seen_after(tiny), torch.from_numpy(np.stack([a.direction for a in pair]))
    with steer(tiny, pair, alpha=share, operator="ablate", positions="all"):
        after = seen_after(tiny)
    torch.testing.assert_close(after @ D.T, (1 - share) * (before @ D.T), atol=1e-4, rtol=1e-4)


def test_other_hooks_are_edited_in_place_of_the_atoms_own(tiny: LoadedModel, atom: Atom) -> None:
    plain = [seen_after(tiny, layer=i) for i in (1, 2, 3)]
    with steer(tiny, atom, alpha=0.2, positions="all", hooks=["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]):
        found = [seen_after(tiny, layer=i) for i in (1, 3)]
    step = plain[0].norm(dim=-1, keepdim=True) * 0.2 * torch.from_numpy(atom.direction)
    torch.testing.assert_close(found[0], plain[0] + step, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[1], plain[2], atol=1e-2)


POSITIONS = ("last", "generated", "all")


def greedy(loaded: LoadedModel, texts: list[str], cache: bool, side: str = "left", n: int = 6) -> torch.Tensor:
    """New tokens (B, n) of a padded batch."""
    loaded.tokenizer.padding_side = side
    inputs = loaded.tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = loaded.model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=n, min_new_tokens=n,
            do_sample=False, use_cache=cache, pad_token_id=0,
        )  # fmt: skip
    return out[:, inputs.input_ids.shape[1] :]


def by_hand(loaded: LoadedModel, what: Atom, text: str, alpha: float, positions: str, n: int = 6) -> list[int]:
    """Greedy tokens by whole forwards, each with the step where it belongs."""
    prompt = loaded.tokenizer(text).input_ids
    ids = list(prompt)
    first = {"last": len(prompt) - 1, "generated": len(prompt), "all": 0}[positions]

    def step(h: torch.Tensor) -> torch.Tensor:
        v = torch.from_numpy(what.direction)
        return torch.cat([h[:, :first], h[:, first:] + alpha * h[:, first:].norm(dim=-1, keepdim=True) * v], dim=1)

    for _ in range(n):
        with torch.no_grad(), edit_site(loaded.hook(what.hook), step):
            scores = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        scores[0] = -torch.inf  # the end token may not come: n tokens are asked for
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "uncached"])
def test_generation_is_steered_where_it_should_be(
    architecture: LoadedModel, atom: Atom, positions: Positions, cache: bool
) -> None:
    """In a batch of texts of several lengths, with the key-value cache or without it."""
    texts = ["The capital of France is", "hot", "Two plus two"]
    with steer(architecture, atom, alpha=0.6, positions=positions):
        found = greedy(architecture, texts, cache).tolist()
        again = greedy(architecture, texts, cache).tolist()  # a second prompt is not taken for more of the first
    assert found == again == [by_hand(architecture, atom, text, 0.6, positions) for text in texts]
    plain = greedy(architecture, texts, cache)
    assert found != plain.tolist()
    if positions == "generated":
        assert [row[0] for row in found] == plain[:, 0].tolist()


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_plain_forward_padded_on_the_right_is_steered_alike(
    tiny: LoadedModel, atom: Atom, positions: Positions
) -> None:
    tiny.tokenizer.padding_side = "right"
    inputs = tiny.tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    with steer(tiny, atom, alpha=0.4, positions=positions):
        with torch.no_grad():
            together = tiny.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        for row, text in enumerate(PROMPTS):
            alone = logits(tiny, text)
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", ["add", "clamp", "ablate"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_operator_has_a_strength_for_an_effect(
    tiny: LoadedModel, pair: list[Atom], operator: Operator, positions: Positions
) -> None:
    how = {"operator": operator, "positions": positions, "tokens": 3}
    least, most = (effect(tiny, pair, PROMPTS, alpha, **how) for alpha in (1e-6, 1.0))
    assert most > least and (least > 1e-3) == (operator == "clamp")
    for kl in (least + 0.3 * (most - least), least + 0.1 * (most - least)):
        alpha = calibrate(tiny, pair, PROMPTS, kl=kl, **how)
        assert effect(tiny, pair, PROMPTS, alpha, **how) == pytest.approx(kl, rel=0.05)


def test_a_clamp_whose_effect_is_never_so_small_ends(tiny: LoadedModel, pair: list[Atom]) -> None:
    assert calibrate(tiny, pair, PROMPTS, kl=1e-5, operator="clamp") <= 0.1


def test_a_set_keeps_its_proportions(tiny: LoadedModel, pair: list[Atom]) -> None:
    scale = calibrate(tiny, pair, PROMPTS, kl=0.1, weights=[1.0, -0.5])
    assert effect(tiny, pair, PROMPTS, [scale, -0.5 * scale]) == pytest.approx(0.1, rel=0.03)


def test_samples_of_one_seed_differ_by_the_atom_alone(tiny: LoadedModel, atom: Atom) -> None:
    state = torch.random.get_rng_state()
    one, two = (generate_steered(tiny, atom, PROMPTS[0], alpha=1e-6, max_tokens=8, seed=s) for s in (3, 4))
    assert one.plain == one.steered and one.plain != two.plain
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"alpha": [0.1, 0.2]}, "1 atoms and 2 strengths"),
        ({"alpha": float("nan")}, "finite"),
    ],
)
def test_a_wrong_steering_is_refused(tiny: LoadedModel, atom: Atom, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said), steer(tiny, atom, **{"alpha": 0.1} | changes):
        pass
