"""Scores of labels: does the name predict what the atom is active on, and what it does? Each beside its nulls.

All are measured on held-out rows (``Trials``), by a judge that says how well a label fits a target:

    detection   AUROC of fit(label, target) over examples the atom is strongly active on (code at least a quarter of its
                largest), against *hard negatives*: the same prompts with another target, on whose gradient the atom is
                not active; ``detection_weak`` is the same for smaller codes, ``detection_easy`` against random examples
    fuzzing     share of these prompts in which the atom's target fits the label better than the other (chance ½)
    output      whether the label, among 20 labels of other atoms, fits best the tokens that rise when the atom is
                injected into held-out contexts (chance 1/20)
    concept     whether the ground-truth concept of the atom is, of all concepts of the store, the closest to the label
                by sentence embedding

Nulls: the same labels shuffled between atoms; and random directions, given evidence and labels in the same way.
A label is *vague* if it fits random directions as well as its own atom.

Detection and fuzzing follow Paulo et al., arXiv 2410.13928; the output score follows arXiv 2501.08319 and 2505.20063.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import TokenShift, Trials
from gradatoms.labels.judges import EmbeddingJudge, Item, Judge
from gradatoms.progress import Progress, silent

AMONG = 20
"""Labels that an atom's own is ranked among in the output score."""
TOKENS = 8
"""Risen tokens that the output score looks at."""
VAGUE = 0.95
"""A label is vague if this share of random directions does not fit it worse than its own atom does."""
VAGUE_DIRECTIONS = 24
VAGUE_EXAMPLES = 2
"""Random directions, and examples of each, that vagueness looks at."""
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """How good one label is; None where the atom has nothing to measure it on."""

    atom: int
    label: str
    detection: float | None = None
    """AUROC against hard negatives, 0 to 1, chance ½."""
    detection_weak: float | None = None
    """The same of examples that the atom is only weakly active on."""
    detection_easy: float | None = None
    """AUROC against random inactive examples."""
    fuzzing: float | None = None
    """Share of prompts, 0 to 1, chance ½."""
    output: float | None = None
    """1 if the label ranks first among 20, else 0 (ties share)."""
    output_rank: float | None = None
    """1 is best."""
    concept: float | None = None
    """1 if the atom's concept is the closest, else 0."""
    vague: bool | None = None


MEASURES = ("detection", "detection_weak", "detection_easy", "fuzzing", "output", "concept")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A mean over atoms, with its interval and nulls."""

    value: float | None
    null: float | None
    """Labels shuffled between the atoms."""
    null_random: float | None
    """Random directions, labelled and scored the same way."""
    interval: tuple[float, float] | None
    """95 % bootstrap over atoms."""
    unit: str
    better: str = "higher"
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Scores of every label, and their means."""

    judge: str
    labels: list[LabelScore]
    shuffled: list[LabelScore]
    random: list[LabelScore]

    def summary(self, chosen: set[int] | None = None) -> dict[str, Summary]:
        """Means over all atoms, or over ``chosen`` ones.

        The nulls are over the same atoms (shuffled) and over all random directions.
        """
        found = {}
        for name in (*MEASURES, "vague"):
            values = _values(self.labels, name, chosen)
            found[name] = Summary(
                value=_mean(values),
                null=_mean(_values(self.shuffled, name, chosen)),
                null_random=_mean(_values(self.random, name, None)),
                interval=interval(values),
                unit="AUROC" if name.startswith("detection") else "share",
                better="lower" if name == "vague" else "higher",
                n=len(values),
            )
        return found


def score_labels(
    labels: Mapping[int, str],
    trials: Sequence[Trials],
    judge: Judge,
    *,
    random_labels: Mapping[int, str] | None = None,
    random_trials: Sequence[Trials] = (),
    concepts: Sequence[str] = (),
    embedder: EmbeddingJudge | None = None,
    half: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Score labels, the same labels shuffled, and those of random directions.

    Args:
        labels: atom → label.
        trials: of each atom, in order.
        random_labels, random_trials: labels and trials of random directions.
        concepts: every concept of the store; with ``embedder``, for the concept match.
        half: 0 or 1 uses every second trial and token, so that what is chosen on one half is measured on the other.

    Raises:
        ConfigError: fewer than two labels, which cannot be told apart.
    """
    if len(labels) < 2:
        raise ConfigError(f"expected at least 2 labels to score, got {len(labels)}; run `atoms label` on more atoms")
    rng = np.random.default_rng(seed)
    atoms, null_atoms = sorted(labels), sorted(random_labels or {})
    texts = [labels[a] for a in atoms]
    null_texts = [(random_labels or {})[a] for a in null_atoms]
    own = [_halved(trials[a], half) for a in atoms]
    null = [_halved(random_trials[a], half) for a in null_atoms]
    shift = _derangement(len(atoms), rng)
    wrong = [texts[i] for i in shift]
    fits = _Fits(judge)
    asked = [
        _ask(fits, said, tried, texts, null, rng) for said, tried in ((texts, own), (wrong, own), (null_texts, null))
    ]
    values = fits.all(progress)
    matched = [_concepts(embedder, concepts, said, own) for said in (texts, wrong)]
    return Scores(
        judge.name,
        _read(values, asked[0], texts, own, matched[0]),
        _read(values, asked[1], wrong, own, matched[1]),
        _read(values, asked[2], null_texts, null, [None] * len(null)),
    )


@dataclass(frozen=True)
class _Asked:
    """Where the answers about one label are."""

    active: list[int]
    paired: list[int]
    """Active examples that have a hard negative, in the order of ``hard``."""
    hard: list[int]
    weak: list[int]
    weak_hard: list[int]
    easy: list[int]
    tokens: list[list[int]]
    """Of the label itself and of its rivals."""
    random: list[list[int]]


def _ask(
    fits: _Fits,
    texts: Sequence[str],
    trials: Sequence[Trials],
    rivals: Sequence[str],
    random: Sequence[Trials],
    rng: np.random.Generator,
) -> list[_Asked]:
    """Ask for all that label i is measured by on trials i; its rivals in the output score are drawn from ``rivals``."""
    found = []
    for text, trial in zip(texts, trials, strict=True):
        others = [r for r in rivals if r != text]
        drawn = [others[j] for j in rng.permutation(len(others))[: AMONG - 1]]
        with_other = [t for t in trial.active if t.other]
        found.append(
            _Asked(
                active=fits.ask(text, [Item(t.prompt, t.target) for t in trial.active]),
                paired=fits.ask(text, [Item(t.prompt, t.target) for t in with_other]),
                hard=fits.ask(text, [Item(t.prompt, t.other) for t in with_other]),
                weak=fits.ask(text, [Item(t.prompt, t.target) for t in trial.weak]),
                weak_hard=fits.ask(text, [Item(t.prompt, t.other) for t in trial.weak if t.other]),
                easy=fits.ask(text, [Item(t.prompt, t.target) for t in trial.inactive]),
                tokens=[fits.ask(label, [Item("", t) for t in _tokens(trial)]) for label in (text, *drawn)],
                random=[
                    fits.ask(text, [Item(t.prompt, t.target) for t in other.active[:VAGUE_EXAMPLES]])
                    for other in [r for r in random if r is not trial][:VAGUE_DIRECTIONS]
                ],
            )
        )
    return found


def _read(
    values: Float[np.ndarray, " P"],
    asked: Sequence[_Asked],
    texts: Sequence[str],
    trials: Sequence[Trials],
    matched: Sequence[float | None],
) -> list[LabelScore]:
    found = []
    for text, trial, at, concept in zip(texts, trials, asked, matched, strict=True):
        rank = _rank([values[t] for t in at.tokens], _weights(trial))
        found.append(
            LabelScore(
                atom=trial.atom,
                label=text,
                detection=_auroc(values[at.active], values[at.hard]),
                detection_weak=_auroc(values[at.weak], values[at.weak_hard]),
                detection_easy=_auroc(values[at.active], values[at.easy]),
                fuzzing=_wins(values[at.paired], values[at.hard]),
                output=None if rank is None else float(rank[0] == 1) / rank[1],
                output_rank=None if rank is None else rank[0] + (rank[1] - 1) / 2,
                concept=concept,
                vague=_is_vague(values[at.active], [values[r] for r in at.random]),
            )
        )
    return found


def _concepts(
    embedder: EmbeddingJudge | None, concepts: Sequence[str], texts: Sequence[str], trials: Sequence[Trials]
) -> list[float | None]:
    if embedder is None or not concepts or not texts:
        return [None] * len(texts)
    nearest = (embedder.embed(texts) @ embedder.embed(concepts).T).argmax(axis=1)
    return [
        float(concepts[best] == trial.concept) if trial.concept else None
        for best, trial in zip(nearest.tolist(), trials, strict=True)
    ]


class _Fits:
    """Collects what the judge is to be asked, each pair once, and asks it in one call."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._labels: dict[str, int] = {}
        self._items: dict[Item, int] = {}
        self._pairs: dict[tuple[int, int], int] = {}

    def ask(self, label: str, items: Sequence[Item]) -> list[int]:
        """Indices into ``all()``."""
        i = self._labels.setdefault(label, len(self._labels))
        pairs = [(i, self._items.setdefault(item, len(self._items))) for item in items]
        return [self._pairs.setdefault(pair, len(self._pairs)) for pair in pairs]

    def all(self, progress: Progress) -> Float[np.ndarray, " P"]:
        found = self._judge.fit(list(self._labels), list(self._items), list(self._pairs), progress=progress)
        return np.asarray(found, np.float64)


def _risen(trial: Trials) -> list[TokenShift]:
    """The tokens that rise most, of those with a letter or digit."""
    return [t for t in trial.promoted if t.delta_p > 0 and any(c.isalnum() for c in t.token)][:TOKENS]


def _tokens(trial: Trials) -> list[str]:
    return [t.token for t in _risen(trial)]


def _weights(trial: Trials) -> Float[np.ndarray, " T"]:
    weights = np.asarray([t.delta_p for t in _risen(trial)])
    return weights / weights.sum() if len(weights) else weights


def _rank(fits: Sequence[Float[np.ndarray, " T"]], weights: Float[np.ndarray, " T"]) -> tuple[int, int] | None:
    """Rank of the first label by Σ weight · fit, and how many share it; None without tokens, rivals or answers."""
    if not len(weights) or len(fits) < 2:
        return None
    values = np.asarray([weights @ f for f in fits])
    if not np.isfinite(values).all():
        return None
    return 1 + int((values > values[0]).sum()), int((values == values[0]).sum())


def _auroc(positive: Float[np.ndarray, " P"], negative: Float[np.ndarray, " N"]) -> float | None:
    """P(positive > negative) + ½ P(equal); None where a side is empty or has no answers."""
    positive, negative = positive[np.isfinite(positive)], negative[np.isfinite(negative)]
    if not len(positive) or not len(negative):
        return None
    above = positive[:, None] > negative[None]
    return float(np.mean(above + 0.5 * (positive[:, None] == negative[None])))


def _wins(target: Float[np.ndarray, " P"], other: Float[np.ndarray, " P"]) -> float | None:
    """Share of pairs in which the first is larger, ties half; None without answers."""
    there = np.isfinite(target) & np.isfinite(other)
    if not there.any():
        return None
    return float(np.mean((target > other)[there] + 0.5 * (target == other)[there]))


def _is_vague(own: Float[np.ndarray, " P"], others: Sequence[Float[np.ndarray, " _"]]) -> bool | None:
    """Whether the label fits its atom's examples no better than those of the best-fitting few random directions."""
    means = [float(np.nanmean(o)) for o in others if np.isfinite(o).any()]
    if not np.isfinite(own).any() or not means:
        return None
    return bool(np.nanmean(own) <= np.quantile(means, VAGUE))


def _halved(trials: Trials, half: int | None) -> Trials:
    if half is None:
        return trials
    return replace(
        trials,
        active=trials.active[half::2],
        weak=trials.weak[half::2],
        inactive=trials.inactive[half::2],
        promoted=tuple(t for t in trials.promoted if t.delta_p > 0)[half::2],
    )


def _derangement(n: int, rng: np.random.Generator) -> list[int]:
    """A random order in which nothing keeps its place: one cycle."""
    order = rng.permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return [int(i) for i in found]


def _values(scores: Sequence[LabelScore], name: str, chosen: set[int] | None) -> Float[np.ndarray, " N"]:
    kept = [getattr(s, name) for s in scores if chosen is None or s.atom in chosen]
    return np.asarray([float(v) for v in kept if v is not None], np.float64)


def _mean(values: Float[np.ndarray, " N"]) -> float | None:
    return float(values.mean()) if len(values) else None


def interval(values: Float[np.ndarray, " N"], seed: int = 0) -> tuple[float, float] | None:
    """The middle 95 % of the means of resampled atoms."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
