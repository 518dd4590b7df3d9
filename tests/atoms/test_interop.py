"""Dictionaries of other libraries, ours in SAELens, and the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn.functional import normalize, relu

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import (
    Coder,
    GatedCoder,
    LassoCoder,
    OmpCoder,
    PursuitCoder,
    ThresholdCoder,
    TopKCoder,
)
from gradatoms.dictionary.export import export_saelens
from gradatoms.dictionary.hub import pull, push
from gradatoms.dictionary.interop import ScaledCoder, StepwisePursuitCoder, is_foreign
from gradatoms.dictionary.io import load_atoms, save_atoms, save_codes
from gradatoms.errors import AtomsFormatError, ConfigError, OutputExistsError

D, K, ROWS = 24, 40, 300
HOOK = "blocks.1.hook_resid_post"
TIGHT = 1e-5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


X = unit(normal(ROWS, D, seed=9))
"""Pushes."""
W = unit(normal(K, D))


def some_atoms(coder: Coder) -> Atoms:
    return Atoms(W, 0.1 * normal(D, seed=3), coder, HOOK, {"model": {"name": "smollm2"}})


W_ENC, BIAS = W.T.copy() + 0.05 * normal(D, K, seed=1), 0.05 * normal(K, seed=2)
OURS = {
    "topk": TopKCoder(W_ENC, BIAS, 4),
    "signed topk": TopKCoder(W_ENC, BIAS, 4, True),
    "relu": ThresholdCoder(W_ENC, BIAS, np.zeros(K, np.float32)),
    "jumprelu": ThresholdCoder(W_ENC, BIAS, np.abs(normal(K, seed=4)) * 0.3),
    "gated": GatedCoder(W_ENC, BIAS, 0.1 * normal(K, seed=5), 0.1 * normal(K, seed=6)),
    "pursuit": PursuitCoder(W, 5),
}


# SAELens


def in_sae_lens(folder: Path) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens speaks of its own hub here
        return SAE.load_from_disk(str(folder))


def sae_lens_codes(sae: Any, x: np.ndarray = X) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(x))
        return codes.numpy(), sae.decode(codes).numpy()


@pytest.mark.parametrize("name", OURS)
def test_sae_lens_gives_our_codes(name: str, tmp_path: Path) -> None:
    atoms = save_atoms(some_atoms(OURS[name]), tmp_path / "a.atoms")
    theirs, decoded = sae_lens_codes(in_sae_lens(tmp_path / "a.atoms"))
    codes = atoms.encode(X)
    assert codes.nnz > ROWS
    np.testing.assert_allclose(theirs, codes.toarray(), atol=TIGHT)
    np.testing.assert_allclose(decoded, atoms.decode(codes), atol=TIGHT)
    loaded = load_atoms(tmp_path / "a.atoms")
    assert type(loaded.coder) is type(OURS[name])
    np.testing.assert_array_equal(loaded.encode(X).toarray(), codes.toarray())


def make_sae(folder: Path, architecture: str, **settings: Any) -> Any:
    """A SAELens SAE of random weights, with atoms of many lengths and a bias, saved by SAELens."""
    from sae_lens import registry
    from sae_lens.saes.sae import SAEMetadata

    kind, config = registry.get_sae_class(architecture)
    metadata = SAEMetadata(hook_name=HOOK, model_name="gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = kind(config(d_in=D, d_sae=K, metadata=metadata, **settings))
    randomize(sae)
    if architecture == "matching_pursuit":
        sae.W_dec.data *= 0.5
    sae.save_model(folder)
    return sae


def randomize(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
            if name == "threshold":
                value.abs_()


def agrees(atoms: Atoms, codes: np.ndarray, decoded: np.ndarray, W_dec: np.ndarray, *, scaled: bool = False) -> None:
    """Our codes are the peer's times the norms of its atoms, with the same zeros, and both decode to the same."""
    norms = np.linalg.norm(W_dec, axis=1)
    assert norms.std() > 0.01 and (codes != 0).any()
    ours = atoms.encode(X)
    np.testing.assert_array_equal(ours.toarray() != 0, codes != 0)
    np.testing.assert_allclose(ours.toarray(), codes if scaled else codes * norms, atol=TIGHT)
    np.testing.assert_allclose(atoms.decode(ours), decoded, atol=TIGHT)
    np.testing.assert_allclose(np.linalg.norm(atoms.W_dec, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize(
    "architecture, settings, coder",
    [
        ("topk", {"k": 5}, ScaledCoder),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}, TopKCoder),
        ("abstopk", {"k": 5}, ScaledCoder),
        ("abstopk", {"k": 5, "rescale_acts_by_decoder_norm": True}, TopKCoder),
        ("standard", {}, ThresholdCoder),
        ("jumprelu", {}, ThresholdCoder),
        ("gated", {}, GatedCoder),
        ("matching_pursuit", {}, ScaledCoder),
        ("matching_pursuit", {"max_iterations": 6, "residual_threshold": 1.6}, ScaledCoder),
        ("matching_pursuit", {"max_iterations": 6, "stop_on_duplicate_support": False}, ScaledCoder),
    ],
)
def test_any_sae_lens_dictionary_loads(
    architecture: str, settings: dict[str, Any], coder: type, subtracted: bool, tmp_path: Path
) -> None:
    sae = make_sae(tmp_path / "sae", architecture, apply_b_dec_to_input=subtracted, **settings)
    assert is_foreign(tmp_path / "sae")
    atoms = load_atoms(tmp_path / "sae")
    assert type(atoms.coder) is coder and atoms.coder.signed == (architecture == "abstopk")
    assert atoms.hook == HOOK
    assert atoms.config == {"kind": "foreign", "library": "saelens", "architecture": architecture}
    rescaled = settings.get("rescale_acts_by_decoder_norm", False)
    agrees(atoms, *sae_lens_codes(sae), sae.W_dec.detach().numpy(), scaled=rescaled)


def test_pursuit_over_unit_atoms_runs_in_our_kernel_where_it_is_the_same(tmp_path: Path) -> None:
    plain = {"max_iterations": 6, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    sae = make_sae(tmp_path / "sae", "matching_pursuit", **plain)
    sae.W_dec.data = normalize(sae.W_dec.data, dim=1)
    sae.save_model(tmp_path / "unit")
    atoms = load_atoms(tmp_path / "unit")
    assert isinstance(atoms.coder, PursuitCoder)
    np.testing.assert_allclose(atoms.encode(X).toarray(), sae_lens_codes(sae)[0], atol=TIGHT)


def test_stepwise_pursuit_of_no_rows() -> None:
    assert StepwisePursuitCoder(W, 3, 0.0, True).encode(np.zeros((0, D), np.float32)).shape == (0, K)


def test_a_batch_topk_that_sae_lens_trained(tmp_path: Path) -> None:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=K, k=4))
    randomize(trained)
    trained.topk_threshold.fill_(0.4)
    trained.save_inference_model(tmp_path / "sae")
    atoms = load_atoms(tmp_path / "sae")
    assert atoms.config["architecture"] == "jumprelu"
    np.testing.assert_allclose(
        atoms.decode(atoms.encode(X)), sae_lens_codes(in_sae_lens(tmp_path / "sae"))[1], atol=TIGHT
    )


def test_a_config_of_sae_lens_before_version_6(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", "topk", k=5)
    old = {
        "d_in": D, "d_sae": K, "dtype": "float32", "device": "cpu", "hook_name": HOOK, "apply_b_dec_to_input": True,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": False,
    }  # fmt: skip
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(old))
    atoms = load_atoms(tmp_path / "sae")
    assert atoms.hook == HOOK
    agrees(atoms, *sae_lens_codes(sae), sae.W_dec.detach().numpy())
    np.testing.assert_array_equal(sae_lens_codes(in_sae_lens(tmp_path / "sae"))[0], sae_lens_codes(sae)[0])


def test_an_atom_without_a_direction_is_never_used(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", "topk", k=20)
    sae.W_dec.data[7] = 0
    sae.save_model(tmp_path / "sae")
    assert sae_lens_codes(sae)[0][:, 7].any()
    atoms = load_atoms(tmp_path / "sae")
    codes = atoms.encode(X)
    assert 7 not in codes.indices and not atoms.W_dec[7].any()
    np.testing.assert_allclose(atoms.decode(codes), sae_lens_codes(sae)[1], atol=TIGHT)


# sparsify and dictionary_learning. Their packages need what this project does not install; the files below have the key
# names that they write, and the codes come from the formula in their documentation.


def weights(layout: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in layout.items()}


def top(values: torch.Tensor, k: int) -> torch.Tensor:
    kept = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter_(-1, kept.indices, kept.values)


def write_sparsify(folder: Path, *, half: bool = False, **cfg: Any) -> dict[str, torch.Tensor]:
    w = weights({"encoder.weight": (K, D), "encoder.bias": (K,), "W_dec": (K, D), "b_dec": (D,)})
    if half:
        w = {name: value.bfloat16() for name, value in w.items()}
    folder.mkdir(parents=True)
    save_file(w, folder / "sae.safetensors")
    plain = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": K, "k": 6}
    plain |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps(plain | cfg))
    return w


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_sparsify_dictionary_loads(signed: bool, half: bool, tmp_path: Path) -> None:
    stored = write_sparsify(tmp_path / "layers.3", half=half, **({"signed": True} if signed else {}))
    w = {name: value.float() for name, value in stored.items()}
    pre = (torch.from_numpy(X) - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    codes = pre * (top(pre.abs(), 6) > 0) if signed else top(relu(pre), 6)
    atoms = load_atoms(tmp_path / "layers.3")
    assert (atoms.config["library"], atoms.hook) == ("sparsify", "blocks.3.hook_resid_post")
    agrees(atoms, codes.numpy(), (codes @ w["W_dec"] + w["b_dec"]).numpy(), w["W_dec"].numpy())


LINES: dict[str, tuple[int, ...]] = {"encoder.weight": (K, D), "encoder.bias": (K,), "decoder.weight": (D, K)}
MATRICES: dict[str, tuple[int, ...]] = {"W_enc": (D, K), "b_enc": (K,), "W_dec": (K, D), "b_dec": (D,)}
GATED = {"encoder.weight": (K, D), "decoder.weight": (D, K), "decoder_bias": (D,)}
LEARNED: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": LINES | {"bias": (D,)},
    "AutoEncoderNew": LINES | {"decoder.bias": (D,)},
    "AutoEncoderTopK": LINES | {"b_dec": (D,), "threshold": ()},
    "GatedAutoEncoder": GATED | dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (K,)),
    "JumpReluAutoEncoder": MATRICES | {"threshold": (K,)},
    "BatchTopKSAE": LINES | {"b_dec": (D,), "threshold": ()},
    "MatryoshkaBatchTopKSAE": MATRICES | {"threshold": ()},
}


def write_learned(folder: Path, name: str, *, pickled: bool = True, **trainer: Any) -> dict[str, torch.Tensor]:
    w = weights(LEARNED[name])
    if "threshold" in w:
        w["threshold"] = w["threshold"].abs() + 0.2
    if "TopK" in name:
        w["k"] = torch.tensor(6, dtype=torch.int)
        trainer = {"k": 6} | trainer
    if name.startswith("Matryoshka"):
        w["group_sizes"] = torch.tensor([10, K - 10])
    folder.mkdir(parents=True)
    torch.save(w, folder / "ae.pt") if pickled else save_file(w, folder / "ae.safetensors")
    about = {"dict_class": name, "layer": 3, "lm_name": "gpt2", "submodule_name": "resid_post_layer_3"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": about, "buffer": {"ctx_len": 128}}))
    return w


def learned_codes(name: str, w: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, reconstruction and decoder rows of a dictionary_learning class."""
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    b_dec = next(w[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias") if key in w)
    product = (torch.from_numpy(X) - (0 if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else b_dec)) @ W_enc
    if name == "GatedAutoEncoder":
        codes = (product + w["gate_bias"] > 0) * relu(w["r_mag"].exp() * product + w["mag_bias"])
    else:
        codes = relu(product + w.get("b_enc", w.get("encoder.bias")))
        if name == "AutoEncoderTopK":
            codes = top(codes, 6)
        elif "threshold" in w:
            codes = codes * (codes > w["threshold"])
    return codes, codes @ W_dec + b_dec, W_dec


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("name", LEARNED)
def test_a_dictionary_learning_dictionary_loads(name: str, pickled: bool, tmp_path: Path) -> None:
    w = write_learned(tmp_path / "trainer_0", name, pickled=pickled)
    atoms = load_atoms(tmp_path / "trainer_0")
    assert atoms.hook == "blocks.3.hook_resid_post"
    assert atoms.config == {"kind": "foreign", "library": "dictionary_learning", "architecture": name}
    codes, decoded, W_dec = learned_codes(name, w)
    agrees(atoms, codes.numpy(), decoded.numpy(), W_dec.numpy())


# What is refused


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


def break_pickle(folder: Path) -> None:
    write_learned(folder, "AutoEncoder")
    torch.save({"bias": Harmful()}, folder / "ae.pt")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def half_of(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def make_then(architecture: str, change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        make_sae(folder, architecture)
        change(folder)

    return make


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "layer norm": (make_then("standard", lambda f: edit(f / "cfg.json", normalize_activations="layer_norm")), "layer_norm"),
    "transcoder": (make_then("standard", lambda f: edit(f / "cfg.json", architecture="transcoder")), "'transcoder'"),
    "tanh": (make_then("standard", lambda f: edit(f / "cfg.json", activation_fn_str="tanh-relu")), "tanh-relu"),
    "other tensors": (make_then("standard", lambda f: edit(f / "cfg.json", architecture="jumprelu")), "threshold"),
    "cut": (make_then("standard", lambda f: half_of(f / "sae_weights.safetensors")), "get the folder again"),
    "no json": (make_then("standard", lambda f: (f / "cfg.json").write_text("{")), "JSONDecodeError"),
    "k": (make_then("topk", lambda f: edit(f / "cfg.json", k=K + 1)), f"k from 1 to {K}"),
    "groupmax": (lambda f: write_sparsify(f, activation="groupmax"), "groupmax"),
    "transcode": (lambda f: write_sparsify(f, transcode=True), "transcode"),
    "skip": (lambda f: write_sparsify(f, skip_connection=True), "skip_connection"),
    "layers": (lambda f: write_sparsify(f, n_targets=2), "n_targets"),
    "class": (lambda f: (write_learned(f, "AutoEncoder"), edit(f / "config.json", trainer={"dict_class": "CrossCoder"})), "'CrossCoder'"),
    "two ks": (lambda f: write_learned(f, "AutoEncoderTopK", k=7), "6 and 7"),
    "several": (lambda f: [write_sparsify(f / f"layers.{i}") for i in (1, 2)], r"layers.1, layers.2"),
    "pickle": (break_pickle, "Weights only load failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_counterpart_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = REFUSED[name]
    make(tmp_path / "peer")
    with pytest.raises(AtomsFormatError, match=said) as error:
        load_atoms(tmp_path / "peer")
    assert str(tmp_path / "peer") in str(error.value) and "\n" not in str(error.value)
    assert not Path("harmed").exists()


def test_a_wrong_shape_and_an_infinite_weight_are_refused(tmp_path: Path) -> None:
    w = write_sparsify(tmp_path / "sae")
    for name, value in (("b_dec", torch.zeros(D + 1)), ("W_dec", torch.full((K, D), torch.inf))):
        save_file(w | {name: value}, tmp_path / "sae" / "sae.safetensors")
        with pytest.raises(AtomsFormatError, match=name):
            load_atoms(tmp_path / "sae")


@pytest.mark.parametrize("left", ["metadata", "metrics.json", "codes.h5"])
def test_our_folder_without_its_config_is_damaged_not_foreign(left: str, tmp_path: Path) -> None:
    save_atoms(some_atoms(OURS["topk"]), tmp_path / "a.atoms")
    (tmp_path / "a.atoms" / "config.yaml").unlink()
    if left != "metadata":
        edit(tmp_path / "a.atoms" / "cfg.json", metadata={})
        (tmp_path / "a.atoms" / left).write_bytes(b"{}")
    assert not is_foreign(tmp_path / "a.atoms")
    with pytest.raises(AtomsFormatError, match=r"complete .*a\.atoms.*config\.yaml"):
        load_atoms(tmp_path / "a.atoms")


def test_a_folder_of_anything_else_is_not_foreign(tmp_path: Path) -> None:
    save_atoms(some_atoms(OURS["topk"]), tmp_path / "runs" / "a.atoms")
    assert not is_foreign(tmp_path / "runs") and not is_foreign(tmp_path / "runs" / "a.atoms")
    with pytest.raises(AtomsFormatError, match="complete"):
        load_atoms(tmp_path / "runs")


# Ours as a SAELens folder


@pytest.mark.parametrize("name", OURS)
def test_an_export_is_the_same_in_sae_lens(name: str, tmp_path: Path) -> None:
    atoms = some_atoms(OURS[name])
    about = export_saelens(atoms, tmp_path / "sae")
    assert about["n_atoms"] == K and "same codes" in about["note"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["cfg.json", "sae", "sae_weights.safetensors"]
    sae = in_sae_lens(tmp_path / "sae")
    np.testing.assert_allclose(sae_lens_codes(sae)[0], atoms.encode(X).toarray(), atol=TIGHT)
    assert sae.cfg.metadata.exported_by == "gradatoms" and "+atom lowers the loss" in sae.cfg.metadata.sign_convention
    loaded = load_atoms(tmp_path / "sae")
    assert loaded.config["library"] == "saelens" and loaded.hook == HOOK
    np.testing.assert_allclose(loaded.encode(X).toarray(), atoms.encode(X).toarray(), atol=TIGHT)
    with pytest.raises(OutputExistsError, match="sae"):
        export_saelens(atoms, tmp_path / "sae")


def test_a_doubled_export_splits_signed_codes(tmp_path: Path) -> None:
    atoms = some_atoms(OURS["signed topk"])
    about = export_saelens(atoms, tmp_path / "sae", doubled=True)
    assert about["architecture"] == "topk" and about["n_atoms"] == 2 * K and about["doubled"]
    codes = atoms.encode(X).toarray()
    theirs, decoded = sae_lens_codes(in_sae_lens(tmp_path / "sae"))
    assert (codes < 0).any() and (codes > 0).any()
    np.testing.assert_allclose(theirs, np.hstack([codes.clip(0), (-codes).clip(0)]), atol=TIGHT)
    np.testing.assert_allclose(decoded, atoms.decode(atoms.encode(X)), atol=TIGHT)
    with pytest.raises(ConfigError, match="signed top-k"):
        export_saelens(some_atoms(OURS["topk"]), tmp_path / "other", doubled=True)
    assert not (tmp_path / "other").exists()


def planted(signed: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.zeros((1500, K))
    for row in codes:
        signs = rng.choice([-1, 1], 3) if signed else 1
        row[rng.choice(K, 3, replace=False)] = signs * rng.uniform(0.4, 1, 3)
    return unit(codes @ W + 0.02 * rng.standard_normal((1500, D)))


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(
    "coder", [LassoCoder(W, 0.1), OmpCoder(W, 3), LassoCoder(W, 0.1, True), OmpCoder(W, 3, True)],
    ids=["lasso", "omp", "signed lasso", "signed omp"],
)  # fmt: skip
def test_a_distilled_export_says_what_it_costs(coder: Coder, doubled: bool, tmp_path: Path) -> None:
    rows = planted(coder.signed)
    atoms = Atoms(W, rows.mean(axis=0), coder, HOOK)
    if doubled and not coder.signed:
        with pytest.raises(ConfigError, match="signed"):
            export_saelens(atoms, tmp_path / "sae", doubled=True, distil_on=rows)
        return
    about = export_saelens(atoms, tmp_path / "sae", doubled=doubled, distil_on=rows)
    sae = in_sae_lens(tmp_path / "sae")
    assert (
        (about["architecture"], about["n_atoms"]) == ("abstopk", K) if coder.signed and not doubled else ("topk", 2 * K)
    )
    assert sae.cfg.metadata.distilled == about["distilled"] and "other codes" in sae.cfg.metadata.coder_note
    distilled = about["distilled"]
    assert sae.cfg.k == distilled["k"] == round(atoms.encode(rows).nnz / len(rows))
    unseen = rows[np.random.default_rng(0).permutation(1500)[int(0.85 * 1500) :]]
    left = ((unseen - sae_lens_codes(sae, unseen)[1]) ** 2).sum() / (atoms.center(unseen) ** 2).sum()
    np.testing.assert_allclose(left, distilled["fvu_distilled"], rtol=1e-3)
    assert distilled["rows_measured"] == len(unseen)
    tied = TopKCoder(W.T.copy(), np.zeros(K, np.float32), distilled["k"], coder.signed)
    plain = ((unseen - atoms.decode(tied.encode(atoms.center(unseen)))) ** 2).sum() / (atoms.center(unseen) ** 2).sum()
    assert distilled["fvu_coder"] < distilled["fvu_distilled"] < 0.6 * plain


def test_distilling_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has one"):
        export_saelens(some_atoms(OURS["topk"]), tmp_path / "sae", distil_on=X)
    for rows in (X[:5], normal(50, D + 1)):
        with pytest.raises(ConfigError, match="at least 20 pushes"):
            export_saelens(some_atoms(OmpCoder(W, 3)), tmp_path / "sae", distil_on=rows)
    assert not list(tmp_path.iterdir())


def test_a_peer_that_sae_lens_cannot_hold_with_unit_atoms_is_not_exported(tmp_path: Path) -> None:
    make_sae(tmp_path / "peer", "topk", k=5)
    with pytest.raises(AtomsFormatError, match="ScaledCoder"):
        export_saelens(load_atoms(tmp_path / "peer"), tmp_path / "sae")
    assert [p.name for p in tmp_path.iterdir()] == ["peer"]


# The hub


METRIC = {"value": 0.25, "null": 0.98, "unit": "share", "better": "lower", "n": 75, "note": "null: flipped rows"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An .atoms folder with all that travels, and some that does not."""
    (tmp_path / "model").mkdir()
    config = {
        "kind": "fit", "model": {"name": str(tmp_path / "model"), "sha": "ab"}, "fit": {"method": "topk", "k": 4},
        "store": {"path": "/home/me/secret-project/facts.gstore", "fingerprint": "cd", "more": ["/home/me/b.gstore"]},
    }  # fmt: skip
    path = tmp_path / "facts.atoms"
    atoms = save_atoms(Atoms(W, normal(D), OURS["topk"], HOOK, config), path)
    save_codes(path / "codes.h5", atoms.encode(X))
    save_codes(path / "evidence.h5", atoms.encode(X))
    (path / "metrics.json").write_text(json.dumps({"metrics": {"fvu": METRIC, "l0": METRIC | {"null": None}}}))
    label = {"atom": 0, "label": "/usr paths", "teacher": "local:/home/me/gemma"}
    (path / "labels.jsonl").write_text(json.dumps(label) + "\n")
    (path / "projector").mkdir()
    (path / "projector" / "config.json").write_text('{"norm": 3.5}')
    save_file({"a": torch.zeros(2)}, path / "projector" / "weights.safetensors")
    for name in ("catalog.sqlite", "log.jsonl", "projector/notes.txt", "secret.json"):
        (path / name).write_text("{}")
    return path


TRAVELS = {
    "config.yaml", "cfg.json", "sae_weights.safetensors", "codes.h5", "metrics.json", "evidence.h5", "labels.jsonl",
    "README.md", "projector/config.json", "projector/weights.safetensors",
}  # fmt: skip


def files(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_push_to_a_folder_and_pull_from_it(folder: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    shared = tmp_path / "shared" / "facts"
    assert push(folder, str(shared)) == str(shared)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert files(shared) == TRAVELS
    out = pull(f"file:{shared}", tmp_path / "new" / "mine.atoms")
    assert out == tmp_path / "new" / "mine.atoms" and files(out) == TRAVELS
    ours, theirs = load_atoms(folder), load_atoms(out)
    np.testing.assert_array_equal(theirs.encode(X).toarray(), ours.encode(X).toarray())
    for path in [out, shared]:
        assert not any(
            str(tmp_path).encode() in p.read_bytes() or b"/home" in p.read_bytes()
            for p in path.rglob("*.*")
            if p.is_file()
        )
    assert theirs.config["store"] == {"path": "facts.gstore", "fingerprint": "cd", "more": ["b.gstore"]}
    assert theirs.config["model"] == {"name": "model", "sha": "ab"}
    assert json.loads((out / "labels.jsonl").read_text()) == {
        "atom": 0,
        "label": "/usr paths",
        "teacher": "local:gemma",
    }
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_the_card_tells_metrics_beside_their_nulls(folder: Path, tmp_path: Path) -> None:
    push(folder, str(tmp_path / "facts"))
    _, front, text = (tmp_path / "facts" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "gradatoms" and "gradient-atoms" in yaml.safe_load(front)["tags"]
    assert "| fvu | 0.25 | 0.98 | lower | share | 75 |" in text and "| l0 | 0.25 |  | lower |" in text
    assert 'pull("facts", "facts.atoms")' in text and HOOK in text and "+atom lowers the loss" in text
    (folder / "README.md").write_text("my own words")
    push(folder, str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text() == "my own words"


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    push(folder, str(tmp_path / "empty"))
    with pytest.raises(OutputExistsError, match="empty"):
        push(folder, str(tmp_path / "empty"))
    with pytest.raises(OutputExistsError, match=r"facts\.atoms"):
        pull(str(tmp_path / "empty"), folder)


def link_out(folder: Path) -> None:
    with h5py.File(folder / "codes.h5", "a") as file:
        file["more"] = h5py.ExternalLink("/etc/passwd", "/")


def point_out(folder: Path) -> None:
    with h5py.File(folder / "evidence.h5", "a") as file:
        file.create_dataset("more", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def compress(folder: Path) -> None:
    with h5py.File(folder / "evidence.h5", "a") as file:
        file.create_dataset("more", (400,), "u1", compression="gzip")


def turn_round(folder: Path) -> None:
    with h5py.File(folder / "codes.h5", "a") as file:
        file.create_group("a")["b"] = file["/"]


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: half_of(f / "sae_weights.safetensors"), "complete atoms"),
        (lambda f: (f / "config.yaml").unlink(), "complete atoms"),
        (lambda f: (f / "codes.h5").write_bytes(b"no HDF5"), "an HDF5 file"),
        (link_out, "a link at 'more'"),
        (point_out, "data in other files"),
        (compress, "a filter"),
        (turn_round, "a group inside itself"),
    ],
    ids=["cut", "no config", "no hdf5", "link", "external", "filter", "circle"],
)
def test_a_failed_pull_leaves_nothing(folder: Path, damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    push(folder, str(tmp_path / "shared"))
    damage(tmp_path / "shared")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AtomsFormatError, match=said) as error:
        pull(str(tmp_path / "shared"), tmp_path / "new" / "mine.atoms")
    assert "\n" not in str(error.value) and ".partial" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_whole_dictionaries_of_ours_are_pushed(folder: Path, tmp_path: Path) -> None:
    make_sae(tmp_path / "sae", "standard")
    half_of(folder / "sae_weights.safetensors")
    for path, said in (
        (tmp_path / "sae", "another library"),
        (folder, "complete"),
        (tmp_path / "none", "found nothing"),
    ):
        with pytest.raises(AtomsFormatError, match=said):
            push(path, str(tmp_path / "shared"))
    with pytest.raises(AtomsFormatError, match="found nothing"):
        pull("./none", tmp_path / "mine.atoms")
    with pytest.raises(ConfigError, match="no revision"):
        pull(str(folder), tmp_path / "mine.atoms", revision="v1")
    assert not (tmp_path / "shared").exists() and not (tmp_path / "mine.atoms").exists()


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hugging Face hub that a push and a pull need, from memory."""

    files: dict[str, bytes]
    seen: list[str]
    private: bool | None
    status: int

    def answer_with(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, text in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value: Any, status: int = 200) -> None:
        self.answer_with(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(f"POST {self.path} {self.headers.get('Authorization')}")
        if self.status != 200:
            return self.say({"error": "no"}, self.status)
        if self.path == "/api/repos/create":
            if type(self).private is None:
                type(self).private = json.loads(body)["visibility"] == "private"
            return self.say({"url": f"http://{self.headers['Host']}/me/facts"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self.say(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if "/commit/" in self.path:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.say({"commitUrl": f"http://{self.headers['Host']}/me/facts/commit/1", "commitOid": "1" * 40})
        return self.say({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        if self.status != 200 or "me/facts" not in self.path:
            return self.say({"error": "no"}, self.status if self.status != 200 else 404)
        if "/resolve/" in self.path:
            data = self.files[self.path.split("/resolve/")[1].partition("/")[2].partition("?")[0]]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": "1" * 40}
            return self.answer_with(data, headers)
        if "/tree/" in self.path:
            return self.say([
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ])  # fmt: skip
        return self.say({"id": "me/facts", "sha": "1" * 40, "private": type(self).private, "siblings": []})

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A hub on the loopback interface that the client talks to."""
    from huggingface_hub import constants

    Hub.files, Hub.seen, Hub.private, Hub.status = {}, [], None, 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_to_a_hub_and_pull_from_it(folder: Path, hub: type[Hub], tmp_path: Path) -> None:
    address = push(folder, "me/facts", token="hf_me")
    assert address.endswith("/me/facts") and hub.private is True and hub.files.keys() == TRAVELS
    assert all(line.endswith("hf_me") for line in hub.seen if line.startswith("POST") and "/api/models" in line)
    assert b"/home" not in b"".join(hub.files.values())
    assert b'pull("me/facts", "facts.atoms")' in hub.files["README.md"]
    hub.files["surprise.py"] = b"print()"
    out = pull("me/facts", tmp_path / "mine.atoms", revision="main")
    assert files(out) == TRAVELS
    np.testing.assert_array_equal(load_atoms(out).encode(X).toarray(), load_atoms(folder).encode(X).toarray())


def test_a_public_repo_is_not_filled_by_a_private_push(folder: Path, hub: type[Hub]) -> None:
    hub.private = False
    with pytest.raises(ConfigError, match="is public"):
        push(folder, "me/facts", token="hf_me")
    assert not hub.files
    push(folder, "me/facts", token="hf_me", private=False)
    assert hub.files


@pytest.mark.parametrize(
    "status, said", [(401, "permission"), (403, "permission"), (404, "has none"), (500, "to answer")]
)
def test_what_the_hub_refuses_is_told_in_one_line(
    status: int, said: str, folder: Path, hub: type[Hub], tmp_path: Path
) -> None:
    hub.status = status
    before = sorted(tmp_path.rglob("*"))
    for ask in (lambda: push(folder, "me/facts", token="t"), lambda: pull("me/facts", tmp_path / "out", token="t")):
        with pytest.raises(ConfigError, match=said) as error:
            ask()
        assert "me/facts" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert sorted(tmp_path.rglob("*")) == before


def test_no_network_and_an_impossible_name(
    folder: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"expected http://127\.0\.0\.1:9 to answer for me/facts"):
        pull("me/facts", tmp_path / "out")
    with pytest.raises(ConfigError, match="to answer for me/facts"):
        push(folder, "me/facts", token="t")
    with pytest.raises(ConfigError, match="a repo such as"):
        pull("a/b/c d", tmp_path / "out")
    assert not (tmp_path / "out").exists()
