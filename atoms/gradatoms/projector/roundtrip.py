"""From a description back to the push: how much of a gradient survives being put into words.

Two readers take a description back. ``push_of_terms`` adds up the atoms it names, x̂ = Σ_j w_j d_j. ``TextToPush`` reads
nothing but the words: it maps the mean of their input embeddings to a push by ridge regression, learned on rows that were
trained on. Both are scored by the cosine with the true centred push, beside the same with descriptions shuffled among the
rows. What to compare with: the mean push (what a reader says that never listens) and the sparse code's own
reconstruction (what the dictionary can say at most, in as many atoms as it likes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.labels.scoring import interval
from gradatoms.metric import Metric
from gradatoms.models import LoadedModel
from gradatoms.projector.text import Term

ALPHAS = tuple(10.0**power for power in range(-1, 6))
"""Ridge penalties tried, for features of variance 1."""
ASIDE = 0.2
"""Share of the distinct texts that choose the penalty."""
FITTED = 20_000
"""Rows a text map is fitted on at most."""
SHUFFLES = 500
"""Shuffles of the descriptions; the smallest p is 1 / (SHUFFLES + 1)."""


@dataclass(frozen=True, kw_only=True)
class Bounded(Metric):
    """A score with how sure it is."""

    interval: tuple[float, float] | None = None
    """95 % bootstrap over rows."""
    p: float | None = None
    """Share of shuffles that score no less, the true order among them."""


def push_of_terms(atoms: Atoms, terms: Sequence[Sequence[Term]]) -> Float[np.ndarray, "n D"]:
    """Centred pushes Σ_j w_j d_j of descriptions, shape (n, D), not normalised; zeros where no atom is named."""
    found = np.zeros((len(terms), atoms.W_dec.shape[1]), dtype=np.float32)
    for push, named in zip(found, terms, strict=True):
        for term in named:
            push += term.weight * atoms.W_dec[term.atom]
    return found


class TextToPush:
    """A learned map from text to a centred push: x̂ = A φ(text) + b, φ(text) the mean input embedding of its tokens.

    A and b by ridge regression on standardised φ; the penalty is the one of least squared error on texts kept aside, each
    with all of its rows. The language model is not run.
    """

    def __init__(self) -> None:
        self._loaded: LoadedModel | None = None
        self._map: Pipeline | None = None

    def fit(self, loaded: LoadedModel, texts: Sequence[str], centred_pushes: Float[np.ndarray, "n D"]) -> Self:
        """Learn from descriptions of rows and their centred pushes: pass training rows only.

        Raises:
            ConfigError: as many texts as pushes are needed, and two texts that differ.
        """
        if len(texts) != len(centred_pushes):
            raise ConfigError(f"expected a push for each of {len(texts)} texts, got {len(centred_pushes)}")
        keep = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), FITTED)).astype(int))
        chosen = [texts[i] for i in keep]
        distinct, group = np.unique(np.asarray(chosen, dtype=object).astype(str), return_inverse=True)
        if len(distinct) < 2:
            raise ConfigError(
                f"expected texts that differ, got {len(distinct)} distinct of {len(texts)}; fit on more rows"
            )
        # In float64: the embeddings of a small vocabulary are nearly dependent.
        X, y = _embedded(loaded, chosen).astype(np.float64), np.asarray(centred_pushes[keep], dtype=np.float64)
        aside = GroupShuffleSplit(1, test_size=ASIDE, random_state=0).split(X, y, group)
        ridge = RidgeCV(ALPHAS, cv=list(aside), scoring="neg_mean_squared_error")
        self._map = make_pipeline(StandardScaler(), ridge).fit(X, y)
        self._loaded = loaded
        return self

    def predict(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Centred pushes of texts, shape (n, D), not normalised.

        Raises:
            ConfigError: not fitted yet.
        """
        if self._map is None or self._loaded is None:
            raise ConfigError("expected a fitted text map, got a fresh one; call fit first")
        return np.asarray(self._map.predict(_embedded(self._loaded, texts)), dtype=np.float32)


def round_trip(
    atoms: Atoms,
    pushes: Float[np.ndarray, "n D"],
    said_terms: Sequence[Sequence[Term]],
    said_texts: Sequence[str],
    text_map: TextToPush,
    rng: np.random.Generator,
    *,
    train_mean: Float[np.ndarray, " D"],
) -> dict[str, Bounded]:
    """Mean cosine between centred pushes and what their descriptions give back; 0 for a row that named no atom.

    Args:
        pushes: unit pushes, shape (n, D), that neither the dictionary, the projector nor ``text_map`` has seen.
        said_terms, said_texts: what was said about each: the atoms named, and the words.
        train_mean: mean centred push of the training rows, shape (D,): the control that never listens.

    Returns:
        ``roundtrip_terms`` (``push_of_terms``) and ``roundtrip_text`` (``text_map``).

    Raises:
        ConfigError: not one description a push.
    """
    if not len(pushes) == len(said_terms) == len(said_texts):
        raise ConfigError(
            f"expected a description for each of {len(pushes)} pushes, got {len(said_terms)} of terms and {len(said_texts)} texts"
        )
    if not len(pushes):
        return {
            name: Bounded(value=None, null=None, unit="cosine", better="higher", n=0, note="no rows")
            for name in ("roundtrip_terms", "roundtrip_text")
        }
    centred = atoms.center(np.asarray(pushes, dtype=np.float32))
    mean = float(_cosines(centred, np.broadcast_to(train_mean, centred.shape)).mean())
    ceiling = float(_cosines(centred, atoms.center(atoms.decode(atoms.encode(pushes)))).mean())
    spoke = np.asarray([bool(terms) for terms in said_terms])
    note = (
        f"null: descriptions shuffled among rows; the mean push {mean:.3f}; ceiling, the code's own reconstruction "
        f"{ceiling:.3f}; {len(spoke) - int(spoke.sum())} of {len(spoke)} rows named no atom and count as 0"
    )
    return {
        "roundtrip_terms": _scored(centred, push_of_terms(atoms, said_terms), spoke, rng, f"named atoms; {note}"),
        "roundtrip_text": _scored(centred, text_map.predict(said_texts), spoke, rng, f"words by a ridge map; {note}"),
    }


def _scored(
    centred: Float[np.ndarray, "n D"],
    given_back: Float[np.ndarray, "n D"],
    spoke: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    note: str,
) -> Bounded:
    true, back = _unit(centred), _unit(given_back) * spoke[:, None]
    cosines = np.einsum("nd,nd->n", true, back)
    value = float(cosines.mean())
    shuffled = [float(np.vdot(true, back[rng.permutation(len(back))])) / len(back) for _ in range(SHUFFLES)]
    # Equal sums in another order differ in their last digits; they are ties.
    no_less = sum(score >= value - 1e-6 for score in shuffled)
    return Bounded(
        value=value,
        null=float(np.mean(shuffled)),
        unit="cosine",
        better="higher",
        n=len(cosines),
        note=note,
        interval=interval(cosines, seed=int(rng.integers(2**31))),
        p=(1 + no_less) / (1 + SHUFFLES),
    )


def _cosines(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
    return np.einsum("nd,nd->n", _unit(a), _unit(b))


def _unit(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Rows at length 1; zeros stay zeros."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


@torch.no_grad()
def _embedded(loaded: LoadedModel, texts: Sequence[str]) -> Float[np.ndarray, "n M"]:
    """φ: the mean input embedding of each text's tokens, shape (n, d_model); zeros for a text without tokens."""
    ids = loaded.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    used, place = np.unique(np.asarray([token for row in ids for token in row], dtype=np.int64), return_inverse=True)
    weight = loaded.embeddings[torch.from_numpy(used).to(loaded.device)].float().cpu()
    offsets = np.cumsum([0, *(len(row) for row in ids[:-1])])
    return F.embedding_bag(torch.from_numpy(place), weight, torch.from_numpy(offsets), mode="mean").numpy()
