"""From documents to atoms and back: which atoms a document's gradient holds, which documents teach an atom, and what a text owes to both.

The codes of the fitted store are an index: by row, the atoms of a document; by column, the documents of an atom. A query (prompt and
answer) is coded in the same dictionary, and only documents that share an atom with it are looked at. With W the atoms, q the
query's code and c a document's, the score is

    q W Wᵀ cᵀ

the inner product of their reconstructed pushes: positive where training on the document moves the weights the way that makes the
answer likelier. (With whitened rows, that is the influence gᵀ F⁻¹ g' of the two, up to their norms.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.metrics import hook_in
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.errors import ConfigError, GradientError
from gradatoms.examples import Example
from gradatoms.gradients.stream import stream
from gradatoms.gradients.task import HarvestConfig, example_of
from gradatoms.gradients.weights import document_rows
from gradatoms.models import LoadedModel
from gradatoms.weight_steps import require_weights
from gradatoms_store import Store


@dataclass(frozen=True)
class Share:
    """An atom in a document or text."""

    atom: int
    weight: float
    """Its code; negative where the gradient pushes away from the atom."""


@dataclass(frozen=True)
class Hit:
    """A document."""

    example: int
    """Its id in the store."""
    score: float
    """The atom's code on it; for a query, the inner product of the reconstructed pushes."""


@dataclass(frozen=True)
class Query:
    """What a text owes to which atoms and documents."""

    atoms: tuple[Share, ...]
    documents: tuple[Hit, ...]
    """Those that make the answer likelier first."""
    against: tuple[Hit, ...]
    """Those that make it less likely, the strongest first."""
    looked_at: int
    """Documents that share an atom with the text: only these were scored."""


class Attribution:
    """The index of a fitted store's documents by atoms.

    Args:
        store_path: the store, where it has moved.

    Raises:
        AtomsFormatError: codes or store are not at hand; ConfigError: the store is another than the codes are of.
    """

    def __init__(self, atoms: Atoms, store_path: str | Path | None = None) -> None:
        self.atoms, self.store = atoms, store_of(atoms, store_path)
        self.codes: Codes = load_codes(folder_of(atoms) / "codes.h5")
        if self.codes.shape[0] != self.store.n_rows:
            raise ConfigError(
                f"expected the store that these atoms were fitted on, with {self.codes.shape[0]} rows, got {self.store.path} with "
                f"{self.store.n_rows}; name the right one with --store"
            )
        self.example_of_row: Int[np.ndarray, " N"] = np.asarray(self.store.rows["example"])

    @cached_property
    def columns(self) -> csc_array:
        """Codes by atom."""
        return self.codes.tocsc()

    @cached_property
    def texts(self) -> dict[int, Example]:
        """The documents by id."""
        return texts_of(self.store)

    def atoms_of(self, example: int) -> list[Share]:
        """The atoms of a document, largest first: with positive weight those it pushes toward, with negative those it pushes away from.

        Raises:
            ConfigError: no such document.
        """
        rows = np.flatnonzero(self.example_of_row == example)
        if not len(rows):
            raise ConfigError(f"expected a document of {self.store.path}, there is none with the number {example}")
        batch = self.store.read(hook_in(self.store, self.atoms), rows, fields=("example",))
        return self._shares(-batch.gradients[batch.norms > 0])

    def _shares(self, pushes: Float[np.ndarray, "n D"]) -> list[Share]:
        found = (
            _sum(self.atoms.encode(pushes)) - _sum(self.atoms.encode(-pushes))
            if len(pushes)
            else np.zeros(len(self.atoms))
        )
        order = np.argsort(-np.abs(found), kind="stable")
        return [Share(int(a), float(found[a])) for a in order if found[a] != 0]

    def documents_of(self, atom: int, most: int | None = 20) -> list[Hit]:
        """The documents that an atom is active on, largest code first."""
        index = self.atoms[atom].index
        a, b = self.columns.indptr[index : index + 2]
        totals: dict[int, float] = {}
        for row, value in zip(self.columns.indices[a:b], self.columns.data[a:b], strict=True):
            example = int(self.example_of_row[row])
            totals[example] = totals.get(example, 0.0) + float(value)
        ranked = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
        return [Hit(example, value) for example, value in ranked[:most]]

    def query(self, loaded: LoadedModel, prompt: str, answer: str, most: int = 20) -> Query:
        """The atoms of a text's gradient, and through them its documents.

        Raises:
            ModelMismatchError: other weights; UnusableExampleError: a text that cannot be used; GradientError: no gradient.
        """
        require_same_model(self.atoms, loaded)
        pushes = gradients_of(loaded, self.atoms, [Example(prompt=prompt, target=answer)], self.store.header.objective)
        shares = self._shares(pushes)
        q = np.zeros(len(self.atoms), np.float32)
        for share in shares:
            q[share.atom] = share.weight
        used = np.flatnonzero(q)
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(self._rows(int(a)) for a in used)]))
        scores = self._scores(q, rows)
        totals: dict[int, float] = {}
        for row, score in zip(rows, scores, strict=True):
            example = int(self.example_of_row[row])
            totals[example] = totals.get(example, 0.0) + float(score)
        ranked = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
        toward = [Hit(e, s) for e, s in ranked if s > 0][:most]
        away = [Hit(e, s) for e, s in reversed(ranked) if s < 0][:most]
        return Query(tuple(shares), tuple(toward), tuple(away), len(totals))

    def _rows(self, atom: int) -> Int[np.ndarray, " n"]:
        return np.asarray(
            self.columns.indices[self.columns.indptr[atom] : self.columns.indptr[atom + 1]], dtype=np.int64
        )

    def _scores(self, q: Float[np.ndarray, " K"], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        toward = self.atoms.W_dec @ (q @ self.atoms.W_dec)
        return np.asarray(csr_array(self.codes[rows]) @ toward) if len(rows) else np.zeros(0)


def texts_of(store: Store) -> dict[int, Example]:
    """The documents of a store by id."""
    return {record.id: example_of(record) for record in store.iter_examples()}


def gradients_of(
    loaded: LoadedModel, atoms: Atoms, examples: Sequence[Example], objective: str = "nll"
) -> Float[np.ndarray, "n D"]:
    """Unit pushes of texts, in the space of the atoms.

    Raises:
        GradientError: a text without a gradient, or that cannot be used.
    """
    if atoms.space == "weights":
        parts = [rows for _, rows in document_rows(loaded, require_weights(atoms), examples, objective)]
        rows = np.concatenate(parts) if parts else np.zeros((0, atoms.W_dec.shape[1]), np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    else:
        source = stream(loaded, list(examples), atoms.hook, config=HarvestConfig(objective=objective, unusable="skip"))
        rows = np.concatenate([b.gradients for b in source.batches(512)])
    if not len(rows) or not np.linalg.norm(rows, axis=1).all():
        raise GradientError(
            "expected a text with a gradient, this one has none; give a prompt and an answer with tokens"
        )
    return np.asarray(-rows, dtype=np.float32)


def _sum(codes: Codes) -> Float[np.ndarray, " K"]:
    return np.asarray(codes.sum(axis=0)).ravel()
