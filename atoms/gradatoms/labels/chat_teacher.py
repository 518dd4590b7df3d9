"""A teacher that shows the evidence to a chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gradatoms.errors import ConfigError
from gradatoms.labels.chat import Answer, Chat, Question
from gradatoms.labels.evidence import Evidence, Shown, TokenShift
from gradatoms.labels.label import MAX_WORDS, POLARITIES, Label, LabelFailure, Result, Variant
from gradatoms.labels.prompt_files import load_prompt, quoted_end, quoted_start
from gradatoms.labels.schema import Schema
from gradatoms.labels.teacher import Teacher, require_no_options

ANSWER: Schema = {
    "type": "object",
    "properties": {
        "label": {
            "type": "string",
            "pattern": rf"^\S+( \S+){{0,{MAX_WORDS - 1}}}$",
            "maxLength": 60,
            "description": f"1 to {MAX_WORDS} words on one line",
        },
        "sentence": {"type": "string", "minLength": 1, "maxLength": 160},
        "polarity": {"type": "string", "enum": list(POLARITIES)},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["label", "sentence", "polarity", "confidence"],
    "additionalProperties": False,
}
"""What a teacher answers."""
_TOP, _FEW, _TOKENS = 6, 3, 6
"""Examples at most: strongest, and of each other kind; tokens of each list."""
_PROMPT_CHARS, _TOKEN_CHARS = 200, 60


class ChatTeacher(Teacher):
    """Asks a chat model to name atoms, by the prompt file ``label-1``.

    Args:
        max_tokens: longest answer; the default is more than the longest allowed answer in plain English takes.
    """

    prompt = "label-1"

    def __init__(self, chat: Chat, *, max_tokens: int = 256) -> None:
        self.chat, self.max_tokens = chat, max_tokens
        self.name = chat.name

    def prompt_version(self, variant: Variant = "both") -> str:
        """The prompt file and its digest, such as ``label-1@0a1b2c3d``; the same for each variant."""
        return load_prompt(self.prompt).version

    def questions(self, evidence: Sequence[Evidence], variant: Variant = "both") -> list[Question]:
        """What would be asked, for estimates; atoms without anything to show are left out."""
        return [self._question(lines) for lines in (_lines(e.seen_as(variant)) for e in evidence) if lines]

    def label(self, evidence: Sequence[Evidence], *, variant: Variant = "both") -> Iterator[Result]:
        shown = []
        for item in evidence:
            lines = _lines(item.seen_as(variant))
            if lines:
                shown.append((item.atom, self._question(lines)))
            else:
                yield LabelFailure(
                    atom=item.atom,
                    failure="no example and no token to show",
                    kind="no evidence",
                    **self._made_by(variant),
                )
        for place, answer in self.chat.ask([question for _, question in shown]):
            atom = shown[place][0]
            if isinstance(answer, Answer):
                yield _label(atom, answer.value, self._made_by(variant))
            else:
                yield LabelFailure(atom=atom, failure=answer.reason, kind=answer.kind, **self._made_by(variant))

    def _question(self, lines: list[str]) -> Question:
        file = load_prompt(self.prompt)
        return Question(file.system, file.fill(evidence="\n".join(lines)), ANSWER, self.max_tokens)

    def _made_by(self, variant: Variant) -> dict[str, Any]:
        return {"teacher": self.name, "prompt": self.prompt_version(variant), "variant": variant}


def make_chat(spec: str, **remote_options: Any) -> Chat:
    """The chat model that ``local``, ``local:MODEL`` or ``openai:MODEL`` names.

    Args:
        remote_options: keyword arguments of ``RemoteChat``, for ``openai``.

    Raises:
        ConfigError: another name, or options that do not fit.
    """
    kind, _, model = spec.partition(":")
    if kind == "local" and (model or spec == "local"):
        from gradatoms.labels.local import LocalChat

        require_no_options(spec, remote_options)
        return LocalChat(model or "smollm2")
    if kind == "openai" and model:
        from gradatoms.labels.remote import RemoteChat

        return RemoteChat(model, **remote_options)
    raise ConfigError(f"expected a chat model of local, local:MODEL, openai:MODEL, got {spec!r}")


def _label(atom: int, value: dict[str, Any], made_by: dict[str, Any]) -> Label:
    return Label(
        atom=atom,
        label=value["label"],
        sentence=value["sentence"].strip(),
        confidence=float(value["confidence"]),
        polarity=value["polarity"],
        **made_by,
    )


def _lines(evidence: Evidence) -> list[str]:
    """The evidence as text, every string of it quoted; empty where nothing is to be shown."""
    lines: list[str] = []
    _add_examples(lines, "The push favours:", evidence.top, _TOP)
    fewer = [example for example in evidence.active if example not in evidence.top[:_TOP]]
    _add_examples(lines, "It also favours:", fewer, _FEW)
    if lines:
        _add_examples(lines, "It does not favour:", evidence.near, _FEW)
    moved = evidence.injected
    if moved is not None:
        _add_tokens(lines, "Likelier", moved.active.promoted)
        _add_tokens(lines, "Less likely", moved.active.demoted)
        _add_tokens(lines, "Likelier in other texts", moved.neutral.promoted)
        _add_tokens(lines, "Likelier with the opposite push", moved.active_minus.promoted)
    return lines


def _add_examples(lines: list[str], title: str, examples: Sequence[Shown], most: int) -> None:
    if examples:
        lines.append(title)
        lines += [f"- {_example(e)}" for e in examples[:most]]


def _example(example: Shown) -> str:
    text = f"{quoted_end(example.prompt, _PROMPT_CHARS)} -> {quoted_start(example.target, _TOKEN_CHARS)}"
    if example.foil:
        text += f" not {quoted_start(example.foil, _TOKEN_CHARS)}"
    return f"{text} (at {quoted_start(example.marked, _TOKEN_CHARS)})" if example.marked else text


def _add_tokens(lines: list[str], title: str, shifts: Sequence[TokenShift]) -> None:
    if shifts:
        shown = ", ".join(f"{quoted_start(s.token, _TOKEN_CHARS)} {s.delta_p:+.2f}" for s in shifts[:_TOKENS])
        lines.append(f"{title}: {shown}")
