"""Documents and atoms, queries through atoms, audits, differences of data sets, and data sets without an atom's documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradatoms.attribution import Attribution, gradients_of
from gradatoms.audit import AuditConfig, audit, diff, drop, without
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.errors import ConfigError, OutputExistsError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.projection import ProjectionConfig
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.models import LoadedModel
from gradatoms.retraining import RetrainConfig, retraining_check
from gradatoms_store import StoreMismatchError

EXAMPLES = list(read_examples("builtin:corrections", limit=100))
WEIGHTS = WeightConfig(projection=ProjectionConfig(top_k=30), sketch=4)


@pytest.fixture(scope="module", params=["weights", "activation"])
def index(request: pytest.FixtureRequest, tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Attribution:
    where = tmp_path_factory.mktemp(request.param)
    config = HarvestConfig(store_dtype="float32")
    if request.param == "weights":
        harvest_weights(tiny, EXAMPLES, where / "w.gstore", config, WEIGHTS)
    else:
        harvest(tiny, EXAMPLES, where / "w.gstore", config)
    fit_store(where / "w.gstore", where / "w.atoms", OnlineConfig(n_atoms=16, epochs=6), checks=False)
    return Attribution(load_atoms(where / "w.atoms"))


def codes_of(index: Attribution) -> np.ndarray:
    """Codes by document, in the order of their ids."""
    found = np.zeros((len(EXAMPLES), len(index.atoms)))
    found[index.example_of_row] = index.codes.toarray()
    return found


def test_documents_of_atoms_and_atoms_of_documents_are_one_table(index: Attribution) -> None:
    codes = codes_of(index)
    for atom in range(len(index.atoms)):
        hits = index.documents_of(atom, None)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert {h.example for h in hits} == set(np.flatnonzero(codes[:, atom] > 0).tolist())
    for example in (0, 7, 42):
        toward = {s.atom: s.weight for s in index.atoms_of(example) if s.weight > 0}
        own = {a: codes[example, a] for a in np.flatnonzero(codes[example])}
        assert set(own) <= set(toward) | {s.atom for s in index.atoms_of(example)}
    assert any(s.weight < 0 for example in range(20) for s in index.atoms_of(example))
    with pytest.raises(ConfigError, match="there is none with the number 1000"):
        index.atoms_of(1000)


def test_a_document_as_a_query_finds_itself(tiny: LoadedModel, index: Attribution) -> None:
    """The store has this gradient: what is looked up through its atoms leads to it among the first."""
    found = 0
    for number in range(0, 40, 4):
        e = EXAMPLES[number]
        query = index.query(tiny, e.prompt, e.target)
        if query.documents:
            found += number in [h.example for h in query.documents[:5]]
            assert all(h.score > 0 for h in query.documents) and all(h.score < 0 for h in query.against)
            assert query.looked_at <= len(EXAMPLES)
    assert found >= 7


def test_scores_are_inner_products_of_reconstructions(tiny: LoadedModel, index: Attribution) -> None:
    e = EXAMPLES[3]
    query = index.query(tiny, e.prompt, e.target, most=200)
    push = gradients_of(tiny, index.atoms, [e])
    q = (index.atoms.encode(push) - index.atoms.encode(-push)).toarray()[0]
    scores = codes_of(index) @ index.atoms.W_dec @ (q @ index.atoms.W_dec)
    for hit in (*query.documents, *query.against):
        assert hit.score == pytest.approx(scores[hit.example], rel=1e-3, abs=1e-5)
    shares = codes_of(index)[:, np.flatnonzero(q)].any(axis=1)
    assert query.looked_at == int(shares.sum())


def test_pushes_of_texts_are_those_of_the_store(tiny: LoadedModel, index: Attribution) -> None:
    pushes = gradients_of(tiny, index.atoms, [EXAMPLES[5]])
    row = np.flatnonzero(index.example_of_row == 5)
    stored = -index.store.read(index.atoms.hook, row).gradients
    assert float((pushes @ stored.T).item()) > 0.999


# Audits

FEW = AuditConfig(
    weights=WEIGHTS,
    fit=OnlineConfig(n_atoms=10, epochs=4),
    evidence=EvidenceConfig(kl=0.05, contexts=2, tokens=5, random=2),
)


def test_an_audit_says_what_a_data_set_teaches(tiny: LoadedModel, tmp_path: Path) -> None:
    found = audit(tiny, EXAMPLES, tmp_path / "a", FEW)
    assert len(found) == 10 and sum(t.strength for t in found) == pytest.approx(1)
    assert [t.strength for t in found] == sorted((t.strength for t in found), reverse=True)
    assert all(t.label for t in found if t.documents >= 5)
    kept = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert kept["documents"] == len(EXAMPLES) and kept["atoms"][0]["atom"] == found[0].atom
    first = found[0].top[0].example
    assert kept["texts"][str(first)]["target"] == EXAMPLES[first].target
    labels = tmp_path / "a" / "audit.atoms" / "labels.jsonl"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(lines[:3]))  # as an interruption leaves it
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors")}
    assert audit(tiny, EXAMPLES, tmp_path / "a", FEW) == found  # nothing is made again
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.safetensors") if "projection" not in p.name} == {
        p: t for p, t in times.items() if "projection" not in p.name
    }
    assert [json.loads(x)["label"] for x in labels.read_text().splitlines()] == [json.loads(x)["label"] for x in lines]
    with pytest.raises(ConfigError, match="n_atoms 10, not 11"):
        audit(tiny, EXAMPLES, tmp_path / "a", replace(FEW, fit=replace(FEW.fit, n_atoms=11)))
    with pytest.raises(StoreMismatchError):
        audit(tiny, EXAMPLES[1:], tmp_path / "a", FEW)


def test_the_difference_of_two_data_sets_is_what_one_has_more_of(tiny: LoadedModel, tmp_path: Path) -> None:
    """One holds fifteen documents of a kind that the other lacks: the atom that differs most lies on them."""
    own = [Example(prompt=e.prompt, target=" zzzz") for e in EXAMPLES[85:]]
    config = replace(FEW, fit=OnlineConfig(n_atoms=16, epochs=8))
    found = diff(tiny, [*EXAMPLES[:40], *own], EXAMPLES[30:85], tmp_path / "d", config)
    assert [abs(d.z) for d in found] == sorted((abs(d.z) for d in found), reverse=True)
    assert found[0].more == 1 and found[0].z > 2 and "zzzz" in found[0].label
    assert sum(h.example >= 40 for h in found[0].documents) >= 4
    assert diff(tiny, [*EXAMPLES[:40], *own], EXAMPLES[30:85], tmp_path / "d", config) == found  # nothing is made again
    with pytest.raises(ConfigError, match="another folder"):
        diff(tiny, EXAMPLES[:40], EXAMPLES[30:85], tmp_path / "d", config)


def test_documents_of_an_atom_are_left_out(index: Attribution, tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    lines = [json.dumps({"prompt": e.prompt, "target": e.target}, ensure_ascii=False) for e in EXAMPLES]
    source.write_text("\n".join([lines[0], "", *lines[1:]]) + "\n", encoding="utf-8")
    gone = without(index, [0, 3], least=0.2)
    assert gone == sorted({h.example for a in (0, 3) for h in index.documents_of(a, None) if h.score >= 0.2})
    assert drop(source, tmp_path / "less.jsonl", gone) == len(EXAMPLES) - len(gone)
    kept = (tmp_path / "less.jsonl").read_text(encoding="utf-8").splitlines()
    assert kept == [line for i, line in enumerate(lines) if i not in set(gone)]
    with pytest.raises(OutputExistsError, match="expected a new file"):
        drop(source, tmp_path / "less.jsonl", gone)
    with pytest.raises(ConfigError, match="has 100 documents, fewer than number 500"):
        drop(source, tmp_path / "x.jsonl", [500])
    with pytest.raises(ConfigError, match="expected a jsonl file"):
        drop("builtin:corrections", tmp_path / "x.jsonl", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "less.jsonl"]


def test_another_store_is_refused(index: Attribution, tiny: LoadedModel, tmp_path: Path) -> None:
    harvest(tiny, EXAMPLES[:10], tmp_path / "s.gstore", HarvestConfig())
    with pytest.raises(ConfigError, match="expected the store that these atoms were fitted on"):
        Attribution(index.atoms, tmp_path / "s.gstore")


def test_atoms_are_those_of_the_index(index: Attribution) -> None:
    assert isinstance(index.atoms, Atoms) and isinstance(index.texts[0], Example)


# Training again


def test_training_without_an_atoms_documents_hurts_what_it_does(tiny: LoadedModel, tmp_path: Path) -> None:
    """Its held-out documents, more than training without as many random ones; the model is as before."""
    words = (" zzzz", " qqqq", " xxxx", " vvvv")
    prompts = [e.prompt for e in read_examples("builtin:corrections", limit=240)]
    examples = [Example(prompt=p, target=words[i % 4]) for i, p in enumerate(prompts)]
    harvest_weights(tiny, examples, tmp_path / "w.gstore", HarvestConfig(), WeightConfig(modules=("all",), sketch=0))
    atoms, _ = fit_store(tmp_path / "w.gstore", tmp_path / "w.atoms", OnlineConfig(n_atoms=6, epochs=6), checks=False)
    before = [p.detach().clone() for p in tiny.model.parameters()]
    config = RetrainConfig(drop=30, draws=3, epochs=2, learning_rate=1e-3)
    found = retraining_check(tiny, atoms, None, config)
    assert len(found.rows) >= 3 and all(r.whole < r.untrained for r in found.rows)
    assert found.interval[0] > 0 and found.effect > 2 * abs(found.null)
    assert found.interval[0] < found.effect < found.interval[1]
    assert all(torch.equal(p, q) and not p.requires_grad for p, q in zip(tiny.model.parameters(), before, strict=True))
    with pytest.raises(ConfigError, match="expected atoms with 239 fitted"):
        retraining_check(tiny, atoms, [0], replace(config, drop=239))
