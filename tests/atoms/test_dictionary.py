"""Pushes, sparse coding, the two fits, and the .atoms folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.sparse import csr_array
from sklearn.decomposition import sparse_encode

from gradatoms.dictionary.base import Atoms, FitConfig
from gradatoms.dictionary.coding import LassoCoder, TopKCoder, leading, nn_lasso, top_k, top_rows
from gradatoms.dictionary.fit import fit
from gradatoms.dictionary.io import load_atoms, load_codes, save_atoms, save_codes
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.topk import TopKConfig
from gradatoms.dictionary.training import train
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms_store import ExampleRecord, GradientBlock, HookSpec, Store, StoreHeader, StoreWriter, open_store

D, N_ATOMS, ROWS = 32, 12, 1500
HOOK = "blocks.1.hook_resid_post"
ONLINE = OnlineConfig(n_atoms=N_ATOMS, alpha=0.1, epochs=6, batch_size=128)
TOPK = TopKConfig(n_atoms=N_ATOMS, k=3, epochs=30, batch_size=128, lr=3e-3)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Atoms (12, 32), and pushes (1500, 32) made of one or two of them with a little noise."""
    rng = np.random.default_rng(7)
    atoms = unit(rng.standard_normal((N_ATOMS, D)))
    codes = np.zeros((ROWS, N_ATOMS))
    for row in codes:
        row[rng.choice(N_ATOMS, rng.integers(1, 3), replace=False)] = rng.uniform(0.5, 1.0)
    return atoms, unit(codes @ atoms + 0.02 * rng.standard_normal((ROWS, D)))


@pytest.fixture(scope="module")
def online(planted: tuple[np.ndarray, np.ndarray]) -> Atoms:
    return train(Pushes(planted[1], hook=HOOK), ONLINE)


@pytest.fixture(scope="module")
def topk(planted: tuple[np.ndarray, np.ndarray]) -> Atoms:
    return train(Pushes(planted[1], hook=HOOK), TOPK)


@pytest.fixture(params=["online", "topk"])
def atoms(request: pytest.FixtureRequest) -> Atoms:
    found: Atoms = request.getfixturevalue(request.param)
    return found


def write_store(path: Path, gradients: dict[str, np.ndarray]) -> Store:
    """A store with one example a row; ``token`` numbers the rows."""
    n = len(next(iter(gradients.values())))
    hooks = tuple(HookSpec(name=name, hf_name=name, d=g.shape[1]) for name, g in gradients.items())
    header = StoreHeader(
        model={"sha": "ab"}, hooks=hooks, objective="nll", positions="last", plan="c0", n_units=1, n_examples=n
    )
    number = np.arange(n, dtype=np.int32)
    block = GradientBlock(
        gradients=gradients, example=number.astype(np.int64), position=number, token=number, target=number,
        loss=np.ones(n, np.float32),
    )  # fmt: skip
    records = [ExampleRecord(id=i, prompt="p", target="t", foil=None, concept=None, meta="{}") for i in range(n)]
    with StoreWriter.create(path, header) as writer:
        writer.append(0, block, records)
    return open_store(path)


# Pushes


def test_a_push_is_the_unit_gradient_downhill(tmp_path: Path) -> None:
    g = np.random.default_rng(0).standard_normal((20, D)).astype(np.float32) * 1e-4
    g[5] = 0
    store = write_store(tmp_path / "a.gstore", {HOOK: g})
    pushes = Pushes(store)
    assert (pushes.hook, pushes.d, len(pushes)) == (HOOK, D, 19)
    rows = store.rows["token"][pushes.rows]
    assert 5 not in rows
    np.testing.assert_allclose(pushes.all(), -unit(g[rows]), atol=1e-3)
    np.testing.assert_allclose(pushes.mean(), -unit(g[rows]).mean(axis=0), atol=1e-4)


def test_an_array_holds_pushes_of_any_length() -> None:
    x = np.random.default_rng(0).standard_normal((20, D)).astype(np.float32)
    x[3] = 0
    pushes = Pushes(x)
    assert 3 not in pushes.rows
    np.testing.assert_allclose(pushes.all(), unit(x[pushes.rows]), atol=1e-6)
    chosen = Pushes(x, rows=np.array([7, 3, 1]))
    np.testing.assert_allclose(chosen.all(), unit(x[[7, 1]]), atol=1e-6)


@pytest.mark.parametrize("source", ["array", "store"])
def test_shuffled_batches_hold_every_row_once(source: str, tmp_path: Path) -> None:
    x = unit(np.random.default_rng(0).standard_normal((50, D)))
    pushes = Pushes(x if source == "array" else write_store(tmp_path / "a.gstore", {HOOK: -x}))

    def order(seed: int | None, size: int = 16) -> list[int]:
        batches = list(pushes.batches(size, seed=seed))
        assert [len(b) for b in batches][:-1] == [size] * (len(batches) - 1)
        return [int((x @ row).argmax()) for batch in batches for row in batch]

    assert sorted(order(1)) == list(range(50))
    assert order(1) == order(1) != order(2)
    assert order(1) != order(None)


def test_several_hooks_need_a_choice(tmp_path: Path) -> None:
    g = np.ones((4, D), np.float32)
    store = write_store(tmp_path / "a.gstore", {"first": g, "second": g})
    with pytest.raises(ConfigError, match="first, second"):
        Pushes(store)
    assert len(Pushes(store, hook="second")) == 4


@pytest.mark.parametrize("x", [np.zeros((4, D)), np.zeros((0, D)), np.full((4, D), np.nan)], ids=["zero", "no", "nan"])
def test_no_usable_push_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Pushes(x.astype(np.float32))


# Configs


@pytest.mark.parametrize(
    "config, setting",
    [
        (OnlineConfig, {"n_atoms": 0}),
        (OnlineConfig, {"alpha": 0.0}),
        (OnlineConfig, {"alpha": 1.0}),
        (OnlineConfig, {"epochs": 0}),
        (TopKConfig, {"k": 0}),
        (TopKConfig, {"n_atoms": 4, "k": 5}),
        (TopKConfig, {"batch_size": 0}),
        (TopKConfig, {"lr": 0.0}),
        (TopKConfig, {"lr": float("nan")}),
    ],
)
def test_settings_are_checked(config: type[FitConfig], setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=list(setting)[-1]):
        config(**setting)


@pytest.mark.parametrize("config", [ONLINE, TOPK], ids=["online", "topk"])
def test_a_config_survives_its_dict_and_refuses_unknown_keys(config: FitConfig) -> None:
    values = config.to_dict()
    assert values["method"] == config.method
    assert type(config).from_dict(values) == config
    with pytest.raises(ConfigError, match="n_atom"):
        type(config).from_dict(values | {"n_atom": 3})


# Fits


def test_online_finds_the_planted_atoms(online: Atoms, planted: tuple[np.ndarray, np.ndarray]) -> None:
    assert (planted[0] @ online.W_dec.T).max(axis=1).mean() > 0.9


def test_topk_finds_the_planted_atoms(topk: Atoms, planted: tuple[np.ndarray, np.ndarray]) -> None:
    assert (planted[0] @ topk.W_dec.T).max(axis=1).mean() > 0.8


def test_atoms_are_unit_and_codes_explain_the_pushes(atoms: Atoms, planted: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(np.linalg.norm(atoms.W_dec, axis=1), 1, atol=1e-5)
    codes = atoms.encode(planted[1])
    assert codes.shape == (ROWS, N_ATOMS) and codes.data.dtype == np.float32
    assert codes.data.min() > 0
    centred = planted[1] - planted[1].mean(axis=0)
    residual = planted[1] - atoms.decode(codes)
    assert (residual**2).sum() / (centred**2).sum() < 0.3
    assert atoms.hook == HOOK and len(atoms) == N_ATOMS


def test_topk_keeps_at_most_k(topk: Atoms, planted: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.diff(topk.encode(planted[1]).indptr).max() <= TOPK.k


@pytest.mark.parametrize("config", [ONLINE, TOPK], ids=["online", "topk"])
def test_the_same_seed_gives_the_same_bytes(
    config: Any, planted: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pushes, short = Pushes(planted[1][:400]), type(config).from_dict(config.to_dict() | {"epochs": 2})
    for name, settings in (("a", short), ("b", short), ("c", type(config).from_dict(short.to_dict() | {"seed": 1}))):
        torch.rand(3)  # whatever the global generators did before must not matter
        save_atoms(train(pushes, settings), tmp_path / name)
    a, b, c = ((tmp_path / name / "sae_weights.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_more_atoms_than_rows(planted: tuple[np.ndarray, np.ndarray]) -> None:
    few = Pushes(planted[1][:6])
    for config in (OnlineConfig(n_atoms=12, epochs=2), TopKConfig(n_atoms=12, k=2, epochs=3)):
        found = train(few, config)
        assert found.W_dec.shape == (12, D) and np.isfinite(found.W_dec).all()


def test_progress_ends_at_its_total(planted: tuple[np.ndarray, np.ndarray]) -> None:
    for config in (ONLINE, TOPK):
        calls: list[tuple[int, int]] = []
        fit(planted[1][:300], config, progress=lambda _s, done, total, calls=calls: calls.append((done, total)))
        assert calls[-1][0] == calls[-1][1] > 0


def test_an_atom_by_its_number(online: Atoms) -> None:
    assert online[3].index == 3 and online[3].hook == HOOK
    np.testing.assert_array_equal(online[3].direction, online.W_dec[3])
    for index in (-1, N_ATOMS):
        with pytest.raises(ConfigError, match=f"0 to {N_ATOMS - 1}"):
            online[index]


def test_atoms_can_be_gone_through(online: Atoms) -> None:
    assert [atom.index for atom in online] == list(range(N_ATOMS))


# Coding


def test_top_k_keeps_the_largest_and_clips_negatives() -> None:
    pre = np.array([[3, -1, 2, 5], [-1, -2, -3, -4], [-1, 4, -2, -3], [0, 0, 0, 1]], np.float32)
    expected = np.array([[3, 0, 0, 5], [0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1]], np.float32)
    np.testing.assert_array_equal(top_k(pre, 2).toarray(), expected)
    np.testing.assert_array_equal(top_k(pre, 4).toarray(), np.maximum(pre, 0))
    assert top_k(pre, 2).nnz == 4


def test_nn_lasso_has_the_lasso_support_and_the_least_squares_weights() -> None:
    rng = np.random.default_rng(0)
    W, x = unit(rng.standard_normal((20, 16))), unit(rng.standard_normal((30, 16)))
    codes = nn_lasso(x, W, 0.15, refit=True).toarray()
    lasso = sparse_encode(
        x.astype(np.float64), W.astype(np.float64), algorithm="lasso_cd", alpha=0.15, positive=True, max_iter=2000
    )
    assert (lasso > 0).sum() > 60
    for row, c, shrunk in zip(x, codes, lasso, strict=True):
        support = np.flatnonzero(shrunk > 0)
        assert set(np.flatnonzero(c)) <= set(support)
        if len(support):
            weights = nnls(W[support].T.astype(np.float64), row.astype(np.float64))[0]
            np.testing.assert_allclose(c[support], weights, atol=1e-5)


def test_nn_lasso_of_nothing() -> None:
    W = unit(np.random.default_rng(0).standard_normal((20, 16)))
    assert nn_lasso(np.zeros((0, 16), np.float32), W, 0.1).shape == (0, 20)
    assert nn_lasso(np.zeros((3, 16), np.float32), W, 0.1).nnz == 0


def test_leading_atom_and_top_rows() -> None:
    codes = csr_array(np.array([[0, 0.2, 0.7], [0, 0, 0], [0.4, 0.1, 0], [0, 0.9, 0.1]], np.float32))
    assert leading(codes).tolist() == [2, -1, 0, 1]
    assert top_rows(codes, 1, 2).tolist() == [3, 0]
    assert top_rows(codes.tocsc(), 1, 9).tolist() == [3, 0, 2]


# The folder


def test_a_saved_dictionary_comes_back(atoms: Atoms, planted: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    saved = save_atoms(atoms, tmp_path / "a.atoms")
    assert saved.path == tmp_path / "a.atoms"
    loaded = load_atoms(tmp_path / "a.atoms")
    np.testing.assert_array_equal(loaded.W_dec, atoms.W_dec)
    np.testing.assert_array_equal(loaded.b_dec, atoms.b_dec)
    assert (loaded.hook, loaded.config, type(loaded.coder)) == (HOOK, saved.config, type(atoms.coder))
    np.testing.assert_array_equal(loaded.encode(planted[1]).toarray(), atoms.encode(planted[1]).toarray())
    assert not list((tmp_path / "a.atoms").glob("*.partial")) and not list((tmp_path / "a.atoms").glob(".*"))


def open_in_sae_lens(folder: Path) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens speaks of its own hub here
        return SAE.load_from_disk(str(folder))


def test_sae_lens_opens_it_and_knows_what_it_is(atoms: Atoms, tmp_path: Path) -> None:
    save_atoms(atoms, tmp_path / "a.atoms")
    sae = open_in_sae_lens(tmp_path / "a.atoms")
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (D, N_ATOMS)
    np.testing.assert_array_equal(sae.W_dec.detach().numpy(), atoms.W_dec)
    assert sae.cfg.metadata.input_kind == "activation_gradient"
    assert "+atom lowers the loss" in sae.cfg.metadata.sign_convention
    assert sae.cfg.metadata.hook_name == HOOK


def test_sae_lens_gives_our_topk_codes(topk: Atoms, planted: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    save_atoms(topk, tmp_path / "a.atoms")
    sae = open_in_sae_lens(tmp_path / "a.atoms")
    codes = topk.encode(planted[1])
    with torch.no_grad():
        theirs = sae.encode(torch.from_numpy(planted[1]))
        decoded = sae.decode(theirs)
    np.testing.assert_allclose(theirs.numpy(), codes.toarray(), atol=1e-4)
    np.testing.assert_allclose(decoded.numpy(), topk.decode(codes), atol=1e-4)


def test_sae_lens_reconstructs_with_online_atoms(
    online: Atoms, planted: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    save_atoms(online, tmp_path / "a.atoms")
    sae = open_in_sae_lens(tmp_path / "a.atoms")
    with torch.no_grad():
        decoded = sae.decode(sae.encode(torch.from_numpy(planted[1]))).numpy()
    centred = planted[1] - planted[1].mean(axis=0)
    assert ((planted[1] - decoded) ** 2).sum() / (centred**2).sum() < 0.3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.yaml").unlink(),
        lambda folder: (folder / "cfg.json").unlink(),
        lambda folder: (folder / "sae_weights.safetensors").unlink(),
        lambda folder: cut(folder / "sae_weights.safetensors"),
        lambda folder: cut(folder / "cfg.json"),
        lambda folder: (folder / "config.yaml").write_text(""),
        lambda folder: (folder / "config.yaml").write_text("format_version: 2\n  a: [\n"),
        lambda folder: edit_json(folder / "cfg.json", architecture="transcoder"),
    ],
    ids=["no config", "no cfg", "no weights", "cut weights", "cut cfg", "empty config", "bad yaml", "architecture"],
)
def test_a_damaged_folder_is_refused(topk: Atoms, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save_atoms(topk, tmp_path / "a.atoms")
    damage(tmp_path / "a.atoms")
    with pytest.raises(AtomsFormatError) as error:
        load_atoms(tmp_path / "a.atoms")
    assert str(tmp_path / "a.atoms") in str(error.value) and "\n" not in str(error.value)


def test_no_folder_and_a_newer_version_are_refused(topk: Atoms, tmp_path: Path) -> None:
    with pytest.raises(AtomsFormatError, match="found nothing"):
        load_atoms(tmp_path / "none.atoms")
    save_atoms(topk, tmp_path / "a.atoms")
    config = tmp_path / "a.atoms" / "config.yaml"
    config.write_text(config.read_text().replace("format_version: 2", "format_version: 3"))
    with pytest.raises(AtomsFormatError, match="upgrade"):
        load_atoms(tmp_path / "a.atoms")


def test_codes_come_back(tmp_path: Path) -> None:
    codes = csr_array(np.array([[0, 0.5, 0], [0, 0, 0], [0.25, 0, 2]], np.float32))
    save_codes(tmp_path / "codes.h5", codes)
    loaded = load_codes(tmp_path / "codes.h5")
    assert loaded.shape == (3, 3) and loaded.nnz == 3
    np.testing.assert_array_equal(loaded.toarray(), codes.toarray())
    cut(tmp_path / "codes.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    for name in ("codes.h5", "text.h5", "none.h5"):
        with pytest.raises(AtomsFormatError, match=name) as error:
            load_codes(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_coders_are_what_the_methods_say(online: Atoms, topk: Atoms) -> None:
    assert isinstance(online.coder, LassoCoder) and online.coder.alpha == ONLINE.alpha
    assert isinstance(topk.coder, TopKCoder) and topk.coder.k == TOPK.k
