"""A chat model in this process, which can write nothing but JSON of the form asked for.

Decoding is greedy and masked by a grammar (``llguidance``) made from the question's schema. What all questions begin with
(the system prompt) runs once; tokens that the grammar forces are not decoded one by one; rows that are done leave the batch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from gradatoms.errors import ConfigError
from gradatoms.hooking import edit_input, fast_math
from gradatoms.labels.chat import Answer, Chat, NoAnswer, Question, settle
from gradatoms.labels.schema import Schema
from gradatoms.models import LoadedModel, load_model
from gradatoms.prefix import Prefix, run_prefix

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_STEPS = 20
"""Numbers between two bounds are written in so many steps, since digits would have no end."""
_WRITTEN = {"whitespace_flexible": False, "json_allowed_escapes": '"\\', "item_separator": ", ", "key_separator": ": "}
"""Separators as models write them; no escaped line breaks."""


class LocalChat(Chat):
    """A causal language model with its own chat template; a model without one gets plain text. The model is left as it is.

    A question that does not fit the model's context is ``refused``; an answer that does not fit ``max_tokens`` is malformed.

    Args:
        model: what ``load_model`` takes, or a loaded model.
        batch: questions at once.

    Raises:
        ConfigError: ``llguidance`` is missing, or cannot read the model's tokenizer.
        ModelLoadError: as for ``load_model``.
    """

    def __init__(self, model: str | LoadedModel = "smollm2", *, batch: int = 8) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise ConfigError("expected llguidance for a local teacher, found none; pip install 'gradatoms[teacher]'")
        if batch < 1:
            raise ConfigError(f"expected at least 1 question at once, got {batch}")
        self._loaded = load_model(model) if isinstance(model, str) else model
        self.name = f"local:{self._loaded.fingerprint.name}"
        self.batch = batch
        self._grammars = _Grammars(self._loaded)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer | NoAnswer]]:
        asked = list(enumerate(questions))
        tries = 1
        while asked:
            texts: dict[int, list[int]] = {}
            for i, question in asked:
                texts[i] = self._ids(question)
                if len(texts[i]) + question.max_tokens > self._loaded.max_tokens:
                    yield i, self._too_long(len(texts.pop(i)), question)
            again = []
            shared = self._shared(list(texts.values()))
            for members in self._groups(texts):
                answers = self._write(shared, [texts[i] for i in members], [questions[i] for i in members])
                for i, text in zip(members, answers, strict=True):
                    outcome = settle(text, questions[i], tries)
                    if isinstance(outcome, str):
                        again.append((i, questions[i].again(tries, outcome)))
                    else:
                        yield i, outcome
            asked, tries = again, tries + 1

    def _groups(self, texts: dict[int, list[int]]) -> Iterator[list[int]]:
        """Questions of like length, a batch at a time."""
        order = sorted(texts, key=lambda i: len(texts[i]))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _too_long(self, length: int, question: Question) -> NoAnswer:
        most = self._loaded.max_tokens
        return NoAnswer(
            "refused",
            f"a question of {length} tokens and an answer of {question.max_tokens} do not fit the model's {most} tokens",
        )

    def _ids(self, question: Question) -> list[int]:
        """Token ids of a question, through the chat template."""
        tokenizer = self._loaded.tokenizer
        system, user = (self._without_marks(text) for text in (question.system, question.user))
        if tokenizer.chat_template is None:
            return list(tokenizer(f"{system}\n\n{user}\n\n").input_ids)
        from jinja2 import TemplateError

        try:
            chat = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except TemplateError:  # some templates know no system role
            chat = [{"role": "user", "content": f"{system}\n\n{user}"}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def _without_marks(self, text: str) -> str:
        """Text in which the tokenizer's own marks, such as ``<|im_end|>``, are only text."""
        for mark in self._loaded.tokenizer.all_special_tokens:
            if len(mark) > 1:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _shared(self, texts: list[list[int]]) -> tuple[list[int], Prefix | None]:
        """What all token sequences begin with, and its keys and values."""
        if len(texts) < 2:
            return [], None
        columns = zip(*(ids[:-1] for ids in texts), strict=False)
        head = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        if not head:
            return [], None
        with fast_math(self._loaded):
            return head, run_prefix(self._loaded, [head])

    @torch.no_grad()
    def _write(
        self, shared: tuple[list[int], Prefix | None], texts: list[list[int]], questions: list[Question]
    ) -> list[str]:
        """The answers to a batch."""
        head, header = shared
        rows = [
            _Row(self._grammars.matcher(q.schema), ids[-1], q.max_tokens)
            for q, ids in zip(questions, texts, strict=True)
        ]
        with fast_math(self._loaded):
            prefix = run_prefix(self._loaded, [ids[len(head) : -1] for ids in texts], after=header)
            cache, mask = prefix.fork(torch.arange(len(rows), device=prefix.mask.device)), prefix.mask
            going = rows
            while going:
                logits, cache, mask = self._step([row.new for row in going], cache, mask)
                for row, scores in zip(going, logits, strict=True):
                    row.choose(scores)
                keep = [i for i, row in enumerate(going) if not row.done]
                if 0 < len(keep) < len(going):
                    index = torch.tensor(keep, device=mask.device)
                    cache.batch_select_indices(index)
                    mask = mask[index]
                going = [going[i] for i in keep]
        return [self._grammars.text(row.written) for row in rows]

    def _step(self, new: list[list[int]], cache: Any, mask: torch.Tensor) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Feed each row its new tokens, padded on the left; gives the logits (B, V) after the last."""
        width = max(map(len, new))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in new], device=mask.device)
        fresh = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in new], device=mask.device)
        mask = torch.cat([mask, fresh], dim=1)
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        with edit_input(self._loaded.model.get_output_embeddings(), lambda h: h[:, -1:]):
            out = self._loaded.model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
        return out.logits[:, -1].float().cpu(), out.past_key_values, mask


class _Row:
    """One answer while it is written."""

    def __init__(self, matcher: LLMatcher, last: int, most: int) -> None:
        self._matcher, self._most = matcher, most
        self.written: list[int] = []
        self.done = False
        self.new = [last]
        """Tokens that the model has not read yet: the last one of the question or answer, and what must follow."""
        self._force()

    def choose(self, logits: torch.Tensor) -> None:
        """Take the likeliest token that the grammar allows."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[: len(logits)] > 0
        token = int(logits.masked_fill(~allowed, -torch.inf).argmax())
        self._matcher.consume_token(token)
        self.written.append(token)
        self.new = [token]
        self._force()

    def _force(self) -> None:
        forced = self._matcher.compute_ff_tokens()
        if forced and self._matcher.consume_tokens(forced):
            self.written += forced
            self.new += forced
        self.done = self._matcher.is_stopped() or len(self.written) >= self._most


class _Grammars:
    """Grammars of schemas over one tokenizer."""

    def __init__(self, loaded: LoadedModel) -> None:
        from llguidance.hf import from_tokenizer

        size = max(loaded.fingerprint.vocab_size, len(loaded.tokenizer))
        try:
            self._tokenizer: LLTokenizer = from_tokenizer(loaded.tokenizer, n_vocab=size)  # type: ignore[arg-type]
        except (ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"expected a fast tokenizer for a local teacher, {loaded.fingerprint.name} has "
                f"{type(loaded.tokenizer).__name__}; take another model"
            ) from error
        self._made: dict[str, LLMatcher] = {}

    def matcher(self, schema: Schema) -> LLMatcher:
        """A fresh matcher of a schema."""
        from llguidance import LLMatcher

        text = json.dumps(written(schema))
        if text not in self._made:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(text, overrides=_WRITTEN))  # type: ignore[arg-type]
            if matcher.is_error():
                raise ConfigError(
                    f"expected a schema that llguidance can read, got: {matcher.get_error().splitlines()[0]}"
                )
            self._made[text] = matcher
        return self._made[text].deep_copy()

    def text(self, ids: list[int]) -> str:
        """What token ids spell, without marks of an end."""
        kept = [i for i in ids if not self._tokenizer.is_special_token(i)]
        return self._tokenizer.decode_bytes(kept).decode("utf-8", "replace")


def written(schema: Schema) -> Schema:
    """The schema with bounded numbers as a list of steps, so that every answer has an end."""
    if schema.get("type") == "number" and "minimum" in schema and "maximum" in schema:
        low, high = schema["minimum"], schema["maximum"]
        return {"enum": [round(low + (high - low) * i / _STEPS, 6) for i in range(_STEPS + 1)]}
    found = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in found:
        found["properties"] = {name: written(part) for name, part in found["properties"].items()}
    if "items" in found:
        found["items"] = written(found["items"])
    return found
