"""A small real model and corpus for the tests that run whole pipelines."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradatoms.examples import Example, read_examples

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs behind a `&`; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def save_small_model(folder: Path, *, seed: int = 0, nan: bool = False) -> Path:
    """A Llama of four blocks with seeded random weights and a byte-level tokenizer, saved as a folder."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([e.prompt + e.target for e in read_examples("builtin:corrections", limit=100)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=512,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    if nan:
        with torch.no_grad():
            model.model.layers[3].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, examples: list[Example]) -> Path:
    """``examples`` as a jsonl file."""
    lines = [
        {"prompt": e.prompt, "target": e.target, "foil": e.foil, "concept": e.concept, "meta": e.meta} for e in examples
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return save_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights."""
    return save_small_model(tmp_path_factory.mktemp("small") / "other", seed=1)


@pytest.fixture(scope="session")
def nan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a weight that is no number."""
    return save_small_model(tmp_path_factory.mktemp("small") / "nan", nan=True)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 examples of the built-in corpus, as a jsonl file."""
    return write_jsonl(
        tmp_path_factory.mktemp("corpus") / "small.jsonl", read_examples("builtin:corrections", limit=96)
    )


pytest_plugins = ["catalog_fixtures"]
