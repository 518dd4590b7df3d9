"""Tiny real models with a real tokenizer, made offline, and the packaged SmolLM2."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gradatoms.examples import Example
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, LoadedModel, load_model, wrap_model

TEXT = (
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "Two plus two is four, and three plus five is eight.",
    "The opposite of hot is cold; the past tense of go is went.",
    "La capitale de la France est Paris.",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of tiny matrices take a hundred times longer when two threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens, so that every text has tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """A model with seeded random weights: ``make_model("llama" | "gpt2" | "neox", seed=0, **config_changes)``."""

    def make(kind: str, seed: int = 0, **changes: object) -> PreTrainedModel:
        torch.manual_seed(seed)
        shared = {"vocab_size": 320, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        if kind == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
            return GPT2LMHeadModel(GPT2Config(**shared | sizes | changes))
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        }
        if kind == "neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**shared | sizes | changes))
        return LlamaForCausalLM(LlamaConfig(**shared | sizes | {"num_key_value_heads": 2} | changes))

    return make


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[..., PreTrainedModel],
) -> Path:
    """A saved tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 3 on the tiny Llama's query and value projections, with random weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    where = tmp_path_factory.mktemp("adapters") / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers' properties, which peft reads
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    """The tiny Llama; tests must leave it as it is."""
    return load_model(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session", params=["llama", "gpt2", "neox"])
def architecture(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, make_model: Callable[..., PreTrainedModel]
) -> LoadedModel:
    """One tiny model of each architecture."""
    return wrap_model(make_model(request.param), tokenizer, f"tiny-{request.param}")


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct as packaged."""
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2", device="cpu")


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Prompts, targets and foils of one and of several tokens, of mixed lengths, each with a span and a distribution."""
    q = {"e": 0.5, "x": 0.3, "!": 0.2}
    return [
        Example(
            prompt="The capital of France is", target=" Paris", foil=" Tokyo", concept="capital", span=(4, 11), distribution=q
        ),
        Example(prompt="Two plus two is", target=" four", foil=" e", concept="sum", span=(0, 3), distribution=q),
        Example(prompt="The", target="s", foil="x", span=(0, 3), distribution={"s": 1.0}),
        Example(
            prompt="The opposite of hot is", target=" cold; the", foil=" went", meta={"group": "hot"}, span=(16, 27),
            distribution=q,
        ),
        Example(prompt="La capitale de la France est", target=" P", foil=" Tokyo, and", span=(3, 6), distribution=q),
        Example(prompt="naïve 🧪 ünï", target=" is", foil=" of", span=(2, 8), distribution={"i": 0.999, "o": 0.001}),
        Example(prompt="Three plus five", target=" is eight", foil="!", span=(14, 16), distribution=q),
    ]  # fmt: skip
