"""The methods as scikit-learn estimators: arrays in, dense or sparse codes out; for pipelines, searches and comparisons.

``fit`` learns as ``gradatoms.fit`` does from an array of pushes. ``partial_fit`` takes one step a call, with a learner that
it keeps: where the mean of all rows is not known, each batch is centred on the mean of the rows so far.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, Self, no_type_check

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import normalize as unit_rows
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from gradatoms.dictionary.base import Atoms, FitConfig, Learner
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.kmeans import KMeansConfig, KMeansLearner
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pca import PCAConfig
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.topk import TopKConfig
from gradatoms.dictionary.training import train
from gradatoms.errors import ConfigError


class GradientDictionary(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the estimators share. A row x is explained as x ≈ ``mean_`` + Σ_a c_a · ``components_``[a] with few c_a ≠ 0.

    With ``normalize`` rows are brought to norm 1 first, and codes are of unit rows; a row of zeros has no direction, teaches
    nothing and has codes of zero. Without it, penalties such as ``alpha`` are in the units of the rows. Rows and codes are
    float32 inside.

    Attributes:
        components_: unit atoms, ndarray of shape (n_atoms, d).
        mean_: what every reconstruction begins with, ndarray of shape (d,): the mean row, and a learned decoder bias.
        atoms_: the dictionary as the rest of the library knows it; its ``W_dec`` and ``b_dec`` are the two above.
        n_features_in_: d.
        n_steps_: batches learned from.
        n_iter_: passes over the rows; of ``fit`` only.
    """

    n_atoms: int
    normalize: bool
    sparse_output: bool
    random_state: Any
    _config: ClassVar[type[FitConfig]]
    _learner: Learner | None = None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn atoms from all rows; whatever was learned before is forgotten.

        Args:
            X: rows, array-like of shape (n, d), n ≥ 2.
            y: not used.
            sample_weight: what each row counts for, array-like of shape (n,), ≥ 0; rows of weight 0 are left out.

        Raises:
            ConfigError: a setting out of range, or no row that is not zero.
            ValueError: rows that are not finite numbers, or weights that are negative or of another length.
        """
        X, weights = self._usable(X, sample_weight, first=True)
        self._learner = None
        config = self._settings(X.shape[1])
        records: list[dict[str, Any]] = []
        rows = _rows(X, weights, self.normalize)
        self._take(train(rows, config, log=records.append))
        self.n_iter_, self.n_steps_ = int(records[-1]["epoch"]), int(records[-1]["step"])
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """One step on these rows, however many there are.

        The first call (also the first after ``fit``) begins a new dictionary from its rows. Later calls move the mean, as a
        running mean of all rows so far, and centre their rows on it; what earlier rows taught stays relative to the mean of
        their time, whose error falls as one over the square root of the rows seen (principal components correct for it
        exactly). So let the first batch be large and mixed. Atoms are not resampled, and the learning rate is constant.

        Args:
            X: rows, array-like of shape (n, d); n ≥ 2 in the first call.
            y: not used.
            sample_weight: what each row counts for, array-like of shape (n,), ≥ 0, on one scale for all calls.

        Raises:
            ConfigError: a setting out of range, or a first batch without a row that is not zero.
            ValueError: as for ``fit``, or rows of another width than before.
        """
        learner = self._learner
        X, weights = self._usable(X, sample_weight, first=learner is None)
        if learner is None:
            if not len(X):
                raise ConfigError("expected rows that are not zero in the first batch, found none; begin with others")
            self._streamed = _streaming(self._settings(X.shape[1]))
            learner = self._streamed.learner(X.shape[1], None, Reduce())
            self._mean, self._weight, self.n_steps_ = np.zeros(X.shape[1]), 0.0, 0
        if len(X):
            w = np.ones(len(X)) if weights is None else weights.astype(np.float64)
            before, self._weight = self._weight, self._weight + float(w.sum())
            shift = w @ (X - self._mean) / self._weight
            self._mean = self._mean + shift
            if self._learner is None:
                learner.begin(self._centred(X))
                self._learner = learner
            self._step(learner, X, weights, shift * np.sqrt(before))
            self.n_steps_ += 1
        found = learner.solution()
        bias = self._mean.astype(np.float32) + found.bias
        self._take(Atoms(found.W_dec, bias, found.coder, "array", {"fit": self._streamed.to_dict()}))
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "N K"] | Codes:
        """Codes of rows, float32, shape (n, n_atoms): an ndarray, or a SciPy CSR array with ``sparse_output``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        rows = self._scaled(X)
        codes = self.atoms_.encode(rows)
        if self.normalize:
            empty = ~rows.any(axis=1)
            codes.data[np.repeat(empty, np.diff(codes.indptr))] = 0
            codes.eliminate_zeros()
        return codes if self.sparse_output else codes.toarray()

    def inverse_transform(self, codes: Any) -> Float[np.ndarray, "N D"]:
        """Rows rebuilt from codes, ``mean_`` + codes · ``components_``; of unit rows if they were normalised.

        Args:
            codes: array-like or sparse, shape (n, n_atoms).

        Raises:
            ConfigError: codes of another number of atoms.
        """
        check_is_fitted(self)
        codes = check_array(codes, accept_sparse="csr", dtype=np.float32)
        if codes.shape[1] != len(self.components_):
            raise ConfigError(
                f"expected codes of {len(self.components_)} atoms, got {codes.shape[1]}; take codes of this estimator"
            )
        return np.asarray(codes @ self.components_) + self.mean_

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _usable(self, X: Any, sample_weight: Any, *, first: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows that can teach, float32, and their weights."""
        X = validate_data(
            self, X, dtype=[np.float64, np.float32], reset=first, ensure_min_samples=2 if first else 1
        )  # fmt: skip
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float32, ensure_non_negative=True)
        rows = self._scaled(X)
        keep = rows.any(axis=1) if self.normalize else np.ones(len(rows), bool)
        if weights is not None:
            keep &= weights > 0
        return rows[keep], None if weights is None else weights[keep]

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(unit_rows(X) if self.normalize else X, dtype=np.float32)

    def _settings(self, d: int) -> FitConfig:
        """The config of this method with this estimator's parameters."""
        known = {f.name for f in fields(self._config)}
        values = {name: value for name, value in self.get_params(deep=False).items() if name in known}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        return self._config(**values, seed=int(seed))

    def _centred(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X - self._mean, dtype=np.float32)

    def _step(self, learner: Learner, X: np.ndarray, weights: np.ndarray | None, drift: np.ndarray) -> None:
        """Teach one batch. ``drift`` is the row that makes up, in Σ x xᵀ, for what came before being centred elsewhere."""
        learner.step(self._centred(X), weights)

    def _take(self, atoms: Atoms) -> None:
        self.atoms_, self.components_, self.mean_ = atoms, atoms.W_dec, atoms.b_dec

    def __getstate__(self) -> dict[str, Any]:
        """A learner is kept as its arrays: its weights may be views of one buffer, which a copy must not tear apart."""
        state = dict(super().__getstate__())
        if state.get("_learner") is not None:
            state["_learner"] = state["_learner"].state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        held: Any = self._learner
        if held is not None:
            self._learner = self._streamed.learner(len(self._mean), None, Reduce())
            self._learner.restore(held)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class OnlineDictionary(GradientDictionary):
    """Classical dictionary learning: min Σ_i w_i (½‖x_i − μ − c_iᵀW‖² + α‖c_i‖₁) over unit atoms W and codes c.

    Codes are non-negative lasso codes with the weights fitted again, or at most ``k`` atoms by orthogonal matching pursuit;
    see ``OnlineConfig`` for the parameters, and ``gradatoms.dictionary.online`` for the algorithm (Mairal et al. 2009).

    Args:
        n_atoms: atoms; may be more than the rows.
        alpha: lasso penalty on unit rows, between 0 and 1.
        k: at most so many atoms a row instead of the penalty.
        signed: whether codes may be negative.
        full: one update a pass instead of one a batch; ``partial_fit`` always updates.
        init: first atoms: ``spread`` rows, or any ``rows``.
        resample: give atoms without use the directions of rows that were explained badly.
        batch_size: rows a step of ``fit``.
        epochs: passes of ``fit`` over the rows.
        patience: stop after so many passes without a better fit of rows kept aside; 0 makes all.
        normalize: bring rows to norm 1 first.
        sparse_output: give codes as a CSR array.
        random_state: seed; a ``RandomState``, or None, draws one from it.
    """

    _config = OnlineConfig

    @no_type_check  # a parameter is what it is until it is used
    def __init__(
        self,
        n_atoms: int = 192,
        *,
        alpha: float = 0.1,
        k: int | None = None,
        signed: bool = False,
        full: bool = False,
        init: Literal["spread", "rows"] = "spread",
        resample: bool = True,
        batch_size: int = 512,
        epochs: int = 20,
        patience: int = 0,
        normalize: bool = True,
        sparse_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.n_atoms = n_atoms
        self.alpha = alpha
        self.k = k
        self.signed = signed
        self.full = full
        self.init = init
        self.resample = resample
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.normalize = normalize
        self.sparse_output = sparse_output
        self.random_state = random_state


class TopKDictionary(GradientDictionary):
    """A TopK sparse autoencoder (Gao et al. 2024); see ``TopKConfig`` for the parameters.

    Args:
        n_atoms: atoms; may be more than the rows.
        k: atoms a row at most.
        lr: Adam's learning rate.
        aux: weight of the auxiliary loss of dead atoms.
        dead_steps: steps without a row after which an atom is dead.
        resample: at the end of a pass of ``fit``, give dead atoms the directions of rows that were explained badly.
        init: first atoms: ``rows``, or ``random`` directions.
        dtype: of the encoder product in training.
        device: where to learn.
        batch_size, epochs, patience, normalize, sparse_output, random_state: as for ``OnlineDictionary``.
    """

    _config = TopKConfig

    @no_type_check  # a parameter is what it is until it is used
    def __init__(
        self,
        n_atoms: int = 192,
        *,
        k: int = 8,
        lr: float = 1e-3,
        aux: float = 1.0,
        dead_steps: int = 100,
        resample: bool = True,
        init: Literal["rows", "random"] = "rows",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "cpu",
        batch_size: int = 512,
        epochs: int = 100,
        patience: int = 0,
        normalize: bool = True,
        sparse_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.n_atoms = n_atoms
        self.k = k
        self.lr = lr
        self.aux = aux
        self.dead_steps = dead_steps
        self.resample = resample
        self.init = init
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.normalize = normalize
        self.sparse_output = sparse_output
        self.random_state = random_state


class KMeansDictionary(GradientDictionary):
    """Spherical k-means (Dhillon and Modha 2001): one atom a row, with the centred row's projection as its code.

    ``partial_fit`` assigns the rows of a call to the atoms as they are; an atom is the mean direction of all rows it was
    ever given (Zhong 2005).

    Args:
        n_atoms: atoms; may be more than the rows.
        batch_size, epochs, patience, normalize, sparse_output, random_state: as for ``OnlineDictionary``.
    """

    _config = KMeansConfig

    @no_type_check  # a parameter is what it is until it is used
    def __init__(
        self,
        n_atoms: int = 192,
        *,
        batch_size: int = 4096,
        epochs: int = 20,
        patience: int = 0,
        normalize: bool = True,
        sparse_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.n_atoms = n_atoms
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.normalize = normalize
        self.sparse_output = sparse_output
        self.random_state = random_state

    def _step(self, learner: Learner, X: np.ndarray, weights: np.ndarray | None, drift: np.ndarray) -> None:
        assert isinstance(learner, KMeansLearner)
        super()._step(learner, X, weights, drift)
        sums = learner.sums.copy()
        learner.end_epoch()
        learner.sums = sums


class PCADictionary(GradientDictionary):
    """Principal components, of which the ``k`` of largest projection, either sign, are a row's code.

    ``partial_fit`` gives the components of all rows so far, whatever the batches.

    Args:
        n_atoms: components; at most d.
        k: components a row.
        batch_size, normalize, sparse_output, random_state: as for ``OnlineDictionary``; nothing is random.
    """

    _config = PCAConfig

    @no_type_check  # a parameter is what it is until it is used
    def __init__(
        self,
        n_atoms: int = 64,
        *,
        k: int = 8,
        batch_size: int = 4096,
        normalize: bool = True,
        sparse_output: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.n_atoms = n_atoms
        self.k = k
        self.batch_size = batch_size
        self.normalize = normalize
        self.sparse_output = sparse_output
        self.random_state = random_state

    def _settings(self, d: int) -> FitConfig:
        if self.n_atoms > d:
            raise ConfigError(
                f"expected at most as many components as n_features={d}, got n_atoms={self.n_atoms}; take fewer"
            )
        return super()._settings(d)

    def _step(self, learner: Learner, X: np.ndarray, weights: np.ndarray | None, drift: np.ndarray) -> None:
        # Σ (x−μ)(x−μ)ᵀ of all rows is that of the rows before about their own mean, that of the batch about the new mean,
        # and drift·driftᵀ, drift = √(rows before) · (new mean − mean before)
        super()._step(learner, X, weights, drift)
        learner.step(np.asarray(drift[None], dtype=np.float32))


def _rows(X: np.ndarray, weights: np.ndarray | None, normalised: bool) -> Pushes:
    weight: str | np.ndarray = "none" if weights is None else weights
    return Pushes(X, weight=weight, normalize=normalised)


def _streaming(config: FitConfig) -> FitConfig:
    """The same for one step a call, with no end of a pass."""
    changes: dict[str, Any] = {"full": False, "resample": False}
    return replace(config, **{name: value for name, value in changes.items() if hasattr(config, name)})
