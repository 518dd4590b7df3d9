"""Every hook of tiny random models of many architectures, against one example at a time through plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gradatoms.dictionary.base import Atom
from gradatoms.errors import GradientError, HookError, ModelLoadError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.linear import find_linear, uncovered
from gradatoms.gradients.projection import ProjectionConfig, random_projection
from gradatoms.gradients.reference import one_at_a_time, weights_one_at_a_time
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.tuning import choose
from gradatoms.gradients.weights import WeightGradients
from gradatoms.hooking import edit_site
from gradatoms.models import KINDS, LoadedModel, wrap_model
from gradatoms.steering import Positions, steer
from gradatoms_store import open_store

LAYERS = 3
COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GATED = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2}
WINDOWED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

CONFIGS = {
    "llama": ("llama", GATED),
    "llama tied": ("llama", GATED | {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", COMMON),
    "gpt_neox": ("gpt_neox", COMMON | {"intermediate_size": 48, "use_parallel_residual": True}),
    "gpt_neox sequential": ("gpt_neox", COMMON | {"intermediate_size": 48, "use_parallel_residual": False}),
    "gemma2": ("gemma2", GATED | WINDOWED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", GATED | WINDOWED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "qwen3": ("qwen3", GATED | {"head_dim": 8}),
    "mistral": ("mistral", GATED | {"sliding_window": 4}),
    "opt": ("opt", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt post-norm": ("opt", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "phi3": ("phi3", GATED),
    "falcon parallel": ("falcon", COMMON | {"parallel_attn": True, "multi_query": True, "alibi": False}),
    "falcon sequential": ("falcon", COMMON | {"parallel_attn": False, "alibi": True}),
    "mixtral": ("mixtral", GATED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gptj": ("gptj", COMMON | {"rotary_dim": 4}),
    "phi": ("phi", COMMON | {"intermediate_size": 48}),
    "olmo2": ("olmo2", GATED),
    "glm4": ("glm4", GATED | {"head_dim": 8}),
    "granite": ("granite", GATED | {"residual_multiplier": 0.5}),
    "bloom": ("bloom", COMMON),
    "mamba": ("mamba", COMMON | {"state_size": 4}),
}
"""Name to the type of its config, and its settings."""

WITHOUT = {"bloom": {"attn_out", "mlp_out"}, "mamba": {"attn_out", "mlp_out"}}
"""Kinds of hooks that an architecture does not have."""


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """A tiny model of each architecture."""
    kind, settings = CONFIGS[request.param]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    return wrap_model(AutoModelForCausalLM.from_config(config), tokenizer, request.param)


def seen_at(loaded: LoadedModel, names: Sequence[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations at hooks."""
    found: dict[str, torch.Tensor] = {}
    for name in names:

        def look(h: torch.Tensor, name: str = name) -> None:
            found[name] = h.clone()

        with torch.no_grad(), edit_site(loaded.hook(name), look):
            loaded.model(input_ids=ids, use_cache=False)
    return found


def test_hooks_are_found_in_every_block(model: LoadedModel) -> None:
    kinds = [kind for kind in KINDS if kind not in WITHOUT.get(model.fingerprint.name, set())]
    assert list(model.hooks) == [f"blocks.{i}.hook_{kind}" for i in range(LAYERS) for kind in kinds]
    assert model.fingerprint.n_layers == LAYERS
    for site in model.hooks.values():
        assert model.hook(site.hf_name) is site
        assert site.module is model.model.get_submodule(site.hf_name.removesuffix(":input"))


def test_what_attention_and_mlp_give_is_what_the_block_adds(model: LoadedModel, examples: list[Example]) -> None:
    if model.fingerprint.name in (*WITHOUT, "opt post-norm"):
        pytest.skip("this architecture has neither, or norms their sum")
    scale = getattr(model.model.config, "residual_multiplier", 1.0)
    ids = torch.tensor([model.tokenizer(examples[0].prompt).input_ids])
    found = seen_at(model, list(model.hooks), ids)
    for i in range(LAYERS):
        pre, attn, mlp, post = (found[f"blocks.{i}.hook_{kind}"] for kind in KINDS)
        torch.testing.assert_close(pre + scale * (attn + mlp), post, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "positions"), [("nll", "prediction"), ("contrast", "last"), ("logit", "span"), ("kl", "all")]
)
def test_gradients_at_every_hook_equal_plain_autograd(
    model: LoadedModel, examples: list[Example], objective: str, positions: str
) -> None:
    """All hooks in one pass, padded batches of several lengths."""
    sequences = tokenize(model, examples, objective=objective, positions=positions)
    branches = [branch for example in sequences for branch in example]
    sites = list(model.hooks.values())
    batches = batched(branches, batch_tokens=64, device=model.device)
    block = merge_rows([ResidualGradients(model, sites)(batch) for batch in batches], sequences)
    for site in sites:
        expected = one_at_a_time(model, sequences, site)
        found = block.gradients[site.name]
        norms, wanted = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
        pushed = wanted > 0  # behind the last attention, a position bears on its own prediction alone
        assert pushed.any() and (pushed.all() or positions in ("span", "all"))
        assert norms[~pushed].max(initial=0) == 0
        assert np.abs(norms[pushed] / wanted[pushed] - 1).max() < 1e-3, site.name
        assert ((found * expected).sum(axis=1)[pushed] / (norms * wanted)[pushed]).min() > 0.9999, site.name


def test_one_hook_alone_gives_what_all_together_give(model: LoadedModel, examples: list[Example]) -> None:
    """The graph is cut elsewhere then."""
    sequences = tokenize(model, examples)
    (batch,) = batched([b for e in sequences for b in e], batch_tokens=4096, device=model.device)
    together = ResidualGradients(model, list(model.hooks.values()))(batch).gradients
    for site in model.hooks.values():
        alone = ResidualGradients(model, [site])(batch).gradients[site.name]
        np.testing.assert_allclose(alone, together[site.name], atol=1e-5, rtol=1e-4)


def test_an_edit_at_a_hook_reaches_the_logits(model: LoadedModel, examples: list[Example]) -> None:
    ids = torch.tensor([model.tokenizer(examples[0].prompt).input_ids])
    step = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.model(input_ids=ids, use_cache=False).logits
        for site in model.hooks.values():
            with edit_site(site, lambda h: h + step):
                moved = model.model(input_ids=ids, use_cache=False).logits
            assert not torch.allclose(plain, moved, atol=1e-3)
        torch.testing.assert_close(model.model(input_ids=ids, use_cache=False).logits, plain)


def test_what_an_architecture_does_not_have_is_refused_by_name(model: LoadedModel) -> None:
    for kind in WITHOUT.get(model.fingerprint.name, set()):
        with pytest.raises(HookError, match=f"Block has no .*hook_{kind}"):
            model.hook(f"blocks.0.hook_{kind}")
    with pytest.raises(HookError, match=r"blocks\.0\.hook_resid_post"):
        model.find_hooks(["blocks.7.*"])


def test_a_model_whose_rows_see_their_padding_gets_a_mask(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    """BERT without a causal mask: what is padded to the right changes what stands left of it, unless it is masked."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **COMMON | {"intermediate_size": 48})
    loaded = wrap_model(AutoModelForCausalLM.from_config(config), tokenizer, "bidirectional")
    assert {site.kind for site in loaded.hooks.values()} == {"resid_pre", "resid_post"}
    report = harvest(loaded, examples, tmp_path / "a.gstore", HarvestConfig())
    assert report.choices.padding == "masked"
    alone = harvest(loaded, examples, tmp_path / "b.gstore", HarvestConfig(batch_tokens=1))
    assert alone.choices.padding == "right" and alone.rows == report.rows == len(examples)
    together, apart = (open_store(tmp_path / f"{name}.gstore") for name in "ab")
    order = np.argsort(together.rows["example"]), np.argsort(apart.rows["example"])
    one, other = (store.read(store.hooks[0], rows) for store, rows in zip((together, apart), order, strict=True))
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-4)
    np.testing.assert_allclose(one.gradients, other.gradients, atol=1e-3)


class Mixing(torch.nn.Module):
    """A last block whose output depends on everything in the batch."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block, self.part = block, torch.nn.Sequential(torch.nn.Identity())

    def forward(self, h: torch.Tensor, **options: object) -> torch.Tensor:
        found = self.block(h, **options)
        mixed: torch.Tensor = found + found.mean()
        return mixed


def test_a_model_whose_rows_see_each_other_is_refused_in_batches(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **GATED))
    model.model.layers[1] = Mixing(model.model.layers[1])
    loaded = wrap_model(model, tokenizer, "mixing")
    config = HarvestConfig(hooks=("blocks.0.hook_resid_post",))
    with pytest.raises(GradientError, match=r"LlamaForCausalLM J is .* --batch-tokens 1"):
        harvest(loaded, examples, tmp_path / "a.gstore", config)
    assert not (tmp_path / "a.gstore").exists()
    assert harvest(loaded, examples, tmp_path / "a.gstore", replace(config, batch_tokens=1)).rows == len(examples)


def test_an_architecture_without_blocks_is_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    config = AutoConfig.for_model("xlm", n_layers=2, emb_dim=32, n_heads=4, n_words=320, causal=True)
    with pytest.raises(ModelLoadError, match="blocks in XLMWithLMHeadModel"):
        wrap_model(AutoModelForCausalLM.from_config(config), tokenizer, "xlm")


def test_globs_and_all(tiny: LoadedModel) -> None:
    def names(*patterns: str) -> list[str]:
        return [site.name for site in tiny.find_hooks(patterns)]

    assert names("all") == list(tiny.hooks) and len(tiny.hooks) == 16
    assert names("blocks.?.hook_resid_post") == [f"blocks.{i}.hook_resid_post" for i in range(4)]
    assert names("blocks.[01].hook_*_out") == [f"blocks.{i}.hook_{k}" for i in (0, 1) for k in ("attn_out", "mlp_out")]
    assert names("model.layers.*.mlp", "blocks.1.hook_mlp_out") == [f"blocks.{i}.hook_mlp_out" for i in range(4)]
    assert names("model.layers.2", "model.layers.2:input") == ["blocks.2.hook_resid_post", "blocks.2.hook_resid_pre"]


@pytest.mark.parametrize("positions", ["last", "generated", "all"])
def test_steered_generation_is_the_same_with_and_without_a_cache(model: LoadedModel, positions: Positions) -> None:
    direction = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    atom = Atom(0, "blocks.1.hook_resid_post", np.asarray(direction / np.linalg.norm(direction)))
    ids = torch.tensor([model.tokenizer("The capital of France is").input_ids])

    def generated(cache: bool) -> list[int]:
        with torch.no_grad():
            out = model.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, min_new_tokens=8, do_sample=False,
                use_cache=cache, pad_token_id=0,
            )  # fmt: skip
        return list(out[0, ids.shape[1] :].tolist())

    plain = generated(True)
    found = []
    for cache in (True, False):
        with steer(model, atom, alpha=3.0, positions=positions):
            found.append(generated(cache))
    assert found[0] == found[1] != plain
    assert (found[0][0] == plain[0]) or positions != "generated"
    assert generated(True) == plain and not any(m._forward_pre_hooks for m in model.model.modules())


def test_weight_gradients_are_those_of_autograd(model: LoadedModel, examples: list[Example]) -> None:
    """Of every linear module that sees each token once, whole, in one batch of all lengths."""
    sites = find_linear(model, ["all"])
    whole = random_projection(sites, ProjectionConfig(kind="random", top_k=10**8))
    take = WeightGradients(model, sites, whole, sketch=0)
    sequences = tokenize(model, examples)
    branches = [one[0] for one in sequences]
    choices = choose(
        model,
        branches,
        branches,
        lambda *_: take,
        dtype="float32",
        batch_tokens=4096,
        padding="auto",
        share_prefixes=False,
    )
    got = take(choices.batch(branches, model.device)).gradients["weights"]
    found = weights_one_at_a_time(model, sequences, sites)
    expected = np.stack([np.concatenate([g.numpy().ravel() for g in gradients]) for gradients in found])
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert len(sites) >= 4 and error.max() < 1e-3, error
    skipped = [item for item in uncovered(model, sites) if len(item.shape) > 1 and "embedding" not in item.reason]
    experts = {"mixtral": ("experts", "gate.weight"), "mamba": ("dt_proj", "A_log", "conv1d")}.get(
        model.fingerprint.name, ()
    )
    assert all(any(part in item.name for part in experts) for item in skipped), skipped
