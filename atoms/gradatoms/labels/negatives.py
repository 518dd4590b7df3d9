"""Hard negatives: held-out prompts with another target, on whose gradient the atom is not active."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array, hstack, vstack

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.io import load_codes, save_codes
from gradatoms.examples import Example
from gradatoms.gradients.stream import stream
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weights import document_rows
from gradatoms.labels.evidence import Shown, Trial
from gradatoms.labels.places import Places, objective_here
from gradatoms.labels.selection import Selected
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress
from gradatoms.weight_steps import require_weights
from gradatoms_store import Store

DRAWN = 2
"""Other targets tried a prompt, beside its foil."""


class Negatives:
    """For each held-out row, other targets of the same prompt and the codes of their gradients."""

    def __init__(self, others: dict[int, list[str]], first: dict[int, int], codes: Codes) -> None:
        self._others, self._first, self._codes = others, first, codes

    @classmethod
    def find(
        cls,
        loaded: LoadedModel,
        atoms: Atoms,
        store: Store,
        kept: Path,
        selected: Sequence[Selected],
        noise: Float[np.ndarray, "R D"],
        thresholds: Float[np.ndarray, " R"],
        *,
        seed: int,
        progress: Progress,
    ) -> Negatives:
        """Take the gradient of every held-out row that is a trial, with its foil and with targets of other rows.

        Args:
            kept: file where the codes are kept, read if it is there.
            noise, thresholds: random directions, active where x·v > θ; their codes come behind the atoms'.
        """
        rows = sorted({row for s in selected for row, _ in (*s.trial_active, *s.trial_weak)})
        places = Places(store, loaded, rows)
        rows = [row for row in rows if row in places]
        rng = np.random.default_rng([seed, 3])
        targets = sorted({places.shown(row, 0.0).target for row in rows})
        others, first, examples, at = {}, {}, list[Example](), list[int]()
        for row in rows:
            shown = places.shown(row, 0.0)
            drawn = [targets[i] for i in rng.permutation(len(targets))[: DRAWN + 2]]
            different = [t for t in drawn if t.strip().casefold() != shown.target.strip().casefold()][:DRAWN]
            others[row] = list(dict.fromkeys(([shown.foil] if shown.foil else []) + different))
            first[row] = len(examples)
            foil = shown.target if objective_here(store) == "contrast" else None
            examples += [Example(prompt=shown.prompt, target=other, foil=foil) for other in others[row]]
            at += [shown.position if shown.marked else -1] * len(others[row])
        if not kept.exists():
            save_codes(kept, _codes(loaded, atoms, store, examples, at, noise, thresholds, progress))
        return cls(others, first, load_codes(kept))

    def trial(self, direction: int, row: int, shown: Shown) -> Trial:
        """The row with the first other target on which the direction is not active; with none if it is on all."""
        for i, other in enumerate(self._others.get(row, ())):
            if self._codes[self._first[row] + i, direction] == 0:
                return Trial(shown.prompt, shown.target, other, shown.weight)
        return Trial(shown.prompt, shown.target, "", shown.weight)


def _codes(
    loaded: LoadedModel,
    atoms: Atoms,
    store: Store,
    examples: Sequence[Example],
    at: Sequence[int],
    noise: Float[np.ndarray, "R D"],
    thresholds: Float[np.ndarray, " R"],
    progress: Progress,
) -> Codes:
    """Codes of the examples' gradients at one position each (−1: the prompt's last token)."""
    width = len(atoms) + len(noise)
    n = len(examples)
    parts, numbers = [csr_array((0, width), dtype=np.float32)], [np.zeros(0, np.int64)]

    def add(pushes: Float[np.ndarray, "B D"], number: np.ndarray) -> None:
        X = atoms.center(pushes)
        random = csr_array(np.maximum(X @ noise.T - thresholds, 0))
        parts.append(csr_array(hstack([atoms.coder.encode(X), random], format="csr")))
        numbers.append(number)
        progress("hard negatives", sum(map(len, numbers)), n)

    if atoms.space == "weights":
        for number, rows in document_rows(loaded, require_weights(atoms), examples, objective_here(store)):
            norms = np.linalg.norm(rows, axis=1)
            kept = np.isfinite(norms) & (norms > 0)
            add(-rows[kept] / norms[kept, None], number[kept])
        return _placed(parts, numbers, n)
    groups = {"last": [i for i in range(n) if at[i] < 0], "prompt": [i for i in range(n) if at[i] >= 0]}
    for positions, members in groups.items():
        if not members:
            continue
        config = HarvestConfig(objective=objective_here(store), positions=positions, nan="drop", dtype="auto")
        source = stream(loaded, [examples[i] for i in members], atoms.hook, config=config)
        for batch in source.batches(1024):
            number = np.asarray(members)[batch.rows["example"]]
            wanted = (batch.norms > 0) & (
                (np.asarray(at)[number] < 0) | (np.asarray(at)[number] == batch.rows["position"])
            )
            add(-batch.gradients[wanted], number[wanted])
    return _placed(parts, numbers, n)


def _placed(parts: Sequence[csr_array], numbers: Sequence[np.ndarray], n: int) -> Codes:
    """Codes in the order of the examples; an example without any is zero."""
    order = np.concatenate(numbers)
    place = csr_array((np.ones(len(order), np.float32), (order, np.arange(len(order)))), shape=(n, len(order)))
    return csr_array(place @ csr_array(vstack(parts, format="csr")))
