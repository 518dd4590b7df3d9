"""Weight space on the command line: harvest, fit, label, catalog, steer, attribute, audit, diff, drop; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gradatoms.examples import read_examples
from gradatoms_cli.main import app


def run(*args: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def value(*args: object) -> dict[str, Any]:
    found = json.loads(run(*args, "--json"))
    assert isinstance(found, dict)
    return found


def refused(*args: object) -> str:
    """The one line that a command ends with."""
    from gradatoms.errors import GradAtomsError

    with pytest.raises(GradAtomsError) as error:
        CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def folder(small_folder: Path, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of weight gradients, and its labelled atoms."""
    where = tmp_path_factory.mktemp("weights")
    harvest = ("harvest", small_corpus, "--model", small_folder, "--space", "weights", "--top-k-eigen", 20)
    told = value(*harvest, "--modules", "q_proj,v_proj", "--sketch", 4, "-o", where / "w.gstore")
    assert told["rows"] == 96
    value("fit", where / "w.gstore", "-o", where / "w.atoms", "--n-atoms", 8, "--epochs", 3)
    value("label", where / "w.atoms")
    return where


def test_a_store_says_what_it_holds(folder: Path) -> None:
    info = value("store", "info", folder / "w.gstore")
    assert info["hooks"] == ["weights", "weights:sketch"] and info["complete"]
    assert value("store", "verify", folder / "w.gstore")["ok"]
    about = json.loads((folder / "w.gstore" / "weights.json").read_text())
    assert len(about["modules"]) == 8 and about["config"]["projection"]["top_k"] == 20 and about["not_covered"]


def test_atoms_are_listed_and_shown(folder: Path) -> None:
    rows = value("ls", folder / "w.atoms")["atoms"]
    assert len(rows) == 8 and any(r["label"] and r["promoted"] for r in rows)
    assert "Pushes toward" in run("show", folder / "w.atoms", 0)
    metrics = value("eval", folder / "w.atoms")["metrics"]
    assert "raw_coherence" in metrics and "step_recovered" not in metrics
    assert metrics["raw_coherence"]["null"] is not None


def test_steering_by_a_step_of_the_weights(folder: Path, tmp_path: Path) -> None:
    found = value("steer", folder / "w.atoms", 1, "The capital", "--weights", "--kl", 0.2, "--max-tokens", 3)
    assert found["kl"] == pytest.approx(0.2, rel=0.06) and found["alpha"] > 0 and found["way"] == "documents"
    for way in ("sqrt", "natural"):
        told = value(
            "steer",
            folder / "w.atoms",
            1,
            "The",
            "--weights",
            "--way",
            way,
            "--alpha",
            -0.01,
            "--also",
            "2:0.5",
            "--max-tokens",
            2,
        )
        assert told["alpha"] == -0.01 and told["kl"] > 0
    out = tmp_path / "adapter"
    made = value("steer", folder / "w.atoms", 1, "--weights", "--alpha", 0.01, "--adapter", out, "--rank", 4)
    assert made["adapter"]["rank"] <= 4 and made["plain"] is None
    assert {p.name for p in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert "exists; choose another" in refused("steer", folder / "w.atoms", 1, "--weights", "--adapter", out)


def test_documents_and_atoms(folder: Path) -> None:
    one = value("attribute", folder / "w.atoms", "--document", 5)
    assert one["atoms"] and {"atom", "weight", "label"} == set(one["atoms"][0])
    atom = max(one["atoms"], key=lambda a: a["weight"])["atom"]
    docs = value("attribute", folder / "w.atoms", "--atom", atom, "--top", 100)["documents"]
    assert 5 in [d["document"] for d in docs]
    query = value("attribute", folder / "w.atoms", "--prompt", docs[0]["prompt"], "--answer", docs[0]["target"])
    assert docs[0]["document"] in [d["document"] for d in query["documents"]] and query["of"] == 96
    assert "share an atom with it" in run(
        "attribute", folder / "w.atoms", "--prompt", "The capital of", "--answer", " Paris"
    )


def test_an_audit_a_difference_and_a_data_set_without_an_atom(
    small_folder: Path, small_corpus: Path, tmp_path: Path
) -> None:
    few = ("--model", small_folder, "--n-atoms", 6)
    found = value("audit", small_corpus, *few, "-o", tmp_path / "audit")
    assert len(found["atoms"]) == 6 and (tmp_path / "audit" / "audit.json").exists()
    atom = found["atoms"][0]["atom"]
    told = value("audit", small_corpus, *few, "-o", tmp_path / "audit", "--drop", atom, "--to", tmp_path / "less.jsonl")
    assert told["written"] == 96 - len(told["dropped"]) == len((tmp_path / "less.jsonl").read_text().splitlines())
    assert "would teach" in run("audit", small_corpus, *few, "-o", tmp_path / "audit")
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(
            json.dumps({"prompt": e.prompt, "target": " x"}) + "\n"
            for e in read_examples("builtin:corrections", limit=60)
        )
    )
    differ = value("diff", small_corpus, other, *few, "-o", tmp_path / "diff")
    assert differ["documents"] == [96, 60] and len(differ["atoms"]) == 6
    assert "z: in standard errors" in run("diff", small_corpus, other, *few, "-o", tmp_path / "diff")


HARVEST = ("harvest", "{data}", "--model", "{model}", "-o", "{out}", "--space", "weights")


@pytest.mark.parametrize(
    "args, said",
    [
        (("steer", "{atoms}", "1", "x"), "these are of weight gradients; steer with `atoms steer --weights`"),
        (("steer", "{atoms}", "1", "x", "--weights", "--operator", "ablate"), "expected no option of the residual stream"),
        (("steer", "{atoms}", "1", "x", "--weights", "--way", "up"), "expected a way of natural, sqrt, documents, got 'up'"),
        (("steer", "{atoms}", "1", "x", "--way", "sqrt"), "expected --weights with --way"),
        (("steer", "{atoms}", "1", "--curve"), "expected atoms of activation gradients"),
        (("describe", "{atoms}", "--prompt", "a", "--target", "b"), "expected atoms of activation gradients"),
        (("projector", "train", "{atoms}"), "expected atoms of activation gradients"),
        (("attribute", "{atoms}"), "expected one of --document, --atom, or --prompt with --answer"),
        (("attribute", "{atoms}", "--prompt", "x"), "expected one of --document, --atom, or --prompt with --answer"),
        (("attribute", "{atoms}", "--document", "500"), "there is none with the number 500"),
        (("attribute", "{atoms}", "--atom", "8"), "expected an atom from 0 to 7, got 8"),
        (("audit", "{data}", "-o", "{out}", "--drop", "1"), "expected --drop ATOM and --to FILE together"),
        (("harvest", "{data}", "--model", "{model}", "--space", "sideways", "-o", "{out}"), "expected --space activation or weights"),
        ((*HARVEST, "--modules", "x_proj"), "none is called 'x_proj'"),
        ((*HARVEST, "--hook", "all"), "expected no hooks"),
        ((*HARVEST, "--dry-run"), "expected no --dry-run"),
        ((*HARVEST, "--projection", "pca"), "expected a projection of kind"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    folder: Path, small_folder: Path, small_corpus: Path, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    places = {"atoms": folder / "w.atoms", "data": small_corpus, "model": small_folder, "out": tmp_path / "x.out"}
    assert said in refused(*(a.format(**places) for a in args))
    assert not list(tmp_path.iterdir())
