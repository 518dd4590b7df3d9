"""Describe a gradient: the model's own sentence, and the sparse code beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.provenance import folder_of, require_same_model
from gradatoms.errors import GradientError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.hooking import fast_math
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.models import LoadedModel
from gradatoms.prefix import Grammar, generate_tail
from gradatoms.projector.model import (
    Projector,
    answer_ids,
    context_prefix,
    description_grammar,
    load_projector,
    scaled,
    stop_id,
)
from gradatoms.projector.text import Term, parse

MAX_TOKENS = 64
"""Longest description, in tokens: two labels of eight words and what joins them."""


@dataclass(frozen=True)
class Said:
    """What the model said about a push."""

    text: str
    terms: list[Term]
    confidence: float
    """exp of the mean log-probability of the tokens it wrote; not calibrated."""


@dataclass(frozen=True)
class Description:
    """A gradient in words and as labelled atoms."""

    text: str
    """The model's own sentence."""
    terms: list[Term]
    """The atoms it names."""
    code_terms: list[Term]
    """The sparse code: atoms and weights, largest first, whatever the sentence says."""
    norm: float
    """‖g‖, nats per unit of the residual stream."""
    confidence: float
    pressure: bool
    """False when the model sees no clear pressure."""


@dataclass(frozen=True)
class Describer:
    """A model with a trained projector and the labels it may use."""

    loaded: LoadedModel
    atoms: Atoms
    projector: Projector
    labels: Mapping[int, str]
    share: float
    """Weight of "mostly" beside a second atom: its mean share in training."""
    grammar: Grammar

    @classmethod
    def open(cls, loaded: LoadedModel, atoms: Atoms) -> Self:
        """The projector in the folder of ``atoms``.

        Raises:
            AtomsFormatError: no trained projector there.
            ModelMismatchError: the atoms belong to another model.
        """
        require_same_model(atoms, loaded)
        folder = folder_of(atoms)
        projector, share = load_projector(folder / "projector")
        labels = label_texts(load_labels(folder))
        return cls(
            loaded, atoms, projector.to(loaded.device), labels, share, description_grammar(loaded, labels.values())
        )

    @torch.no_grad()
    def say(
        self, pushes: np.ndarray | None, contexts: Sequence[str], *, free: bool = False, batch: int = 128
    ) -> list[Said]:
        """The model's descriptions of unit pushes, each inside its context.

        Args:
            pushes: shape (rows, d); None leaves the soft tokens out (the no-gradient control).
            free: let the model write anything; by default it writes only descriptions that can be read back.
        """
        found: list[Said] = []
        answer = self.loaded.embeddings[torch.tensor(answer_ids(self.loaded), device=self.loaded.device)]
        for start in range(0, len(contexts), batch):
            chosen = list(contexts[start : start + batch])
            tail = answer.expand(len(chosen), -1, -1)
            if pushes is not None:
                soft = self.projector(scaled(self.atoms, pushes[start : start + batch]).to(self.loaded.device))
                tail = torch.cat([soft.to(tail.dtype), tail], dim=1)
            with fast_math(self.loaded):
                prefix = context_prefix(self.loaded, chosen)
                ids, scores = generate_tail(
                    self.loaded,
                    prefix,
                    tail,
                    max_tokens=MAX_TOKENS,
                    stop=stop_id(self.loaded),
                    grammar=None if free else self.grammar,
                )
            for tokens, score in zip(ids, scores, strict=True):
                text = self.loaded.decode(tokens).strip()
                found.append(Said(text, parse(text, self.labels, self.share), float(np.exp(score))))
        return found

    def code_terms(self, codes: Codes, row: int) -> list[Term]:
        """The labelled code of one row, largest weight first."""
        a, b = codes.indptr[row], codes.indptr[row + 1]
        pairs = sorted(
            zip(codes.indices[a:b].tolist(), codes.data[a:b].tolist(), strict=True), key=lambda item: -item[1]
        )
        return [Term(atom, self.labels.get(atom, f"atom {atom}"), float(weight)) for atom, weight in pairs]


def describe(
    loaded: LoadedModel,
    atoms: Atoms,
    prompt: str,
    target: str,
    *,
    foil: str | None = None,
    context: str | None = None,
    describer: Describer | None = None,
) -> Description:
    """What the gradient of (prompt, target) pushes toward, in the model's words and as atoms.

    Args:
        foil: with one, the gradient is of nll(target) − nll(foil).
        context: describe inside this prompt instead of the example's own; the answer should not change.
        describer: reuse an open one; by default the folder's projector is loaded.

    Raises:
        AtomsFormatError: no projector; GradientError: the gradient is zero or not finite.
    """
    describer = describer or Describer.open(loaded, atoms)
    example = Example(prompt=prompt, target=target, foil=foil)
    sequences = tokenize(loaded, [example], objective="contrast" if foil else "nll")
    hook = loaded.hook(atoms.hook)
    take = ResidualGradients(loaded, [hook])
    found = [take(batch) for batch in batched(sequences[0], batch_tokens=4096, device=loaded.device)]
    g = merge_rows(found, sequences).gradients[hook.name]
    norm = float(np.linalg.norm(g[0]))
    if not np.isfinite(norm) or norm == 0:
        raise GradientError(
            f"expected a gradient with a direction, its norm is {norm}; choose another target or prompt"
        )
    push = -g[:1] / norm
    said = describer.say(push, [context if context is not None else prompt])[0]
    codes = atoms.encode(push)
    return Description(said.text, said.terms, describer.code_terms(codes, 0), norm, said.confidence, bool(said.terms))
