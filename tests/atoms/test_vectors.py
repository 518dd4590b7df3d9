"""Atoms as vectors, llama.cpp control vectors and Neuronpedia features, and the features of a SAE that are closest."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.torch import save_file

from gradatoms.dictionary import nearest
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import PursuitCoder
from gradatoms.dictionary.export import export_folder
from gradatoms.dictionary.io import SIGN, load_atoms, save_atoms
from gradatoms.dictionary.nearest import nearest_features
from gradatoms.errors import AtomsFormatError, ConfigError, ModelLoadError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.labels.evidence import NOTHING_MOVED, Evidence, Injected, Neighbour, Shown, TokenShift
from gradatoms.labels.label import Label, LabelFailure, append_results
from gradatoms.labels.storage import Gathered, save_evidence
from gradatoms.models import LoadedModel
from gradatoms_store import ACTIVATION, open_store

D, K = 32, 6
HOOK = "blocks.2.hook_resid_post"
PROMPT, TARGET = "The capital of France is", " Paris"


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def some_atoms(loaded: LoadedModel, hook: str = HOOK, **config: Any) -> Atoms:
    W = unit(K, D)
    config = {"model": loaded.fingerprint.to_dict()} | config
    return Atoms(W, np.zeros(D, np.float32), PursuitCoder(W, 2), hook, config)


@pytest.fixture
def bare(tiny: LoadedModel, tmp_path: Path) -> Path:
    """Saved atoms without evidence and labels."""
    save_atoms(some_atoms(tiny), tmp_path / "bare.atoms")
    return tmp_path / "bare.atoms"


@pytest.fixture
def folder(tiny: LoadedModel, tmp_path: Path) -> Path:
    """Saved atoms: atom 1 labelled, with evidence at the last token and before; atom 2 without label, active nowhere."""
    save_atoms(some_atoms(tiny), tmp_path / "a.atoms")
    ids = tiny.tokenizer(PROMPT).input_ids
    up, down = TokenShift(" Paris", 0.2, 1.5), TokenShift(" Rome", -0.1, -0.75)
    moved = replace(NOTHING_MOVED, promoted_ratio=(up,), demoted_ratio=(down,))
    rest = dict.fromkeys(("inactive", "neutral", "active_minus", "inactive_minus", "neutral_minus"), NOTHING_MOVED)
    gains = dict.fromkeys(("own_gain", "other_gain", "own_gain_minus", "other_gain_minus"), 0.5)
    injected = Injected(alpha=0.125, active=moved, **rest, lens=(), **gains, linear_cosine=1.0, linear_cosine_small=1.0)
    one = Evidence(
        atom=1,
        top=(Shown(PROMPT, TARGET, None, 0.5, len(ids) - 1),),
        active=(
            Shown(PROMPT, TARGET, None, 0.75, 2, tiny.decode([ids[2]])),
            Shown(PROMPT, TARGET, None, 0.25, 2, "a token of another text"),
        ),
        injected=injected,
        neighbours=(Neighbour(3, 0.5),),
        density=0.25,
    )
    save_evidence(tmp_path / "a.atoms" / "evidence.h5", Gathered([one, Evidence(atom=2)], [], [], [], {"kl": 0.5}))
    append_results(
        tmp_path / "a.atoms",
        [
            Label(atom=1, label="capital cities", sentence="Names the capital.", teacher="human"),
            LabelFailure(atom=2, failure="no evidence", kind="no evidence", teacher="rule-3"),
        ],
    )
    return tmp_path / "a.atoms"


def refuses(error: type[Exception], said: str, ask: Callable[[], Any], inside: Path) -> None:
    """``ask`` raises ``error`` with ``said`` in one line, and leaves the folder as it was."""
    before = sorted(inside.rglob("*"))
    with pytest.raises(error, match=said) as raised:
        ask()
    assert "\n" not in str(raised.value) and sorted(inside.rglob("*")) == before


# Vectors


def test_all_atoms_are_one_tensor_with_what_there_is_to_know(folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    written = export_folder(folder, "vector", tmp_path / "new" / "v.safetensors")
    assert written["tensors"] == ["W_dec"] and written["d"] == D
    with safe_open(tmp_path / "new" / "v.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("W_dec"), load_atoms(folder).W_dec)
        about = file.metadata()
    assert about["model"] == "tiny-llama" and about["model_sha"] == tiny.fingerprint.sha
    assert (about["hook"], about["layer"], about["norm"]) == (HOOK, "2", "1")
    assert about["sign_convention"] == SIGN and "norm of h" in about["strength_unit"]
    assert json.loads(about["labels"]) == {"1": "capital cities"}
    assert json.loads(about["strengths"]) == {"1": 0.125} and about["strength_kl"] == "0.5"
    assert "hf_module" not in about and str(tmp_path) not in str(about)


def test_asked_atoms_are_a_tensor_each(folder: Path, tmp_path: Path) -> None:
    export_folder(folder, "vector", tmp_path / "v.safetensors", chosen=[4, 1])
    with safe_open(tmp_path / "v.safetensors", framework="np") as file:
        assert set(file.keys()) == {"atom_1", "atom_4"}
        for n in (1, 4):
            vector = file.get_tensor(f"atom_{n}")
            np.testing.assert_array_equal(vector, load_atoms(folder).W_dec[n])
            assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert json.loads(file.metadata()["labels"]) == {"1": "capital cities"}


# Control vectors


def field(reader: GGUFReader, name: str) -> Any:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def llama_cpp_buffer(reader: GGUFReader) -> np.ndarray:
    """What llama.cpp makes of the file: direction.N at offset d·(N−1), zeros elsewhere."""
    data = np.zeros(0, np.float32)
    for tensor in reader.tensors:
        name, _, number = tensor.name.partition(".")
        assert name == "direction" and int(number) >= 1 and tensor.data.ndim == 1 and tensor.data.dtype == np.float32
        d = len(tensor.data)
        data = np.pad(data, (0, max(0, d * int(number) - len(data))))
        data[d * (int(number) - 1) : d * int(number)] += tensor.data
    return data


@pytest.mark.parametrize("hook, layer", [(HOOK, 2), ("blocks.2.hook_resid_pre", 1), ("blocks.1.hook_resid_post", 1)])
def test_a_control_vector_acts_behind_the_block_that_llama_cpp_takes_it_for(
    hook: str, layer: int, tiny: LoadedModel, tmp_path: Path
) -> None:
    """Added where llama.cpp adds it (behind block il, what lies at offset d·(il−1)), it is added at the atoms' hook."""
    save_atoms(some_atoms(tiny, hook), tmp_path / "a.atoms")
    written = export_folder(tmp_path / "a.atoms", "gguf", tmp_path / "v.gguf", chosen=[3], norm=5)
    assert (written["layer"], written["norm"], written["norm_from"]) == (layer, 5.0, "given")
    data = llama_cpp_buffer(GGUFReader(tmp_path / "v.gguf"))
    step = 5 * torch.from_numpy(load_atoms(tmp_path / "a.atoms").W_dec[3])
    ids = tiny.tokenizer(PROMPT, return_tensors="pt").input_ids
    site = tiny.hook(hook)

    def logits(add: dict[int, torch.Tensor]) -> torch.Tensor:
        """With a vector added behind blocks."""
        handles = [
            tiny.model.model.layers[il].register_forward_hook(lambda _m, _a, out, v=v: out + v) for il, v in add.items()
        ]
        try:
            return tiny.model(ids).logits
        finally:
            for handle in handles:
                handle.remove()

    llama = logits({il: torch.from_numpy(data[D * (il - 1) : D * il]) for il in range(1, 4) if D * il <= len(data)})
    if site.kind == "resid_post":
        handle = site.module.register_forward_hook(lambda _m, _a, out: out + step)
    else:
        handle = site.module.register_forward_pre_hook(lambda _m, args: (args[0] + step, *args[1:]))
    ours = tiny.model(ids).logits
    handle.remove()
    torch.testing.assert_close(llama, ours)
    assert not torch.allclose(ours, logits({}), atol=1e-3)


def test_a_control_vector_has_the_keys_of_its_form(folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    export_folder(folder, "gguf", tmp_path / "v.gguf", chosen=[1], norm=2.5)
    reader = GGUFReader(tmp_path / "v.gguf")
    assert field(reader, "general.architecture") == "controlvector"
    assert field(reader, "controlvector.model_hint") == "llama"
    assert field(reader, "controlvector.layer_count") == len(reader.tensors) == 1
    np.testing.assert_array_equal(reader.tensors[0].data, np.float32(2.5) * load_atoms(folder).W_dec[1])
    assert field(reader, "general.name") == "capital cities" and field(reader, "gradatoms.atom") == 1
    assert field(reader, "gradatoms.hook") == HOOK and field(reader, "gradatoms.norm") == "2.5"
    assert field(reader, "gradatoms.model_sha") == tiny.fingerprint.sha
    assert field(reader, "gradatoms.sign_convention") == SIGN


def test_a_norm_that_nobody_knows_is_one_and_is_told(folder: Path, tmp_path: Path) -> None:
    written = export_folder(folder, "gguf", tmp_path / "v.gguf", chosen=[0])
    assert (written["norm"], written["norm_from"]) == (1.0, "unknown") and "--norm" in written["note"]
    assert np.linalg.norm(GGUFReader(tmp_path / "v.gguf").tensors[0].data) == pytest.approx(1, abs=1e-6)


def test_a_store_with_activations_gives_the_norm_and_the_module(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path
) -> None:
    harvest(tiny, examples, tmp_path / "x.gstore", HarvestConfig(hooks=(HOOK,), activations=True))
    store = open_store(tmp_path / "x.gstore")
    recorded = {"store": {"path": str(tmp_path / "x.gstore"), "fingerprint": store.fingerprint}}
    save_atoms(some_atoms(tiny, **recorded), tmp_path / "a.atoms")
    written = export_folder(tmp_path / "a.atoms", "gguf", tmp_path / "v.gguf", chosen=[0])
    norms = store.read(HOOK + ACTIVATION, np.arange(store.n_rows)).norms
    assert written["norm_from"] == "store" and written["norm"] == pytest.approx(float(np.median(norms)))
    export_folder(tmp_path / "a.atoms", "vector", tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="np") as file:
        assert file.metadata()["hf_module"] == "model.layers.2"


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out"]
)
def test_hooks_where_llama_cpp_adds_nothing(hook: str, tiny: LoadedModel, tmp_path: Path) -> None:
    save_atoms(some_atoms(tiny, hook), tmp_path / "a.atoms")
    folder, out = tmp_path / "a.atoms", tmp_path / "new" / "v.gguf"
    refuses(
        ConfigError, f"got {hook}; llama.cpp", lambda: export_folder(folder, "gguf", out, chosen=[0], norm=1), tmp_path
    )


# Neuronpedia


def test_features_in_neuronpedias_form(folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    written = export_folder(folder, "neuronpedia", tmp_path / "n.json")
    assert (written["features"], written["activations"]) == (K, 2)
    found = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))
    assert found["about"]["model_sha"] == tiny.fingerprint.sha and "log-probability" in str(found["about"]["meaning"])
    features, W = found["features"], load_atoms(folder).W_dec
    assert [f["index"] for f in features] == [str(n) for n in range(K)]
    for n, feature in enumerate(features):
        assert feature["modelId"] == "tiny-llama" and feature["layer"] == "2-gradient-atoms"
        assert feature["hookName"] == HOOK and feature["hasVector"] is True
        np.testing.assert_array_equal(np.asarray(feature["vector"], np.float32), W[n])
    one = features[1]
    assert one["vectorLabel"] == one["explanations"][0]["description"] == "capital cities"
    assert (one["pos_str"], one["pos_values"]) == ([" Paris"], [1.5])
    assert (one["neg_str"], one["neg_values"]) == ([" Rome"], [-0.75])
    assert (one["frac_nonzero"], one["maxActApprox"]) == (0.25, 0.75)
    assert (one["topkCosSimIndices"], one["topkCosSimValues"]) == ([3], [0.5])
    assert "vectorLabel" not in features[2] and features[2]["activations"] == [] and "pos_str" not in features[2]
    assert "frac_nonzero" not in features[0] and "activations" not in features[0]


def test_the_token_of_the_gradient_carries_the_code(folder: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    export_folder(folder, "neuronpedia", tmp_path / "n.json", chosen=[1])
    (feature,) = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["features"]
    marked, last = feature[
        "activations"
    ]  # the largest first; the one whose marked token is not in its text is left out
    n = len(tiny.tokenizer(PROMPT).input_ids)
    for activation, at, value in ((marked, 2, 0.75), (last, n - 1, 0.5)):
        assert "".join(activation["tokens"]) == PROMPT + TARGET and len(activation["values"]) == len(
            activation["tokens"]
        )
        assert activation["maxValue"] == value and activation["maxValueTokenIndex"] == at
        assert [i for i, v in enumerate(activation["values"]) if v] == [at] and activation["minValue"] == 0
        assert (activation["modelId"], activation["layer"], activation["index"]) == (
            "tiny-llama", "2-gradient-atoms", "1",
        )  # fmt: skip


def test_without_evidence_there_are_the_vectors_and_no_model_is_needed(tiny: LoadedModel, tmp_path: Path) -> None:
    atoms = some_atoms(tiny, model={"name": "owner/Some-Model-1.5B", "sha": "ab"})
    save_atoms(atoms, tmp_path / "a.atoms")
    written = export_folder(tmp_path / "a.atoms", "neuronpedia", tmp_path / "n.json", chosen=[5])
    (feature,) = json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["features"]
    assert written["activations"] == 0 and feature["modelId"] == "some-model-1.5b" and len(feature["vector"]) == D


def test_a_model_that_has_moved_is_named(folder: Path, tiny: LoadedModel, tiny_folder: Path, tmp_path: Path) -> None:
    config = load_atoms(folder).config
    moved = config["model"] | {"name": str(tmp_path / "gone")}
    save_atoms(replace(load_atoms(folder), config=config | {"model": moved}), folder)
    refuses(ModelLoadError, "gone", lambda: export_folder(folder, "neuronpedia", tmp_path / "n.json"), tmp_path)
    found = export_folder(folder, "neuronpedia", tmp_path / "n.json", model=str(tiny_folder))
    assert found["activations"] == 2
    assert json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["features"][0]["modelId"] == "gone"


# What is refused


@pytest.mark.parametrize(
    "form, options, said",
    [
        ("onnx", {}, "saelens, vector, gguf, neuronpedia, site, got 'onnx'"),
        ("vector", {"chosen": [K]}, f"from 0 to {K - 1}, got {K}"),
        ("vector", {"doubled": True}, "vector, got --doubled"),
        ("saelens", {"chosen": [1], "norm": 2}, "saelens, got --atom, --norm"),
        ("gguf", {}, "one atom for a control vector, got 0"),
        ("gguf", {"chosen": [1, 2]}, "got 2"),
        ("gguf", {"chosen": [-1]}, "got -1"),
        ("gguf", {"chosen": [1], "norm": 0}, "a norm above 0, got 0"),
        ("gguf", {"chosen": [1], "norm": float("nan")}, "a norm above 0, got nan"),
        ("neuronpedia", {"chosen": [99]}, "got 99"),
        ("neuronpedia", {"norm": 0.0}, "neuronpedia, got --norm"),
    ],
)
def test_a_wrong_export_leaves_nothing(
    form: str, options: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    refuses(ConfigError, said, lambda: export_folder(folder, form, tmp_path / "new" / "out", **options), tmp_path)


@pytest.mark.parametrize("form", ["vector", "gguf", "neuronpedia"])
def test_no_export_takes_the_place_of_a_file(form: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    refuses(OutputExistsError, "exists", lambda: export_folder(folder, form, tmp_path / "out", chosen=[1]), tmp_path)
    assert (tmp_path / "out").read_text() == "mine"


def test_atoms_of_nowhere_are_no_features(tiny: LoadedModel, tmp_path: Path) -> None:
    save_atoms(some_atoms(tiny, "unknown"), tmp_path / "a.atoms")
    save_atoms(some_atoms(tiny, model={}), tmp_path / "b.atoms")
    for name, said in (("a", "a hook in a layer"), ("b", "know their model")):
        ask = lambda n=name: export_folder(tmp_path / f"{n}.atoms", "neuronpedia", tmp_path / "n.json")  # noqa: E731
        refuses(ConfigError, said, ask, tmp_path)


# The nearest features


FEATURES = 700


def features_of(atoms: Atoms) -> np.ndarray:
    """Rows of many lengths; features 10 + n and 300 + n point near atom n, the second a little less."""
    W = unit(FEATURES, D, seed=1) * np.linspace(0.1, 3, FEATURES, dtype=np.float32)[:, None]
    W[10 : 10 + K] = 2 * (atoms.W_dec + 0.01 * unit(K, D, seed=2))
    W[300 : 300 + K] = 0.5 * (atoms.W_dec + 0.2 * unit(K, D, seed=3))
    W[5] = 0
    return np.asarray(W, np.float32)


def sae_folder(path: Path, W_dec: np.ndarray, hook: str = HOOK) -> Path:
    """A folder that SAELens wrote."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata = SAEMetadata(hook_name=hook, model_name="tiny")
        sae = StandardSAE(StandardSAEConfig(d_in=W_dec.shape[1], d_sae=len(W_dec), metadata=metadata))
    sae.W_dec.data = torch.from_numpy(W_dec)
    sae.save_model(path)
    return path


@pytest.mark.parametrize("cells", [2**23, 8000])
def test_nearest_features_are_those_of_a_plain_product(
    cells: int, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only some of the features are held at once."""
    monkeypatch.setattr(nearest, "_CELLS", cells)
    atoms = load_atoms(bare)
    W = features_of(atoms)
    found = nearest_features(atoms, sae_folder(tmp_path / "sae", W), k=3)
    assert found["sae"] == {
        "path": str(tmp_path / "sae"), "hook": HOOK, "model": "tiny", "features": FEATURES, "d": D,
    }  # fmt: skip
    cosines = atoms.W_dec @ (W / np.maximum(np.linalg.norm(W, axis=1), 1e-9)[:, None]).T
    order = np.argsort(-cosines, axis=1)[:, :3]
    for n, row in enumerate(found["atoms"]):
        assert row["atom"] == n and [f["feature"] for f in row["nearest"]] == order[n].tolist()
        assert [f["feature"] for f in row["nearest"]][:2] == [10 + n, 300 + n]
        np.testing.assert_allclose([f["cosine"] for f in row["nearest"]], cosines[n, order[n]], atol=1e-5)
    null = found["null"]
    best = (unit(2000, D, seed=8) @ (W / np.maximum(np.linalg.norm(W, axis=1), 1e-9)[:, None]).T).max(axis=1)
    assert null["mean"] == pytest.approx(best.mean(), abs=0.02)
    assert null["p95"] == pytest.approx(np.quantile(best, 0.95), abs=0.04)
    assert found["above_null"] == K


def test_random_atoms_are_no_nearer_than_the_null(tiny: LoadedModel, tmp_path: Path) -> None:
    W = unit(200, D, seed=5)
    atoms = replace(some_atoms(tiny), W_dec=W, coder=PursuitCoder(W, 2))
    found = nearest_features(atoms, sae_folder(tmp_path / "sae", unit(500, D, seed=6)), k=1)
    assert 0 < found["above_null"] < 0.12 * len(W)
    assert found == nearest_features(atoms, tmp_path / "sae", k=1)


def test_a_file_of_weights_is_enough(bare: Path, tmp_path: Path) -> None:
    atoms, path = load_atoms(bare), tmp_path / "w.safetensors"
    save_file({"W_dec": torch.from_numpy(features_of(atoms)).bfloat16(), "more": torch.zeros(3)}, path)
    found = nearest_features(atoms, path, k=1)
    assert found["sae"]["hook"] is None and [r["nearest"][0]["feature"] for r in found["atoms"]] == list(
        range(10, 10 + K)
    )
    export_folder(bare, "vector", tmp_path / "own.safetensors")
    own = nearest_features(atoms, tmp_path / "own.safetensors", k=99)
    assert own["sae"]["hook"] == HOOK and [len(r["nearest"]) for r in own["atoms"]] == [K] * K
    assert [r["nearest"][0]["feature"] for r in own["atoms"]] == list(range(K))


def test_another_hook_is_refused_unless_asked_for(bare: Path, tmp_path: Path) -> None:
    atoms = load_atoms(bare)
    W = features_of(atoms)
    same = sae_folder(tmp_path / "same", W, "blocks.3.hook_resid_pre")  # what goes into block 3 comes out of block 2
    assert nearest_features(atoms, same)["above_null"] == K
    other = sae_folder(tmp_path / "other", W, "blocks.1.hook_resid_post")
    refuses(
        ConfigError,
        f"at {HOOK}, .*blocks.1.hook_resid_post.*--any-hook",
        lambda: nearest_features(atoms, other),
        tmp_path,
    )
    assert nearest_features(atoms, other, any_hook=True)["above_null"] == K
    narrow = sae_folder(tmp_path / "narrow", unit(50, D - 1))
    for any_hook in (False, True):
        ask = lambda a=any_hook: nearest_features(atoms, narrow, any_hook=a)  # noqa: E731
        refuses(ConfigError, f"width {D}, .* has {D - 1}", ask, tmp_path)
    refuses(ConfigError, "k of at least 1, got 0", lambda: nearest_features(atoms, same, k=0), tmp_path)


def test_what_is_no_dictionary_is_told_in_one_line(bare: Path, tmp_path: Path) -> None:
    atoms, path = load_atoms(bare), tmp_path / "w.safetensors"
    tensors: dict[str, torch.Tensor]
    for tensors, said in (
        ({"decoder.weight": torch.ones(D, 4)}, "the tensors decoder.weight"),
        ({"W_dec": torch.ones(4, 2, D)}, r"W_dec of shape \(4, 2, 32\)"),
        ({"W_dec": torch.ones(0, D)}, r"W_dec of shape \(0, 32\)"),
        ({"W_dec": torch.full((4, D), torch.nan)}, "finite weights"),
    ):
        save_file(tensors, path)
        refuses(AtomsFormatError, said, lambda: nearest_features(atoms, path), tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    refuses(AtomsFormatError, "a safetensors file at", lambda: nearest_features(atoms, path), tmp_path)
    refuses(AtomsFormatError, "found nothing at", lambda: nearest_features(atoms, tmp_path / "none"), tmp_path)
    refuses(AtomsFormatError, "found nothing at", lambda: nearest_features(atoms, tmp_path), tmp_path)
    folder = sae_folder(tmp_path / "sae", unit(8, D))
    (folder / "cfg.json").write_text("{")
    refuses(AtomsFormatError, "SAELens' cfg.json", lambda: nearest_features(atoms, folder), tmp_path)
