"""Names for concepts that were never trained on, without running the language model.

Every label is a point φ, known without a row of it: from its words, or from what a step along its atom was measured to do.
A linear map between pushes and points is fitted on the labels of train rows, and then ranks all labels. With x a centred
unit push, by ridge regression (A → B: argmin_M ‖AM − B‖² + λ‖M‖²) unless said otherwise:

    label embedding          x → φ, cosine of xM with φ (DeViSE, Frome et al. 2013)
    text-to-push alignment   φ → x, cosine of x with φM
    contrastive              two linear maps, trained so that a push is closest to its own label (CLIP, Radford et al. 2021)
    more concepts            text-to-push alignment, with pushes and labels of other dictionaries besides
    target token             x → unembedding of the first token of the row's own target; mean cosine with the label's words
    average Jacobian         unembedding of that token → x, the mean of Jᵀ; cosine of x with φM
    promoted tokens          as text-to-push alignment; φ from tokens that the atom's lookahead promotes
    neutral steps            the same; φ counts the tokens that ± steps move most in the same few neutral contexts
    combined                 mean z-score of text-to-push alignments and promoted tokens
    …, calibrated            less γ for every label of a train row (calibrated stacking, Chao et al. 2016)

φ of words is the mean of the model's input embeddings, whitened, over the label's word tokens; with a sentence model
besides, there are variants of it. Promoted tokens, neutral steps and combined know the held-out atom, if not its rows:
the evidence was measured along its direction. Neutral steps use no meaning of any token; they recognise the atom by its
effect, and no name was understood. λ is what ranks left-out labels best, a fifth of the train labels at a time, and γ
what names most of both kinds, left-out labels and left-out rows of the others; nothing is chosen by test rows. γ raises
every untrained label over every trained one: what a calibrated ranker wins on held-out concepts is to be read beside
what it loses on trained ones, and says nothing of an untrained label against a trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch.nn import functional as F

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.labels.judges import EmbeddingJudge
from gradatoms.models import LoadedModel
from gradatoms.projector.baselines import columns, mean_of_words, some, unit, word_tokens
from gradatoms.projector.points import Words, centred, evidence_of, first_tokens, neutral, promoted
from gradatoms.projector.rows import Rows

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""λ that are tried, in units of one row."""
_FOLDS = 5
_FITTED = 50_000
"""Train rows that are fitted on at most; bounds memory."""
_BATCH, _WIDTH, _TEMPERATURE, _DROPPED = 256, 128, 0.2, 0.5
"""Of the contrastive maps: rows a step, coordinates compared, and inputs dropped, without which labels are learned by heart."""

Score = Callable[[np.ndarray], np.ndarray]
"""Unit pushes (b, d) → scores (b, labels)."""
Fit = Callable[[np.ndarray, Sequence[float]], Iterator[Score]]
"""(mask of the train rows to fit on, strengths) → a score for each strength."""


@dataclass(frozen=True)
class _Train:
    """What is fitted on: m train rows, all labels."""

    X: Float[np.ndarray, "m d"]
    """Centred pushes, unit."""
    label: Int[np.ndarray, " m"]
    """Column of the leading atom's label."""
    trained: Bool[np.ndarray, " labels"]
    """Labels of a train row."""
    targets: Int[np.ndarray, " m"]
    """First token of the row's target; −1 where it has none."""


def unseen_rankers(
    loaded: LoadedModel,
    atoms: Atoms,
    rows: Rows,
    train: Bool[np.ndarray, " n"],
    tests: Int[np.ndarray, " t"],
    *,
    more: Sequence[tuple[Float[np.ndarray, "_ d"], Sequence[str]]] = (),
    sentences: bool = True,
    steps: int = 300,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "t labels"]]:
    """How well each label fits each test row, by each ranker; higher is better, columns are ``sorted(rows.labels)``.

    Args:
        train: rows that may be learned from. A label that leads none of them is only ever ranked.
        more: of other dictionaries of the same hook, pushes less that dictionary's ``b_dec``, and the label of each. It is for
            the caller to leave out what shares a concept with rows that are held out.
        sentences: add the variants with the packaged sentence model, where it is installed.
        steps: of the contrastive maps; 0 leaves them out.
        seed: of the folds, of the choice of rows where there are many, and of the contrastive maps.

    Raises:
        ConfigError: fewer train labels than folds.
    """
    rng = np.random.default_rng(seed)
    cols, chosen = columns(rows), some(np.flatnonzero(train), _FITTED, rng)
    texts = [rows.labels[a] for a in cols.tolist()]
    label = np.searchsorted(cols, rows.lead[chosen])
    trained = np.isin(np.arange(len(cols)), label)
    if trained.sum() < _FOLDS:
        raise ConfigError(
            f"expected rows of at least {_FOLDS} labels to learn from, got {trained.sum()}; hold out less"
        )
    data = _Train(unit(atoms.center(rows.pushes[chosen])), label, trained, first_tokens(loaded, rows, chosen))
    folds = np.array_split(rng.permutation(np.flatnonzero(trained)), _FOLDS)
    X = unit(atoms.center(rows.pushes[tests]))
    embed = Words(loaded)
    phi = centred(embed(texts), trained)
    U, words = _unembedding(loaded, data), word_tokens(loaded, texts)
    fits: dict[str, Fit] = {
        "label embedding": _to_labels(data, phi),
        "text-to-push alignment": _to_pushes(data, phi),
        "target token": _to_targets(data, U, words),
        "average Jacobian": _average_jacobian(data, U, words),
    }
    extra = [(unit(np.asarray(pushes, dtype=np.float32)), list(names)) for pushes, names in more if len(pushes)]
    if extra:
        fits["more concepts"] = _to_pushes(data, phi, [_Other.of(P, names, embed) for P, names in extra])
    if sentences and EmbeddingJudge.installed():
        judge = EmbeddingJudge()
        psi = centred(judge.embed(texts), trained)
        fits["label embedding, sentence model"] = _to_labels(data, psi)
        fits["text-to-push alignment, sentence model"] = _to_pushes(data, psi)
        if extra:
            others = [_Other.of(P, names, judge.embed) for P, names in extra]
            fits["more concepts, sentence model"] = _to_pushes(data, psi, others)
    if evidence := evidence_of(atoms):
        found = [evidence.get(a) for a in cols.tolist()]
        fits["promoted tokens"] = _to_pushes(data, promoted(loaded, embed, found, trained))
        fits["neutral steps"] = _to_pushes(data, neutral(loaded, found, trained))
    strengths = {name: _best(fit, data, folds) for name, fit in fits.items()}
    parts = [name for name in fits if name.startswith(("text-to-push", "promoted"))]
    fits["combined"], strengths["combined"] = _together([(fits[name], strengths[name]) for name in parts]), 0.0
    every = np.ones(len(data.X), dtype=bool)
    scores = {name: next(fit(every, [strengths[name]]))(X) for name, fit in fits.items()}
    for name in ("combined", "neutral steps"):
        if name in fits:
            less = _discount(fits[name], strengths[name], data, folds, rng)
            scores[f"{name}, calibrated"] = scores[name] - less * trained
    if steps:
        scores["contrastive"] = _contrastive(data, phi, X, steps, seed)
    return scores


# Fits


def ridge(
    A: Float[np.ndarray, "n p"], B: Float[np.ndarray, "n q"], strengths: Sequence[float]
) -> Iterator[Float[np.ndarray, "p q"]]:
    """argmin_M ‖AM − B‖² + λ‖M‖² for each λ; of the two forms, (AᵀA + λ)⁻¹AᵀB and Aᵀ(AAᵀ + λ)⁻¹B, the smaller."""
    wide = A.shape[1] > len(A)
    gram = (A @ A.T if wide else A.T @ A).astype(np.float64)
    right = B if wide else A.T @ B
    for strength in strengths:
        solved = np.linalg.solve(gram + strength * np.eye(len(gram)), right)
        yield A.T @ solved if wide else solved


@dataclass(frozen=True)
class _Other:
    """Labels of another dictionary: points, mean unit pushes, and how many rows these are the mean of."""

    phi: Float[np.ndarray, "other p"]
    mean: Float[np.ndarray, "other d"]
    count: Int[np.ndarray, " other"]

    @classmethod
    def of(cls, X: np.ndarray, texts: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]) -> _Other:
        names, label = np.unique(np.asarray(texts), return_inverse=True)
        phi = embed([str(n) for n in names])
        return cls(centred(phi, np.ones(len(phi), dtype=bool)), *_means(X, label, len(names)))


def _means(
    X: Float[np.ndarray, "m d"], label: Int[np.ndarray, " m"], n: int
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """The mean row of each of n labels (zeros where it has none), and its rows."""
    count = np.bincount(label, minlength=n)
    sums = sparse.csr_array((np.ones(len(label)), (label, np.arange(len(label)))), shape=(n, len(label))) @ X
    return np.asarray(sums / np.maximum(count, 1)[:, None]), count


def _to_labels(data: _Train, phi: np.ndarray) -> Fit:
    def fit(keep: np.ndarray, strengths: Sequence[float]) -> Iterator[Score]:
        for M in ridge(data.X[keep], phi[data.label[keep]], strengths):
            yield lambda X, M=M: unit(X @ M) @ phi.T  # type: ignore[misc]

    return fit


def _to_pushes(data: _Train, phi: np.ndarray, others: Sequence[_Other] = ()) -> Fit:
    def fit(keep: np.ndarray, strengths: Sequence[float]) -> Iterator[Score]:
        # rows of one label share its point, so they are fitted through their mean
        mean, count = _means(data.X[keep], data.label[keep], len(phi))
        used = count > 0
        A = np.concatenate([phi[used], *(o.phi for o in others)])
        B = np.concatenate([mean[used], *(o.mean for o in others)])
        root = np.sqrt(np.concatenate([count[used], *(o.count for o in others)]))[:, None]
        for M in ridge(root * A, root * B, strengths):
            yield lambda X, M=M: X @ unit(phi @ M).T  # type: ignore[misc]

    return fit


def _unembedding(loaded: LoadedModel, data: _Train) -> Float[np.ndarray, "V d"]:
    """Unit rows less the mean over the train rows' targets."""
    U = loaded.model.get_output_embeddings().weight.detach().float().cpu().numpy()
    U = unit(U - U.mean(axis=0))
    known = data.targets[data.targets >= 0]
    return np.asarray(U - U[known].mean(axis=0)) if len(known) else U


def _to_targets(data: _Train, U: np.ndarray, words: Sequence[Sequence[int]]) -> Fit:
    mean = mean_of_words(len(U), words) @ unit(U)

    def fit(keep: np.ndarray, strengths: Sequence[float]) -> Iterator[Score]:
        keep = keep & (data.targets >= 0)
        for M in ridge(data.X[keep], U[data.targets[keep]], strengths):
            yield lambda X, M=M: unit(X @ M) @ mean.T  # type: ignore[misc]

    return fit


def _average_jacobian(data: _Train, U: np.ndarray, words: Sequence[Sequence[int]]) -> Fit:
    """A push is −Jᵀ·Uᵀ·(p − target): the target's part of it, with one J for all rows."""
    phi = unit(mean_of_words(len(U), words) @ U)  # zeros where there is no word

    def fit(keep: np.ndarray, strengths: Sequence[float]) -> Iterator[Score]:
        keep = keep & (data.targets >= 0)
        for M in ridge(U[data.targets[keep]], data.X[keep], strengths):
            yield lambda X, M=M: X @ unit(phi @ M).T  # type: ignore[misc]

    return fit


def _together(parts: Sequence[tuple[Fit, float]]) -> Fit:
    """Mean z-score of several, each with its own λ."""

    def fit(keep: np.ndarray, strengths: Sequence[float]) -> Iterator[Score]:
        scores = [next(part(keep, [strength])) for part, strength in parts]
        for _ in strengths:
            yield lambda X: np.mean([_z(score(X)) for score in scores], axis=0)

    return fit


# What is chosen by labels left out


def _best(fit: Fit, data: _Train, folds: Sequence[np.ndarray]) -> float:
    """The λ that ranks best among labels left out of the fit."""
    quality = np.zeros(len(STRENGTHS))
    for fold in folds:
        out = np.isin(data.label, fold)
        fold = np.sort(fold)
        own = np.searchsorted(fold, data.label[out])
        for i, score in enumerate(fit(~out, STRENGTHS)):
            quality[i] += _above(score(data.X[out])[:, fold], own)
    return STRENGTHS[int(quality.argmax())]


def _above(scores: np.ndarray, own: np.ndarray) -> float:
    """Sum over rows of the share of labels that score below the own one."""
    mine = scores[np.arange(len(own)), own][:, None]
    return float((scores < mine).sum() + ((scores == mine).sum() - len(own)) / 2)


def _discount(fit: Fit, strength: float, data: _Train, folds: Sequence[np.ndarray], rng: np.random.Generator) -> float:
    """γ: with it, recall@1 among train labels, of left-out labels and of left-out rows of others, has the best harmonic mean."""
    leads: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for fold in folds:
        out = np.isin(data.label, fold)
        aside = ~out & (rng.random(len(out)) < 1 / len(folds))
        score = next(fit(~out & ~aside, [strength]))
        new = np.isin(np.arange(len(data.trained)), fold)
        for rows, unseen in ((out, True), (aside, False)):
            S, own = score(data.X[rows]), data.label[rows]
            mine = S[np.arange(len(own)), own]
            S[np.arange(len(own)), own] = -np.inf
            leads[unseen].append(np.stack([mine - S[:, new].max(axis=1), mine - S[:, data.trained & ~new].max(axis=1)]))
    (new_new, new_old), (old_new, old_old) = (np.concatenate(leads[unseen], axis=1) for unseen in (True, False))
    tried = np.quantile(np.maximum(0, -new_old), np.linspace(0, 1, 101))
    new_right = [np.mean((new_new > 0) & (new_old + less > 0)) for less in tried]
    old_right = [np.mean((old_old > 0) & (old_new - less > 0)) for less in tried]
    both = [a * b / max(a + b, 1e-12) for a, b in zip(new_right, old_right, strict=True)]
    return float(tried[int(np.argmax(both))])


# Fits by gradient descent


def _contrastive(data: _Train, phi: np.ndarray, X: np.ndarray, steps: int, seed: int) -> Float[np.ndarray, "t labels"]:
    """Cosines after two linear maps that were trained by InfoNCE, in both directions, between rows and their labels."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.tensor(a * np.sqrt(a.shape[1]), dtype=torch.float32) for a in (data.X, phi, X)]
    push, text, tests = sides
    maps = [
        torch.empty(_WIDTH, a.shape[1]).normal_(std=a.shape[1] ** -0.5, generator=generator).requires_grad_()
        for a in (push, text)
    ]
    label = torch.from_numpy(data.label)
    optimizer = torch.optim.AdamW(maps, lr=3e-3, weight_decay=1e-2)

    def dropped(a: torch.Tensor) -> torch.Tensor:
        return a * (torch.rand(a.shape, generator=generator) >= _DROPPED) / (1 - _DROPPED)

    for _ in range(steps):
        batch = torch.randint(len(push), (_BATCH,), generator=generator)
        labels, own = label[batch].unique(return_inverse=True)
        a = F.normalize(F.linear(dropped(push[batch]), maps[0]), dim=1)
        b = F.normalize(F.linear(dropped(text[labels]), maps[1]), dim=1)
        logits = a @ b.T / _TEMPERATURE
        is_own = F.one_hot(own, len(labels)).T.float()
        back = -(logits.T.log_softmax(1) * is_own).sum(1) / is_own.sum(1)
        loss = F.cross_entropy(logits, own) + back.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        a, b = (F.normalize(F.linear(x, m), dim=1) for x, m in zip((tests, text), maps, strict=True))
        return (a @ b.T).numpy()


def _z(scores: np.ndarray) -> np.ndarray:
    """Scores of each row at mean 0 and deviation 1."""
    shifted = scores - scores.mean(axis=1, keepdims=True)
    return np.asarray(shifted / np.maximum(shifted.std(axis=1, keepdims=True), 1e-12))
