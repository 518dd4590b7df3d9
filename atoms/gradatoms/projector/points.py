"""What a label is, for ``unseen``: a point from its words, from what a step along its atom was measured to do, or from tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from gradatoms.dictionary.base import Atoms
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.storage import load_evidence
from gradatoms.models import LoadedModel
from gradatoms.projector.baselines import mean_of_words, unit, word_tokens
from gradatoms.projector.rows import Rows

_SHRINK = 0.1
"""Share of the mean variance that is added before embeddings are whitened."""


class Words:
    """Texts as the mean of the model's whitened input embeddings over their word tokens."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        E = loaded.embeddings.detach().float().cpu().numpy()
        self._mean = E.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(E.T, dtype=np.float32))
        self._white = (vectors / np.sqrt(values.clip(0) + _SHRINK * values.mean())) @ vectors.T
        self._E = E

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        return self.of_tokens(word_tokens(self._loaded, texts))

    def of_tokens(self, words: Sequence[Sequence[int]]) -> Float[np.ndarray, "n d"]:
        """Zeros for a text without words."""
        there = np.asarray([[bool(w)] for w in words])
        return np.asarray(there * ((mean_of_words(len(self._E), words) @ self._E - self._mean) @ self._white))


def centred(phi: Float[np.ndarray, "labels p"], among: Bool[np.ndarray, " labels"]) -> Float[np.ndarray, "labels p"]:
    """Unit points less the mean of those ``among``, unit again; a point of zeros says nothing and stays."""
    phi = unit(phi)
    there = np.any(phi, axis=1)
    mean = phi[there & among].mean(axis=0) if (there & among).any() else 0.0
    return unit(np.where(there[:, None], phi - mean, 0.0))


def evidence_of(atoms: Atoms) -> dict[int, Evidence]:
    """Of the atoms that have any; evidence is of rows that the dictionary was fitted on, and uses no concept."""
    path = atoms.path and atoms.path / "evidence.h5"
    return {e.atom: e for e in load_evidence(path).evidence if e.injected} if path and path.exists() else {}


def promoted(
    loaded: LoadedModel, embed: Words, found: Sequence[Evidence | None], trained: np.ndarray
) -> Float[np.ndarray, "labels p"]:
    """Mean embedding of the tokens that each atom promotes where it is active."""
    tokens = [[s.token for s in e.promoted if any(c.isalnum() for c in s.token)] if e else [] for e in found]
    return centred(embed.of_tokens([_token_ids(loaded, t) for t in tokens]), trained)


def neutral(
    loaded: LoadedModel, found: Sequence[Evidence | None], trained: np.ndarray
) -> Float[np.ndarray, "labels p"]:
    """+1 for each list of the neutral lookahead in which a token rises with the atom, −1 for each in which it falls."""
    row, token, sign = list[int](), list[int](), list[float]()
    for i, e in enumerate(found):
        if e is None or e.injected is None:
            continue
        up, down = e.injected.neutral, e.injected.neutral_minus
        rise = (*up.promoted, *up.promoted_ratio, *down.demoted, *down.demoted_ratio)
        fall = (*up.demoted, *up.demoted_ratio, *down.promoted, *down.promoted_ratio)
        for shifts, value in ((rise, 1.0), (fall, -1.0)):
            ids = _token_ids(loaded, [s.token for s in shifts])
            row, token, sign = row + [i] * len(ids), token + ids, sign + [value] * len(ids)
    used, place = np.unique(np.asarray(token, dtype=np.int64), return_inverse=True)
    return centred(sparse.csr_array((sign, (row, place)), shape=(len(found), max(1, len(used)))).toarray(), trained)


def _token_ids(loaded: LoadedModel, texts: Sequence[str]) -> list[int]:
    """The first token of each text that has one."""
    found = loaded.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    return [ids[0] for ids in found if ids]


def first_tokens(loaded: LoadedModel, rows: Rows, chosen: np.ndarray) -> Int[np.ndarray, " m"]:
    found = loaded.tokenizer([rows.targets[i] for i in chosen], add_special_tokens=False).input_ids
    return np.asarray([ids[0] if ids else -1 for ids in found], dtype=np.int64)
