"""Chats through a template, plain text, spans, distributions, and data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gradatoms.errors import ExampleError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.gradients.sequences import tokenize
from gradatoms.models import LoadedModel, load_tokenizer
from gradatoms_store import open_store

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "The capital of France?"},
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": "And Japan?"},
    {"role": "assistant", "content": "Tokyo."},
]


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a template."""
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    found.chat_template = CHATML
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records to a jsonl file."""

    def make(*records: Any) -> Path:
        path = tmp_path / "lines.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return make


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(ExampleError) as error:
        read_examples(path, **settings)
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_a_chat_is_rendered_and_its_loss_is_on_the_assistants_turns(
    chatty: PreTrainedTokenizerFast, tiny: LoadedModel, write: Callable[..., Path]
) -> None:
    path = write({"messages": CHAT, "concept": "capital"})
    (example,) = read_examples(path, tokenizer=lambda: chatty)
    assert example.prompt == "<|user|>The capital of France?<|end|><|assistant|>"
    assert example.target == "It is Paris.<|end|><|user|>And Japan?<|end|><|assistant|>Tokyo.<|end|>"
    text = example.prompt + example.target
    assert [text[a:b] for a, b in example.loss] == ["It is Paris.<|end|>", "Tokyo.<|end|>"]
    ((sequence,),) = tokenize(tiny, [example], positions="prediction")
    said = [token for _, token, _ in sequence.terms]
    answers = [
        tiny.tokenizer(turn, add_special_tokens=False).input_ids for turn in ("It is Paris.<|end|>", "Tokyo.<|end|>")
    ]
    assert said == answers[0] + answers[1]
    whole = tiny.tokenizer(text).input_ids
    assert all(whole[position + 1] == token for position, token, _ in sequence.terms)
    assert sequence.rows == tuple(position for position, _, _ in sequence.terms)


def test_a_turn_behind_the_last_answer_is_left_out(chatty: PreTrainedTokenizerFast, write: Callable[..., Path]) -> None:
    path = write({"messages": CHAT[:3]})
    (example,) = read_examples(path, tokenizer=lambda: chatty)
    assert example.target == "It is Paris.<|end|>"


def test_chats_through_the_packaged_template(write: Callable[..., Path]) -> None:
    try:
        tokenizer = load_tokenizer("smollm2")
    except OSError as error:
        pytest.skip(str(error))
    (example,) = read_examples(write({"messages": CHAT}), tokenizer=lambda: tokenizer)
    text = example.prompt + example.target
    assert text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert [text[a:b].split("<|im_end|>")[0] for a, b in example.loss] == ["It is Paris.", "Tokyo."]


def test_a_start_mark_that_the_tokenizer_adds_itself_is_taken_once(
    chatty: PreTrainedTokenizerFast, write: Callable[..., Path]
) -> None:
    from tokenizers import processors

    chatty.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    try:
        chatty.bos_token = "<|end|>"
        chatty.chat_template = "<|end|>" + CHATML
        (example,) = read_examples(write({"messages": CHAT[:2]}), tokenizer=lambda: chatty)
        assert example.prompt.startswith("<|user|>") and example.prompt.endswith("<|assistant|>")
        text = example.prompt + example.target
        assert [text[a:b] for a, b in example.loss] == ["It is Paris.<|end|>"]
    finally:
        chatty.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([], "one of them the assistant's"),
        ([{"role": "user", "content": "a"}], "one of them the assistant's"),
        ([{"role": "assistant"}], "role and content"),
        ("hello", "role and content"),
    ],
)
def test_bad_chats_are_refused(
    chatty: PreTrainedTokenizerFast, write: Callable[..., Path], messages: Any, wanted: str
) -> None:
    text = refusal(write({"messages": messages}), tokenizer=lambda: chatty)
    assert wanted in text and "line 1" in text


def test_templates_that_cannot_be_used_are_refused(chatty: PreTrainedTokenizerFast, write: Callable[..., Path]) -> None:
    path = write({"messages": CHAT})
    assert "tokenizer" in refusal(path)
    assert "both" in refusal(write({"messages": CHAT, "prompt": "a"}), tokenizer=lambda: chatty)
    path = write({"messages": CHAT})
    chatty.chat_template = "{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}"
    assert "changes turn 2" in refusal(path, tokenizer=lambda: chatty)
    chatty.chat_template = "{{ raise_exception('no such role') }}"
    assert "no such role" in refusal(path, tokenizer=lambda: chatty)
    chatty.chat_template = None
    assert "chat template" in refusal(path, tokenizer=lambda: chatty)


def test_every_token_of_a_text_is_predicted_once(tiny: LoadedModel, tmp_path: Path) -> None:
    words = "The capital of France is Paris. Two plus three is five; the opposite of hot is cold.\n" * 9
    path = tmp_path / "words.txt"
    path.write_text(words)
    examples = read_examples(path, text=True, window=50, tokenizer=lambda: tiny.tokenizer)
    assert "".join(e.target for e in examples) == words and not any(e.prompt for e in examples)
    assert len({e.meta["group"] for e in examples}) == len(examples)
    ids = tiny.tokenizer(words).input_ids
    sequences = tokenize(tiny, examples, positions="all")
    predicted = [token for (sequence,) in sequences for _, token, _ in sequence.terms]
    assert len(examples) == -(-len(ids) // 50) and len(predicted) == len(ids) - len(examples)
    lengths = [len(sequence.ids) + 1 for (sequence,) in sequences]
    assert lengths[:-1] == [50] * (len(lengths) - 1)
    report = harvest(
        tiny, examples, tmp_path / "s.gstore", HarvestConfig(positions="all", hooks=("blocks.1.hook_resid_post",))
    )
    assert report.rows == len(predicted)
    store = open_store(tmp_path / "s.gstore")
    with torch.no_grad():
        out = tiny.model(torch.tensor([ids[:50]])).logits[0].log_softmax(-1)
    nll = -float(out[range(49), ids[1:50]].sum())
    assert store.rows["loss"][store.rows["example"] == 0] == pytest.approx(nll, rel=1e-4)


def test_texts_of_a_jsonl_file(tiny: LoadedModel, write: Callable[..., Path]) -> None:
    path = write({"text": "The capital of France"}, {"text": "is Paris."})
    found = read_examples(path, text=True, tokenizer=lambda: tiny.tokenizer)
    assert [e.target for e in found] == ["The capital of France", "is Paris."]
    assert len({e.meta["group"] for e in found}) == 2
    assert "field 'text'" in refusal(write({"text": ""}), text=True, tokenizer=lambda: tiny.tokenizer)
    assert "window" in refusal(write({"text": "a b"}), text=True, window=1, tokenizer=lambda: tiny.tokenizer)


def test_spans_are_found_by_text_or_by_numbers(write: Callable[..., Path], tiny: LoadedModel) -> None:
    line = {"prompt": "The capital of France is", "target": " Paris"}
    path = write(line | {"span": "France"}, line | {"span": [15, 21]}, line | {"span": None})
    one, two, none = read_examples(path)
    assert one.span == two.span == (15, 21) and none.span is None
    ((sequence,),) = tokenize(tiny, [one], positions="span")
    ids = tiny.tokenizer(line["prompt"]).input_ids
    assert "France" in tiny.tokenizer.decode([ids[i] for i in sequence.rows]) and len(sequence.rows) < len(ids) - 2
    for span, wanted in (
        ("Fr4nce", "0 times"),
        ("a", "4 times"),
        ([3, 99], "within the 30"),
        ([3], "two character numbers"),
    ):
        assert wanted in refusal(write(line | {"span": span}))


def test_distributions(write: Callable[..., Path], tiny: LoadedModel) -> None:
    (example,) = read_examples(write({"prompt": "The capital", "distribution": {"e": 0.25, "x": 0.75}}))
    assert example.target == "x"
    ((sequence,),) = tokenize(tiny, [example], objective="kl")
    assert [weight for _, _, weight in sequence.terms] == [0.25, 0.75]
    assert sequence.constant == pytest.approx(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    for bad in ({}, {"e": 0.5}, {"e": -1.0, "x": 2.0}, {"e": "1"}, [1.0], {"": 1.0}):
        assert "sum 1" in refusal(write({"prompt": "a", "target": "b", "distribution": bad}))
    with pytest.raises(ExampleError, match="one token"):
        tokenize(tiny, [Example(prompt="a", target="b", distribution={"capital of": 1.0})], objective="kl")


@pytest.mark.filterwarnings("ignore")
def test_data_sets_are_read_by_name(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that ``datasets`` reads stands for one of the hub, which is not at hand."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"prompt": "a", "target": " b", "meta": {"group": "g"}, "score": 1},
        {"prompt": "c", "target": " d", "meta": None, "score": 2},
    ]
    folder = tmp_path / "facts"
    folder.mkdir()
    write(*rows).rename(folder / "train.jsonl")
    write(rows[1]).rename(folder / "test.jsonl")
    expected = [Example(prompt="a", target=" b", meta={"group": "g"}), Example(prompt="c", target=" d")]
    assert read_examples(f"hf:{folder}") == expected
    assert read_examples(f"hf:{folder}:test") == expected[1:]
    assert "split 'nosuch'" in refusal(f"hf:{folder}:nosuch")
