"""Labelling a folder: evidence once, teachers from that alone, the best of three, a person's own, and what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gradatoms.catalog.pages import atom_page, catalog
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.examples import read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.labels.evidence import Evidence
from gradatoms.labels.label import (
    HUMAN,
    NULL,
    Label,
    LabelFailure,
    Result,
    Variant,
    append_results,
    load_history,
    load_labels,
)
from gradatoms.labels.labeler import as_variant, ensure_evidence, estimate, label_atoms, label_best, set_label
from gradatoms.labels.likelihood import LikelihoodJudge
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.rule import RuleTeacher
from gradatoms.labels.scored import kept_scores, score_folder
from gradatoms.labels.teacher import Teacher
from gradatoms.models import LoadedModel, load_model

CONFIG = EvidenceConfig(kl=0.05, contexts=2, tokens=5, random=3, chunk=8)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> LoadedModel:
    return load_model(str(small_folder), device="cpu")


@pytest.fixture(scope="module")
def made(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Atoms with evidence and no labels."""
    folder = tmp_path_factory.mktemp("labeler")
    harvest(small, read_examples("builtin:corrections", limit=64), folder / "s.gstore", HarvestConfig())
    atoms, _ = fit_store(folder / "s.gstore", folder / "x.atoms", OnlineConfig(n_atoms=6, epochs=2), checks=False)
    ensure_evidence(atoms, lambda: small, config=CONFIG)
    return folder / "x.atoms"


@pytest.fixture
def atoms(made: Path, tmp_path: Path) -> Atoms:
    shutil.copytree(made, tmp_path / "x.atoms")
    return load_atoms(tmp_path / "x.atoms")


def no_model() -> LoadedModel:
    raise AssertionError("the model was asked for")


class Same(Teacher):
    """Gives every atom the same label, and none to the first; stops after so many."""

    name = "same"

    def __init__(self, text: str = "one label", stop: int = 99) -> None:
        self.text, self.stop, self.seen = text, stop, list[Evidence]()

    def label(self, evidence: Sequence[Evidence], *, variant: Variant = "both") -> Iterator[Result]:
        for i, item in enumerate(evidence):
            if i == self.stop:
                raise KeyboardInterrupt
            self.seen.append(item)
            if item.atom == 0:
                yield LabelFailure(atom=0, failure="stalled", kind="timeout", teacher=self.name, variant=variant)
            else:
                yield Label(atom=item.atom, label=self.text, teacher=self.name, variant=variant)


def test_a_teacher_needs_no_model(atoms: Atoms) -> None:
    report = label_atoms(atoms, RuleTeacher(), load=no_model)
    assert report.labelled == 6 and report.failed == 0
    labels = load_labels(atoms.path)  # type: ignore[arg-type]
    assert sorted(labels) == list(range(6)) and len({x.label for x in labels.values()}) == 6
    assert all(x.teacher == "rule-3" and x.at for x in labels.values())
    assert sorted(load_labels(atoms.path, NULL)) == [0, 1, 2]  # type: ignore[arg-type]


def test_the_newest_label_wins_and_nothing_is_lost(atoms: Atoms) -> None:
    assert atoms.path
    label_atoms(atoms, RuleTeacher(), load=no_model)
    before = load_labels(atoms.path)
    report = label_atoms(atoms, Same(), load=no_model)
    assert (report.labelled, report.failed, report.failures) == (5, 1, {"timeout": 1})
    after = load_labels(atoms.path)
    assert after[0] == before[0]  # a failure is no label
    assert [after[a].label for a in range(1, 6)] == ["one label", *(f"one label ({i})" for i in range(2, 6))]
    assert len(load_history(atoms.path)) == 12
    page = atom_page(atoms, 0)
    assert page["history"][0]["kind"] == "timeout" and page["label"] == before[0].label
    assert [row["teacher"] for row in atom_page(atoms, 3)["history"]] == ["same", "rule-3"]


def test_labels_are_kept_as_they_come(atoms: Atoms) -> None:
    assert atoms.path
    with pytest.raises(KeyboardInterrupt):
        label_atoms(atoms, Same(stop=3), load=no_model)
    assert [type(x).__name__ for x in load_history(atoms.path)] == ["LabelFailure", "Label", "Label"]


def test_a_stopped_call_goes_on_with_what_is_missing(atoms: Atoms) -> None:
    assert atoms.path
    with pytest.raises(KeyboardInterrupt):
        label_atoms(atoms, Same(stop=3), load=no_model)
    teacher = Same()
    report = label_atoms(atoms, teacher, load=no_model, missing=True)
    assert [e.atom for e in teacher.seen] == [
        0,
        3,
        4,
        5,
        0,
        1,
        2,
    ]  # a failure is asked for again; then random directions
    assert (report.labelled, report.failed) == (3, 1)
    labels = load_labels(atoms.path)
    assert sorted(labels) == [1, 2, 3, 4, 5] and len({x.label for x in labels.values()}) == 5


def test_a_limit_labels_the_first_atoms_only(atoms: Atoms) -> None:
    assert atoms.path
    teacher = Same()
    assert label_atoms(atoms, teacher, load=no_model, limit=2).labelled == 1
    assert [e.atom for e in teacher.seen] == [0, 1] and not (atoms.path / NULL).exists()


def test_a_persons_label_stays(atoms: Atoms) -> None:
    assert atoms.path
    label_atoms(atoms, RuleTeacher(), load=no_model)
    set_label(atoms, 2, "  my own   name ")
    label_atoms(atoms, Same("my own name"), load=no_model)
    labels = load_labels(atoms.path)
    assert labels[2].label == "my own name" and labels[2].teacher == HUMAN
    assert labels[1].label == "my own name (2)"  # no other atom takes it
    set_label(atoms, 2, "a better name")
    assert load_labels(atoms.path)[2].label == "a better name"
    assert [row["label"] for row in atom_page(atoms, 2)["history"]][:2] == ["a better name", "my own name (3)"]


@pytest.mark.parametrize("text", ["", "  ", "one two three four five six seven eight nine", "two\nlines", "bell\x07"])
def test_a_persons_label_is_checked(atoms: Atoms, text: str) -> None:
    with pytest.raises(ConfigError, match="1 to 8 words"):
        set_label(atoms, 0, text)


def test_two_atoms_cannot_have_one_name(atoms: Atoms) -> None:
    set_label(atoms, 0, "a name")
    with pytest.raises(ConfigError, match="atom 0"):
        set_label(atoms, 1, "a name")
    with pytest.raises(ConfigError, match="from 0 to 5"):
        set_label(atoms, 6, "a name")


def test_a_row_that_was_cut_off_costs_nothing_else(atoms: Atoms) -> None:
    assert atoms.path
    label_atoms(atoms, RuleTeacher(), load=no_model)
    path = atoms.path / "labels.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert sorted(load_labels(atoms.path)) == [0, 1, 2, 3, 4]
    append_results(atoms.path, [Label(atom=5, label="again", teacher="rule-3")])
    assert load_labels(atoms.path)[5].label == "again"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(["not json", *lines]), encoding="utf-8")
    with pytest.raises(AtomsFormatError, match="line 1"):
        load_labels(atoms.path)


def test_labels_of_the_first_format_are_read(atoms: Atoms) -> None:
    assert atoms.path
    old = {"atom": 0, "label": "red", "sentence": "Pushes toward red.", "confidence": 1.0, "teacher": "rule-1"}
    failed = {"atom": 1, "failure": "nothing", "teacher": "rule-1"}
    (atoms.path / "labels.jsonl").write_text(f"{json.dumps(old)}\n{json.dumps(failed)}\n", encoding="utf-8")
    assert load_labels(atoms.path)[0].label == "red"
    assert catalog(atoms)[1]["label"] == ""


def test_other_settings_gather_anew(atoms: Atoms, small: LoadedModel) -> None:
    assert ensure_evidence(atoms, no_model, config=CONFIG).about["kl"] == 0.05
    with pytest.raises(AssertionError, match="asked for"):
        ensure_evidence(atoms, no_model, config=EvidenceConfig())
    assert ensure_evidence(atoms, no_model).about["kl"] == 0.05  # and lost nothing


def test_the_best_of_three_is_chosen_on_other_trials_than_it_is_scored_on(atoms: Atoms, small: LoadedModel) -> None:
    assert atoms.path
    report, scores = label_best(atoms, RuleTeacher(), LikelihoodJudge(small), load=no_model)
    assert sum(report.chosen.values()) == report.labelled == 6
    assert {"both", "input", "chosen"} <= set(scores) <= {"both", "input", "output", "chosen"}
    labels = load_labels(atoms.path)
    assert {a: s.label for a, s in ((s.atom, s) for s in scores["chosen"].labels)} == {
        a: x.label for a, x in labels.items()
    }
    history = load_history(atoms.path)
    assert len(history) == 18 and [row.atom for row in history[-6:]] == list(range(6))


def test_scores_are_kept_and_belong_to_a_label(atoms: Atoms, small: LoadedModel) -> None:
    assert atoms.path
    with pytest.raises(AtomsFormatError, match="atoms label"):
        score_folder(atoms, LikelihoodJudge(small))
    label_atoms(atoms, RuleTeacher(), load=no_model)
    value = score_folder(atoms, LikelihoodJudge(small))
    assert set(value) >= {"metrics", "real", "lookahead", "atoms", "judge", "teachers"}
    for metric in (*value["metrics"].values(), *value["lookahead"].values()):
        assert set(metric) >= {"value", "null", "unit", "better", "n", "interval"}
    assert value["metrics"]["detection"]["null"] is not None
    assert value["metrics"]["concept"]["n"] == 0  # no sentence model was given
    assert set(catalog(atoms)[1]["scores"]) >= {"confidence", "detection", "fuzzing", "output_rank", "vague"}
    set_label(atoms, 1, "another name")
    assert set(catalog(atoms)[1]["scores"]) == {"confidence"}  # the scores were of the old label
    assert 1 not in kept_scores(atoms.path, load_labels(atoms.path))
    (atoms.path / "scores.json").write_text("{", encoding="utf-8")
    with pytest.raises(AtomsFormatError, match="atoms score"):
        catalog(atoms)


def test_only_a_server_has_a_dry_run(atoms: Atoms) -> None:
    with pytest.raises(ConfigError, match="openai:MODEL"):
        estimate(atoms, RuleTeacher(), load=no_model)


def test_variants_have_names() -> None:
    assert as_variant("input") == "input"
    with pytest.raises(ConfigError, match="both, input, output, best"):
        as_variant("sideways")
