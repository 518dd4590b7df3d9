"""The rows of a store as the projector sees them, and which of them may be trained on.

A projector is tested on what it has not seen, so who sees what is settled before training, from the store alone:

* rows that the dictionary held out are never trained on; a quarter of them calibrates the confidence, the rest tests it
  (``seen`` concepts, unseen examples);
* some **concepts** are held out whole: neither their rows nor any row whose description names one of their atoms is
  trained on (an atom belongs to the concept of most of the rows it leads);
* some **targets** are held out: no row with such a target is trained on;
* the prompts of some concepts are held out as **contexts**: no description is trained inside of them.

``concept`` decides only what is left out and what is scored; it is no input and no target of anything that learns. Where
a store names no concepts, the leading atom takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes, leading
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, store_of
from gradatoms.dictionary.pushes import Pushes, held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.gradients.task import examples_of
from gradatoms.labels.label import label_texts, load_labels

SECOND_FROM = 0.3
"""A second atom is mentioned when its weight is at least this share of the leading one's."""
CALIBRATING = 0.25
"""Share of the dictionary's held-out rows that calibrate; the others test."""


@dataclass(frozen=True)
class Rows:
    """n rows of a store with labelled atoms, in the store's order; rows without a labelled leading atom are left out."""

    numbers: Int[np.ndarray, " n"]
    """Row numbers in the store."""
    pushes: Float[np.ndarray, "n D"]
    """Unit pushes, float32."""
    codes: Codes
    """(n, n_atoms)."""
    lead: Int[np.ndarray, " n"]
    """The atom with the largest code."""
    fitted: Bool[np.ndarray, " n"]
    """Whether the dictionary was fitted on the row."""
    prompts: Sequence[str]
    targets: Sequence[str]
    concepts: Sequence[str] | None
    """None where the store does not name them."""
    labels: dict[int, str]
    """The label of each labelled atom; all are distinct."""

    def __len__(self) -> int:
        return len(self.numbers)

    def kinds(self) -> np.ndarray:
        """The concept of each row, or its leading atom where there are none; shape (n,), strings."""
        return np.asarray(self.concepts if self.concepts is not None else [f"atom {a}" for a in self.lead])

    def concept_of_atoms(self, among: Bool[np.ndarray, " n"]) -> dict[int, str]:
        """The most frequent kind of the rows ``among`` that each atom leads (ties: the later name)."""
        kinds = self.kinds()
        found = {}
        for atom in np.unique(self.lead[among]).tolist():
            names, counts = np.unique(kinds[among & (self.lead == atom)], return_counts=True)
            found[atom] = str(max(zip(counts.tolist(), names.tolist(), strict=True))[1])
        return found


@dataclass(frozen=True)
class Splits:
    """Which of n rows are for what: masks of shape (n,)."""

    train: Bool[np.ndarray, " n"]
    calibrate: Bool[np.ndarray, " n"]
    seen: Bool[np.ndarray, " n"]
    """Tests: unseen examples of trained concepts and targets."""
    targets: Bool[np.ndarray, " n"]
    """Tests: targets that were never trained on."""
    concepts: Bool[np.ndarray, " n"]
    """Tests: concepts that were never trained on."""
    inside: Bool[np.ndarray, " n"]
    """Rows whose prompts may be contexts of training."""
    outside: Bool[np.ndarray, " n"]
    """Rows, of held-out kinds of context, whose prompts never are."""
    hidden_atoms: Int[np.ndarray, " h"]
    """Atoms of the held-out concepts: never named in training."""


def load_rows(atoms: Atoms, store_path: str | Path | None = None, *, most: int = 200_000, seed: int = 0) -> Rows:
    """The labelled rows of the store that ``atoms`` were fitted on; of more than ``most``, a random choice.

    Raises:
        ConfigError: no labels yet, or no row has a labelled leading atom.
        AtomsFormatError: the store has moved.
    """
    folder = folder_of(atoms)
    labels = label_texts(load_labels(folder))
    if not labels:
        raise ConfigError(f"expected labelled atoms in {folder}, found no label; run `atoms label {folder}` first")
    store = store_of(atoms, store_path)
    split = atoms.config["holdout"]
    lead = leading(load_codes(folder / "codes.h5"))
    numbers = np.flatnonzero(np.isin(lead, list(labels)))
    if not len(numbers):
        raise ConfigError(
            f"expected rows with labelled atoms in {folder}, found none; run `atoms label {folder}` first"
        )
    if len(numbers) > most:
        numbers = np.sort(np.random.default_rng([seed, 7]).choice(numbers, most, replace=False))
    pushes = Pushes(store, hook=atoms.hook, rows=numbers)
    numbers = pushes.rows
    by_id = {record.id: example for record, example in zip(store.examples, examples_of(store), strict=True)}
    owner = [by_id[int(i)] for i in store.rows["example"][numbers]]
    concepts = [str(e.concept) for e in owner] if all(e.concept is not None for e in owner) else None
    return Rows(
        numbers=numbers,
        pushes=pushes.all(),
        codes=load_codes(folder / "codes.h5")[numbers],
        lead=lead[numbers],
        fitted=~held_out_mask(store, split["fraction"], split["seed"])[numbers],
        prompts=[e.prompt for e in owner],
        targets=[e.target for e in owner],
        concepts=concepts,
        labels=labels,
    )


def make_splits(rows: Rows, *, concepts: float, targets: float, contexts: float, seed: int) -> Splits:
    """Settle what is trained on and what is tested on.

    Args:
        concepts, targets, contexts: share of the concepts, of the distinct targets, and of the concepts as contexts that
            are held out, each from 0 to below 1. A share above 0 holds out at least one, as long as two stay.

    Raises:
        ConfigError: nothing is left to train on.
    """
    rng = np.random.default_rng([seed, 11])
    kinds, wanted = rows.kinds(), np.asarray(rows.targets)
    hidden_kinds = _some(np.unique(kinds), concepts, rng)
    of_concepts = np.isin(kinds, hidden_kinds)
    owner = rows.concept_of_atoms(np.ones(len(rows), dtype=bool))
    hidden_atoms = np.asarray(sorted(a for a, kind in owner.items() if kind in set(hidden_kinds)), dtype=np.int64)
    hidden_targets = _some(np.unique(wanted[~of_concepts]), targets, rng)
    of_targets = np.isin(wanted, hidden_targets) & ~of_concepts
    outside = np.isin(kinds, _some(np.unique(kinds[~of_concepts]), contexts, rng))
    names_hidden = np.isin(described(rows.codes)[0], hidden_atoms).any(axis=1)
    free = ~of_concepts & ~of_targets
    train = rows.fitted & free & ~names_hidden
    calibrate = np.zeros(len(rows), dtype=bool)
    tested = np.flatnonzero(~rows.fitted & free & ~np.isin(rows.lead, hidden_atoms))
    calibrate[rng.permutation(tested)[: int(CALIBRATING * len(tested))]] = True
    if not train.any():
        raise ConfigError(
            f"expected rows to train on, all {len(rows)} are held out (concepts {concepts}, targets {targets}); "
            "hold out less, or harvest more examples"
        )
    return Splits(
        train=train,
        calibrate=calibrate,
        seen=~rows.fitted & free & ~calibrate & ~np.isin(rows.lead, hidden_atoms),
        targets=~rows.fitted & of_targets & ~np.isin(rows.lead, hidden_atoms),
        concepts=~rows.fitted & of_concepts & np.isin(rows.lead, hidden_atoms),
        inside=rows.fitted & ~outside & free,
        outside=outside & ~rows.fitted,
        hidden_atoms=hidden_atoms,
    )


def described(codes: Codes) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """What each row's description names: its leading atom and, if it weighs at least ``SECOND_FROM`` of that, the next.

    Returns:
        atoms, −1 where there is none, and their weights.
    """
    atoms = np.full((codes.shape[0], 2), -1, dtype=np.int64)
    weights = np.zeros((codes.shape[0], 2), dtype=np.float32)
    for row, (start, stop) in enumerate(zip(codes.indptr[:-1], codes.indptr[1:], strict=True)):
        order = np.argsort(-codes.data[start:stop], kind="stable")[:2]
        found = codes.data[start:stop][order]
        named = (found > 0) & (found >= SECOND_FROM * found[:1])
        atoms[row, : named.sum()] = codes.indices[start:stop][order][named]
        weights[row, : named.sum()] = found[named]
    return atoms, weights


def synthesize(
    atoms: Atoms,
    pushes: Float[np.ndarray, "n D"],
    codes: Codes,
    count: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "m D"], Codes]:
    """More pushes to train on: the atoms of one row, often with those of a second, and what a third left unexplained.

        x = Σ_j (z_j + λ z'_j) d_j + (x″ − ẑ″)          centred; then p = (x + b_dec)/‖x + b_dec‖, coded afresh

    with each row's weights scaled by a factor between 0.6 and 1.4, and λ from 0 to 1 in half of the rows.

    Returns:
        ``count`` unit pushes and their codes.
    """
    first, second, third = (rng.choice(len(pushes), count) for _ in range(3))

    def dense(index: np.ndarray) -> np.ndarray:
        return np.asarray(codes[index].toarray(), dtype=np.float32)

    mixed = np.where(rng.random((count, 1)) < 0.5, rng.random((count, 1)), 0.0).astype(np.float32)
    weights = dense(first) * rng.uniform(0.6, 1.4, (count, 1)).astype(np.float32) + mixed * dense(second)
    left = atoms.center(pushes[third]) - dense(third) @ atoms.W_dec
    made = (weights @ atoms.W_dec + left + atoms.b_dec).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made, atoms.encode(made)


def _some(values: np.ndarray, share: float | int, rng: np.random.Generator) -> list[str]:
    """A share of ``values``, at least one, that leaves at least two."""
    count = min(max(1, round(share * len(values))), len(values) - 2) if share > 0 else 0
    return rng.choice(values, max(0, count), replace=False).tolist()
