"""Dictionaries against their peers: atoms found in equal time, rows a second, time to an objective, and how a fit scales.

spams is measured where it is installed (it builds with NumPy 1 only, so in an environment of its own: name its Python in
``SPAMS_PYTHON``); a peer that is not there is left out and said so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gradatoms.dictionary.coding import lasso, nn_lasso, omp
from gradatoms.dictionary.fit import fit
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.topk import TopKConfig
from gradatoms.dictionary.training import train

pytestmark = [pytest.mark.timeout(3000), pytest.mark.filterwarnings("ignore")]  # peers warn of much

SECONDS = 60.0
"""What each learner may take on planted data."""
ROUNDS = 3


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# Recovery


def planted(
    rows: int, *, n_atoms: int = 512, d: int = 256, l0: int = 8, noise: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """True unit atoms (n_atoms, d) and rows of norm 1: ``l0`` atoms each with heavy-tailed weights, and noise.

    Weights are |Student t with 3 degrees of freedom|; atoms are used at frequencies that fall by a factor of ten from the
    most to the least frequent; noise is Gaussian with ``noise`` times the signal's norm.
    """
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n_atoms, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    frequency = np.logspace(0, -1, n_atoms)
    chosen = np.argpartition(-(np.log(frequency) + rng.gumbel(size=(rows, n_atoms))), l0, axis=1)[:, :l0]
    weights = np.abs(rng.standard_t(3, size=(rows, l0)))
    X = np.einsum("nk,nkd->nd", weights, atoms[chosen])
    e = rng.standard_normal(X.shape)
    X += noise * e * (np.linalg.norm(X, axis=1) / np.linalg.norm(e, axis=1))[:, None]
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return atoms.astype(np.float32), X.astype(np.float32)


def recovery(true: np.ndarray, found: np.ndarray) -> float:
    """Mean over true atoms of the largest cosine with a found one, either sign."""
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return float(np.abs(true @ found.T).max(axis=1).mean())


def sae_lens_rows(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """SAELens' own generator: 512 features in 256 dimensions, each active in 1.6 % of rows (8 a row on average)."""
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary

    torch.manual_seed(0)
    features = FeatureDictionary(num_features=512, hidden_dim=256)
    generator = ActivationGenerator(
        num_features=512,
        firing_probabilities=torch.full((512,), 8 / 512),
        std_firing_magnitudes=torch.full((512,), 0.3),
    )
    with torch.no_grad():
        X = torch.cat([features(generator.sample(5000)) for _ in range(rows // 5000)])
    X = X[X.norm(dim=1) > 0]
    return features.feature_vectors.detach().numpy().copy(), (X / X.norm(dim=1, keepdim=True)).numpy().copy()


def ours(X: np.ndarray, method: str) -> np.ndarray:
    """As many passes as the time allows."""
    config = (
        TopKConfig(n_atoms=512, k=8, epochs=1, batch_size=256, lr=1e-3)
        if method == "topk"
        else OnlineConfig(n_atoms=512, alpha=0.1, epochs=1)
    )
    a_pass = timed(lambda: fit(X[: len(X) // 4], config)) * 4  # compiled by the warm-up before
    passes = max(1, min(200, int(0.8 * SECONDS / a_pass)))
    return fit(X, type(config).from_dict(config.to_dict() | {"epochs": passes})).W_dec


def peer_sae_lens(X: np.ndarray, *, seconds: float = SECONDS) -> np.ndarray:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows = torch.from_numpy((X - X.mean(axis=0)) * np.sqrt(X.shape[1]))
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=X.shape[1], d_sae=512, k=8))
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=256, lr=1e-3, lr_end=1e-4, dead_feature_window=100,
        autocast=True,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter([]))
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        trainer.step(rows[torch.randint(0, len(rows), (256,))])
        trainer.n_training_steps += 1
    return sae.W_dec.detach().numpy()


def peer_scikit_learn(X: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        n_components=512, alpha=0.1, fit_algorithm="cd", positive_code=True, batch_size=256, random_state=0,
        transform_algorithm="lasso_cd",
    )  # fmt: skip
    centred, rng = (X - X.mean(axis=0)).astype(np.float64), np.random.default_rng(0)
    until = time.perf_counter() + SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while time.perf_counter() < until:
            learner.partial_fit(centred[rng.integers(0, len(X), 256)])
    return np.asarray(learner.components_)


SPAMS = """
import sys, numpy as np
np.bool = bool  # spams asks for the old name
import spams
X = np.asfortranarray(np.load(sys.argv[1]).T.astype(np.float64))
D = spams.trainDL(X, K=512, lambda1=0.1, mode=2, posAlpha=True, numThreads=2, batchsize=512, iter=-int(float(sys.argv[3])), verbose=False)
np.save(sys.argv[2], D.T)
"""


def peer_spams(X: np.ndarray, folder: Path) -> np.ndarray | None:
    python = os.environ.get("SPAMS_PYTHON")
    if python is None:
        return None
    np.save(folder / "rows.npy", X - X.mean(axis=0))
    arguments = [str(folder / "rows.npy"), str(folder / "atoms.npy"), str(SECONDS)]
    done = subprocess.run([python, "-c", SPAMS, *arguments], capture_output=True, text=True)
    return np.load(folder / "atoms.npy") if done.returncode == 0 else None


@pytest.mark.parametrize("source", ["ours", "SAELens"])
def test_planted_atoms_in_equal_time(source: str, tmp_path: Path) -> None:
    """Mean over true atoms of the largest cosine with a found one, after at most a minute each."""
    true, X = planted(30_000) if source == "ours" else sae_lens_rows(30_000)
    for method in ("topk", "online"):
        fit(X[:2000], TopKConfig(n_atoms=64, k=8, epochs=1) if method == "topk" else OnlineConfig(n_atoms=64, epochs=1))
    print(f"\nplanted atoms, generator of {source}: mean max cosine to the truth (seconds)")
    found: dict[str, float] = {}
    learners: dict[str, Callable[[], np.ndarray | None]] = {
        "topk (ours)": lambda: ours(X, "topk"),
        "online (ours)": lambda: ours(X, "online"),
        "SAELens TopK, autocast": lambda: peer_sae_lens(X),
        "scikit-learn": lambda: peer_scikit_learn(X),
        "spams": lambda: peer_spams(X, tmp_path),
    }
    for name, learn in learners.items():
        started = time.perf_counter()
        atoms = learn()
        if atoms is None:
            print(f"  {name:24s} not installed")
            continue
        found[name] = recovery(true, atoms)
        print(f"  {name:24s} {found[name]:.4f}  ({time.perf_counter() - started:.0f} s)")
    assert min(found["topk (ours)"], found["online (ours)"]) >= 0.97


# Speed


def test_topk_rows_a_second() -> None:
    """d 576, 4,608 atoms, k 32, batch 2,048; steps of ours and of SAELens alternate, so that noise falls on both."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d, K, k, B = 576, 4608, 32, 2048
    _, X = planted(40 * B, n_atoms=2048, d=d, l0=16)
    centred = X - X.mean(axis=0)
    batches = [centred[i * B : (i + 1) * B] for i in range(40)]
    torch.manual_seed(0)
    learner = TopKConfig(n_atoms=K, k=k, lr=1e-3, resample=False).learner(d, None, Reduce())
    learner.begin(centred)
    trainers = {}
    for name, sparse, autocast in (("float32", False, False), ("autocast", False, True), ("sparse", True, False)):
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=K, k=k, use_sparse_activations=sparse))
        with torch.no_grad():
            sae.W_dec.copy_(learner.W_dec)  # type: ignore[attr-defined]
            sae.W_enc.copy_(learner.W_dec.T)  # type: ignore[attr-defined]
        config = SAETrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=B, lr=1e-3, lr_end=1e-3, dead_feature_window=100,
            autocast=autocast,
        )  # fmt: skip
        trainer = SAETrainer(config, sae, iter([]))
        try:
            trainer.step(torch.from_numpy(batches[0][:64]))
        except NotImplementedError as error:
            print(f"\nSAELens, {name}: does not run here ({str(error).split('.')[0]})")
            continue
        with torch.no_grad():
            sae.W_dec.copy_(learner.W_dec)  # type: ignore[attr-defined]
            sae.W_enc.copy_(learner.W_dec.T)  # type: ignore[attr-defined]
        trainers[name] = SAETrainer(config, sae, iter([]))
    scale = float(np.sqrt(d))
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "product", *trainers)}
    losses: dict[str, list[float]] = {name: [] for name in ("ours", *trainers)}
    a, b = torch.randn(B, d).bfloat16(), torch.randn(K, d).bfloat16()
    for batch in batches:
        seconds["ours"].append(timed(lambda: losses["ours"].append(learner.step(batch)["loss"])))  # noqa: B023
        rows = torch.from_numpy(batch) * scale
        for name, trainer in trainers.items():
            seconds[name].append(
                timed(lambda: losses[name].append(float(trainer.step(rows).losses["mse_loss"].detach()) / d))  # noqa: B023
            )
            trainer.n_training_steps += 1
        seconds["product"].append(timed(lambda: a @ b.T))
    rate = {name: B / statistics.median(values[5:]) for name, values in seconds.items()}
    best = max(trainers, key=lambda name: rate[name])
    print(f"\nTopK, d {d}, {K} atoms, k {k}, batch {B}: rows/s")
    for name, value in rate.items():
        at = "" if name == "product" else " ".join(f"{losses[name][step - 1]:.4f}" for step in (10, 20, 40))
        print(f"  {name:10s} {value:9,.0f}{at and f'  loss at steps 10, 20, 40: {at}'}")
    ratios = sorted(x / y for x, y in zip(seconds[best][5:], seconds["ours"][5:], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    print(f"  {rate['ours'] / rate[best]:.2f} x SAELens ({best}); middle half of steps {low:.2f} to {high:.2f}")
    print(f"  {rate['ours'] / rate['product']:.2f} of the encoder product alone in bfloat16")


def objective(X: np.ndarray, W: np.ndarray, alpha: float, *, positive: bool) -> float:
    codes = (nn_lasso if positive else lasso)(X, W, alpha)
    left = X - codes @ W
    return float(0.5 * (left**2).sum() + alpha * np.abs(codes.data).sum()) / len(X)


def test_online_time_to_the_objective_of_scikit_learn() -> None:
    """5,000 x 6,800 (the paper's size), 500 atoms, α 0.1: seconds until scikit-learn's objective of three passes."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    _, X = planted(5000, n_atoms=500, d=6800, l0=8, noise=1.0)
    X = X - X.mean(axis=0)
    learner = MiniBatchDictionaryLearning(
        n_components=500, alpha=0.1, fit_algorithm="cd", batch_size=256, random_state=0, max_iter=3, shuffle=True,
        transform_algorithm="lasso_cd", max_no_improvement=None, tol=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = timed(lambda: learner.fit(X.astype(np.float64)))
    goal = objective(X, learner.components_.astype(np.float32), 0.1, positive=False)
    print(
        f"\nonline, 5,000 x 6,800, 500 atoms, α 0.1: scikit-learn, three passes: {theirs:.1f} s, objective {goal:.5f}"
    )
    fit(X[:600], OnlineConfig(n_atoms=20, alpha=0.1, signed=True, epochs=1))  # compiled
    for full in (False, True):
        for epochs in (2, 3, 4, 6, 9):
            config = OnlineConfig(n_atoms=500, alpha=0.1, signed=True, epochs=epochs, full=full, batch_size=768)
            seconds, reached = [], 0.0
            for _ in range(ROUNDS):
                held: list[np.ndarray] = []
                seconds.append(
                    timed(lambda: held.append(train(Pushes(X, normalize=False), config).W_dec))  # noqa: B023
                )
                reached = objective(X, held[0], 0.1, positive=False)
            took = statistics.median(seconds)
            spread = f"[{min(seconds):.2f} to {max(seconds):.2f}]"
            kind = "full" if full else "batches"
            print(f"  ours, {epochs} passes, {kind}: {took:.2f} s {spread}, objective {reached:.5f}")
            if reached <= goal:
                print(f"  reached {theirs / took:.1f} x sooner")
                break


def test_coding_against_scikit_learn() -> None:
    """100,000 rows in 576 dimensions, 1,024 atoms; scikit-learn on a tenth of them, its time times ten."""
    from sklearn.decomposition import sparse_encode

    true, X = planted(100_000, n_atoms=1024, d=576, l0=8)
    part = X[:10_000]
    nn_lasso(X[:200], true, 0.1), lasso(X[:200], true, 0.1), omp(X[:200], true, 2)
    print("\ncoding 100,000 rows, 576 dimensions, 1,024 atoms")
    cases: dict[str, tuple[Callable[[np.ndarray], object], dict[str, object]]] = {
        "non-negative lasso, α 0.1": (lambda x: nn_lasso(x, true, 0.1), {"algorithm": "lasso_cd", "alpha": 0.1, "positive": True}),
        "lasso, α 0.1": (lambda x: lasso(x, true, 0.1), {"algorithm": "lasso_cd", "alpha": 0.1}),
        "orthogonal pursuit, 8 atoms": (lambda x: omp(x, true, 8), {"algorithm": "omp", "n_nonzero_coefs": 8}),
    }  # fmt: skip
    for name, (code, options) in cases.items():
        mine = [timed(lambda: code(X)) for _ in range(ROUNDS)]  # noqa: B023
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = min(
                10 * timed(lambda: sparse_encode(part, true, n_jobs=jobs, **options))  # noqa: B023
                for jobs in (1, 2)
            )
        took = statistics.median(mine)
        spread = f"[{min(mine):.2f} to {max(mine):.2f}]"
        print(f"  {name:28s} {took:.2f} s {spread}, scikit-learn {theirs:.1f} s: {theirs / took:.1f} x")


# Scale

CHILD = """
import sys, time
import numpy as np
from gradatoms.dictionary.fit import fit
from gradatoms.dictionary.registry import make_config
from gradatoms_store import open_store
store = open_store(sys.argv[1])
config = make_config(sys.argv[2], {"n_atoms": 256, "epochs": 1} | ({"k": 8} if sys.argv[2] == "topk" else {}))
def peak():  # of this program; ru_maxrss would remember the one that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
fit(store, config, rows=np.arange(2000))
before, started = peak(), time.perf_counter()
fit(store, config)
print(time.perf_counter() - started, before, peak())
"""


def test_memory_and_time_over_rows(tmp_path: Path) -> None:
    """Ten times the rows: memory stays, time is in proportion."""
    from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, StoreHeader, StoreWriter

    rng = np.random.default_rng(0)
    d, unit = 576, 20_000
    print("\na fit of 256 atoms as rows grow, in a new process each: seconds and peak memory")
    for rows in (20_000, 200_000):
        path = tmp_path / f"{rows}.gstore"
        header = StoreHeader(
            model={"sha": "ab"}, hooks=(HookSpec(name="h", hf_name="h", d=d),), objective="nll", positions="last",
            plan="c0", n_units=rows // unit, n_examples=rows,
        )  # fmt: skip
        with StoreWriter.create(path, header) as writer:
            for number in range(rows // unit):
                start = number * unit
                ids = np.arange(start, start + unit, dtype=np.int64)
                small = np.zeros(unit, np.int32)
                block = GradientBlock(
                    gradients={"h": rng.standard_normal((unit, d), dtype=np.float32)}, example=ids, position=small,
                    token=small, target=small, loss=np.ones(unit, np.float32),
                )  # fmt: skip
                records = [
                    ExampleRecord(id=int(i), prompt=f"p{i}", target="t", foil=None, concept=None, meta="{}")
                    for i in ids
                ]
                writer.append(number, block, records)
        for method in ("online", "topk"):
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(path), method], capture_output=True, text=True, check=True
            )
            seconds, before, peak = (float(part) for part in done.stdout.split())
            grown = f"{peak - before:+.0f} over {before:.0f} of a fit of 2,000"
            print(f"  {method:7s} {rows:8,} rows: {seconds:6.1f} s, {peak:6.0f} MiB ({grown})")
