"""Weight gradients of documents: against autograd one document at a time, in any batch, stored, resumed, and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.batches import pad
from gradatoms.gradients.curvature import Curvature, CurvatureConfig, fit_curvature
from gradatoms.gradients.linear import LinearSite, find_linear, uncovered
from gradatoms.gradients.passes import WatchedPass, raw_gradients
from gradatoms.gradients.projection import Projection, ProjectionConfig, dense, eigen_projection, random_projection
from gradatoms.gradients.reference import weights_one_at_a_time
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weight_harvest import ABOUT, CURVATURE, WeightConfig, harvest_weights, projection_of
from gradatoms.gradients.weights import HOOK, WeightGradients
from gradatoms.models import LoadedModel, load_model
from gradatoms_store import SKETCH, open_store, verify_store

WHOLE = ProjectionConfig(kind="random", top_k=10**8)
"""As many random directions as there are: the gradient itself."""


def whole_rows(
    loaded: LoadedModel, examples: Sequence[Example], sites: Sequence[LinearSite], **options: str
) -> np.ndarray:
    """∂J/∂W of all modules end to end, (documents, numbers), by autograd."""
    found = weights_one_at_a_time(loaded, tokenize(loaded, examples, **options), sites)
    return np.stack([np.concatenate([g.numpy().ravel() for g in gradients]) for gradients in found])


def components(row: np.ndarray, projection: Projection, sites: Sequence[LinearSite]) -> np.ndarray:
    """The kept components of a whole gradient, as defined."""
    parts, start = [], 0
    for site, m in zip(sites, projection.modules, strict=True):
        G = torch.from_numpy(row[start : start + site.d_out * site.d_in]).reshape(site.d_out, site.d_in)
        start += site.d_out * site.d_in
        parts.append((m.V_S.T @ G @ m.V_A)[m.at_S, m.at_A] / m.scale)
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("objective", ["nll", "contrast", "logit"])
def test_rows_are_the_whole_gradients_of_each_document(
    architecture: LoadedModel, examples: list[Example], objective: str
) -> None:
    """Also where a foil of several tokens has a branch of its own, in one batch of documents of all lengths."""
    sites = find_linear(architecture, ["all"])
    take = WeightGradients(architecture, sites, random_projection(sites, WHOLE), sketch=0)
    sequences = tokenize(architecture, examples, objective=objective)
    found = take(pad([branch for one in sequences for branch in one], architecture.device))
    block = merge_rows([found], sequences)
    expected = whole_rows(architecture, examples, sites, objective=objective)
    got = block.gradients[HOOK]
    assert got.shape == expected.shape and block.position.tolist() == [-1] * len(examples)
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-4, error


@pytest.mark.parametrize("padding", ["right", "masked", "left"])
def test_a_row_does_not_depend_on_its_batch(tiny: LoadedModel, examples: list[Example], padding: str) -> None:
    sites = find_linear(tiny)
    curvature = fit_curvature(tiny, examples, sites)
    take = WeightGradients(tiny, sites, eigen_projection(curvature, ProjectionConfig(top_k=12)), sketch=4)
    branches = [one[0] for one in tokenize(tiny, examples)]
    together = take(pad(branches, tiny.device, padding))
    for i, branch in enumerate(branches):
        alone = take(pad([branch], tiny.device))
        for name, rows in together.gradients.items():
            np.testing.assert_allclose(rows[i], alone.gradients[name][0], rtol=2e-3, atol=1e-4 * np.abs(rows[i]).max())


def test_bfloat16_keeps_directions(tiny: LoadedModel, examples: list[Example]) -> None:
    """Passes in bfloat16, products of components in float32."""
    sites = find_linear(tiny)
    fast = fit_curvature(tiny, examples, sites, CurvatureConfig(dtype="bfloat16"))
    assert all(m.eigenvalues.dtype == torch.float32 for m in fast.modules)
    projection = eigen_projection(fit_curvature(tiny, examples, sites), ProjectionConfig(top_k=12))
    batch = pad([one[0] for one in tokenize(tiny, examples)], tiny.device)
    exact, rough = (
        WeightGradients(tiny, sites, projection, sketch=4, autocast=dtype)(batch).gradients
        for dtype in (None, torch.bfloat16)
    )
    for name in exact:
        cosine = (
            (exact[name] * rough[name]).sum(1)
            / np.linalg.norm(exact[name], axis=1)
            / np.linalg.norm(rough[name], axis=1)
        )
        assert cosine.min() > 0.98


def test_kept_components_are_those_of_the_definition(tiny: LoadedModel, examples: list[Example]) -> None:
    sites = find_linear(tiny, ["q_proj", "down_proj"])
    projection = eigen_projection(fit_curvature(tiny, examples, sites), ProjectionConfig(top_k=20))
    take = WeightGradients(tiny, sites, projection, sketch=0)
    sequences = tokenize(tiny, examples)
    got = take(pad([one[0] for one in sequences], tiny.device)).gradients[HOOK]
    whole = whole_rows(tiny, examples, sites)
    expected = np.stack([components(row, projection, sites) for row in whole])
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_sketches_keep_inner_products_in_the_mean(tiny: LoadedModel, examples: list[Example]) -> None:
    sites = find_linear(tiny, ["all"])
    take = WeightGradients(tiny, sites, random_projection(sites, ProjectionConfig(kind="random", top_k=4)), sketch=16)
    sketch = take(pad([one[0] for one in tokenize(tiny, examples)], tiny.device)).gradients[HOOK + SKETCH]
    whole = whole_rows(tiny, examples, sites)

    def cosines(x: np.ndarray) -> np.ndarray:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.asarray(unit @ unit.T)

    assert np.abs(cosines(sketch) - cosines(whole)).max() < 0.2
    ratio = np.linalg.norm(sketch, axis=1) / np.linalg.norm(whole, axis=1)
    assert ratio.min() > 0.8 and ratio.max() < 1.25


def test_weighted_raw_gradients(tiny: LoadedModel, examples: list[Example]) -> None:
    sites = find_linear(tiny)
    w = np.linspace(-1, 2, len(examples)).astype(np.float32)
    batch = pad([one[0] for one in tokenize(tiny, examples)], tiny.device)
    got = np.concatenate([g.numpy().ravel() for g in raw_gradients(WatchedPass(tiny, sites), batch, w)])
    np.testing.assert_allclose(got, w @ whole_rows(tiny, examples, sites), rtol=1e-3, atol=1e-3)


# Which modules


def test_modules_are_named_and_what_is_left_out_is_listed(tiny: LoadedModel) -> None:
    assert [s.name.rsplit(".", 1)[1] for s in find_linear(tiny)][:2] == ["q_proj", "v_proj"]
    assert len(find_linear(tiny, ["model.layers.1.*"])) == 7
    left = uncovered(tiny, find_linear(tiny))
    reasons = {item.name.split(".", 1)[1]: item.reason for item in left}
    assert reasons["embed_tokens.weight"] == "an embedding or the output projection"
    assert reasons["layers.0.mlp.up_proj.weight"] == "not asked for"
    assert reasons["layers.0.input_layernorm.weight"] == "a norm or another vector"
    total = sum(int(np.prod(item.shape)) for item in left) + sum(s.d_in * s.d_out for s in find_linear(tiny))
    assert total == sum(p.numel() for p in tiny.model.parameters())
    with pytest.raises(ConfigError, match="none is called 'x_proj'; there are down_proj, gate_proj"):
        find_linear(tiny, ["x_proj"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_what_is_taken_where_there_is_one(
    tiny_folder: Path, adapter_folder: Path, examples: list[Example]
) -> None:
    loaded = load_model(str(tiny_folder), adapter=str(adapter_folder), device="cpu")
    sites = find_linear(loaded)
    assert len(sites) == 16 and {s.name.split(".")[-2] for s in sites} == {"lora_A", "lora_B"}
    assert {min(s.d_in, s.d_out) for s in sites} == {3}
    take = WeightGradients(loaded, sites, random_projection(sites, WHOLE), sketch=0)
    got = take(pad([one[0] for one in tokenize(loaded, examples)], loaded.device)).gradients[HOOK]
    np.testing.assert_allclose(got, whole_rows(loaded, examples, sites), rtol=1e-3, atol=1e-4 * np.abs(got).max())


# Curvature


def exact_fisher(loaded: LoadedModel, examples: Sequence[Example], site: LinearSite) -> np.ndarray:
    """E[g gᵀ] over documents with their own targets, (d_out · d_in)²."""
    rows = whole_rows(loaded, examples, [site]).astype(np.float64)
    return np.asarray(rows.T @ rows / len(rows))


def basis(curvature: Curvature) -> np.ndarray:
    """Columns q_S ⊗ q_A, in the order of the eigenvalues."""
    m = curvature.modules[0]
    return np.kron(m.Q_S.double().numpy(), m.Q_A.double().numpy())


def test_fitted_eigenvalues_are_the_diagonal_of_the_exact_fisher(tiny: LoadedModel, examples: list[Example]) -> None:
    """And so the best that this basis can do: no further from the Fisher matrix than the product of factors is."""
    site = find_linear(tiny, ["model.layers.2.self_attn.v_proj"])
    found = {}
    for kind in ("kfac", "ekfac"):
        config = CurvatureConfig(eigenvalues=kind, fisher="empirical")
        found[kind] = fit_curvature(tiny, examples, site, config)
    F, Q = exact_fisher(tiny, examples, site[0]), basis(found["ekfac"])
    fitted = found["ekfac"].modules[0].eigenvalues.double().numpy().ravel()
    exact = np.einsum("ij,ik,kj->j", Q, F, Q)
    assert np.linalg.norm(fitted - exact) < 1e-4 * np.linalg.norm(exact)
    far = {}
    for kind, curvature in found.items():
        values = curvature.modules[0].eigenvalues.double().numpy().ravel()
        far[kind] = np.linalg.norm(Q * values @ Q.T - F) / np.linalg.norm(F)
    assert far["ekfac"] < far["kfac"]


def test_factors_are_exact_where_their_assumption_holds(tiny: LoadedModel) -> None:
    """Documents of one token, all the same but for their targets: inputs and output gradients are independent."""
    site = find_linear(tiny, ["model.layers.2.self_attn.v_proj"])
    texts = [Example(prompt="a", target=letter) for letter in "bcdefghij"]
    curvature = fit_curvature(tiny, texts, site, CurvatureConfig(fisher="empirical"))
    Q, values = basis(curvature), curvature.modules[0].eigenvalues.double().numpy().ravel()
    F = exact_fisher(tiny, texts, site[0])
    assert np.linalg.norm(Q * values @ Q.T - F) < 1e-4 * np.linalg.norm(F)


def test_sampled_targets_give_the_models_own_fisher(tiny: LoadedModel) -> None:
    """The mean over many draws is Σ_y p(y) g_y g_yᵀ, summed over every target that there is."""
    site = find_linear(tiny, ["model.layers.3.self_attn.v_proj"])
    many = CurvatureConfig(examples=4000, batch_tokens=256)
    curvature = fit_curvature(tiny, [Example(prompt="a", target="b")] * 4000, site, many)
    ids = tiny.tokenizer("a", return_tensors="pt").input_ids
    with torch.no_grad():
        p = tiny.model(ids).logits[0, -1].softmax(-1).double().numpy()
    base = tokenize(tiny, [Example(prompt="a", target="b")])[0][0]
    every = [[replace(base, terms=((base.terms[0][0], y, 1.0),))] for y in range(len(p))]
    rows = np.stack([g[0].double().numpy().ravel() for g in weights_one_at_a_time(tiny, every, site)])
    F = np.einsum("y,yi,yj->ij", p, rows, rows)
    Q, values = basis(curvature), curvature.modules[0].eigenvalues.double().numpy().ravel()
    assert np.linalg.norm(Q * values @ Q.T - F) < 0.1 * np.linalg.norm(F)


def test_preconditioning_is_the_inverse_of_the_damped_matrix(tiny: LoadedModel, examples: list[Example]) -> None:
    site = find_linear(tiny, ["model.layers.2.self_attn.v_proj"])
    curvature = fit_curvature(tiny, examples, site, CurvatureConfig(eigenvalues="ekfac", damping=0.3))
    m = curvature.modules[0]
    assert m.epsilon == pytest.approx(0.3 * float(m.eigenvalues.mean()), rel=1e-5)
    G = torch.randn(site[0].d_out, site[0].d_in, generator=torch.Generator().manual_seed(0))
    Q, values = basis(curvature), m.eigenvalues.double().numpy().ravel()
    damped = Q * values @ Q.T + m.epsilon * np.eye(len(Q))
    expected = np.linalg.solve(damped, G.double().numpy().ravel()).reshape(G.shape)
    assert np.linalg.norm(m.precondition(G).numpy() - expected) < 1e-4 * np.linalg.norm(expected)


# Projection


def test_a_row_goes_back_to_the_weights(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    """With all components kept: ``sqrt`` gives the gradient back, ``natural`` what (F + ε)⁻¹ makes of it."""
    sites = find_linear(tiny, ["model.layers.2.self_attn.v_proj"])
    curvature = fit_curvature(tiny, examples, sites)
    projection = eigen_projection(curvature, ProjectionConfig(top_k=10**6))
    projection.save(tmp_path / "p.safetensors")
    again = Projection.load(tmp_path / "p.safetensors")
    assert again.digest == projection.digest and again.d == sites[0].d_in * sites[0].d_out
    G = torch.from_numpy(whole_rows(tiny, examples, sites)[0]).reshape(sites[0].d_out, sites[0].d_in)
    row = components(G.numpy().ravel(), again, sites)
    back = dense(again.unproject(row, "sqrt"))[sites[0].name]
    assert float((back - G).norm()) < 1e-3 * float(G.norm())
    natural, expected = dense(again.unproject(row, "natural"))[sites[0].name], curvature.modules[0].precondition(G)
    assert float((natural - expected).norm()) < 1e-3 * float(expected.norm())
    curvature.save(tmp_path / "c.safetensors")
    loaded = Curvature.load(tmp_path / "c.safetensors")
    assert torch.equal(loaded.modules[0].Q_A, curvature.modules[0].Q_A) and loaded.about == curvature.about
    with pytest.raises(ConfigError, match="coordinates, got 3"):
        again.unproject(np.zeros(3, np.float32), "sqrt")


def test_components_are_the_largest_and_no_more_than_asked_for(tiny: LoadedModel, examples: list[Example]) -> None:
    curvature = fit_curvature(tiny, examples, find_linear(tiny))
    few = eigen_projection(curvature, ProjectionConfig(top_k=7))
    for m, kept in zip(curvature.modules, few.modules, strict=True):
        expected = m.eigenvalues.ravel().sort(descending=True).values[:7]
        got = m.eigenvalues[[int((m.Q_S.T @ kept.V_S[:, s]).abs().argmax()) for s in kept.at_S], :]
        assert len(kept.scale) == 7 and torch.allclose(kept.scale**2 - m.epsilon, expected, rtol=1e-3, atol=1e-9)
        assert got.shape[0] == 7 and kept.share == pytest.approx(float(expected.sum() / m.eigenvalues.sum()), rel=1e-4)
    half = eigen_projection(curvature, ProjectionConfig(top_k=500, variance=0.5))
    for kept in half.modules:
        assert kept.share >= 0.5 and 1 <= len(kept.scale) < 500


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "pca"}, {"top_k": 0}, {"variance": 0.0}, {"variance": 1.5}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ProjectionConfig(**wrong)  # type: ignore[arg-type]
    for settings in ({"eigenvalues": "x"}, {"fisher": "y"}, {"damping": 0.0}, {"examples": 0}):
        with pytest.raises(ConfigError, match="expected"):
            CurvatureConfig(**settings)  # type: ignore[arg-type]


# Stores

CONFIG = WeightConfig(projection=ProjectionConfig(top_k=9), sketch=4)


def test_a_store_of_weight_gradients(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    harvest_weights(tiny, examples, tmp_path / "w.gstore", HarvestConfig(store_dtype="float32"), CONFIG)
    store = open_store(tmp_path / "w.gstore")
    assert store.header.space == "weights" and store.header.positions == "document" and store.info.complete
    assert store.hooks == (HOOK, HOOK + SKETCH) and store.n_rows == len(examples)
    assert verify_store(tmp_path / "w.gstore").ok
    sites, projection = find_linear(tiny), projection_of(tmp_path / "w.gstore")
    whole = whole_rows(tiny, examples, sites)
    for batch in store.batches(HOOK, 64):
        for g, norm, example in zip(batch.gradients, batch.norms, batch.rows["example"], strict=True):
            expected = components(whole[example], projection, sites)
            np.testing.assert_allclose(g * norm, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    about = json.loads((tmp_path / "w.gstore" / ABOUT).read_text())
    assert len(about["modules"]) == 8 and about["not_covered_by_reason"]["not asked for"] == 20
    assert (tmp_path / "w.gstore" / CURVATURE).exists() and not (tmp_path / f"w.gstore.{CURVATURE}").exists()


class StopError(Exception):
    pass


def test_a_harvest_goes_on_in_the_same_components(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    config = HarvestConfig(unit_examples=2, commit_seconds=0.0, batch_tokens=64)
    seen = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal seen
        seen += stage == "harvest"
        if seen == 3:
            raise StopError

    with pytest.raises(StopError):
        harvest_weights(tiny, examples, tmp_path / "a.gstore", config, CONFIG, progress=stop)
    assert (tmp_path / f"a.gstore.{CURVATURE}").exists()
    harvest_weights(tiny, examples, tmp_path / "a.gstore", config, CONFIG, resume=True)
    harvest_weights(tiny, examples, tmp_path / "b.gstore", config, CONFIG)
    a, b = open_store(tmp_path / "a.gstore"), open_store(tmp_path / "b.gstore")
    assert a.info.complete and a.fingerprint == b.fingerprint and a.n_rows == len(examples)
    rows = [
        np.concatenate([x.gradients[np.argsort(x.rows["example"])] for x in store.batches(HOOK, 64)])
        for store in (a, b)
    ]
    np.testing.assert_allclose(np.sort(rows[0], axis=0), np.sort(rows[1], axis=0), atol=1e-3)


def test_two_stores_share_components_only_of_one_model(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path, other: LoadedModel
) -> None:
    config = HarvestConfig()
    harvest_weights(tiny, examples, tmp_path / "a.gstore", config, CONFIG)
    shared = tmp_path / "a.gstore" / CURVATURE
    harvest_weights(tiny, examples[:3], tmp_path / "b.gstore", config, CONFIG, curvature=shared)
    assert projection_of(tmp_path / "a.gstore").digest == projection_of(tmp_path / "b.gstore").digest
    with pytest.raises(ConfigError, match="expected curvature of these 8 modules"):
        harvest_weights(other, examples, tmp_path / "c.gstore", config, CONFIG, curvature=shared)
    with pytest.raises(ConfigError, match="expected no hooks, positions or activations"):
        harvest_weights(tiny, examples, tmp_path / "d.gstore", HarvestConfig(positions="all"), CONFIG)
    with pytest.raises(ConfigError, match="expected --curvature with --shard"):
        harvest_weights(tiny, examples, tmp_path / "d.gstore", config, CONFIG, shard=(0, 2))
    assert not list(tmp_path.glob("[cd].gstore*"))
    parts = HarvestConfig(unit_examples=2)
    for i in (0, 1):
        harvest_weights(tiny, examples, tmp_path / "e.gstore", parts, CONFIG, curvature=shared, shard=(i, 2))
    assert open_store(tmp_path / "e.gstore").info.complete


@pytest.fixture
def other(tokenizer: PreTrainedTokenizerFast, make_model) -> LoadedModel:  # type: ignore[no-untyped-def]
    """The tiny Llama with other weights."""
    from gradatoms.models import wrap_model

    return wrap_model(make_model("llama", seed=3), tokenizer, "other")
