"""A judge that asks a chat model whether examples fit a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gradatoms.labels.chat import Answer, Chat, Question
from gradatoms.labels.judges import Item, Judge
from gradatoms.labels.prompt_files import load_prompt, quoted, quoted_end, quoted_start
from gradatoms.labels.schema import Schema
from gradatoms.progress import Progress, silent

_TOGETHER = 10
"""Examples in one question, at most."""


class ChatJudge(Judge):
    """Asks for a score from 0 to 1 of each of up to ten examples at a time, by the prompt file ``judge-1``.

    The fit is that score; NaN where the model gave no answer.
    """

    prompt = "judge-1"

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.name = f"{chat.name} by {load_prompt(self.prompt).version}"

    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Sequence[tuple[int, int]],
        *,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " P"]:
        groups = _groups(pairs)
        questions = [self._question(labels[label], [items[j] for j in members]) for label, members in groups]
        scores: dict[tuple[int, int], float] = {}
        for done, (place, answer) in enumerate(self.chat.ask(questions), 1):
            if isinstance(answer, Answer):
                label, members = groups[place]
                scores |= {(label, j): float(s) for j, s in zip(members, answer.value["scores"], strict=True)}
            progress("judging", done, len(questions))
        return np.asarray([scores.get(pair, np.nan) for pair in pairs], np.float64)

    def _question(self, label: str, items: Sequence[Item]) -> Question:
        lines = "\n".join(f"{i}. {_shown(item)}" for i, item in enumerate(items, 1))
        file = load_prompt(self.prompt)
        user = file.fill(label=quoted(label), items=lines, count=str(len(items)))
        return Question(file.system, user, _schema(len(items)), max_tokens=32 + 8 * len(items))


def _groups(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """The items of each label, each once, at most so many together."""
    found: dict[int, dict[int, None]] = {}
    for label, item in pairs:
        found.setdefault(label, {})[item] = None
    return [
        (label, list(items)[start : start + _TOGETHER])
        for label, items in found.items()
        for start in range(0, len(items), _TOGETHER)
    ]


def _shown(item: Item) -> str:
    target = quoted_start(item.target, 120)
    return f"{quoted_end(item.prompt, 200)} -> {target}" if item.prompt else f"likelier next words: {target}"


def _schema(count: int) -> Schema:
    score = {"type": "number", "minimum": 0, "maximum": 1}
    scores = {"type": "array", "items": score, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"scores": scores}, "required": ["scores"], "additionalProperties": False}
