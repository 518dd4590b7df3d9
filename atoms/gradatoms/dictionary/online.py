"""Classical dictionary learning: few non-negative atoms a push, learned online.

Objective (Mairal et al. 2009; scikit-learn's ``MiniBatchDictionaryLearning``), over centred pushes x and unit atoms W:

    min over W, c ≥ 0 of  Σ_i ½‖x_i − c_iᵀW‖² + α Σ c_i
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

from gradatoms.dictionary.base import Atoms, Coder, FitConfig
from gradatoms.dictionary.coding import Codes, nn_lasso
from gradatoms.dictionary.pushes import Pushes
from gradatoms.errors import ConfigError
from gradatoms.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(FitConfig):
    """Settings of classical dictionary learning."""

    method: ClassVar[str] = "online"

    alpha: float = 0.2
    """Lasso penalty α on unit pushes. 0.2 gives 2 to 3 atoms a row on relation prompts, 0.1 gives 4 to 6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ConfigError(f"expected alpha between 0 and 1 (a push has norm 1), got {self.alpha}")


@dataclass(frozen=True)
class LassoCoder(Coder):
    """Codes by non-negative lasso, refitted on the selected atoms."""

    W_dec: Float[np.ndarray, "K D"]
    alpha: float

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return nn_lasso(X, self.W_dec, self.alpha)


def fit_online(pushes: Pushes, config: OnlineConfig, *, progress: Progress = silent) -> Atoms:
    """Learn atoms from ``pushes``, one mini-batch at a time; memory does not grow with the rows."""
    mean = pushes.mean()
    learner = MiniBatchDictionaryLearning(
        n_components=config.n_atoms,
        alpha=config.alpha,
        fit_algorithm="cd",
        positive_code=True,
        batch_size=config.batch_size,
        random_state=config.seed,
        dict_init=_init(pushes, mean, config),
        transform_algorithm="lasso_cd",
        transform_max_iter=200,
    )
    total, done = config.epochs * -(-len(pushes) // config.batch_size), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for batch in pushes.batches(config.batch_size, seed=config.seed, epochs=config.epochs):
            learner.partial_fit((batch - mean).astype(np.float64))
            done += 1
            progress("fit", min(done, total), total)
    W_dec = learner.components_ / np.maximum(np.linalg.norm(learner.components_, axis=1, keepdims=True), 1e-12)
    W_dec = W_dec.astype(np.float32)
    return Atoms(W_dec, mean, LassoCoder(W_dec, config.alpha), pushes.hook)


def _init(pushes: Pushes, mean: np.ndarray, config: OnlineConfig) -> np.ndarray:
    """Random centred pushes as first atoms (repeated with noise where there are fewer rows than atoms)."""
    rng = np.random.default_rng(config.seed)
    first = next(pushes.batches(max(config.n_atoms, 2048), seed=config.seed)) - mean
    chosen = first[rng.choice(len(first), config.n_atoms, replace=len(first) < config.n_atoms)].astype(np.float64)
    chosen += 1e-3 * rng.standard_normal(chosen.shape)
    return np.asarray(chosen / np.linalg.norm(chosen, axis=1, keepdims=True))
