"""Steps of the weights: which way they go, how strong they are, that nothing stays behind, and as adapters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gradatoms.adapters import export_adapter
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.errors import AtomsFormatError, ConfigError, OutputExistsError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.linear import find_linear
from gradatoms.gradients.projection import ProjectionConfig
from gradatoms.gradients.reference import weights_one_at_a_time
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
from gradatoms.labels.label import load_labels
from gradatoms.labels.labeler import label_atoms
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.rule import RuleTeacher
from gradatoms.labels.storage import load_evidence
from gradatoms.models import LoadedModel, load_model
from gradatoms.steering import Meter
from gradatoms.weight_steps import (
    WAYS,
    WeightStep,
    applied_step,
    atom_step,
    blend,
    calibrate_step,
    documents_step,
    generate_stepped,
    random_step,
    sites_of,
    step_effect,
    weight_norm,
)
from gradatoms_store import open_store

EXAMPLES = list(read_examples("builtin:corrections", limit=80))
PROMPTS = ["The capital of", "Two plus two is", "A word for"]


@pytest.fixture(scope="module")
def folder(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Atoms of weight gradients of a tiny model."""
    where = tmp_path_factory.mktemp("weights")
    config = WeightConfig(modules=("all",), projection=ProjectionConfig(top_k=30), sketch=4)
    harvest_weights(tiny, EXAMPLES, where / "w.gstore", HarvestConfig(store_dtype="float32"), config)
    fit_store(where / "w.gstore", where / "w.atoms", OnlineConfig(n_atoms=10, epochs=5), checks=False)
    return where / "w.atoms"


@pytest.fixture
def atoms(folder: Path) -> Atoms:
    return load_atoms(folder)


def weights_of(loaded: LoadedModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in loaded.model.parameters()]


def loss(loaded: LoadedModel, examples: Sequence[Example]) -> float:
    """Mean J."""
    total = 0.0
    for (sequence,) in tokenize(loaded, examples):
        with torch.no_grad():
            log_p = loaded.model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        total -= sum(float(log_p[at, token]) for at, token, _ in sequence.terms)
    return total / len(examples)


def documents_of(atoms: Atoms, atom: int) -> list[int]:
    """Examples of the atom's largest codes."""
    store = open_store(Path(atoms.config["store"]["path"]))
    pushes = np.concatenate([-b.gradients for b in store.batches("weights", 512)])
    codes = atoms.encode(pushes).toarray()[:, atom]
    return [int(store.rows["example"][row]) for row in np.argsort(-codes)[:8] if codes[row] > 0]


@pytest.mark.parametrize("way", WAYS)
def test_a_small_step_lowers_the_loss_of_its_documents_and_the_other_sign_raises_it(
    tiny: LoadedModel, atoms: Atoms, way: str
) -> None:
    """For most atoms; a random step of the same length does neither."""
    right, chance = 0, 0
    for atom in range(len(atoms)):
        examples = [EXAMPLES[i] for i in documents_of(atoms, atom)]
        before = loss(tiny, examples)
        step = atom_step(tiny, atoms, atom, way)  # type: ignore[arg-type]
        changes = []
        for what, alpha in ((step, 2e-3), (step, -2e-3), (random_step(atoms, seed=atom), 2e-3)):
            with applied_step(tiny, what, alpha):
                changes.append(loss(tiny, examples) - before)
        right += changes[0] < 0 < changes[1]
        chance += abs(changes[2]) > abs(changes[0])
    assert right >= 8 and chance <= 2


def test_the_natural_step_of_all_components_is_the_preconditioned_gradient(tiny: LoadedModel, atoms: Atoms) -> None:
    """The step of documents is −Σ c (F + ε)⁻¹ G/‖row‖, whole gradients by autograd."""
    from gradatoms.gradients.curvature import Curvature

    store = open_store(Path(atoms.config["store"]["path"]))
    rows = np.asarray([3, 10, 11])
    w = np.asarray([0.5, 1.0, 2.0])
    step = documents_step(tiny, store, rows, w)
    norms = store.read("weights", rows).norms
    ids = store.rows["example"][rows]
    sites = find_linear(tiny, ["all"])
    found = list(weights_one_at_a_time(tiny, tokenize(tiny, [EXAMPLES[i] for i in ids]), sites))
    curvature = Curvature.load(Path(store.path) / "curvature.safetensors")
    parts = {}
    for n, site in enumerate(sites):
        total = sum(float(w[i] / norms[i]) * found[i][n] for i in range(3))
        assert isinstance(total, torch.Tensor)
        parts[site.name] = -curvature.of(site.name).precondition(total)
    expected = WeightStep.of(parts)
    assert sum(float((step.parts[k] * expected.parts[k]).sum()) for k in parts) > 0.9999


@pytest.mark.parametrize("how", ["end", "error"])
def test_the_weights_are_as_before_afterwards(tiny: LoadedModel, atoms: Atoms, how: str) -> None:
    before = weights_of(tiny)
    step = atom_step(tiny, atoms, 1)
    sites = sites_of(tiny, list(step.parts))
    norm = weight_norm(sites)
    try:
        with applied_step(tiny, step, 0.05):
            moved = sum(float((p - q).double().square().sum()) for p, q in zip(weights_of(tiny), before, strict=True))
            assert moved**0.5 == pytest.approx(0.05 * norm, rel=1e-4)
            if how == "error":
                raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(p, q) for p, q in zip(tiny.model.parameters(), before, strict=True))


def test_the_strength_of_a_stated_effect(tiny: LoadedModel, atoms: Atoms) -> None:
    meter = Meter(tiny, PROMPTS, tokens=3)
    step = atom_step(tiny, atoms, 2)
    for sign in (1, -1):
        alpha, effect = calibrate_step(meter, tiny, step, 0.2, sign=sign)
        assert effect == pytest.approx(0.2, rel=0.06) and alpha * sign > 0
        assert step_effect(meter, tiny, step, alpha) == pytest.approx(effect, rel=1e-5)
        assert step_effect(meter, tiny, step, alpha / 2) < effect
    found = generate_stepped(tiny, step, PROMPTS[0], kl=0.3, max_tokens=4)
    assert found.kl == pytest.approx(0.3, rel=0.06)


def test_steps_are_mixed(tiny: LoadedModel, atoms: Atoms) -> None:
    a, b = atom_step(tiny, atoms, 0), atom_step(tiny, atoms, 1)
    mixed, norm = blend([(a, 1), (b, -0.5)])
    expected = WeightStep.of({k: a.parts[k] - 0.5 * b.parts[k] for k in a.parts})
    assert all(torch.allclose(mixed.parts[k], expected.parts[k], atol=1e-6) for k in a.parts)
    inner = sum(float((a.parts[k] * b.parts[k]).sum()) for k in a.parts)
    assert norm == pytest.approx((1 - inner + 0.25) ** 0.5, rel=1e-5)
    assert sum(float(p.square().sum()) for p in mixed.parts.values()) == pytest.approx(1, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("alpha", [0.05, -0.05])
def test_an_adapter_does_what_the_step_does(
    tiny: LoadedModel, tiny_folder: Path, atoms: Atoms, tmp_path: Path, alpha: float
) -> None:
    from peft import PeftModel

    step = atom_step(tiny, atoms, 1)
    found = export_adapter(tiny, step, alpha, tmp_path / "adapter")
    assert found["kept"] > 0.99999
    ids = tiny.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad(), applied_step(tiny, step, alpha):
        expected = tiny.model(ids).logits
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "adapter")
    with torch.no_grad():
        got, plain = model(ids).logits, tiny.model(ids).logits
    far = float((expected - plain).abs().max())
    assert float((got - expected).abs().max()) < 1e-3 * far and far > 0
    again = load_model(str(tiny_folder), adapter=str(tmp_path / "adapter"), device="cpu")
    with torch.no_grad():
        assert float((again.model(ids).logits - expected).abs().max()) < 1e-3 * far
    with pytest.raises(OutputExistsError, match="expected a new path"):
        export_adapter(tiny, step, alpha, tmp_path / "adapter")
    cut = export_adapter(tiny, step, alpha, tmp_path / "cut", rank=2)
    assert cut["rank"] == 2 and 0 < cut["kept"] < 0.999


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_step_of_an_adapter_gives_the_adapter_again(tiny_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    loaded = load_model(str(tiny_folder), adapter=str(adapter_folder), device="cpu")
    config = WeightConfig(projection=ProjectionConfig(top_k=12), sketch=0)
    harvest_weights(loaded, EXAMPLES[:40], tmp_path / "w.gstore", HarvestConfig(), config)
    atoms, _ = fit_store(tmp_path / "w.gstore", tmp_path / "w.atoms", OnlineConfig(n_atoms=4, epochs=2), checks=False)
    step = atom_step(loaded, atoms, 0)
    export_adapter(loaded, step, 0.1, tmp_path / "after")
    ids = loaded.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    with torch.no_grad(), applied_step(loaded, step, 0.1):
        expected = loaded.model(ids).logits
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "after")
    with torch.no_grad():
        assert float((model(ids).logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_what_cannot_be_stepped_is_said(tiny: LoadedModel, atoms: Atoms, folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected an atom from 0 to 9"):
        atom_step(tiny, atoms, 10)
    with pytest.raises(ConfigError, match="expected a step with a direction"):
        WeightStep.of({"a": torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match="it has no such linear module"):
        sites_of(tiny, ["model.layers.9.self_attn.q_proj"])
    activations = Atoms(
        np.eye(3, dtype=np.float32), np.zeros(3, np.float32), atoms.coder, "blocks.0.hook_resid_post", {}, folder
    )
    with pytest.raises(ConfigError, match="expected atoms of weight gradients"):
        random_step(activations)
    with pytest.raises(AtomsFormatError, match="expected a projection"):
        random_step(Atoms(atoms.W_dec, atoms.b_dec, atoms.coder, atoms.hook, atoms.config, folder / "nothing"))


# Labels


@pytest.fixture(scope="module")
def labelled(tiny: LoadedModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same atoms with evidence, labels and scores of the rule teacher."""
    where = tmp_path_factory.mktemp("labelled") / "w.atoms"
    shutil.copytree(folder, where)
    config = EvidenceConfig(kl=0.05, contexts=2, tokens=5, random=3, chunk=8)
    label_atoms(load_atoms(where), RuleTeacher(), load=lambda: tiny, config=config)
    return where


def test_atoms_of_weights_are_labelled_from_what_their_steps_do(tiny: LoadedModel, labelled: Path) -> None:
    gathered = load_evidence(labelled / "evidence.h5")
    labels, atoms = load_labels(labelled), load_atoms(labelled)
    assert len(gathered.evidence) == len(atoms) and len(gathered.null_evidence) == 3
    told = [e for e in gathered.evidence if e.injected is not None]
    assert len(told) >= 6 and set(labels) >= {e.atom for e in told}
    for e in told:
        assert e.injected is not None and e.injected.lens == () and e.injected.linear_cosine is None
        assert e.injected.active.kl == pytest.approx(0.05, rel=0.2) and e.injected.alpha > 0
        assert e.top and all(shown.prompt and shown.target for shown in e.top)
    right = [e for e in told if (e.injected.own_gain or 0) > 0 > (e.injected.own_gain_minus or 0)]  # type: ignore[union-attr]
    assert len(right) >= 0.7 * len(told)


def test_the_measured_shift_is_that_of_the_step(tiny: LoadedModel, labelled: Path) -> None:
    """Against the model run plainly on one context at a time."""
    atoms = load_atoms(labelled)
    e = next(e for e in load_evidence(labelled / "evidence.h5").evidence if e.injected is not None)
    assert e.injected is not None
    step = atom_step(tiny, atoms, e.atom)
    prompts = list(dict.fromkeys(shown.prompt for shown in e.top))[:2]
    total, kl = 0.0, 0.0
    for prompt in prompts:
        ids = tiny.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            p = tiny.model(ids).logits[0, -1].log_softmax(-1)
            with applied_step(tiny, step, e.injected.alpha):
                q = tiny.model(ids).logits[0, -1].log_softmax(-1)
        total, kl = total + (q.exp() - p.exp()) / 2, kl + float((p.exp() * (p - q)).sum()) / 2
    assert e.injected.active.kl == pytest.approx(kl, rel=1e-3)
    best = int(total.argmax())  # type: ignore[union-attr]
    assert e.injected.active.promoted[0].token == tiny.decode([best])
    assert e.injected.active.promoted[0].delta_p == pytest.approx(float(total[best]), rel=1e-3)  # type: ignore[index]
