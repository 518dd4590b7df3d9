"""Sparse coding, its compiled kernels, and what each learner does in a step: against plain NumPy, SciPy, scikit-learn and SAELens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from scipy.optimize import nnls
from sklearn.decomposition import sparse_encode

from gradatoms.dictionary import kernels, reference, topk_kernels, topk_torch
from gradatoms.dictionary.base import FitConfig, Learner
from gradatoms.dictionary.coding import Codes, TopKCoder, above, lasso, matching_pursuit, nn_lasso, omp, top_k
from gradatoms.dictionary.kmeans import KMeansConfig
from gradatoms.dictionary.online import OnlineConfig, doubles, spread, update
from gradatoms.dictionary.pca import PCAConfig
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.sae import (
    AbsTopKConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SAEConfig,
    SAELearner,
    StandardConfig,
)
from gradatoms.dictionary.topk import TopKConfig, TopKLearner
from gradatoms.errors import ConfigError

D, N_ATOMS = 16, 24


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30), dtype=np.float32)


def planted(n: int, seed: int) -> np.ndarray:
    """Unit rows (n, D) made of a few of N_ATOMS directions, minus their mean."""
    rng = np.random.default_rng([seed, 1])
    atoms = np.random.default_rng(0).standard_normal((N_ATOMS, D))
    codes = (rng.random((n, N_ATOMS)) < 0.1) * rng.uniform(0.5, 1, (n, N_ATOMS))
    codes[np.arange(n), rng.integers(N_ATOMS, size=n)] += 0.5
    x = unit(codes @ atoms + 0.02 * rng.standard_normal((n, D)))
    return x - x.mean(axis=0)


# Problems: rows X and atoms W, easy and hard


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "random": lambda rng: rng.standard_normal(tuple(rng.integers(2, 40, size=2))),
    "close": lambda rng: rng.standard_normal((1, 20)) + 0.3 * rng.standard_normal((30, 20)),
    "almost one": lambda rng: rng.standard_normal((1, 20)) + 0.02 * rng.standard_normal((30, 20)),
    "doubles": lambda rng: np.repeat(rng.standard_normal((10, 12)), 2, axis=0),
    "opposites": lambda rng: np.concatenate([x := rng.standard_normal((10, 12)), -x]),
    "one atom": lambda rng: rng.standard_normal((1, 5)),
    "one coordinate": lambda rng: rng.standard_normal((4, 1)),
    "plane": lambda rng: rng.standard_normal((30, 2)),
    "many in few": lambda rng: rng.standard_normal((60, 6)),
    "dependent": lambda rng: rng.standard_normal((30, 4)) @ rng.standard_normal((4, 16)),
    "signs": lambda rng: rng.integers(-1, 2, size=(40, 5)) + 1e-6,
    "noisy copies": lambda rng: (
        rng.standard_normal((3, 9))[rng.integers(3, size=40)]
        + 10.0 ** rng.uniform(-4, -1) * rng.standard_normal((40, 9))
    ),
}


def problems(kind: str, n: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows with a zero row, an atom itself and the opposite of one among them, and unit atoms; n times."""
    for seed in range(n):
        rng = np.random.default_rng(seed)
        W = unit(KINDS[kind](rng))
        X = unit(rng.standard_normal((20, W.shape[1])))
        X[3], X[4], X[5] = 0, W[0], -W[-1]
        yield X, W


def objective(X: np.ndarray, W: np.ndarray, C: np.ndarray, alpha: float) -> np.ndarray:
    return np.asarray(0.5 * ((X - C @ W.astype(np.float64)) ** 2).sum(axis=1) + alpha * abs(C).sum(axis=1))


# The lasso


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_lasso_codes_meet_the_conditions_of_the_minimum(kind: str, positive: bool) -> None:
    """The residual's pull is α on active atoms, with the sign of their weight, and at most α on all others."""
    for X, W in problems(kind, 15):
        for alpha in (0.3, 0.1, 0.02, 0.005):
            C = (nn_lasso if positive else lasso)(X, W, alpha).toarray().astype(np.float64)
            pull = (X - C @ W) @ W.T.astype(np.float64)
            active = C != 0
            assert not positive or C.min() >= 0
            assert np.abs(pull - alpha * np.sign(C))[active].max(initial=0) < 2e-5
            assert (pull if positive else np.abs(pull)).max() < alpha + 2e-5
            assert not C[3].any()


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_lasso_is_not_above_the_plain_form(kind: str, positive: bool) -> None:
    for X, W in problems(kind, 2):
        for alpha in (0.3, 0.05):
            C = (nn_lasso if positive else lasso)(X[:8], W, alpha).toarray()
            plain = np.stack([reference.lasso(x, W, alpha, positive=positive, sweeps=500) for x in X[:8]])
            assert (objective(X[:8], W, C, alpha) - objective(X[:8], W, plain, alpha)).max() < 1e-7


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
def test_lasso_is_scikit_learns(positive: bool) -> None:
    for X, W in problems("random", 5):
        C = (nn_lasso if positive else lasso)(X, W, 0.1).toarray()
        theirs = sparse_encode(
            X.astype(np.float64),
            W.astype(np.float64),
            algorithm="lasso_cd",
            alpha=0.1,
            positive=positive,
            max_iter=20000,
        )
        assert (objective(X, W, C, 0.1) - objective(X, W, theirs, 0.1)).max() < 1e-7
        np.testing.assert_allclose(C @ W, theirs @ W, atol=2e-3)  # their stopping rule is 1e-4


def test_unpenalised_weights_are_least_squares_on_the_chosen_atoms() -> None:
    for kind in ("random", "close", "opposites", "many in few"):
        for X, W in problems(kind, 4):
            chosen = nn_lasso(X, W, 0.05).toarray() > 0
            C = nn_lasso(X, W, 0.05, refit=True).toarray()
            assert C.min() >= 0 and not (C[~chosen] > 0).any()
            for x, c, atoms in zip(X.astype(np.float64), C, chosen, strict=True):
                least = nnls(W[atoms].T.astype(np.float64), x)[1] if atoms.any() else np.linalg.norm(x)
                assert np.linalg.norm(x - c @ W) == pytest.approx(least, abs=1e-6)
    X, W = next(problems("random"))
    weights, chosen = nn_lasso(X, W, 0.2, refit=True).toarray(), nn_lasso(X, W, 0.2).toarray() > 0
    for i in np.flatnonzero(chosen.any(axis=1)):
        expected = nnls(W[chosen[i]].T.astype(np.float64), X[i].astype(np.float64))[0]
        np.testing.assert_allclose(weights[i, chosen[i]], expected, atol=1e-5)


# Pursuits


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("almost one", "noisy copies", "signs")])
def test_pursuits_are_their_plain_forms(kind: str, positive: bool) -> None:
    """The same atoms with the same weights; where rounding decides between atoms, the same reconstruction."""
    plain_omp = reference.nn_omp if positive else reference.omp
    for X, W in problems(kind, 4):
        most = min(W.shape)
        for k in {1, min(2, most), min(4, most), most}:
            for codes, plain in (
                (omp(X, W, k, positive=positive), [plain_omp(x, W, k) for x in X]),
                (
                    matching_pursuit(X, W, k, positive=positive, threshold=0.1),
                    [reference.matching_pursuit(x, W, k, positive=positive, threshold=0.1) for x in X],
                ),
            ):
                C, expected = codes.toarray(), np.stack(plain)
                assert np.diff(codes.indptr).max() <= k and not C[3].any()
                assert not positive or C.min() >= 0
                if kind not in ("doubles", "opposites", "one coordinate", "dependent"):
                    # The last atoms of a row that k atoms explain whole are chosen by the rounding of what is left.
                    left = np.linalg.norm(X - expected @ W, axis=1) > 1e-4
                    settled = left | (k <= 4)
                    np.testing.assert_array_equal(C[settled] != 0, expected[settled] != 0)
                    if k <= 4:
                        np.testing.assert_allclose(C, expected, atol=1e-4)
                np.testing.assert_allclose(C @ W, expected @ W, atol=1e-5 if k <= 4 else 2e-3)  # float32 Gram


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
@pytest.mark.parametrize("kind", ["almost one", "noisy copies", "signs"])
def test_omp_explains_as_much_as_its_plain_form_where_atoms_are_almost_one(kind: str, positive: bool) -> None:
    """Cosines of 0.9996 and more: rounding may decide which atom is next, and weights cancel.

    A cosine is known to float32's 1.2e-7, a residual near 0 therefore to √(2 · 1.2e-7) = 5e-4.
    """
    plain = reference.nn_omp if positive else reference.omp
    for X, W in problems(kind, 6):
        for k in (1, 2, 3):
            C = omp(X, W, k, positive=positive).toarray()
            for x, c in zip(X, C, strict=True):
                least = np.linalg.norm(x - plain(x, W, k) @ W)
                assert np.linalg.norm(x - c @ W) < np.hypot(least, 5e-4) + 1e-4


def test_a_pursuit_that_takes_an_atom_again_lists_it_once() -> None:
    W, x = unit(np.array([[1.0, 0.0], [0.9, 0.5]])), np.array([[0.3, 0.9]], np.float32)
    codes = matching_pursuit(x, W, 9, positive=False)
    assert codes.nnz == 2
    np.testing.assert_allclose(
        codes.toarray()[0], reference.matching_pursuit(x[0], W, 9, positive=False), atol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize("signed", [True, False])
def test_top_k_is_its_plain_form(signed: bool) -> None:
    rng = np.random.default_rng(0)
    for n_atoms in (1, 2, 31, 32, 33, 100):
        pre = rng.standard_normal((40, n_atoms)).astype(np.float32)
        pre[0], pre[1], pre[2] = 0, -np.abs(pre[1]), np.abs(pre[2])
        for k in {1, min(2, n_atoms), min(8, n_atoms), n_atoms}:
            expected = np.stack([reference.top_k(row, k, signed=signed) for row in pre])
            np.testing.assert_array_equal(top_k(pre, k, signed=signed).toarray(), expected.astype(np.float32))


def test_above_keeps_what_exceeds_its_threshold_and_zero() -> None:
    pre = np.array([[0.5, -1.0, 2.0], [0.0, 0.3, -0.1]], np.float32)
    np.testing.assert_array_equal(above(pre, 0.0).toarray(), np.maximum(pre, 0))
    found = above(pre, np.array([0.5, -2.0, 1.0], np.float32)).toarray()
    np.testing.assert_array_equal(found, np.array([[0, 0, 2.0], [0, 0.3, 0]], np.float32))


# What holds for every coder

CODERS: dict[str, Callable[[np.ndarray, np.ndarray], Codes]] = {
    "nn_lasso": lambda X, W: nn_lasso(X, W, 0.1),
    "refit": lambda X, W: nn_lasso(X, W, 0.1, refit=True),
    "lasso": lambda X, W: lasso(X, W, 0.1),
    "nn_omp": lambda X, W: omp(X, W, 5, positive=True),
    "omp": lambda X, W: omp(X, W, 5),
    "pursuit": lambda X, W: matching_pursuit(X, W, 5),
    "top_k": lambda X, W: TopKCoder(np.ascontiguousarray(W.T), np.zeros(len(W), np.float32), 5).encode(X),
}


@pytest.fixture(scope="module")
def rows_and_atoms() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return unit(rng.standard_normal((150, 32))), unit(rng.standard_normal((60, 32)))


@pytest.mark.parametrize("coder", CODERS)
def test_codes_are_sorted_and_belong_to_their_rows(coder: str, rows_and_atoms: tuple[np.ndarray, np.ndarray]) -> None:
    X, W = rows_and_atoms
    codes = CODERS[coder](X, W)
    assert codes.shape == (len(X), len(W)) and codes.data.dtype == np.float32 and codes.data.all()
    assert all(
        (np.diff(codes.indices[a:b]) > 0).all() for a, b in zip(codes.indptr[:-1], codes.indptr[1:], strict=True)
    )
    assert CODERS[coder](X[:0], W).shape == (0, len(W))
    assert CODERS[coder](np.zeros((3, 32), np.float32), W).nnz == 0
    order = np.random.default_rng(0).permutation(len(X))
    turned = CODERS[coder](X[order], W).toarray()
    np.testing.assert_allclose(turned, codes.toarray()[order], atol=1e-6)


@pytest.mark.parametrize("coder", CODERS)
def test_codes_do_not_depend_on_the_split(coder: str, rows_and_atoms: tuple[np.ndarray, np.ndarray]) -> None:
    """But for the last bit, where the product x·Wᵀ takes another way through the BLAS for a few rows."""
    X, W = rows_and_atoms
    whole = CODERS[coder](X, W).toarray()
    for cut in (1, 7, 64, 149):
        parts = np.concatenate([CODERS[coder](part, W).toarray() for part in (X[:cut], X[cut:])])
        np.testing.assert_array_equal(parts != 0, whole != 0)
        np.testing.assert_allclose(parts, whole, atol=2e-6)


def test_kernels_give_the_same_bytes_however_rows_are_split(rows_and_atoms: tuple[np.ndarray, np.ndarray]) -> None:
    X, W = rows_and_atoms
    a, gram = X @ W.T, W @ W.T
    squares = np.einsum("nd,nd->n", X, X)
    for run in (
        lambda s: kernels.active_set(a[s], gram, 0.1, 32, kernels.NONNEGATIVE, 1e-6),
        lambda s: kernels.active_set(a[s], gram, 0.1, 32, kernels.SIGNED, 1e-6),
        lambda s: kernels.active_set(a[s], gram, 0.0, 5, kernels.FREE, 1e-6),
        lambda s: kernels.pursue(a[s], gram, 5, False, 0.0, squares[s]),
    ):
        whole = run(slice(None))
        for cut in (1, 63, 100):
            for part, expected in zip(zip(run(slice(cut)), run(slice(cut, None)), strict=True), whole, strict=True):
                np.testing.assert_array_equal(np.concatenate(part), expected)


THREADS = """
import sys, numpy as np
from gradatoms.dictionary import topk_kernels
from gradatoms.dictionary.coding import lasso, matching_pursuit, nn_lasso, omp
rng = np.random.default_rng(0)
X, W = (rng.standard_normal((n, 24)).astype(np.float32) for n in (300, 50))
W /= np.linalg.norm(W, axis=1, keepdims=True)
found = [nn_lasso(X, W, 0.5, refit=True), lasso(X, W, 0.5), omp(X, W, 4), matching_pursuit(X, W, 4)]
index = np.empty((300, 4), np.int32); topk_kernels.largest(X @ W.T, 4, index)
code, d_code, out = np.empty((300, 4), np.float32), np.empty((300, 4), np.float32), np.empty_like(X)
topk_kernels.decode(X, index, W, W[:, 0].copy(), W, True, code, out)
topk_kernels.pull_back(out - X, index, code, W, d_code)
start, entry = topk_kernels.by_atom(index, code, len(W))
sums = np.zeros_like(W), np.zeros(len(W), np.float32), np.zeros_like(W)
topk_kernels.accumulate(X, out - X, code, d_code, start, entry, *sums)
for part in (*(c.toarray() for c in found), index, code, d_code, out, *sums): sys.stdout.buffer.write(part.tobytes())
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def run(threads: int) -> bytes:
        env = os.environ | {"NUMBA_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.run([sys.executable, "-c", THREADS], env=env, capture_output=True, check=True).stdout

    one = run(1)
    assert len(one) > 100_000 and one == run(3)


@pytest.mark.parametrize("k", [0, -1, 61])
def test_a_k_that_is_no_number_of_atoms_is_refused(k: int, rows_and_atoms: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=f"expected k from 1 to the 60 atoms, got {k}"):
        omp(*rows_and_atoms, k)


@pytest.mark.parametrize("alpha", [0.0, -0.1, float("nan")])
@pytest.mark.parametrize("code", [lasso, nn_lasso])
def test_a_penalty_that_is_not_above_zero_is_refused(
    code: Callable[..., Codes], alpha: float, rows_and_atoms: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ConfigError, match="expected alpha"):
        code(*rows_and_atoms, alpha)


# The sparse parts of a TopK step


@pytest.mark.parametrize("n_atoms", [1, 5, 31, 32, 33, 200])
def test_largest_is_a_partition(n_atoms: int) -> None:
    rng = np.random.default_rng(n_atoms)
    pre = rng.standard_normal((50, n_atoms)).astype(np.float32)
    pre[0], pre[1] = 0, np.sort(pre[1])
    for k in {1, min(3, n_atoms), n_atoms}:
        index = np.full((50, k), -7, np.int32)
        topk_kernels.largest(pre, k, index)
        assert all(len(set(row)) == k for row in index.tolist()) and index.min() >= 0
        found = np.sort(np.take_along_axis(pre, index.astype(np.int64), axis=1), axis=1)
        np.testing.assert_array_equal(found, np.sort(np.partition(pre, n_atoms - k, axis=1)[:, n_atoms - k :], axis=1))


def test_largest_reads_bfloat16_by_its_bits() -> None:
    """Of positive numbers; negatives come after them, in no order, and are zero codes."""
    pre = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 77)).astype(np.float32)).bfloat16()
    pre[:5] = -pre[:5].abs()
    index = np.empty((60, 9), np.int32)
    topk_kernels.largest(pre.view(torch.int16).numpy(), 9, index)
    found = pre.gather(1, torch.from_numpy(index).long()).clamp_min(0).sort(dim=1).values
    assert torch.equal(found, pre.clamp_min(0).topk(9, dim=1).values.sort(dim=1).values)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
def test_compiled_parts_are_their_torch_forms(clip: bool, empty: float) -> None:
    rng = np.random.default_rng(5)
    n, n_atoms, d, k = 37, 50, 12, 4
    x, d_out = (rng.standard_normal((n, d)).astype(np.float32) for _ in range(2))
    W_enc, W_dec = (rng.standard_normal((n_atoms, d)).astype(np.float32) for _ in range(2))
    b_enc = rng.standard_normal(n_atoms).astype(np.float32)
    index = np.stack([rng.choice(n_atoms, k, replace=False) for _ in range(n)]).astype(np.int32)
    index[rng.random((n, k)) < empty] = -1
    code, out = np.empty((n, k), np.float32), np.empty((n, d), np.float32)
    topk_kernels.decode(x, index, W_enc, b_enc, W_dec, clip, code, out)
    t = [torch.from_numpy(a) for a in (x, index, W_enc, b_enc, W_dec)]
    code_t, out_t = topk_torch.decode(*t, clip=clip)
    np.testing.assert_allclose(code, code_t.numpy(), atol=1e-5)
    np.testing.assert_allclose(out, out_t.numpy(), atol=1e-5)
    assert not code[index < 0].any() and (code.min() >= 0) == (clip or empty == 1.0)
    dense = np.where(index >= 0, np.take_along_axis(x @ W_enc.T + b_enc, np.maximum(index, 0), axis=1), 0)
    np.testing.assert_allclose(code, np.maximum(dense, 0) if clip else dense, atol=1e-5)

    d_code = np.empty_like(code)
    topk_kernels.pull_back(d_out, index, code, W_dec, d_code)
    back = topk_torch.pull_back(torch.from_numpy(d_out), t[1], torch.from_numpy(code), t[4])
    np.testing.assert_allclose(d_code, back.numpy(), atol=1e-5)

    start, entry = topk_kernels.by_atom(index, code, n_atoms)
    flat = index.ravel()
    for a in range(n_atoms):
        np.testing.assert_array_equal(entry[start[a] : start[a + 1]], np.flatnonzero((flat == a) & (code.ravel() != 0)))
    first = [rng.standard_normal(s).astype(np.float32) for s in ((n_atoms, d), (n_atoms,), (n_atoms, d))]
    ours, theirs = [a.copy() for a in first], [torch.from_numpy(a.copy()) for a in first]
    topk_kernels.accumulate(x, d_out, code, d_code, start, entry, *ours)
    topk_torch.accumulate(t[0], torch.from_numpy(d_out), t[1], torch.from_numpy(code), back, *theirs)
    for a, b, before in zip(ours, theirs, first, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)
        assert (empty == 1.0) == np.array_equal(a, before)


# A TopK step


@pytest.mark.parametrize("dead_steps", [1000, 3], ids=["all alive", "some dead"])
def test_a_topk_step_is_saelens(dead_steps: int) -> None:
    d, n_atoms, k, batch, steps = 24, 96, 4, 64, 60
    X = unit(np.random.default_rng(0).standard_normal((batch * steps, d)))
    config = TopKConfig(
        n_atoms=n_atoms, k=k, lr=1e-2, dead_steps=dead_steps, resample=False, init="random", dtype="float32"
    )
    ours = TopKLearner(config, d, None, Reduce())
    ours.begin(X)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n_atoms, k=k))
    with torch.no_grad():
        sae.W_dec.copy_(ours.W_dec)
        sae.W_enc.copy_(ours.W_enc.T)
    settings = SAETrainerConfig(
        total_training_samples=batch * steps, train_batch_size_samples=batch, lr=1e-2, lr_end=1e-2, dead_feature_window=dead_steps
    )  # fmt: skip
    theirs = SAETrainer(settings, sae, iter([]))
    dead = 0
    for start in range(0, len(X), batch):
        x = X[start : start + batch]
        losses = {name: float(v.detach()) for name, v in theirs.step(torch.from_numpy(x) * np.sqrt(d)).losses.items()}
        theirs.n_training_steps += 1
        measured = ours.step(x)
        assert measured["loss"] == pytest.approx(losses["mse_loss"] / d, rel=1e-5)
        assert measured["aux"] == pytest.approx(losses["auxiliary_reconstruction_loss"] / d, rel=1e-5, abs=1e-9)
        np.testing.assert_array_equal(ours.since.numpy(), theirs.n_forward_passes_since_fired.numpy())
        dead = max(dead, int(measured["dead"]))
    assert dead == 0 if dead_steps == 1000 else dead > k
    for a, b in ((ours.W_dec, sae.W_dec), (ours.W_enc, sae.W_enc.T), (ours.b_dec, sae.b_dec), (ours.b_enc, sae.b_enc)):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), atol=1e-5)


def test_a_topk_solution_codes_as_saelens_does(tmp_path: Path) -> None:
    ours = TopKConfig(n_atoms=N_ATOMS, k=3, dtype="float32", lr=1e-2).learner(D, None, Reduce())
    assert isinstance(ours, TopKLearner)
    ours.begin(planted(200, 0))
    for i in range(40):
        ours.step(planted(64, i))
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=N_ATOMS, k=3))
    with torch.no_grad():
        for name, value in (
            ("W_dec", ours.W_dec),
            ("W_enc", ours.W_enc.T),
            ("b_enc", ours.b_enc),
            ("b_dec", ours.b_dec),
        ):
            getattr(sae, name).copy_(value)
    assert_codes_are_saelens(ours, sae, tmp_path)


def test_bfloat16_only_chooses() -> None:
    """Codes of the atoms that it chose are those of float32, and it leaves out none by more than its rounding."""
    X = planted(128, 0)
    rough = TopKLearner(TopKConfig(n_atoms=N_ATOMS, k=4, dtype="bfloat16"), D, None, Reduce())
    rough.begin(X)
    for i in range(10):
        rough.step(planted(64, i))
    x = torch.from_numpy(X) * rough.scale - rough.b_dec
    index = rough._choose(rough._product(x), 4).long()
    code, out = rough._decode(x, index.int(), clip=True)
    exact = x @ rough.W_enc.T + rough.b_enc
    torch.testing.assert_close(code, exact.gather(1, index).clamp_min(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(out, torch.einsum("nk,nkd->nd", code, rough.W_dec[index]), atol=1e-5, rtol=0)
    size = (exact * rough.W_dec.norm(dim=1)).clamp_min(0)
    left = size.clone().scatter_(1, index, 0).max(dim=1).values
    assert (left <= size.gather(1, index).min(dim=1).values + 0.02 * size.max(dim=1).values).all()


# Every learner

CONFIGS: dict[str, FitConfig] = {
    "online": OnlineConfig(n_atoms=200, epochs=3),
    "online k": OnlineConfig(n_atoms=N_ATOMS, k=2, signed=True, epochs=4),
    "online full": OnlineConfig(n_atoms=N_ATOMS, full=True, epochs=4),
    "topk": TopKConfig(n_atoms=150, k=1, dead_steps=2, dtype="float32"),
    "topk bfloat16": TopKConfig(n_atoms=150, k=2, dead_steps=2, dtype="bfloat16", init="random"),
    "kmeans": KMeansConfig(n_atoms=N_ATOMS),
    "pca": PCAConfig(n_atoms=8, k=3),
}
SAES: dict[str, SAEConfig] = {
    config.method: config
    for config in (
        BatchTopKConfig(n_atoms=N_ATOMS, k=3),
        MatryoshkaConfig(n_atoms=N_ATOMS, k=3),
        AbsTopKConfig(n_atoms=N_ATOMS, k=3),
        StandardConfig(n_atoms=N_ATOMS, l1=1.0),
        GatedConfig(n_atoms=N_ATOMS, l1=1.0),
        JumpReLUConfig(n_atoms=N_ATOMS, l0=0.1),
        MatchingPursuitConfig(n_atoms=N_ATOMS, k=3),
    )
}


def learn(learner: Learner, batches: range, *, weighted: bool) -> None:
    """A batch a number, a pass every three."""
    for i in batches:
        w = np.random.default_rng(i).uniform(0, 2, 48).astype(np.float32)
        learner.step(planted(48, i), w / w.mean() if weighted else None)
        if i % 3 == 2:
            learner.end_epoch()


def arrays(value: Any) -> dict[str, np.ndarray]:
    return {name: a for name, a in vars(value).items() if isinstance(a, np.ndarray)}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("method", [*CONFIGS, *SAES])
def test_a_learner_goes_on_from_its_state_to_the_same_bytes(method: str, weighted: bool) -> None:
    config = (CONFIGS | SAES)[method]
    whole = config.learner(D, 12, Reduce())
    whole.begin(planted(100, 0))
    learn(whole, range(5), weighted=weighted)
    state = whole.state()
    kept = {name: value.copy() for name, value in state.items()}
    learn(whole, range(5, 12), weighted=weighted)
    for name, value in state.items():
        np.testing.assert_array_equal(value, kept[name])  # what was kept is no view of what went on
    torch.manual_seed(99)
    other = config.learner(D, 12, Reduce())
    other.restore(state)
    learn(other, range(5, 12), weighted=weighted)
    a, b = whole.solution(), other.solution()
    for one, two in ((arrays(a), arrays(b)), (arrays(a.coder), arrays(b.coder)), (whole.state(), other.state())):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert state.keys() == kept.keys() and len(arrays(a)) == 2


@pytest.mark.parametrize("method", CONFIGS)
def test_a_row_of_weight_two_is_two_rows(method: str) -> None:
    X, count = planted(30, 0), np.random.default_rng(0).integers(1, 4, size=30)
    config, found = CONFIGS[method], []
    if isinstance(config, OnlineConfig | TopKConfig):
        # fewer atoms than rows, and none resampled, where a row that is there twice may be taken twice
        config = replace(config, n_atoms=N_ATOMS, resample=False)
    for rows, weights in ((X, (count / count.mean()).astype(np.float32)), (X.repeat(count, axis=0), None)):
        learner = config.learner(D, None, Reduce())
        learner.begin(X)
        losses = [learner.step(rows, weights).get("loss", 0.0) for _ in range(3)]
        learner.end_epoch()
        found.append((learner.solution(), losses))
    np.testing.assert_allclose(found[0][0].W_dec, found[1][0].W_dec, atol=2e-5)
    np.testing.assert_allclose(found[0][0].bias, found[1][0].bias, atol=1e-5)
    if method != "kmeans":  # whose loss is a plain mean
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)


@pytest.mark.parametrize("method", SAES)
def test_an_architecture_draws_rows_by_their_weight(method: str) -> None:
    X, one = planted(30, 0), np.zeros(30, np.float32)
    one[7] = 30
    found = []
    for rows, weights in ((X, one), (X[np.full(30, 7)], None)):
        learner = SAES[method].learner(D, None, Reduce())
        learner.step(rows, weights)
        found.append(learner.solution().W_dec)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("method", [*CONFIGS, *SAES])
def test_a_solution_has_unit_atoms_and_finite_codes(method: str) -> None:
    config = (CONFIGS | SAES)[method]
    learner = config.learner(D, None, Reduce())
    learner.begin(planted(5, 0))  # fewer rows than atoms
    learn(learner, range(6), weighted=False)
    found = learner.solution()
    np.testing.assert_allclose(np.linalg.norm(found.W_dec, axis=1), 1, atol=1e-5)
    codes = found.coder.encode(planted(50, 0) - found.bias)
    assert codes.shape == (50, config.n_atoms) and np.isfinite(codes.data).all() and codes.nnz
    assert found.coder.signed or codes.data.min() > 0


@pytest.mark.parametrize("method", SAES)
def test_an_architectures_solution_codes_as_saelens_does(method: str, tmp_path: Path) -> None:
    learner = SAES[method].learner(D, None, Reduce())
    assert isinstance(learner, SAELearner)
    learn(learner, range(40), weighted=False)
    assert_codes_are_saelens(learner, learner.sae, tmp_path)


def assert_codes_are_saelens(learner: TopKLearner | SAELearner, sae: Any, folder: Path) -> None:
    """Codes of unscaled rows: those of the saved and loaded model, times the norms of its atoms, over the scale."""
    sae.save_inference_model(folder)
    loaded = SAE.load_from_disk(folder)
    X, found = planted(100, 77), learner.solution()
    with torch.no_grad():
        acts = loaded.encode(torch.from_numpy(X * learner.scale))
        rebuilt = loaded.decode(acts).numpy() / learner.scale
        expected = (acts * loaded.W_dec.norm(dim=1)).numpy() / learner.scale
    codes = found.coder.encode(X - found.bias).toarray()
    assert codes.any() and not codes.all()
    np.testing.assert_array_equal(codes != 0, expected != 0)
    np.testing.assert_allclose(codes, expected, atol=1e-6)
    np.testing.assert_allclose(codes @ found.W_dec + found.bias, rebuilt, atol=1e-6)


# Classical learning


@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
def test_full_passes_never_raise_the_objective(signed: bool) -> None:
    X = planted(400, 0)
    learner = OnlineConfig(n_atoms=N_ATOMS, alpha=0.1, full=True, resample=False, signed=signed).learner(
        D, None, Reduce()
    )
    learner.begin(X)
    seen = []
    for _ in range(15):
        seen.append(np.mean([learner.step(X[i : i + 100])["objective"] for i in range(0, 400, 100)]))
        learner.end_epoch()
    assert (np.diff(seen) < 1e-7).all() and seen[-1] < 0.95 * seen[0]


def test_a_step_measures_the_objective() -> None:
    X = planted(100, 0)
    learner = CONFIGS["online"].learner(D, None, Reduce())
    learner.begin(X)
    W = learner.solution().W_dec
    C = nn_lasso(X, W, 0.1).toarray()
    measured = learner.step(X)
    assert measured["objective"] == pytest.approx(objective(X, W, C, 0.1).mean(), rel=1e-5)
    assert measured["loss"] == pytest.approx(((X - C @ W) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert measured["l0"] == pytest.approx((C != 0).sum(axis=1).mean())


@pytest.mark.parametrize("n_atoms", [5, 32, 33, 90])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_an_update_in_blocks_is_one_atom_after_another(n_atoms: int, sweeps: int) -> None:
    rng = np.random.default_rng(n_atoms)
    C = (rng.random((200, n_atoms)) < 0.1) * rng.uniform(0.1, 1, (200, n_atoms))
    C[:, 2] = 0  # an atom without use
    X = rng.standard_normal((200, D))
    A, B = (C.T @ C).astype(np.float32), (C.T @ X).astype(np.float32)
    W = unit(rng.standard_normal((n_atoms, D)))
    plain = W.astype(np.float64)
    for _ in range(sweeps):
        for a in np.flatnonzero(np.diagonal(A)):
            others = np.arange(n_atoms) != a
            target = B[a] - A[a, others] @ plain[others]
            plain[a] = target / np.linalg.norm(target)
    before = W[2].copy()
    update(W, A, B, sweeps=sweeps)
    np.testing.assert_allclose(W, plain, atol=1e-5)
    np.testing.assert_array_equal(W[2], before)


def test_first_atoms_are_spread() -> None:
    """Of a hundred copies of each of ten directions every direction is taken, then no row twice."""
    axes = np.eye(10, dtype=np.float32)
    rows = np.concatenate([axes.repeat(100, axis=0), axes[:3]])
    chosen = spread(rows, 10, np.random.default_rng(0))
    assert sorted(rows[chosen].argmax(axis=1)) == list(range(10))
    more = spread(rows, 200, np.random.default_rng(1))
    assert len(set(more.tolist())) == 200 and max(more) < len(rows)
    np.testing.assert_array_equal(chosen, spread(rows, 10, np.random.default_rng(0)))


def test_the_less_used_of_two_close_atoms_is_a_double() -> None:
    rng = np.random.default_rng(0)
    W = unit(rng.standard_normal((1500, 64)))
    W[1400], W[7] = unit((W[3] + 0.25 * W[4])[None])[0], -W[8]  # opposite is not double
    used = rng.uniform(1, 10, 1500)
    used[3], used[1400] = 5, 6
    assert np.flatnonzero(doubles(W, used)).tolist() == [3]
    used[1400] = 4
    assert np.flatnonzero(doubles(W, used)).tolist() == [1400]
    used[1400] = 5  # as much used: one of them stays
    assert doubles(W, used)[[3, 1400]].sum() == 1


def test_atoms_without_use_and_doubles_get_rows_that_were_explained_badly() -> None:
    X = planted(300, 0)
    learner = OnlineConfig(n_atoms=N_ATOMS, epochs=10).learner(D, None, Reduce())
    learner.begin(X)
    state = learner.state()
    state["W"][5] = state["W"][6]
    learner.restore(state)
    measured = learner.step(X)
    learner.end_epoch()
    cosines = np.triu(learner.solution().W_dec @ learner.solution().W_dec.T, 1)
    assert cosines.max() < 0.95
    assert learner.step(X)["objective"] < measured["objective"]


# The baselines


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_its_plain_form(weighted: bool) -> None:
    X, w = planted(200, 0), np.random.default_rng(0).uniform(0.5, 1.5, 200).astype(np.float32)
    learner = KMeansConfig(n_atoms=8, seed=3).learner(D, None, Reduce())
    learner.begin(X)
    W = learner.solution().W_dec
    for _ in range(5):
        nearest = (unit(X) @ W.T).argmax(axis=1)
        cosine = (unit(X) @ W.T).max(axis=1)
        loss = np.mean(
            [learner.step(X[i : i + 50], w[i : i + 50] if weighted else None)["loss"] for i in range(0, 200, 50)]
        )
        learner.end_epoch()
        assert loss == pytest.approx(((X**2).sum(axis=1) * (1 - np.maximum(cosine, 0) ** 2)).mean(), rel=1e-4)
        each = unit(X) * (w[:, None] if weighted else 1)
        W = unit(np.stack([each[nearest == a].sum(axis=0) if (nearest == a).any() else W[a] for a in range(8)]))
        np.testing.assert_allclose(learner.solution().W_dec, W, atol=1e-5)
    codes = learner.solution().coder.encode(X).toarray()
    pull = X @ W.T
    expected = np.where(np.arange(8) == pull.argmax(axis=1)[:, None], np.maximum(pull, 0), 0)
    np.testing.assert_allclose(codes, expected, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_pca_is_the_singular_vectors(weighted: bool) -> None:
    X, w = planted(200, 0), np.random.default_rng(0).uniform(0.5, 1.5, 200).astype(np.float32)
    learner = PCAConfig(n_atoms=6, k=2).learner(D, None, Reduce())
    for i in range(0, 200, 50):
        learner.step(X[i : i + 50], w[i : i + 50] if weighted else None)
    found = learner.solution()
    V = np.linalg.svd(X.astype(np.float64) * (np.sqrt(w)[:, None] if weighted else 1))[2][:6]
    V *= np.sign((V * found.W_dec).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.W_dec, V, atol=1e-4)
    assert (found.W_dec[np.arange(6), np.abs(found.W_dec).argmax(axis=1)] > 0).all()  # the sign is a rule
    pull = X @ found.W_dec.T
    keep = np.abs(pull) >= np.sort(np.abs(pull), axis=1)[:, -2, None]
    np.testing.assert_allclose(found.coder.encode(X).toarray(), np.where(keep, pull, 0), atol=1e-6)


def test_more_components_than_coordinates_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 4 principal components"):
        PCAConfig(n_atoms=5, k=1).learner(4, None, Reduce())
