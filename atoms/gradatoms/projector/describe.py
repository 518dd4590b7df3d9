"""Describe gradients: the model's own sentence, and the sparse code beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.provenance import folder_of, require_activations, require_same_model
from gradatoms.dictionary.pushes import Pushes
from gradatoms.errors import ConfigError, GradientError, ModelMismatchError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms.projector.confidence import Confidence
from gradatoms.projector.drafts import Drafts
from gradatoms.projector.model import inputs, load_projector
from gradatoms.projector.prompt import TERMS, stop_id, term_grammar, term_ids, token_ids
from gradatoms.projector.reader import Reader
from gradatoms.projector.rows import Rows
from gradatoms.projector.text import NO_PRESSURE, Parser, Phrasing, Term
from gradatoms.projector.words import new_words
from gradatoms.writing import Grammar, Written, choices, write
from gradatoms_store import Store, open_store

MAX_TOKENS = 48
"""Longest term that is written freely, in tokens; within the grammar the longest label decides."""
GUIDANCE = 0.5
"""γ: how much of what the context alone makes likely is taken off when the model writes."""
BATCH = 16
"""Pushes read at once; more are slower on a processor, whose caches they overflow."""
CALIBRATED = 128
NEUTRAL = "Here is a sentence."
"""The context of a push that has no prompt of its own."""


@dataclass(frozen=True)
class Said:
    """What the model said about a push."""

    text: str
    terms: list[Term]
    confidence: float
    """Chance that the leading atom is the right one, calibrated on rows that nothing was trained on; where none is named,
    σ(−margin), not calibrated."""
    log_prob: float
    """Mean log-probability of the tokens of the leading term, nats."""
    margin: float
    """log P(an atom is named) − log P(no clear pressure), nats; below 0 the null wins."""


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
    """‖g‖, nats per unit of the residual stream; of a mean push, its length from 0 to 1."""
    confidence: float
    pressure: bool
    """False when the model sees no clear pressure."""
    agreement: float
    """Cosine between the sentence's combination of atoms and the code's, from −1 to 1: low where words and code disagree."""


@dataclass(frozen=True)
class Describer:
    """A reading model and the labels it may use."""

    reader: Reader
    atoms: Atoms
    labels: Mapping[int, str]
    confidence: Confidence
    _grammars: dict[tuple[Phrasing, bool], Grammar] = field(default_factory=dict, repr=False)

    @property
    def loaded(self) -> LoadedModel:
        return self.reader.loaded

    @classmethod
    def open(cls, loaded: LoadedModel, atoms: Atoms, folder: Path | None = None, *, sealed: bool = False) -> Self:
        """The projector in the folder of ``atoms``, or in ``folder``.

        Args:
            sealed: the projector as it was trained. By default one of the arm ``words`` also names the atoms that training
                left out (held-out concepts, atoms labelled since): what they say is known from their labels.

        Raises:
            AtomsFormatError: no trained projector there.
            ModelMismatchError: the atoms belong to another model.
        """
        require_activations(atoms)
        require_same_model(atoms, loaded)
        projector, values, lora = load_projector(folder or folder_of(atoms) / "projector")
        labels = label_texts(load_labels(folder_of(atoms)))
        reader = Reader(loaded, projector.to(loaded.device), lora)
        describer = cls(reader, atoms, labels, Confidence(**values["confidence"]))
        if not sealed:
            describer.name_all()
        return describer

    def name_all(self) -> None:
        """Give every labelled atom a unit; only of the arm ``words``."""
        projector = self.reader.projector
        if projector.words is None:
            return
        missing = sorted(set(self.labels) - set(projector.words.units.tolist()))
        if missing:
            new = new_words(self.loaded, self.atoms, self.labels, missing, projector.config.soft_tokens)
            projector.words = projector.words.with_units(new)

    def grammar(self, phrasing: Phrasing, null: bool) -> Grammar:
        """What may be written in a phrasing, with or without "no clear pressure"."""
        if (phrasing, null) not in self._grammars:
            made = term_grammar(self.loaded, self.labels.values(), phrasing, null=null)
            self._grammars[phrasing, null] = made
        return self._grammars[phrasing, null]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest term: a label of eight words may be dates, whose digits are tokens."""
        return max(
            (len(term_ids(self.loaded, label, 1.0, "both")) for label in self.labels.values()), default=MAX_TOKENS
        )

    @cached_property
    def drafts(self) -> Drafts:
        return Drafts(self.loaded, list(self.labels.values()), self.reader.projector.config.soft_tokens)

    @torch.no_grad()
    def say(
        self,
        pushes: Float[np.ndarray, "N D"] | None,
        contexts: Sequence[str],
        *,
        phrasing: Phrasing = "both",
        free: bool = False,
        batch: int = BATCH,
        progress: Progress = silent,
    ) -> list[Said]:
        """The model's descriptions of unit pushes, each inside its context.

        Args:
            pushes: one for each context; None reads no vector (the placeholders as they are).
            free: let the model write anything; by default it writes only descriptions that can be read back.
            batch: pushes read at once; bounds memory.
        """
        loaded, parse = self.loaded, Parser(self.labels)
        x = None if pushes is None else inputs(self.atoms, self.reader.projector.config, pushes)
        with_null, without = self.grammar(phrasing, True).start(), self.grammar(phrasing, False).start()
        null, naming = token_ids(loaded, f" {NO_PRESSURE}")[0], choices(without)
        terms = 1 if phrasing == "name" else TERMS
        found: list[Said] = []
        for start in range(0, len(contexts), batch):
            chosen = list(contexts[start : start + batch])
            part = None if x is None else x[start : start + batch]
            with self.reader.reading():
                soft = None if part is None else self.reader.soft(part, terms)
                tail = self.reader.read(chosen, soft, phrasing, beside=soft is not None)
                count = len(chosen) if soft is None else len(soft)
                first = tail.logits[:count].float().log_softmax(-1)
                margins = (first[:, naming].logsumexp(1) - first[:, null]).tolist()
                texts = write(
                    loaded,
                    tail,
                    max_tokens=MAX_TOKENS if free else self.longest,
                    stop=stop_id(loaded),
                    starts=None if free else [without if m >= 0 else with_null for m in margins],
                    guidance=0.0 if x is None else GUIDANCE,
                    drafts=None if soft is None or free else self.drafts(soft, phrasing),
                )
            for i in range(len(chosen)):
                found.append(self._joined(parse, texts[i :: len(chosen)], margins[i]))
            progress("describe", min(start + batch, len(contexts)), len(contexts))
        return found

    def _joined(self, parse: Parser, texts: Sequence[Written], margin: float) -> Said:
        """One description of the texts of its terms; a later one that names nothing new is left out."""
        said = [self.loaded.decode(text.ids).strip().removesuffix(".") for text in texts]
        kept, named = said[:1], {t.atom for t in parse(said[0])}
        for text in said[1:]:
            new = {t.atom for t in parse(text)} - named
            if new and named:
                kept.append(text)
                named |= new
        score = texts[0].log_prob / max(1, texts[0].n)
        text = "; ".join(kept)
        terms = parse(text)
        sure = self.confidence(score, margin) if terms else float(1 / (1 + np.exp(np.clip(margin, -50, 50))))
        return Said(text, terms, sure, score, margin)

    def calibrated(self, rows: Rows, chosen: Int[np.ndarray, " c"], seed: int) -> Confidence:
        """A confidence fitted on (at most ``CALIBRATED``) rows that nothing was trained on, each inside another's context."""
        chosen = np.random.default_rng([seed, 29]).permutation(chosen)[:CALIBRATED]
        contexts = [rows.prompts[i] for i in np.roll(chosen, 1)]
        said = self.say(rows.pushes[chosen], contexts)
        right = [bool(s.terms) and s.terms[0].atom == rows.lead[i] for s, i in zip(said, chosen, strict=True)]
        named = [i for i, s in enumerate(said) if s.terms]
        return Confidence.fit(
            np.asarray([said[i].log_prob for i in named]),
            np.asarray([said[i].margin for i in named]),
            np.asarray([right[i] for i in named], dtype=bool),
        )

    def described(
        self,
        pushes: Float[np.ndarray, "N D"],
        norms: Sequence[float],
        contexts: Sequence[str],
        *,
        batch: int = BATCH,
        progress: Progress = silent,
    ) -> list[Description]:
        """Descriptions of unit pushes, with the sparse codes beside them."""
        codes = self.atoms.encode(pushes)
        said = self.say(pushes, contexts, batch=batch, progress=progress)
        return [
            Description(
                s.text,
                s.terms,
                terms := self.code_terms(codes, i),
                float(norms[i]),
                s.confidence,
                bool(s.terms),
                self._agreement(s.terms, terms),
            )
            for i, s in enumerate(said)
        ]

    def code_terms(self, codes: Codes, row: int) -> list[Term]:
        """The labelled code of one row, largest weight first."""
        a, b = codes.indptr[row], codes.indptr[row + 1]
        pairs = sorted(
            zip(codes.indices[a:b].tolist(), codes.data[a:b].tolist(), strict=True), key=lambda item: -item[1]
        )
        return [Term(atom, self.labels.get(atom, f"atom {atom}"), float(weight)) for atom, weight in pairs]

    def _agreement(self, said: Sequence[Term], coded: Sequence[Term]) -> float:
        one, two = (sum(t.weight * self.atoms.W_dec[t.atom] for t in terms) for terms in (said, coded))
        size = float(np.linalg.norm(one) * np.linalg.norm(two))
        return float(np.sum(one * two)) / size if size else 0.0


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
    return describer.described(-g[:1] / norm, [norm], [context if context is not None else prompt])[0]


def describe_store(
    describer: Describer,
    path: str | Path,
    *,
    context: str | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Progress = silent,
) -> Iterator[tuple[int, Description]]:
    """Each row of a store in words, as (row number, description), a batch at a time.

    Args:
        context: describe all rows inside this prompt instead of their own.
        limit: only the first so many rows.

    Raises:
        ModelMismatchError: the store's gradients are of another model; ConfigError: it lacks the atoms' hook.
    """
    store = _store_for(describer, path)
    prompts = {record.id: record.prompt for record in store.examples}
    rows = np.arange(store.n_rows if limit is None else min(limit, store.n_rows))
    pushes = Pushes(store, hook=describer.atoms.hook, rows=rows)
    done = 0
    for found in store.batches(describer.atoms.hook, batch, rows=pushes.rows):
        numbers = pushes.rows[done : done + len(found.norms)]
        own = [prompts[int(i)] for i in found.rows["example"]]
        texts = describer.described(
            -found.gradients, found.norms.tolist(), own if context is None else [context] * len(own), batch=batch
        )
        yield from zip(numbers.tolist(), texts, strict=True)
        done += len(numbers)
        progress("describe", done, len(pushes.rows))


def describe_mean(
    describer: Describer,
    path: str | Path,
    *,
    minus: str | Path | None = None,
    context: str | None = None,
) -> Description:
    """What a whole data set pushes toward: its mean push; with ``minus``, what sets it apart from another's.

        p = m / ‖m‖,  m = mean of the unit pushes;  with ``minus``, x = c (m − m′)/‖m − m′‖ in place of p − b_dec,

    c being the length that a centred push has: √(1 − ‖b_dec‖²). ``norm`` is ‖m‖ or ‖m − m′‖: near 0, the rows push in
    unlike directions (or the two sets in the same).

    Raises:
        ModelMismatchError: gradients of another model; ConfigError: a store lacks the atoms' hook;
        GradientError: nothing is left, as between a store and itself.
    """
    b_dec = describer.atoms.b_dec
    mean = _mean(describer, path)
    if minus is not None:
        mean = mean - _mean(describer, minus)
    norm = float(np.linalg.norm(mean))
    if not norm > 1e-6:
        raise GradientError(f"expected a mean push with a direction, its length is {norm:.2g}; name other stores")
    push = mean / norm
    if minus is not None:
        push = push * np.sqrt(max(0.0, 1 - float(b_dec @ b_dec))) + b_dec
    pushes = np.asarray(push[None], dtype=np.float32)
    return describer.described(pushes, [norm], [NEUTRAL if context is None else context])[0]


def _mean(describer: Describer, path: str | Path) -> Float[np.ndarray, " D"]:
    store = _store_for(describer, path)
    total, count = np.zeros(describer.atoms.W_dec.shape[1]), 0
    for batch in store.batches(describer.atoms.hook, 8192):
        kept = batch.norms > 0
        total -= batch.gradients[kept].sum(axis=0, dtype=np.float64)
        count += int(kept.sum())
    if not count:
        raise GradientError(f"expected rows with a gradient in {path}, found none; harvest examples first")
    return total / count


def _store_for(describer: Describer, path: str | Path) -> Store:
    store = open_store(path)
    made = dict(store.header.model)
    if not describer.loaded.fingerprint.same_weights(made):
        raise ModelMismatchError(
            f"expected gradients of {describer.loaded.fingerprint.name} ({describer.loaded.fingerprint.sha}), {path} holds "
            f"those of {made.get('name')} ({made.get('sha')}); harvest with the model of the atoms"
        )
    if describer.atoms.hook not in store.hooks:
        raise ConfigError(
            f"expected gradients at {describer.atoms.hook}, {path} has {', '.join(store.hooks)}; harvest with "
            f"--hook {describer.atoms.hook}"
        )
    return store
