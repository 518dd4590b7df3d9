"""Batched gradients against a loop of plain autograd, one example at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gradatoms.errors import ConfigError, ExampleError, ModelMismatchError
from gradatoms.examples import Example
from gradatoms.gradients.batches import PADDINGS, batched
from gradatoms.gradients.objective import Projection
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import OBJECTIVES, POSITIONS, TokenSequence, tokenize
from gradatoms.hooking import edit_output
from gradatoms.models import LoadedModel, wrap_model
from gradatoms_store import ACTIVATION, GradientBlock

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def fast(
    loaded: LoadedModel,
    sequences: Sequence[Sequence[TokenSequence]],
    *,
    batch_tokens: int = 4096,
    hooks: Iterable[str] = HOOKS,
    padding: str = "right",
    **settings: Any,
) -> GradientBlock:
    """The rows as the harvest makes them."""
    branches = [branch for example in sequences for branch in example]
    take = ResidualGradients(loaded, [loaded.hook(name) for name in hooks], **settings)
    batches = batched(branches, batch_tokens=batch_tokens, device=loaded.device, padding=padding)
    return merge_rows([take(batch) for batch in batches], sequences)


@pytest.fixture(scope="session")
def second(tokenizer: PreTrainedTokenizerFast, make_model: Callable[..., PreTrainedModel]) -> LoadedModel:
    """A second model of the same tokens."""
    return wrap_model(make_model("gpt2", seed=5), tokenizer, "second")


def assert_same_rows(found: np.ndarray, expected: np.ndarray) -> None:
    norms, wanted = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    assert found.shape == expected.shape and wanted.min() > 0
    assert np.abs(norms / wanted - 1).max() < 1e-3
    assert ((found * expected).sum(axis=1) / (norms * wanted)).min() >= 0.9999


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("objective", [*OBJECTIVES, "kl to a model"])
def test_batched_gradients_equal_plain_autograd(
    architecture: LoadedModel,
    second: LoadedModel,
    examples: list[Example],
    objective: str,
    positions: str,
    padding: str,
) -> None:
    reference = second if objective == "kl to a model" else None
    settings = {"objective": objective.split()[0], "positions": positions}
    sequences = tokenize(architecture, examples, reference=reference is not None, **settings)
    assert len({len(branch.ids) for branches in sequences for branch in branches}) > 3
    if objective == "contrast":
        assert {len(branches) for branches in sequences} == {1, 2}
    for whole_logits in (False, True):
        block = fast(architecture, sequences, padding=padding, reference=reference, whole_logits=whole_logits)
        for hook in HOOKS:
            expected = one_at_a_time(architecture, sequences, architecture.hook(hook), reference=reference)
            assert_same_rows(block.gradients[hook], expected)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere", "gpt2", "llama"])
def test_the_vocabulary_in_pieces_gives_what_whole_logits_give(
    kind: str, tokenizer: PreTrainedTokenizerFast, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are scaled are a product still; those that Gemma 2 bends are not, and are taken whole."""
    monkeypatch.setattr(Projection, "step", staticmethod(lambda positions: 7))
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    scales = {
        "granite": {"logits_scaling": 3.0},
        "cohere": {"logit_scale": 0.25},
        "gemma2": {"final_logit_softcapping": 2.0},
    }
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **ids, **scales.get(kind, {}))
    loaded = wrap_model(AutoModelForCausalLM.from_config(config), tokenizer, kind)
    hooks = ["blocks.1.hook_resid_post"]
    sites = loaded.find_hooks(hooks)
    assert ResidualGradients(loaded, sites).in_pieces == (kind != "gemma2")
    for objective in OBJECTIVES:
        sequences = tokenize(loaded, examples, objective=objective, positions="prediction")
        pieces, whole = (fast(loaded, sequences, hooks=hooks, whole_logits=whole) for whole in (False, True))
        np.testing.assert_allclose(pieces.loss, whole.loss, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pieces.gradients[hooks[0]], whole.gradients[hooks[0]], rtol=1e-4, atol=1e-5)


def test_activations_come_beside_gradients(architecture: LoadedModel, examples: list[Example]) -> None:
    sequences = tokenize(architecture, examples, objective="contrast", positions="prompt")
    block = fast(architecture, sequences, activations=True)
    for hook in HOOKS:
        kept: list[torch.Tensor] = []
        for branches, example in zip(sequences, range(len(examples)), strict=True):
            with torch.no_grad(), edit_output(architecture.hook(hook).module, kept.append):
                architecture.model(input_ids=torch.tensor([branches[0].ids]))
            rows = block.example == example
            expected = kept.pop()[0, block.position[rows]].numpy()
            np.testing.assert_allclose(block.gradients[hook + ACTIVATION][rows], expected, rtol=1e-4, atol=1e-5)


def test_a_second_model_of_other_tokens_is_refused(tiny: LoadedModel, smollm2: LoadedModel) -> None:
    with pytest.raises(ModelMismatchError, match="smollm2 has others"):
        ResidualGradients(tiny, tiny.find_hooks(HOOKS), reference=smollm2)


def test_batched_gradients_equal_plain_autograd_on_smollm2(smollm2: LoadedModel, examples: list[Example]) -> None:
    hooks = ("blocks.14.hook_resid_post", "blocks.22.hook_resid_post")
    sequences = tokenize(smollm2, examples[2:5], objective="contrast")
    block = fast(smollm2, sequences, hooks=hooks)
    assert_same_rows(block.gradients[hooks[1]], one_at_a_time(smollm2, sequences, smollm2.hook(hooks[1])))


def test_the_order_of_the_hooks_and_the_others_taken_with_them_do_not_matter(
    tiny: LoadedModel, examples: list[Example]
) -> None:
    sequences = tokenize(tiny, examples)
    both = fast(tiny, sequences, hooks=reversed(HOOKS))
    for hook in HOOKS:
        alone = fast(tiny, sequences, hooks=[hook])
        np.testing.assert_allclose(both.gradients[hook], alone.gradients[hook], atol=1e-6)


@pytest.mark.parametrize("objective", ["nll", "contrast"])
def test_a_row_does_not_depend_on_its_batch(tiny: LoadedModel, examples: list[Example], objective: str) -> None:
    sequences = tokenize(tiny, examples, objective=objective, positions="prediction")
    whole = fast(tiny, sequences)
    for batch_tokens in (1, 20):
        parts = fast(tiny, sequences, batch_tokens=batch_tokens)
        for name in ("example", "position", "token", "target"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
        np.testing.assert_allclose(parts.loss, whole.loss, atol=1e-5)
        for hook in HOOKS:
            np.testing.assert_allclose(parts.gradients[hook], whole.gradients[hook], atol=1e-5)


def test_batches_hold_every_sequence_once_within_the_budget(tiny: LoadedModel, examples: list[Example]) -> None:
    branches = [b for e in tokenize(tiny, examples, objective="contrast") for b in e]
    batches = list(batched(branches, batch_tokens=40, device=tiny.device))
    assert all(batch.ids_LS.numel() <= 40 or len(batch.ids_LS) == 1 for batch in batches)
    assert sorted(e for batch in batches for e in batch.example_B) == sorted(b.example for b in branches)
    assert sum(batch.n_tokens for batch in batches) == sum(len(b.ids) for b in branches)


def test_the_gradient_is_the_slope_of_the_objective(tiny: LoadedModel, examples: list[Example]) -> None:
    """Central differences of J along a random direction at the hook's last prompt position."""
    site = tiny.hook(HOOKS[0])
    sequences = tokenize(tiny, examples, objective="contrast")
    gradients = fast(tiny, sequences).gradients[HOOKS[0]]
    v = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for branches, gradient in zip(sequences, gradients, strict=True):

        def moved(step: float, branches: list[TokenSequence] = branches) -> float:
            def add(h: torch.Tensor) -> torch.Tensor:
                h = h.clone()
                h[:, branches[0].rows[0]] += step * v
                return h

            with edit_output(site.module, add):
                return sum(objective(tiny, branch) for branch in branches)

        slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
        assert slope == pytest.approx(float(gradient @ v.numpy()), rel=0.02, abs=2e-3)


def objective(loaded: LoadedModel, branch: TokenSequence) -> float:
    """J of one sequence, straight from the full logits."""
    with torch.no_grad():
        log_probs = loaded.model(input_ids=torch.tensor([branch.ids])).logits[0].double().log_softmax(-1)
    return sum(-sign * float(log_probs[position, token]) for position, token, sign in branch.terms)


def test_loss_is_the_objective_in_nats(tiny: LoadedModel, examples: list[Example]) -> None:
    """J from the text alone: prompt and continuation are tokenised here again."""

    def nll(prompt: str, continuation: str) -> float:
        before = tiny.tokenizer(prompt).input_ids
        after = tiny.tokenizer(continuation, add_special_tokens=False).input_ids
        with torch.no_grad():
            log_probs = tiny.model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
        return -sum(float(log_probs[len(before) - 1 + i, token]) for i, token in enumerate(after))

    plain = fast(tiny, tokenize(tiny, examples)).loss
    np.testing.assert_allclose(plain, [nll(e.prompt, e.target) for e in examples], rtol=1e-5)
    contrast = fast(tiny, tokenize(tiny, examples, objective="contrast")).loss
    expected = [nll(e.prompt, e.target) - nll(e.prompt, str(e.foil)) for e in examples]
    np.testing.assert_allclose(contrast, expected, rtol=1e-4, atol=1e-5)


def test_rows_name_the_token_read_and_the_token_to_predict(tiny: LoadedModel) -> None:
    example = Example(prompt="The capital", target=" of France")
    prompt, target = (tiny.tokenizer(text).input_ids for text in (example.prompt, example.target))
    assert len(target) > 1
    last = fast(tiny, tokenize(tiny, [example]))
    assert (last.position.tolist(), last.token.tolist(), last.target.tolist()) == (
        [len(prompt) - 1], prompt[-1:], target[:1],
    )  # fmt: skip
    every = fast(tiny, tokenize(tiny, [example], positions="prediction"))
    assert every.position.tolist() == [len(prompt) - 1 + i for i in range(len(target))]
    assert every.token.tolist() == [prompt[-1], *target[:-1]]
    assert every.target.tolist() == target


def test_positions_of_the_prompt_and_all(tiny: LoadedModel) -> None:
    example = Example(prompt="The capital", target=" of France", foil=" of Japan and")
    prompt, target = (tiny.tokenizer(text).input_ids for text in (example.prompt, example.target))
    last, end = len(prompt) - 1, len(prompt) + len(target) - 1
    for positions, stop in (("prompt", len(prompt)), ("all", end)):
        for objective in ("nll", "contrast"):
            block = fast(tiny, tokenize(tiny, [example], objective=objective, positions=positions))
            assert block.position.tolist() == list(range(stop))
            assert block.token.tolist() == [*prompt, *target[:-1]][:stop]
            assert block.target.tolist() == ([-1] * last + target)[:stop]


@pytest.mark.parametrize("take", ["fast", "reference"])
def test_the_model_is_left_untouched(tiny: LoadedModel, examples: list[Example], take: str) -> None:
    sequences = tokenize(tiny, examples, objective="contrast")
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    if take == "fast":
        fast(tiny, sequences)
    else:
        one_at_a_time(tiny, sequences, tiny.hook(HOOKS[0]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())
    assert not tiny.model.training
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_hooks_are_removed_when_the_forward_fails(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, examples: list[Example]
) -> None:
    loaded = wrap_model(make_model("llama"), tokenizer, "broken")
    sequences = tokenize(loaded, examples)

    def fail(h: torch.Tensor) -> None:
        raise RuntimeError("in the last block")

    with edit_output(loaded.hook("blocks.3.hook_resid_post").module, fail), pytest.raises(RuntimeError, match="last"):
        fast(loaded, sequences)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_bfloat16_is_close(tiny: LoadedModel, examples: list[Example]) -> None:
    sequences = tokenize(tiny, examples)
    (batch,) = batched([b for e in sequences for b in e], batch_tokens=4096, device=tiny.device)
    sites = [tiny.hook(name) for name in HOOKS]
    exact, near = (ResidualGradients(tiny, sites, autocast=dtype)(batch).gradients for dtype in (None, torch.bfloat16))
    for hook in HOOKS:
        assert near[hook].dtype == np.float32
        cosine = (exact[hook] * near[hook]).sum(1) / np.prod(
            [np.linalg.norm(g[hook], axis=1) for g in (exact, near)], 0
        )
        assert cosine.min() > 0.98 and not math.isclose(cosine.min(), 1.0, abs_tol=1e-9)


def refusal(loaded: LoadedModel, examples: list[Example], **settings: Any) -> str:
    with pytest.raises((ExampleError, ConfigError)) as error:
        tokenize(loaded, examples, **settings)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_target_longer_than_the_context_names_the_example(tiny: LoadedModel, examples: list[Example]) -> None:
    length = len(tiny.tokenizer("x" * 10).input_ids)
    assert length == 10
    tokenize(
        tiny, [Example(prompt="x" * 5, target="x" * 60)]
    )  # 64 tokens are fed: the last one only has to be predicted
    text = refusal(tiny, [*examples, Example(prompt="x" * 5, target="x" * 61)])
    assert f"example {len(examples) + 1}" in text and "'xxxxx'" in text and "64" in text and "65" in text
    long_foil = Example(prompt="x" * 5, target="x", foil="x" * 61)
    tokenize(tiny, [long_foil])
    assert "example 1" in refusal(tiny, [long_foil], objective="contrast")


def test_contrast_needs_a_foil_in_every_example(tiny: LoadedModel, examples: list[Example]) -> None:
    text = refusal(tiny, [*examples, Example(prompt="no foil here", target=" b")], objective="contrast")
    assert "foil" in text and f"example {len(examples) + 1}" in text and "no foil here" in text


def test_unknown_settings_name_the_known(tiny: LoadedModel, examples: list[Example]) -> None:
    assert "nll, contrast" in refusal(tiny, examples, objective="mse")
    assert "last, prediction" in refusal(tiny, examples, positions="first")
