"""The loop of a fit: every method, resume, weights, early stop, logs, and the folder that it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.fit import encode_store, fit, fit_store
from gradatoms.dictionary.io import load_atoms, load_codes, save_atoms
from gradatoms.dictionary.metrics import evaluate
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.provenance import store_of
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.registry import METHODS, make_config, parse_grid, parse_settings
from gradatoms.dictionary.training import Checkpoints, train
from gradatoms.errors import AtomsFormatError, ConfigError, OutputExistsError
from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, Store, StoreHeader, StoreWriter, open_store

D, TRUE, ROWS = 32, 12, 600
HOOK = "blocks.1.hook_resid_post"
SMALL: dict[str, dict[str, Any]] = {
    name: {"n_atoms": 12, "epochs": 3, "batch_size": 128} | ({"k": 2} if hasattr(config, "k") and name != "online" else {})
    for name, config in METHODS.items()
} | {"pca": {"n_atoms": 12, "k": 2, "batch_size": 128}}  # fmt: skip


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def planted(rows: int = ROWS, seed: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True atoms (12, 32), pushes of one or two of them with a little noise, and the first atom of each push."""
    rng = np.random.default_rng(seed)
    atoms = unit(np.random.default_rng(7).standard_normal((TRUE, D)))
    codes, first = np.zeros((rows, TRUE)), rng.integers(0, TRUE, rows)
    codes[np.arange(rows), first] = rng.uniform(0.7, 1.0, rows)
    codes[np.arange(rows), rng.integers(0, TRUE, rows)] += rng.uniform(0.2, 0.5, rows) * (rng.random(rows) < 0.5)
    return atoms, unit(codes @ atoms + 0.02 * rng.standard_normal((rows, D))), first


def config_of(method: str, **settings: Any) -> FitConfig:
    return make_config(method, SMALL[method] | settings)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return planted()[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of planted pushes, an example a row, with concepts, losses that differ and norms that differ."""
    return planted_store(tmp_path_factory.mktemp("store") / "planted.gstore")


def planted_store(path: Path, plan: str = "c0", concept: str | None = None) -> Store:
    _, pushes, first = planted(1200)
    number = np.arange(len(pushes), dtype=np.int32)
    header = StoreHeader(
        model={"sha": "ab"}, hooks=(HookSpec(name=HOOK, hf_name=HOOK, d=D),), objective="nll", positions="last",
        plan=plan, n_units=1, n_examples=len(pushes),
    )  # fmt: skip
    norms = np.where(first == 0, 5.0, 1.0)[:, None]
    block = GradientBlock(
        gradients={HOOK: (-pushes * norms).astype(np.float32)}, example=number.astype(np.int64), position=number,
        token=number, target=number, loss=np.where(first == 1, 7, 1).astype(np.float32),
    )  # fmt: skip
    records = [
        ExampleRecord(
            id=i, prompt=f"prompt {i}", target="t", foil=None, concept=concept or f"concept {first[i]}", meta="{}"
        )
        for i in range(len(pushes))
    ]
    with StoreWriter.create(path, header) as writer:
        writer.append(0, block, records)
    return open_store(path)


# Methods


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_saves_and_comes_back(method: str, rows: np.ndarray, tmp_path: Path) -> None:
    settings = {"epochs": 30} if method not in ("pca",) else {}
    atoms = fit(rows, config_of(method, **settings))
    np.testing.assert_allclose(np.linalg.norm(atoms.W_dec, axis=1), 1, atol=1e-5)
    codes = atoms.encode(rows)
    X = atoms.center(rows)
    assert ((X - codes @ atoms.W_dec) ** 2).sum() / (X**2).sum() < 0.9
    assert (codes.data < 0).any() == atoms.coder.signed == (method in ("abstopk", "pca"))
    save_atoms(atoms, tmp_path / "a.atoms")
    np.testing.assert_array_equal(load_atoms(tmp_path / "a.atoms").encode(rows).toarray(), codes.toarray())


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_fit_goes_on_to_the_same_bytes(method: str, rows: np.ndarray, tmp_path: Path) -> None:
    """Stopped in the middle of a pass, with its state on disk, and again in the next."""
    config = config_of(method, **({} if method == "pca" else {"epochs": 4}))
    whole = fit(rows, config)
    kept = Checkpoints(path=tmp_path / "c", seconds=0.0)
    for stop in (2, 7) if method != "pca" else (2,):

        def interrupt(_stage: str, done: int, _total: int, stop: int = stop) -> None:
            if done == stop + 1:  # what came after the checkpoint of step ``stop`` is lost
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(Pushes(rows), config, checkpoints=kept, progress=interrupt)
        assert kept.path.exists()
    resumed = train(Pushes(rows), config, checkpoints=kept)
    np.testing.assert_array_equal(resumed.W_dec, whole.W_dec)
    np.testing.assert_array_equal(resumed.encode(rows).toarray(), whole.encode(rows).toarray())


def test_a_checkpoint_of_another_fit_is_refused(rows: np.ndarray, tmp_path: Path) -> None:
    kept = Checkpoints(path=tmp_path / "c", seconds=0.0)
    train(Pushes(rows), config_of("online"), checkpoints=kept)
    for pushes, config in ((Pushes(rows), config_of("online", seed=3)), (Pushes(rows[:500]), config_of("online"))):
        with pytest.raises(ConfigError, match="other settings, rows or ranks"):
            train(pushes, config, checkpoints=kept)
    kept.path.write_bytes(kept.path.read_bytes()[:50])
    with pytest.raises(ConfigError, match="remove it to begin again"):
        train(Pushes(rows), config_of("online"), checkpoints=kept)


def test_few_rows_of_many_coordinates_are_learned_from_in_their_own_span() -> None:
    """The same atoms, to rounding, as without the rotation."""
    rng = np.random.default_rng(0)
    few = unit(rng.standard_normal((40, 6)) @ rng.standard_normal((6, 900)) + 0.1 * rng.standard_normal((40, 900)))

    class Plain(OnlineConfig):
        rotatable = False

    for settings in ({"alpha": 0.1}, {"k": 2}):
        config = OnlineConfig(n_atoms=30, epochs=10, init="rows", resample=False, **settings)
        rotated, plain = (
            fit(few, config),
            fit(few, Plain(**{k: v for k, v in config.to_dict().items() if k != "method"})),
        )
        cosine = (rotated.W_dec * plain.W_dec).sum(axis=1)
        # first atoms get a little noise in all coordinates, which the span does not hold
        assert np.median(cosine) > 0.999
        codes = rotated.encode(few)
        X = rotated.center(few)
        residual = [((X - a.encode(few) @ a.W_dec) ** 2).sum() for a in (rotated, plain)]
        assert residual[0] == pytest.approx(residual[1], rel=0.02) and codes.nnz > 0


# Weights


def test_weights_draw_the_fit_to_their_rows(store: Store) -> None:
    """With few atoms, the rows that count more are explained better."""
    _, pushes, first = planted(1200)

    def error(atoms: Atoms, of: int) -> float:
        X = pushes[first == of]
        return float(((X - atoms.decode(atoms.encode(X))) ** 2).sum(axis=1).mean())

    config = OnlineConfig(n_atoms=4, k=1, epochs=10)
    plain = fit(store, config)
    assert error(fit(store, replace(config, weight="norm")), 0) < 0.8 * error(plain, 0)
    assert error(fit(store, replace(config, weight="loss")), 1) < 0.8 * error(plain, 1)
    by_hand = fit(pushes, config, weights=np.where(first == 3, 100.0, 1e-3))
    assert error(by_hand, 3) < 0.2 < error(by_hand, 5)
    counts = np.bincount(first)
    weights = np.concatenate(
        [b.weights for b in Pushes(store, weight="concept").weighted(100) if b.weights is not None]
    )
    np.testing.assert_allclose(weights, (1 / counts[first])[store.rows["token"]], rtol=1e-6)


def test_weights_that_rows_do_not_carry_are_refused(rows: np.ndarray) -> None:
    for weight in ("loss", np.ones(3), -np.ones(len(rows)), np.full(len(rows), np.nan)):
        with pytest.raises(ConfigError, match="weights"):
            Pushes(rows, weight=weight)
    with pytest.raises(ConfigError, match="weight"):
        OnlineConfig(weight="size")  # type: ignore[arg-type]


# Early stop and logs


def test_patience_stops_at_a_plateau(rows: np.ndarray) -> None:
    records: list[dict[str, Any]] = []
    fit(rows, config_of("online", epochs=200, patience=2), log=records.append)
    assert 2 < len(records) < 200
    values = [r["held_out_fvu"] for r in records]
    assert min(values[:-2]) <= min(values[-2:]) * 1.002


def test_a_log_says_where_a_fit_is(rows: np.ndarray) -> None:
    records: list[dict[str, Any]] = []
    fit(rows, config_of("topk", epochs=5), log=records.append)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in records] == [5, 10, 15, 20, 25]
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.filterwarnings("ignore")  # of what the two services import
def test_tensorboard_and_wandb_only_when_asked(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = OnlineConfig(n_atoms=8, epochs=2)
    fit_store(store.path, tmp_path / "plain.atoms", config, checks=False)
    assert not [p for p in (tmp_path / "plain.atoms").iterdir() if p.is_dir()]
    lines = (tmp_path / "plain.atoms" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    fit_store(store.path, tmp_path / "told.atoms", config, checks=False, log_to=("tensorboard", "wandb"))
    assert list((tmp_path / "told.atoms" / "tensorboard").glob("events*"))
    assert list((tmp_path / "told.atoms" / "wandb").glob("offline-run*"))
    with pytest.raises(ConfigError, match="tensorboard, wandb"):
        fit_store(store.path, tmp_path / "no.atoms", config, log_to=("mlflow",))


# The folder


def test_the_true_atoms_are_real_and_the_rest_is_not(store: Store, tmp_path: Path) -> None:
    atoms, report = fit_store(store.path, tmp_path / "a.atoms", OnlineConfig(n_atoms=24, k=2, epochs=15))
    true = planted(1200)[0]
    cosine = true @ atoms.W_dec.T
    verdicts = np.asarray([a.verdict for a in report.atoms])
    assert cosine.max(axis=1).min() > 0.9
    assert (verdicts[cosine.argmax(axis=1)] == "real").mean() >= 0.9
    metrics = report.metrics
    for name in ("l0", "fvu", "cosine", "dead_share", "duplicate_share", "coherence", "stability", "real_share",
                 "concept_purity", "concept_f1", "atoms_per_concept", "probe_accuracy"):  # fmt: skip
        assert metrics[name].value is not None and metrics[name].unit, name
    assert metrics["fvu"].value < 0.1 < 0.5 < metrics["fvu"].null  # type: ignore[operator]
    assert metrics["dead_share"].value <= 1 / 24  # type: ignore[operator]  # half of the atoms have nothing to find
    assert metrics["probe_accuracy"].value > 0.9 > metrics["probe_accuracy"].null  # type: ignore[operator]
    assert sum(report.histogram["counts"]) == 24
    kept = json.loads((tmp_path / "a.atoms" / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(report.to_dict()))
    assert load_codes(tmp_path / "a.atoms" / "codes.h5").shape == (1200, 24)
    assert {p.name for p in (tmp_path / "a.atoms").iterdir()} == {
        "cfg.json", "codes.h5", "config.yaml", "log.jsonl", "metrics.json", "sae_weights.safetensors"
    }  # fmt: skip


def test_noise_has_no_real_atoms(tmp_path: Path) -> None:
    """Gaussian rows: almost nothing passes both bars."""
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.gstore"
    n = 800
    number = np.arange(n, dtype=np.int32)
    header = StoreHeader(
        model={"sha": "ab"}, hooks=(HookSpec(name=HOOK, hf_name=HOOK, d=D),), objective="nll", positions="last",
        plan="c0", n_units=1, n_examples=n,
    )  # fmt: skip
    block = GradientBlock(
        gradients={HOOK: rng.standard_normal((n, D)).astype(np.float32)}, example=number.astype(np.int64), position=number,
        token=number, target=number, loss=np.ones(n, np.float32),
    )  # fmt: skip
    records = [ExampleRecord(id=i, prompt=f"p{i}", target="t", foil=None, concept=None, meta="{}") for i in range(n)]
    with StoreWriter.create(path, header) as writer:
        writer.append(0, block, records)
    _, report = fit_store(path, tmp_path / "a.atoms", OnlineConfig(n_atoms=48, alpha=0.2, epochs=8))
    assert report.metrics["real_share"].value <= 0.05  # type: ignore[operator]
    assert "concept_purity" not in report.metrics


def test_where_all_share_one_concept_nothing_is_told_apart(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "s.gstore", concept="the same")
    _, report = fit_store(store.path, tmp_path / "a.atoms", OnlineConfig(n_atoms=6, epochs=2), checks=False)
    assert report.metrics["concept_f1"].value is None and report.metrics["probe_accuracy"].value is None
    assert report.metrics["concept_purity"].value == 1


def test_a_fit_in_the_way_is_not_touched_and_an_interrupted_one_goes_on(store: Store, tmp_path: Path) -> None:
    out, config = tmp_path / "a.atoms", OnlineConfig(n_atoms=10, epochs=3)
    calls = 0

    def interrupt(stage: str, _done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if stage == "half-b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_store(store.path, out, config, progress=interrupt, checkpoint_seconds=0.0)
    assert not out.exists() and {p.name for p in (tmp_path / "a.atoms.partial" / "fits").iterdir()} >= {"fit", "seed"}
    with pytest.raises(ConfigError, match="n_atoms"):
        fit_store(store.path, out, replace(config, n_atoms=11))
    stages: set[str] = set()
    resumed, report = fit_store(store.path, out, config, progress=lambda stage, _d, _t: stages.add(stage))
    assert stages == {"half-b", "null", "null-seed", "null-a", "null-b"}
    whole, other = fit_store(store.path, tmp_path / "b.atoms", config)
    np.testing.assert_array_equal(resumed.W_dec, whole.W_dec)
    assert report.to_dict() == other.to_dict()
    with pytest.raises(OutputExistsError):
        fit_store(store.path, out, config)


def test_several_stores_are_read_as_one(store: Store, tmp_path: Path) -> None:
    """The folder finds both again, also when all have moved together."""
    (tmp_path / "here").mkdir()
    paths = [planted_store(tmp_path / "here" / f"{plan}.gstore", plan).path for plan in ("c0", "c1")]
    fit_store(paths, tmp_path / "here" / "a.atoms", OnlineConfig(n_atoms=8, epochs=2), checks=False)
    assert load_codes(tmp_path / "here" / "a.atoms" / "codes.h5").shape[0] == 2400
    (tmp_path / "here").rename(tmp_path / "there")
    assert store_of(load_atoms(tmp_path / "there" / "a.atoms")).n_rows == 2400
    shutil.rmtree(tmp_path / "there" / "c1.gstore")
    with pytest.raises(AtomsFormatError, match=r"c1\.gstore"):
        store_of(load_atoms(tmp_path / "there" / "a.atoms"))


def test_codes_can_be_made_of_any_store(store: Store, tmp_path: Path) -> None:
    atoms, _ = fit_store(store.path, tmp_path / "a.atoms", OnlineConfig(n_atoms=10, epochs=2), checks=False)
    kept, made = load_codes(tmp_path / "a.atoms" / "codes.h5"), encode_store(atoms, store)
    np.testing.assert_array_equal(kept.toarray(), made.toarray())
    assert evaluate(atoms, store).metrics["l0"].value == pytest.approx(
        np.diff(made[np.flatnonzero(_held_out(store))].indptr).mean()
    )


def _held_out(store: Store) -> np.ndarray:
    from gradatoms.dictionary.pushes import held_out_mask

    return held_out_mask(store, 0.25, 0)


# Settings from texts


def test_settings_are_read_by_their_type() -> None:
    assert parse_settings("topk", ["lr=0.01", "k=4", "resample=false", "init=random"]) == {
        "lr": 0.01, "k": 4, "resample": False, "init": "random"
    }  # fmt: skip
    assert parse_settings("matryoshka", ["widths=4,8"]) == {"widths": (4, 8)}
    assert parse_settings("online", ["k=3"]) == {"k": 3}
    for pairs in (["lr"], ["no=1"], ["k=two"], ["resample=2"]):
        with pytest.raises(ConfigError, match="expected"):
            parse_settings("topk", pairs)
    assert parse_grid("topk", {"k": "2,4"}, several=True) == {"k": [2, 4]}
    with pytest.raises(ConfigError, match="--sweep"):
        parse_grid("topk", {"k": "2,4"}, several=False)


# Several processes

WORKER = """
import sys
import numpy as np, torch
from gradatoms.dictionary.provenance import store_of
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.registry import make_config
from gradatoms.dictionary.training import Checkpoints, train
from gradatoms.gradients.ranks import Ranks
import json
from pathlib import Path
torch.set_num_threads(1)
folder, jobs = sys.argv[1], json.loads(sys.argv[2])
rows = np.load(folder + "/rows.npy")
ranks = Ranks.here()
with ranks.group():
    for name, (method, settings, weighted) in jobs.items():
        pushes = Pushes(rows, weight=np.linspace(0.5, 1.5, len(rows)) if weighted else "none")
        config, reduce = make_config(method, settings), Reduce(ranks.rank, ranks.world)
        kept = Checkpoints(path=Path(f"{folder}/{name}-{ranks.world}.checkpoint"), seconds=0.0)
        if "resumed" in name:  # stopped after 20 steps, by all ranks

            def stop(stage, done, total):
                if done > 20:
                    raise InterruptedError

            try:
                train(pushes, config, reduce=reduce, checkpoints=kept, progress=stop)
            except InterruptedError:
                pass
            assert kept.path.exists()
        atoms = train(pushes, config, reduce=reduce, checkpoints=kept if "resumed" in name else None)
        if ranks.rank == 0:
            np.savez(f"{folder}/{name}-{ranks.world}.npz", W=atoms.W_dec, b=atoms.b_dec, codes=atoms.encode(rows).toarray())
"""
STEPS = {"epochs": 10, "batch_size": 120}  # 600 rows: 50 steps
JOBS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "topk": ("topk", {"n_atoms": 24, "k": 3, "dtype": "float32", "dead_steps": 5} | STEPS, False),
    "topk-weighted": ("topk", {"n_atoms": 24, "k": 3, "dtype": "float32"} | STEPS, True),
    "topk-sharded": ("topk", {"n_atoms": 25, "k": 3, "dtype": "float32", "dead_steps": 5, "sharded": True} | STEPS, False),
    "topk-sharded-resumed": ("topk", {"n_atoms": 25, "k": 3, "dtype": "float32", "sharded": True} | STEPS, False),
    "online-resumed": ("online", {"n_atoms": 24, "alpha": 0.1} | STEPS, False),
    "topk-uneven": ("topk", {"n_atoms": 24, "k": 3, "dtype": "float32", "epochs": 6, "batch_size": 128}, False),
    "online": ("online", {"n_atoms": 24, "alpha": 0.1} | STEPS, False),
    "gated": ("gated", {"n_atoms": 24, "l1": 1.0} | STEPS, False),
    "kmeans": ("kmeans", {"n_atoms": 24} | STEPS, False),
    "pca": ("pca", {"n_atoms": 24, "k": 3, "batch_size": 120}, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def two_and_one(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by two ranks of ``torchrun`` (gloo) and by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    np.save(folder / "rows.npy", rows)
    (folder / "worker.py").write_text(WORKER)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    for arguments in (torchrun, []):
        done = subprocess.run(
            [sys.executable, *arguments, str(folder / "worker.py"), str(folder), json.dumps(JOBS)],
            env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_fit_what_one_process_does(job: str, two_and_one: Path) -> None:
    """To 1e-5 after 50 steps: rows divided among ranks, or (``sharded``) atoms with an exact top-k over all of them."""
    two, one = (np.load(two_and_one / f"{job}-{world}.npz") for world in (2, 1))
    np.testing.assert_allclose(two["W"], one["W"], atol=1e-5)
    np.testing.assert_allclose(two["b"], one["b"], atol=1e-5)
    assert (np.abs(two["codes"] - one["codes"]) > 1e-4).mean() < 1e-3


def test_ranks_of_torchrun_make_one_folder(store: Store, tmp_path: Path) -> None:
    """``torchrun -m gradatoms_cli fit``: one report, and the atoms of one process."""
    folders = []
    for torchrun in (["-m", "torch.distributed.run", "--nproc-per-node", "2"], []):
        if torchrun:
            torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        out = tmp_path / f"{len(torchrun)}.atoms"
        command = ["-m", "gradatoms_cli", "fit", str(store.path), "-o", str(out), "--n-atoms", "10", "--epochs", "2"]
        done = subprocess.run(
            [sys.executable, *torchrun, *command, "--json"], env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["n_atoms"] == 10
        folders.append(load_atoms(out))
    np.testing.assert_allclose(folders[0].W_dec, folders[1].W_dec, atol=1e-5)
    kept = [json.loads((Path(str(a.path)) / "metrics.json").read_text())["metrics"] for a in folders]
    for name, metric in kept[0].items():
        assert metric["value"] == pytest.approx(kept[1][name]["value"], abs=1e-3), name
