"""What can be said of a push without a projector: scores of labels by simpler means, and an upper reference.

Nothing here reads the ground-truth concepts, except ``oracle``, which is there for reference only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.lookahead import logit_lens, lookahead
from gradatoms.models import LoadedModel
from gradatoms.projector.rows import Rows

NEVER = -1e9
"""Score of a label that a baseline cannot name: one without a train row, or without a word. Finite, so that differences are."""
ALPHA = 0.1
"""Length of the lookahead's step, in units of ‖h‖."""
_FITTED = 20_000
"""Train rows that a classifier is fitted on at most."""
_USUAL = 200
"""Train rows that a label's usual lookahead is the mean of, at most."""
_ROWS = 4096
"""Rows centred at once; bounds memory."""
_WIDE = 64
"""Rows with a number for each token of the vocabulary at once; bounds memory."""
_TOKENS = 256
"""Tokens of a context at most; of longer ones the last count."""
_C = 0.1
"""Inverse strength of the classifiers' penalty, for coordinates of about unit variance."""


def baselines(
    loaded: LoadedModel,
    atoms: Atoms,
    rows: Rows,
    train: Bool[np.ndarray, " n"],
    tests: Int[np.ndarray, " t"],
    *,
    only: Collection[str] = (),
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "t labels"]]:
    """How well each label fits each test row, by five means; higher is better, columns are ``sorted(rows.labels)``.

        nearest atom       x · d_a                                  x: centred push, d_a: the label's atom
        nearest centroid   cos(x, mean of the unit x of the train rows that the atom leads)
        linear probe       multinomial logistic regression of the leading atom on x/‖x‖
        logit lens         mean logit of the label's word tokens, from the push through final norm and unembedding
        lookahead          mean log p(steered) − log p(plain) of the word tokens, for a step of 0.1·‖h‖ along the push at
                           the end of the row's own prompt

    The last two are less the label's mean over train rows, or frequent words would win for all.

    Args:
        train: rows that may be learned from.
        tests: rows to score.
        only: names of those to run; all by default. The lookahead takes by far the longest.
        seed: draws the rows, where there are more than are used.

    Raises:
        ConfigError: no train row, or an unknown name.
    """
    if unknown := set(only) - set(_BASELINES):
        raise ConfigError(f"expected baselines among {', '.join(_BASELINES)}, got {', '.join(sorted(unknown))}")
    if not train.any():
        raise ConfigError("expected rows to learn from, got none; hold out less")
    fitted = np.flatnonzero(train)
    rng = np.random.default_rng(seed)
    chosen = {name: score for name, score in _BASELINES.items() if not only or name in only}
    return {name: score(loaded, atoms, rows, fitted, tests, rng) for name, score in chosen.items()}


def oracle(rows: Rows, train: Bool[np.ndarray, " n"], tests: Int[np.ndarray, " t"], *, seed: int = 0) -> list[str]:
    """The concept of each test row by a classifier that was told the concepts of the train rows.

    An upper reference only, and the one thing here that sees ``concept``: multinomial logistic regression on the unit
    pushes. It cannot name a concept without train rows.

    Raises:
        ConfigError: the store names no concepts, or no train row.
    """
    if rows.concepts is None:
        raise ConfigError(
            "expected a store that names the concept of each example, this one does not; leave the oracle out"
        )
    if not train.any():
        raise ConfigError("expected rows to learn from, got none; hold out less")
    chosen = some(np.flatnonzero(train), _FITTED, np.random.default_rng(seed))
    names, known = np.unique(np.asarray(rows.concepts)[chosen], return_inverse=True)
    mean = rows.pushes[chosen].mean(axis=0)
    best = classify(unit(rows.pushes[chosen] - mean), known, unit(rows.pushes[tests] - mean)).argmax(axis=1)
    return [str(names[i]) for i in best]


# Parts that other rankers share


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1; a row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def some(rows: Int[np.ndarray, " n"], most: int, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """A random choice of at most ``most`` rows, in order."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def columns(rows: Rows) -> Int[np.ndarray, " labels"]:
    """The atoms that the columns of scores stand for."""
    return np.asarray(sorted(rows.labels), dtype=np.int64)


def word_tokens(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """The distinct tokens of each text, as it reads inside a sentence, that hold a letter or a digit."""
    found: list[list[int]] = []
    for ids in loaded.tokenizer([f" {text}" for text in texts], add_special_tokens=False).input_ids:
        distinct = dict.fromkeys(ids)
        found.append([i for i in distinct if any(c.isalnum() for c in loaded.decode([i]))])
    return found


def mean_of_words(vocabulary: int, words: Sequence[Sequence[int]]) -> sparse.csr_array:
    """The matrix (labels, vocabulary) that takes numbers of tokens to their mean over each label's words."""
    owner = np.repeat(np.arange(len(words)), [len(w) for w in words])
    share = np.repeat([1 / max(1, len(w)) for w in words], [len(w) for w in words]).astype(np.float32)
    token = np.asarray([i for w in words for i in w], dtype=np.int64)
    return sparse.csr_array((share, (owner, token)), shape=(len(words), vocabulary))


def classify(
    X: Float[np.ndarray, "m d"], y: Int[np.ndarray, " m"], tests: Float[np.ndarray, "t d"]
) -> Float[np.ndarray, "t classes"]:
    """Scores of each class, 0 to max(y), by multinomial logistic regression on unit rows.

    Raises:
        ValueError: a class below the highest has no row.
    """
    if y.max() == 0:
        return np.zeros((len(tests), 1))
    scale = np.sqrt(X.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of many classes, which concepts and atoms are
        model = LogisticRegression(C=_C, max_iter=1000, tol=1e-3).fit(scale * X, y)
    if len(model.classes_) != y.max() + 1:
        raise ValueError(f"expected a row of each of {y.max() + 1} classes, found rows of {len(model.classes_)}")
    found = np.asarray(model.decision_function(scale * tests), dtype=np.float64)
    return np.stack([-found, found], axis=1) if found.ndim == 1 else found


# The baselines


def _nearest_atom(
    _loaded: LoadedModel, atoms: Atoms, rows: Rows, _fitted: np.ndarray, tests: np.ndarray, _rng: np.random.Generator
) -> np.ndarray:
    return np.asarray(atoms.center(rows.pushes[tests]) @ atoms.W_dec[columns(rows)].T)


def _nearest_centroid(
    _loaded: LoadedModel, atoms: Atoms, rows: Rows, fitted: np.ndarray, tests: np.ndarray, _rng: np.random.Generator
) -> np.ndarray:
    cols = columns(rows)
    sums = np.zeros((len(cols), rows.pushes.shape[1]))
    for start in range(0, len(fitted), _ROWS):
        part = fitted[start : start + _ROWS]
        np.add.at(sums, np.searchsorted(cols, rows.lead[part]), unit(atoms.center(rows.pushes[part])))
    scores = unit(atoms.center(rows.pushes[tests])) @ unit(sums).T
    scores[:, ~np.isin(cols, rows.lead[fitted])] = NEVER
    return np.asarray(scores)


def _linear_probe(
    _loaded: LoadedModel, atoms: Atoms, rows: Rows, fitted: np.ndarray, tests: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    cols = columns(rows)
    chosen = some(fitted, _FITTED, rng)
    seen, y = np.unique(rows.lead[chosen], return_inverse=True)
    X, T = (unit(atoms.center(rows.pushes[part])) for part in (chosen, tests))
    scores = np.full((len(tests), len(cols)), NEVER)
    scores[:, np.searchsorted(cols, seen)] = classify(X, y, T)
    return scores


def _logit_lens(
    loaded: LoadedModel, atoms: Atoms, rows: Rows, fitted: np.ndarray, tests: np.ndarray, _rng: np.random.Generator
) -> np.ndarray:
    mean = np.zeros(rows.pushes.shape[1])
    for start in range(0, len(fitted), _ROWS):
        mean += rows.pushes[fitted[start : start + _ROWS]].sum(axis=0) / len(fitted)
    usual = mean.astype(np.float32)[None]  # the lens is linear: the mean over rows is that of the mean row

    def logits(part: np.ndarray) -> np.ndarray:
        found = logit_lens(loaded, rows.pushes[part] - usual)
        return np.asarray(found - found.mean(axis=1, keepdims=True))

    return _by_words(loaded, rows, tests, logits)


def _lookahead(
    loaded: LoadedModel, atoms: Atoms, rows: Rows, fitted: np.ndarray, tests: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    hook = loaded.hook(atoms.hook)

    def moved(part: np.ndarray) -> np.ndarray:
        # a text without a prompt is its own context
        texts = [rows.prompts[i] or rows.targets[i] for i in part]
        contexts = [ids[-_TOKENS:] for ids in loaded.tokenizer(texts).input_ids]
        pairs = [(i, i) for i in range(len(part))]
        return lookahead(loaded, hook, rows.pushes[part], contexts, pairs, alpha=ALPHA).log_ratio

    with fast_math(loaded):
        usual = _by_words(loaded, rows, some(fitted, _USUAL, rng), moved).mean(axis=0)
        return np.where(usual <= NEVER / 2, NEVER, _by_words(loaded, rows, tests, moved) - usual)


def _by_words(
    loaded: LoadedModel, rows: Rows, part: np.ndarray, values: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Mean of ``values(rows)`` (b, vocabulary) over each label's word tokens, some rows at a time."""
    words = word_tokens(loaded, [rows.labels[a] for a in columns(rows).tolist()])
    mean = mean_of_words(loaded.fingerprint.vocab_size, words)
    scores = np.full((len(part), len(words)), NEVER)
    for start in range(0, len(part), _WIDE):
        scores[start : start + _WIDE] = (mean @ values(part[start : start + _WIDE]).T).T
    scores[:, [not w for w in words]] = NEVER
    return scores


_Baseline = Callable[[LoadedModel, Atoms, Rows, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
_BASELINES: dict[str, _Baseline] = {
    "nearest atom": _nearest_atom,
    "nearest centroid": _nearest_centroid,
    "linear probe": _linear_probe,
    "logit lens": _logit_lens,
    "lookahead": _lookahead,
}
