"""Gather evidence and trials for a whole dictionary: the only part of labelling that runs the model.

Each direction is calibrated on the contexts where it is most active, so that its mean effect there is a stated KL, and
injected with that strength, in both signs, into contexts of three kinds. A chunk of directions at a time; each chunk is
on disk when it is done, and an interrupted call goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.fit import kept_metrics
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import (
    NOTHING_MOVED,
    Evidence,
    Foretold,
    Injected,
    Moved,
    Neighbour,
    TokenShift,
    Trial,
    Trials,
)
from gradatoms.labels.measuring import EvidenceConfig, Lookahead, cosine
from gradatoms.labels.negatives import Negatives
from gradatoms.labels.places import Places
from gradatoms.labels.selection import (
    Selected,
    Sides,
    Weighted,
    random_directions,
    random_threshold,
    select,
    select_random,
)
from gradatoms.labels.storage import Gathered, load_evidence, save_evidence
from gradatoms.labels.weight_measuring import WeightLookahead
from gradatoms.lookahead import NEUTRAL, Ranking, Shift
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store

DEFAULT = EvidenceConfig()


def gather(
    loaded: LoadedModel,
    atoms: Atoms,
    codes: Codes,
    store: Store,
    path: Path,
    config: EvidenceConfig = DEFAULT,
    *,
    progress: Progress = silent,
) -> Gathered:
    """Evidence and trials of every atom and of random directions, written to ``path``.

    Args:
        codes: codes of every row of the store, shape (rows, n_atoms).
        path: the file to write; what is done is kept beside it, in ``evidence.partial``, until all is.

    Raises:
        ConfigError: the store has no row on one side of the split.
    """
    split = atoms.config.get("holdout", {"fraction": 0.25, "seed": 0})
    is_held = held_out_mask(store, split["fraction"], split["seed"])
    fitted, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    if not len(fitted) or not len(held):
        raise ConfigError(
            f"expected rows on both sides of the split in {store.path}, got {len(fitted)} fitted and {len(held)} held out; "
            "harvest more examples"
        )
    sides = Sides.of(atoms, store, fitted, held, config.seed)
    selected = select(atoms, codes, sides, fitted, held, seed=config.seed)
    noise = random_directions(config.random, atoms.W_dec.shape[1], config.seed)
    density = float(np.median([s.density for s in selected if s.top] or [0.0]))
    selected += select_random(noise, sides, density, seed=config.seed)
    thresholds = np.asarray([random_threshold(sides.X_fitted @ v, density) for v in noise])
    directions = np.concatenate([atoms.W_dec, noise]).astype(np.float32)
    about = asdict(config) | {
        "hook": atoms.hook,
        "model": loaded.fingerprint.sha,
        "store": store.fingerprint,
        "atoms": hashlib.sha256(np.ascontiguousarray(atoms.W_dec).tobytes()).hexdigest()[:16],
        "density_of_random": density,
    }
    partial = _partial(path, about)
    negatives = Negatives.find(
        loaded, atoms, store, partial / "negatives.h5", selected, noise, thresholds, seed=config.seed, progress=progress
    )
    work = _Work(loaded, atoms, store, directions, selected, negatives, config)
    scores, concepts = kept_metrics(atoms.path).get("atoms", []) if atoms.path else [], _Concepts(store, codes, held)
    chunks = []
    for start in range(0, len(directions), config.chunk):
        done = partial / f"{start:07d}.h5"
        if not done.exists():
            save_evidence(done, work.chunk(range(start, min(start + config.chunk, len(directions)))))
        chunks.append(load_evidence(done))
        progress("lookahead", min(start + config.chunk, len(directions)), len(directions))
    evidence = [e for c in chunks for e in c.evidence]
    trials = [t for c in chunks for t in c.trials]
    n = len(atoms)
    evidence = [replace(e, **_fit_scores(scores, e.atom)) if e.atom < n else e for e in evidence]
    trials = [replace(t, **concepts.of(t.atom)) if t.atom < n else t for t in trials]
    gathered = Gathered(
        evidence[:n],
        trials[:n],
        [replace(e, atom=e.atom - n) for e in evidence[n:]],
        [replace(t, atom=t.atom - n) for t in trials[n:]],
        about | {"concepts": concepts.names},
    )
    save_evidence(path, gathered)
    shutil.rmtree(partial)
    return gathered


def _partial(path: Path, about: dict[str, Any]) -> Path:
    """The folder of finished chunks; emptied if it is of another task."""
    partial, text = path.with_name(path.stem + ".partial"), json.dumps(about, sort_keys=True)
    note = partial / "about.json"
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        note.write_text(text, encoding="utf-8")
    return partial


def _fit_scores(scores: Sequence[dict[str, Any]], atom: int) -> dict[str, Any]:
    if atom >= len(scores):
        return {}
    row = scores[atom]
    return {"verdict": row["verdict"], "coherence": row["coherence"], "stability": row["stability"]}


class _Concepts:
    """The concept that each atom's held-out code lies on most; ground truth, for scoring only."""

    def __init__(self, store: Store, codes: Codes, held: np.ndarray) -> None:
        by_id = {record.id: record.concept or "" for record in store.iter_examples()}
        self.names = sorted(set(by_id.values()) - {""})
        number = {name: i for i, name in enumerate(self.names)}
        own = np.asarray([number.get(by_id[int(e)], -1) for e in store.rows["example"][held]])
        self._sums = np.zeros((codes.shape[1], len(self.names)))
        by_row = codes[held]
        for c in range(len(self.names)):
            self._sums[:, c] = np.asarray(by_row[np.flatnonzero(own == c)].maximum(0).sum(axis=0)).reshape(-1)

    def of(self, atom: int) -> dict[str, Any]:
        if not self.names or not self._sums[atom].sum() > 0:
            return {}
        best = int(self._sums[atom].argmax())
        return {"concept": self.names[best], "concept_share": float(self._sums[atom, best] / self._sums[atom].sum())}


class _Work:
    """What a chunk needs beside its directions."""

    def __init__(
        self,
        loaded: LoadedModel,
        atoms: Atoms,
        store: Store,
        directions: Float[np.ndarray, "K D"],
        selected: Sequence[Selected],
        negatives: Negatives,
        config: EvidenceConfig,
    ) -> None:
        self.loaded, self.atoms, self.store, self.config = loaded, atoms, store, config
        self.directions, self.selected, self.negatives = directions, selected, negatives
        self.lookahead = WeightLookahead(loaded, atoms) if atoms.space == "weights" else Lookahead(loaded, atoms.hook)
        self.neutral = [tuple(ids) for ids in loaded.tokenizer(list(NEUTRAL[: config.contexts])).input_ids]

    def chunk(self, members: range) -> Gathered:
        """Evidence and trials of some directions."""
        V, chosen = self.directions[members.start : members.stop], [self.selected[i] for i in members]
        lists = ("top", "active", "near", "inactive", "trial_active", "trial_weak", "trial_inactive")
        places = Places(self.store, self.loaded, (row for s in chosen for name in lists for row, _ in getattr(s, name)))
        contexts = _Contexts(places, self.config)
        active = contexts.pairs([s.top for s in chosen])
        inactive = contexts.pairs([s.inactive for s in chosen])
        held = contexts.pairs([s.trial_active for s in chosen])
        neutral = contexts.shared(self.neutral, len(chosen))
        found = self.lookahead.measure(
            V, contexts.ids, {"active": active, "inactive": inactive, "neutral": neutral, "unseen": held}, places,
            [s.top for s in chosen] + [s.inactive for s in chosen], self.config,
        )  # fmt: skip
        alpha, moved, unseen, lens = found.alpha, found.moved, found.unseen, found.lens
        own_gains, other_gains = found.gains[: len(V)], found.gains[len(V) :]
        names = {key: self._moved(shift) for key, shift in moved.items()}
        risen = self._moved(unseen)
        lens_tokens = [()] * len(V) if lens is None else self._lens_tokens(lens)
        evidence, trials = [], []
        for i, number in enumerate(members):
            injected = None
            if moved["active", 1.0].contexts[i]:
                injected = Injected(
                    alpha=float(alpha[i]),
                    **{name: names[name, 1.0][i] for name in ("active", "inactive", "neutral")},
                    **{f"{name}_minus": names[name, -1.0][i] for name in ("active", "inactive", "neutral")},
                    lens=lens_tokens[i],
                    own_gain=_number(own_gains[i, 0]),
                    other_gain=_number(other_gains[i, 0]),
                    own_gain_minus=_number(own_gains[i, 1]),
                    other_gain_minus=_number(other_gains[i, 1]),
                    linear_cosine=found.linear[i][0],
                    linear_cosine_small=found.linear[i][1],
                )
            evidence.append(self._evidence(number, chosen[i], places, injected))
            another = (
                moved["active", 1.0].delta_p[i - 1]
                if len(chosen) > 1
                else np.zeros_like(moved["active", 1.0].delta_p[i])
            )
            foretold = None
            if unseen.contexts[i]:
                effect, p = unseen.delta_p[i], unseen.p[i]
                foretold = Foretold(
                    **{n: cosine(moved[n, 1.0].delta_p[i], effect) for n in ("active", "inactive", "neutral")},
                    lens=None if lens is None else cosine(p * (lens[i] - p @ lens[i]), effect),
                    null=cosine(another, effect),
                )
            trials.append(self._trials(number, chosen[i], places, risen[i], foretold))
        return Gathered(evidence, trials, [], [])

    def _evidence(self, number: int, selected: Selected, places: Places, injected: Injected | None) -> Evidence:
        def shown(rows: Weighted) -> tuple[Any, ...]:
            return tuple(places.shown(row, weight) for row, weight in rows if row in places)

        neighbours: tuple[Neighbour, ...] = ()
        if number < len(self.atoms):
            cosines = self.atoms.W_dec @ self.directions[number]
            cosines[number] = -np.inf
            neighbours = tuple(
                Neighbour(int(a), float(cosines[a])) for a in np.argsort(-cosines)[: min(5, len(cosines) - 1)]
            )
        return Evidence(
            atom=number,
            top=shown(selected.top),
            active=shown(selected.active),
            near=shown(selected.near),
            injected=injected,
            neighbours=neighbours,
            density=selected.density,
        )

    def _trials(
        self, number: int, selected: Selected, places: Places, unseen: Moved, foretold: Foretold | None
    ) -> Trials:
        def tried(rows: Weighted) -> tuple[Trial, ...]:
            return tuple(
                self.negatives.trial(number, row, places.shown(row, weight)) for row, weight in rows if row in places
            )

        return Trials(
            atom=number,
            active=tried(selected.trial_active),
            weak=tried(selected.trial_weak),
            inactive=tuple(places.shown(row, weight) for row, weight in selected.trial_inactive if row in places),
            promoted=unseen.promoted,
            foretold=foretold,
        )

    def _moved(self, shift: Shift) -> list[Moved]:
        tops = shift.top(self.config.tokens)
        rankings = {
            name: self._tokens(getattr(tops, name))
            for name in ("promoted", "demoted", "promoted_ratio", "demoted_ratio")
        }
        return [
            Moved(kl=float(shift.kl[i]), entropy=float(shift.entropy[i]), **{n: r[i] for n, r in rankings.items()})
            if shift.contexts[i]
            else NOTHING_MOVED
            for i in range(len(shift.kl))
        ]

    def _tokens(self, ranking: Ranking) -> list[tuple[TokenShift, ...]]:
        columns = zip(ranking.ids.tolist(), ranking.delta_p.tolist(), ranking.log_ratio.tolist(), strict=True)
        return [
            tuple(TokenShift(self.loaded.decode([t]), d, r) for t, d, r in zip(*row, strict=True) if t >= 0)
            for row in columns
        ]

    def _lens_tokens(self, lens: Float[np.ndarray, "K V"]) -> list[tuple[TokenShift, ...]]:
        n = min(self.config.tokens, lens.shape[1])
        part = np.argpartition(-lens, n - 1, axis=1)[:, :n]
        found = []
        for i, row in enumerate(part):
            ordered = row[np.argsort(-lens[i, row], kind="stable")]
            found.append(tuple(TokenShift(self.loaded.decode([int(t)]), 0.0, float(lens[i, t])) for t in ordered))
        return found


class _Contexts:
    """Token ids that directions are injected after, each once."""

    def __init__(self, places: Places, config: EvidenceConfig) -> None:
        self.ids: list[tuple[int, ...]] = []
        self._places, self._most, self._tokens = places, config.contexts, config.context_tokens
        self._number: dict[tuple[int, ...], int] = {}

    def _of(self, ids: tuple[int, ...]) -> int:
        if ids not in self._number:
            self._number[ids] = len(self.ids)
            self.ids.append(ids)
        return self._number[ids]

    def pairs(self, rows: Sequence[Weighted]) -> list[tuple[int, int]]:
        """(direction, context): the first distinct contexts among each direction's rows."""
        found = []
        for i, chosen in enumerate(rows):
            distinct = dict.fromkeys(
                self._places.context(row)[-self._tokens :] for row, _ in chosen if row in self._places
            )
            found += [(i, self._of(ids)) for ids in list(distinct)[: self._most]]
        return found

    def shared(self, contexts: Sequence[tuple[int, ...]], n: int) -> list[tuple[int, int]]:
        """The same contexts for each of n directions."""
        return [(i, self._of(ids)) for i in range(n) for ids in contexts]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
