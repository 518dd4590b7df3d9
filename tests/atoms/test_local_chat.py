"""LocalChat writes nothing but JSON of the form asked for, and leaves its model alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.labels.chat import Answer, NoAnswer, Question
from gradatoms.labels.chat_teacher import ANSWER, ChatTeacher
from gradatoms.labels.evidence import Evidence, Shown
from gradatoms.labels.label import Label
from gradatoms.labels.local import LocalChat, written
from gradatoms.labels.schema import check
from gradatoms.models import LoadedModel, fingerprint, wrap_model

SMALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "pattern": "^[a-z]{1,6}( [a-z]{1,6}){0,2}$"},
        "kind": {"type": "string", "enum": ["promotes", "suppresses"]},
        "scores": {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "minItems": 2,
            "maxItems": 2,
        },
        "yes": {"type": "boolean"},
    },
    "required": ["word", "kind", "scores", "yes"],
    "additionalProperties": False,
}
QUESTIONS = [
    Question("Be brief.", text, SMALL, 120) for text in ("Who?", "What is the capital?", "é 🧪", "Who? " * 9, "W")
]


@pytest.fixture(scope="module")
def writer(make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """A tiny model with room for questions."""
    return wrap_model(make_model("llama", max_position_embeddings=512), tokenizer, "tiny")


def answers(chat: LocalChat, questions: list[Question]) -> list[Answer | NoAnswer]:
    found = dict(chat.ask(questions))
    assert sorted(found) == list(range(len(questions)))
    return [found[i] for i in range(len(questions))]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_a_model_that_knows_nothing_still_writes_the_form(
    kind: str, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    size = {"n_positions": 512} if kind == "gpt2" else {"max_position_embeddings": 512}
    chat = LocalChat(wrap_model(make_model(kind, **size), tokenizer, f"tiny-{kind}"), batch=2)
    assert chat.name == f"local:tiny-{kind}"
    for answer in answers(chat, QUESTIONS):
        assert isinstance(answer, Answer)
        check(answer.value, SMALL)


def test_it_writes_what_greedy_decoding_without_batches_and_caches_writes(writer: LoadedModel) -> None:
    expected = [Answer(json.loads(_plainly(writer, question))) for question in QUESTIONS]
    for batch in (1, 3, 8):
        assert answers(LocalChat(writer, batch=batch), QUESTIONS) == expected


@torch.no_grad()
def _plainly(loaded: LoadedModel, question: Question) -> str:
    """The reference: the whole text again for each token, one question at a time."""
    guide = from_tokenizer(loaded.tokenizer, n_vocab=320)
    overrides = {
        "whitespace_flexible": False,
        "json_allowed_escapes": '"\\',
        "item_separator": ", ",
        "key_separator": ": ",
    }
    matcher = LLMatcher(guide, LLMatcher.grammar_from_json_schema(json.dumps(written(SMALL)), overrides=overrides))
    ids = list(loaded.tokenizer(f"{question.system}\n\n{question.user}\n\n").input_ids)
    start = len(ids)
    with fast_math(loaded):
        while not matcher.is_stopped():
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            allowed = torch.tensor(list(matcher.compute_logit_bias())) > 0
            token = int(logits.masked_fill(~allowed, -torch.inf).argmax())
            forced = matcher.compute_ff_tokens()
            token = forced[0] if forced else token
            matcher.consume_token(token)
            ids.append(token)
    return loaded.decode(ids[start:])


def test_the_model_is_left_as_it_was(writer: LoadedModel) -> None:
    def state() -> tuple[Any, ...]:
        model, tokenizer = writer.model, writer.tokenizer
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        sha = fingerprint(model, "tiny", writer.hooks).sha
        tokens = (tokenizer.padding_side, tokenizer.chat_template, tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        return sha, hooks, model.training, model.config._attn_implementation, *tokens, torch.is_grad_enabled()

    before = state()
    running = LocalChat(writer, batch=2).ask(QUESTIONS)
    next(running)
    assert state() == before, "also between two answers"
    running.close()
    assert state() == before


def test_a_question_that_does_not_fit_is_refused(writer: LoadedModel) -> None:
    long = Question("Be brief.", "word " * 500, SMALL, 120)
    first, second = answers(LocalChat(writer), [long, QUESTIONS[0]])
    assert isinstance(first, NoAnswer) and first.kind == "refused" and "512 tokens" in first.reason
    assert isinstance(second, Answer)


def test_an_answer_that_is_cut_off_is_malformed(writer: LoadedModel) -> None:
    [failure] = answers(LocalChat(writer), [Question("Be brief.", "Who?", SMALL, 5)])
    assert isinstance(failure, NoAnswer) and failure.kind == "malformed" and "after 3 tries" in failure.reason


def test_marks_of_the_tokenizer_in_a_text_are_only_text(writer: LoadedModel) -> None:
    chat = LocalChat(writer)
    assert 0 not in chat._ids(Question("a <|end|> b", "<|end|>", SMALL)) and writer.tokenizer("<|end|>").input_ids == [
        0
    ]


@pytest.mark.parametrize("system", [True, False])
def test_a_chat_template_is_used_also_where_it_knows_no_system_role(writer: LoadedModel, system: bool) -> None:
    tokenizer = copy.deepcopy(writer.tokenizer)
    refuse = "" if system else "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = (
        "{% for m in messages %}"
        + refuse
        + "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
    )
    chat = LocalChat(wrap_model(writer.model, tokenizer, "tiny"))
    wanted = "[system]Be brief.[user]Who?[me]" if system else "[user]Be brief.\n\nWho?[me]"
    assert writer.decode(chat._ids(QUESTIONS[0])) == wanted
    assert isinstance(answers(chat, QUESTIONS[:1])[0], Answer)


def test_settings(writer: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="at least 1 question"):
        LocalChat(writer, batch=0)
    assert list(LocalChat(writer).ask([])) == []


def test_smollm2_labels_atoms(smollm2: LoadedModel) -> None:
    def atom(number: int, *pairs: tuple[str, str]) -> Evidence:
        return Evidence(atom=number, top=tuple(Shown(prompt, target, None, 1.0) for prompt, target in pairs))

    evidence = [
        atom(0, ("The capital of France is", " Paris"), ("The capital of Japan is", " Tokyo")),
        atom(1, ("The past tense of go is", " went"), ("The past tense of see is", " saw")),
    ]
    rows = list(ChatTeacher(LocalChat(smollm2)).label(evidence, variant="input"))
    assert sorted(row.atom for row in rows) == [0, 1]
    for row in rows:
        assert isinstance(row, Label) and row.teacher == "local:smollm2" and row.variant == "input"
        fields = {"label": row.label, "sentence": row.sentence, "polarity": row.polarity, "confidence": row.confidence}
        check(fields, ANSWER)
