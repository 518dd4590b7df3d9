"""What an atom's curve is measured on: held-out examples that it leads, and the directions that it is compared with.

An atom leads a row if its code is the row's largest. Directions come from rows that the dictionary was fitted on; everything
that is scored comes from rows that it was not. The concept says which tokens count as a target, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from gradatoms.dictionary.base import Atom, Atoms
from gradatoms.dictionary.coding import leading
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.metrics import hook_in
from gradatoms.dictionary.provenance import folder_of, require_activations
from gradatoms.dictionary.pushes import Pushes, held_out_mask
from gradatoms.dictionary.steps import unit
from gradatoms.dose.neutral import CALIBRATING
from gradatoms.dose.records import DoseConfig
from gradatoms.errors import ConfigError
from gradatoms.hooking import edit_input, edit_site
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.labels.places import Places
from gradatoms.models import HookSite, LoadedModel
from gradatoms.prefix import similar
from gradatoms_store import Store

_CHUNK = 64
"""Atoms whose examples are held at once; bounds memory."""
_PROMPT_TOKENS = 256
"""Longer prompts are not taken as unrelated ones: they would cost more than all others."""


@dataclass(frozen=True)
class Case:
    """One atom's material."""

    atom: Atom
    label: str | None
    concept: str | None
    """Of most of ``fitted``."""
    held: list[int]
    """Held-out rows that the atom leads, drawn; empty where there are none that can be used."""
    fitted: list[int]
    """Fitted rows that the atom leads, drawn."""
    places: Places
    """The texts of these rows."""
    targets: frozenset[int]
    """First tokens of the targets of all examples of the concept; without one, of those that the atom leads."""
    others: dict[str, Atom]
    """Directions to compare with: ``mean_difference``, ``mean_gradient``; none without fitted rows."""


class Cases:
    """The material of all atoms of a dictionary.

    Raises:
        ConfigError: the store's objective needs a second model, or a side of the split is empty.
    """

    def __init__(self, loaded: LoadedModel, atoms: Atoms, store: Store, config: DoseConfig) -> None:
        require_activations(atoms)
        if store.header.objective.startswith("kl:"):
            raise ConfigError(
                f"expected a store whose objective one model can compute, {store.path} was harvested against a second model; "
                "harvest with nll or contrast"
            )
        self.loaded, self.atoms, self.store, self.config = loaded, atoms, store, config
        self.hook = hook_in(store, atoms)
        self.codes = load_codes(folder_of(atoms) / "codes.h5")
        if self.codes.shape[0] != store.n_rows:
            raise ConfigError(
                f"expected the store that these atoms were fitted on, with {self.codes.shape[0]} rows, got {store.path} with "
                f"{store.n_rows}; name the right one with --store"
            )
        self.labels = label_texts(load_labels(folder_of(atoms)))
        self.lead = leading(self.codes)
        split = atoms.config.get("holdout", {"fraction": 0.25, "seed": 0})
        self.held: Bool[np.ndarray, " N"] = held_out_mask(store, split["fraction"], split["seed"])
        if self.held.all() or not self.held.any():
            raise ConfigError(
                f"expected fitted and held-out rows in {store.path}, got {(~self.held).sum()} and {self.held.sum()}; "
                "harvest more examples"
            )
        self._targets: dict[str, set[str]] = {}
        for record in store.iter_examples():
            if record.concept and record.prompt:
                self._targets.setdefault(record.concept, set()).add(record.target)
        self._background: tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b D"]] | None = None

    def of(self, chosen: Sequence[int]) -> Iterator[Case]:
        """The material of some atoms, in their order."""
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            held = {atom: self._drawn(atom, self.held, self.config.examples) for atom in part}
            fitted = {atom: self._drawn(atom, ~self.held, self.config.fitted) for atom in part}
            rows = [row for found in (held, fitted) for drawn in found.values() for row in drawn]
            places = Places(self.store, self.loaded, rows)
            for atom in part:
                usable = [[row for row in found[atom] if row in places] for found in (held, fitted)]
                yield self._case(atom, usable[0], usable[1], places)

    def unrelated(self) -> tuple[list[str], Bool[np.ndarray, "n K"]]:
        """Prompts of held-out rows, drawn, and in which of them each atom is active on any row."""
        rng = np.random.default_rng([self.config.seed, 31])
        found: dict[str, np.ndarray] = {}
        owner = self.store.rows["example"]
        prompts = {r.id: r.prompt for r in self.store.iter_examples()}
        for row in rng.permutation(np.flatnonzero(self.held)).tolist():
            prompt = prompts[int(owner[row])]
            if prompt in found or prompt in CALIBRATING or not 0 < self._length(prompt) <= _PROMPT_TOKENS:
                continue
            members = np.flatnonzero(owner == owner[row])
            found[prompt] = np.asarray((self.codes[members] != 0).sum(axis=0)).reshape(-1) > 0
            if len(found) == self.config.unrelated:
                break
        return list(found), np.stack([*found.values(), np.zeros(len(self.atoms), bool)])[: len(found)]

    def _length(self, prompt: str) -> int:
        return len(self.loaded.tokenizer(prompt).input_ids) if prompt else 0

    def _drawn(self, atom: int, side: Bool[np.ndarray, " N"], most: int) -> list[int]:
        """Rows of one side that an atom leads, at most so many."""
        rows = np.flatnonzero(side & (self.lead == atom))
        rng = np.random.default_rng([self.config.seed, 29, atom])
        return [int(row) for row in np.sort(rng.choice(rows, min(most, len(rows)), replace=False))]

    def _case(self, atom: int, held: list[int], fitted: list[int], places: Places) -> Case:
        own = [places.example(row) for row in (*fitted, *held)]
        named = Counter(e.concept for e in own[: len(fitted)] if e.concept)
        concept = max(named, key=lambda name: (named[name], name)) if named else None
        texts = {e.target for e in own if e.prompt} if concept is None else self._targets.get(concept, set())
        ids = self.loaded.tokenizer(sorted(texts), add_special_tokens=False).input_ids if texts else []
        targets = frozenset(int(found[0]) for found in ids if found)
        others = self._others(atom, fitted, places) if held and fitted else {}
        own_atom = Atom(atom, self.hook, self.atoms[atom].direction)
        return Case(own_atom, self.labels.get(atom), concept, held, fitted, places, targets, others)

    def _others(self, atom: int, fitted: list[int], places: Places) -> dict[str, Atom]:
        site = self.loaded.hook(self.hook)
        every = np.flatnonzero(~self.held & (self.lead == atom))
        gradient = Pushes(self.store, hook=self.hook, rows=every).mean()
        rows, h = self._other_activations(site)
        others = h[self.lead[rows] != atom][: self.config.fitted]
        directions = {"mean_gradient": gradient}
        if len(others):
            own = activations(self.loaded, site, [places.context(row) for row in fitted])
            directions["mean_difference"] = own.mean(axis=0) - others.mean(axis=0)
        return {
            name: Atom(atom, self.hook, unit(v[None])[0]) for name, v in directions.items() if np.linalg.norm(v) > 0
        }

    def _other_activations(self, site: HookSite) -> tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b D"]]:
        """Fitted rows, drawn for all atoms alike, and h there; half more than needed, for those that an atom leads."""
        if self._background is None:
            rng = np.random.default_rng([self.config.seed, 37])
            rows = np.flatnonzero(~self.held)
            drawn = np.sort(rng.choice(rows, min(len(rows), self.config.fitted * 3 // 2), replace=False))
            places = Places(self.store, self.loaded, drawn.tolist())
            usable = rng.permutation([row for row in drawn.tolist() if row in places])
            self._background = (
                usable,
                activations(self.loaded, site, [places.context(int(row)) for row in usable]),
            )
        return self._background


@torch.no_grad()
def activations(loaded: LoadedModel, hook: HookSite, contexts: Sequence[Sequence[int]]) -> Float[np.ndarray, "n D"]:
    """h at the hook and the last token of each context, float32.

    Contexts are padded on the right without a mask: what follows a token cannot change it.

    Args:
        contexts: token ids.
    """
    found = np.zeros((len(contexts), hook.d), np.float32)
    for members in similar([len(ids) for ids in contexts], 32, 4096):
        width = max(len(contexts[i]) for i in members)
        ids = torch.tensor([[*contexts[i], *[0] * (width - len(contexts[i]))] for i in members], device=loaded.device)
        last = torch.tensor([len(contexts[i]) - 1 for i in members], device=loaded.device)

        def read(h: torch.Tensor, members: list[int] = members, last: torch.Tensor = last) -> None:
            found[members] = h[torch.arange(len(last), device=h.device), last].float().cpu().numpy()

        with edit_site(hook, read), edit_input(loaded.model.get_output_embeddings(), lambda h: h[:, -1:]):
            loaded.model(input_ids=ids, use_cache=False)
    return found
