"""The judge that a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradatoms.errors import ConfigError
from gradatoms.labels.judges import EmbeddingJudge, Judge
from gradatoms.labels.likelihood import LikelihoodJudge
from gradatoms.labels.teacher import require_no_options
from gradatoms.models import LoadedModel


def make_judge(name: str, *, load: Callable[[], LoadedModel], **remote_options: Any) -> Judge:
    """``embedding``, ``likelihood``, ``local``, ``local:MODEL`` or ``openai:MODEL``; ``auto`` for the first that is there.

    Args:
        load: gives the model, for ``likelihood``.
        remote_options: for ``openai`` (``remote.RemoteChat``).

    Raises:
        ConfigError: no such judge, or it is not installed.
    """
    kind, _, model = name.partition(":")
    if kind != "openai":
        require_no_options(f"judge {name}", remote_options)
    if name == "auto":
        return EmbeddingJudge() if EmbeddingJudge.installed() else LikelihoodJudge(load())
    if kind == "embedding":
        return EmbeddingJudge(model or None)
    if name == "likelihood":
        return LikelihoodJudge(load())
    if kind in ("local", "openai"):
        from gradatoms.labels.chat_judge import ChatJudge
        from gradatoms.labels.chat_teacher import make_chat

        return ChatJudge(make_chat(name, **remote_options))
    raise ConfigError(
        f"expected a judge of auto, embedding, likelihood, local, local:MODEL, openai:MODEL, got {name!r}"
    )
