"""Loading models from folders, GGUF files and the packaged weights; hooks and fingerprints."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gradatoms.errors import ConfigError, GradAtomsError, HookError, ModelLoadError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.hooking import edit_output
from gradatoms.models import SMOLLM2_HUB_ID, SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model, wrap_model


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def child(code: str, **env: str) -> subprocess.Popen[str]:
    """Python in a process of its own: some settings are read at import, and a race needs two."""
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_folder_loads_frozen_in_eval_mode(tiny: LoadedModel) -> None:
    assert not tiny.model.training
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}
    assert tiny.max_tokens == 64
    assert tiny.tokenizer.decode(tiny.tokenizer("naïve 🧪").input_ids) == "naïve 🧪"


def test_the_dtype_asked_for_is_the_dtype_loaded(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_hooks_have_both_names_and_are_the_blocks(architecture: LoadedModel) -> None:
    posts = architecture.find_hooks(["blocks.*.hook_resid_post"])
    assert [site.name for site in posts] == [f"blocks.{i}.hook_resid_post" for i in range(4)]
    for i, site in enumerate(posts):
        assert (site.layer, site.d) == (i, 32)
        assert site.module is architecture.model.get_submodule(site.hf_name)
        assert architecture.hook(site.hf_name) is site
        assert architecture.hook(site.name) is site
    assert architecture.default_hook() == "blocks.1.hook_resid_post"


def test_the_hook_output_is_the_residual_stream(tiny_folder: Path) -> None:
    loaded = load_model(
        str(tiny_folder), device="cpu"
    )  # asking for hidden states leaves transformers' own hooks behind
    ids = torch.tensor([loaded.tokenizer("The capital").input_ids])
    seen: list[torch.Tensor] = []
    with edit_output(loaded.hook("blocks.1.hook_resid_post").module, seen.append):
        expected = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("name", ["blocks.4.hook_resid_post", "blocks.-1.hook_resid_post", "lm_head", ""])
def test_an_unknown_hook_names_the_valid_ones(tiny: LoadedModel, name: str) -> None:
    with pytest.raises(HookError) as error:
        tiny.hook(name)
    text = one_line(error)
    assert repr(name) in text
    assert "blocks.0.hook_resid_post" in text and "blocks.3.hook_resid_post" in text and "model.layers.0" in text


@pytest.mark.parametrize("name", ["./nothing-here", "/nothing/here", "~/nothing-here-at-all", "a/b/c"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelLoadError, match="expected a model folder") as error:
        load_model(name)
    assert str(Path(name).expanduser()) in one_line(error)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json") as error:
        load_model(str(tmp_path))
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_folder(tiny_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.name == damage else content)
    with pytest.raises(ModelLoadError) as error:
        load_model(str(folder))
    assert str(folder) in one_line(error)


def test_an_unknown_dtype_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(GradAtomsError, match="float33") as error:
        load_model(str(tiny_folder), dtype="float33")
    one_line(error)


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="expected a GGUF file, found nothing") as error:
        load_model(str(tmp_path / "model.gguf"))
    assert "model.gguf" in one_line(error)


def test_a_file_that_is_no_gguf_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADATOMS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"not a GGUF file" * 100)
    with pytest.raises(ModelLoadError, match="transformers can read") as error:
        load_model(str(tmp_path / "model.gguf"))
    one_line(error)
    assert not list((tmp_path / "cache").glob("models/*"))


def test_a_hub_id_without_a_network(tmp_path: Path) -> None:
    code = (
        "from gradatoms.errors import ModelLoadError\nfrom gradatoms.models import load_model\n"
        "try:\n    load_model('gradatoms-tests/no-such-model')\n"
        "except ModelLoadError as error:\n    print(error)\n"
    )
    process = child(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.count("\n") == 1
    assert "gradatoms-tests/no-such-model" in out and "needs a network" in out and "smollm2" in out


def test_smollm2_without_its_package_names_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == SMOLLM2_PACKAGE else find(name))
    with pytest.raises(ModelLoadError) as error:
        load_model("smollm2")
    text = one_line(error)
    assert SMOLLM2_INSTALL in text and SMOLLM2_HUB_ID in text


def test_equal_weights_have_equal_fingerprints(
    tiny: LoadedModel, tiny_folder: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    elsewhere = wrap_model(make_model("llama"), tokenizer, "another name")
    assert load_model(str(tiny_folder)).fingerprint == tiny.fingerprint
    assert elsewhere.fingerprint.sha == tiny.fingerprint.sha
    assert tiny.fingerprint.same_weights(elsewhere.fingerprint.to_dict())
    assert (tiny.fingerprint.d_model, tiny.fingerprint.n_layers, tiny.fingerprint.vocab_size) == (32, 4, 320)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_one_changed_parameter_changes_the_fingerprint(
    tiny: LoadedModel, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, key: str
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_parameter(key).add_(1e-3)
    changed = wrap_model(model, tokenizer, tiny.fingerprint.name).fingerprint
    assert changed.sha != tiny.fingerprint.sha
    assert not tiny.fingerprint.same_weights(changed.to_dict())


def test_the_last_rows_of_a_parameter_count_too(
    tiny: LoadedModel, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[-20:].add_(1.0)
    assert wrap_model(model, tokenizer, "changed").fingerprint.sha != tiny.fingerprint.sha


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 2, "num_key_value_heads": 2}, {"rms_norm_eps": 0.1}, {"hidden_act": "relu"}],
    ids=lambda change: next(iter(change)),
)
def test_another_computation_on_the_same_weights_is_another_model(
    tokenizer: PreTrainedTokenizerFast, make_model: Callable[..., PreTrainedModel], change: dict[str, object]
) -> None:
    one = make_model("llama", num_key_value_heads=4)
    other = make_model("llama", **{"num_key_value_heads": 4} | change)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    a, b = (wrap_model(m, tokenizer, "model") for m in (one, other))
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    assert not torch.allclose(a.model(input_ids=ids).logits, b.model(input_ids=ids).logits)
    assert a.fingerprint.sha != b.fingerprint.sha


def test_two_processes_convert_the_packaged_weights_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    code = "from gradatoms.models import load_model\nprint(load_model('smollm2', device='cpu').fingerprint.sha)"
    racing = [child(code, GRADATOMS_CACHE=str(tmp_path), HF_HUB_OFFLINE="1") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], ends
    (folder,) = (tmp_path / "models").iterdir()
    assert not folder.name.endswith(".partial")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    monkeypatch.setenv("GRADATOMS_CACHE", str(tmp_path))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    loaded = load_model("smollm2", device="cpu")
    assert [out.strip() for out, _ in ends] == [loaded.fingerprint.sha] * 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert len(loaded.hooks) == 4 * 30 and loaded.fingerprint.d_model == 576


def save_adapter(folder: Path, base: LoadedModel, *, zero: bool = False, **changes: Any) -> Path:
    """A LoRA adapter with random weights on a copy of a model, saved as peft saves it."""
    import peft

    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": zero}
    model = peft.get_peft_model(copy.deepcopy(base.model), peft.LoraConfig(**settings | changes))
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_goes_on_top(tiny: LoadedModel, tiny_folder: Path, examples: list[Example], tmp_path: Path) -> None:
    """Gradients of the model with its adapter are those of plain autograd on the merged weights."""
    import peft

    folder = save_adapter(tmp_path / "adapter", tiny)
    loaded = load_model(str(tiny_folder), adapter=str(folder), device="cpu")
    assert list(loaded.hooks) == list(tiny.hooks) and loaded.fingerprint.sha != tiny.fingerprint.sha
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.model), folder).merge_and_unload()
    plain = wrap_model(merged, tiny.tokenizer, "merged")
    sites = loaded.find_hooks(["blocks.1.*"])
    sequences = tokenize(loaded, examples, positions="prediction")
    batches = batched([b for e in sequences for b in e], batch_tokens=64, device=loaded.device)
    block = merge_rows([ResidualGradients(loaded, sites)(batch) for batch in batches], sequences)
    for site in sites:
        expected = one_at_a_time(plain, sequences, plain.hook(site.name))
        np.testing.assert_allclose(block.gradients[site.name], expected, rtol=1e-3, atol=1e-5)
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_adapters_that_do_not_fit_are_refused(tiny: LoadedModel, tiny_folder: Path, tmp_path: Path) -> None:
    for adapter in (tmp_path / "none", tiny_folder):
        with pytest.raises(ModelLoadError, match="LoRA adapter") as error:
            load_model(str(tiny_folder), adapter=str(adapter))
        assert str(adapter) in one_line(error)


def test_a_device_map(tiny: LoadedModel, tiny_folder: Path, examples: list[Example]) -> None:
    """All devices of this process, which may be the CPU alone."""
    loaded = load_model(str(tiny_folder), device_map="auto")
    sequences = tokenize(tiny, examples)
    found = []
    for model in (loaded, tiny):
        take = ResidualGradients(model, model.find_hooks(["blocks.1.hook_resid_post"]))
        batches = batched([b for e in sequences for b in e], batch_tokens=64, device=model.device)
        found.append(merge_rows([take(batch) for batch in batches], sequences).gradients["blocks.1.hook_resid_post"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="device_map"):
        load_model(str(tiny_folder), device_map="auto", device="cpu")
