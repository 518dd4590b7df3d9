"""Rows of a store as places in texts: what the model had read there, what it was to say, and how that is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from gradatoms.examples import Example
from gradatoms.gradients.sequences import TokenSequence, tokenize_usable
from gradatoms.gradients.task import example_of
from gradatoms.gradients.weights import DOCUMENT
from gradatoms.labels.evidence import Shown
from gradatoms.models import LoadedModel
from gradatoms_store import Store


def objective_here(store: Store) -> str:
    """The store's objective; nll where that one needs a second model or a given distribution."""
    return "nll" if store.header.objective == "kl" else store.header.objective


class Places:
    """The texts of some rows of a store; only their examples are held."""

    def __init__(self, store: Store, loaded: LoadedModel, rows: Iterable[int]) -> None:
        self.loaded = loaded
        self._objective = objective_here(store)
        wanted = np.unique(np.fromiter(rows, np.int64))
        examples, positions = store.rows["example"][wanted], store.rows["position"][wanted]
        ids = set(examples.tolist())
        records = [record for record in store.iter_examples() if record.id in ids]
        self.examples = {record.id: example_of(record) for record in records}
        every = list(self.examples.values())
        sequences: list[list[TokenSequence]] = []
        documents = store.header.positions == DOCUMENT  # a row is a whole text: it is shown from where its prompt ends
        if every:
            sequences, _ = tokenize_usable(
                loaded, every, objective=self._objective, positions="last" if documents else store.header.positions
            )
        by_id = dict(zip(self.examples, sequences, strict=True))
        self._place = {
            int(row): (int(example), by_id[int(example)][0].rows[-1] if documents else int(position))
            for row, example, position in zip(wanted, examples, positions, strict=True)
            if by_id.get(int(example))
        }
        self._sequences = by_id

    def __contains__(self, row: int) -> bool:
        return row in self._place

    def example(self, row: int) -> Example:
        """The example that a row belongs to."""
        return self.examples[self._place[row][0]]

    def context(self, row: int) -> tuple[int, ...]:
        """Token ids up to the row's position."""
        example, position = self._place[row]
        return self._sequences[example][0].ids[: position + 1]

    def branches(self, row: int) -> list[tuple[TokenSequence, int]]:
        """The token sequences that J at this row sums over, and the row's position."""
        example, position = self._place[row]
        return [(s, position) for s in self._sequences[example] if position in s.rows]

    def is_last(self, row: int) -> bool:
        """Whether what follows the row's position is what is to be predicted."""
        example, position = self._place[row]
        return position >= min(at for at, _, _ in self._sequences[example][0].terms)

    def position(self, row: int) -> int:
        """The row's token position."""
        return self._place[row][1]

    def shown(self, row: int, weight: float) -> Shown:
        """The row for a teacher: text before the gradient's position, and what was to follow it.

        A row behind the prompt's last token is shown with the one token that it predicts. A row before it is shown with
        the whole prompt and target, and the token it stands on is marked.
        """
        example_id, position = self._place[row]
        example, sequence = self.examples[example_id], self._sequences[example_id][0]
        terms = sorted(sequence.terms, key=lambda term: (term[0], -term[2]))
        last = terms[0][0]
        whole = Shown(example.prompt, example.target, example.foil, weight, position)
        if position < last:
            return replace(whole, marked=self.loaded.decode([sequence.ids[position]]))
        if position == last and example.prompt and not example.loss:
            return whole
        token = next((token for at, token, _ in terms if at == position), terms[0][1])
        before = self.loaded.decode(list(sequence.ids[: position + 1]))
        return Shown(before, self.loaded.decode([token]), None, weight, position)
