"""The command line on a small model: every command's JSON, every refusal as one line, and quick help."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader
from safetensors import safe_open
from safetensors.numpy import save_file
from typer.testing import CliRunner

from gradatoms.dictionary.coding import leading
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms_cli.main import app
from gradatoms_cli.output import emit, emit_line
from gradatoms_store import open_store, store_info, verify_store

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
MAIN = "from gradatoms_cli.main import main; main()"
COMMANDS = [
    *"demo|harvest|store info|store verify|store view|store merge|store export|store import|fit|eval|label|score".split(
        "|"
    ),
    *"ls|show|search|describe|projector train|projector eval|steer|encode|export|nearest|push|pull".split("|"),
]
METRIC = {"value", "null", "unit", "better", "n"}
ATOM = {"atom", "label", "verdict", "density", "coherence", "promoted", "demoted", "scores"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads slow the products of a small model down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def child(*args: object, cwd: Path, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    """``atoms`` with ``args`` in a new interpreter."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, encoding="utf-8", timeout=300)


class Forks:
    """Runs ``main()`` in a process of its own for each call, forked from one that has imported the libraries already."""

    code = """
import gc, json, os, sys
import gradatoms.demo, sae_lens, transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama
from gradatoms_cli.main import main
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, path, flags in (0, os.devnull, os.O_RDONLY), (1, job["out"], os.O_WRONLY), (2, job["err"], os.O_WRONLY):
            os.dup2(os.open(path, flags), number)
        os.chdir(job["cwd"])
        sys.argv = ["atoms", *job["args"]]
        main()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

    def __init__(self, folder: Path) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", self.code], env=ENV, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        self.out.write_text("")
        self.err.write_text("")
        assert self.process.stdin and self.process.stdout
        job = {"args": [str(a) for a in args], "cwd": str(cwd), "out": str(self.out), "err": str(self.err)}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        out, err = (path.read_text(encoding="utf-8") for path in (self.out, self.err))
        return subprocess.CompletedProcess(job["args"], code, out, err)


@pytest.fixture(scope="session")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """``atoms`` in a process of its own, without waiting for imports each time."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    with forks.process:
        yield forks
        assert forks.process.stdin
        forks.process.stdin.close()


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON document that ``atoms … --json`` has printed, and nothing else, on stdout."""
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def inside(*args: object) -> str:
    """What ``atoms`` with ``args`` prints, run in this process."""
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def inside_json(*args: object) -> dict[str, Any]:
    """The JSON document of a command run in this process."""
    value = json.loads(inside(*args, "--json"))
    assert isinstance(value, dict)
    return value


@dataclass(frozen=True)
class Pipeline:
    """A folder where every step has run once, and what each printed with ``--json``."""

    folder: Path
    corpus: Path
    model: Path
    printed: dict[str, dict[str, Any]]

    @property
    def store(self) -> Path:
        return self.folder / "facts.gstore"

    @property
    def atoms(self) -> Path:
        return self.folder / "facts.atoms"


@pytest.fixture(scope="session")
def ran(fork: Forks, small_folder: Path, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Every step that writes, each in a process of its own, as a user runs them."""
    run = Pipeline(tmp_path_factory.mktemp("pipeline"), small_corpus, small_folder, {})
    steps: dict[str, list[object]] = {
        "harvest": ["harvest", run.corpus, "--model", run.model, "-o", run.store],
        "fit": ["fit", run.store, "-o", run.atoms, "--n-atoms", 6, "--epochs", 4, "--alpha", 0.1],
        "label": ["label", run.atoms],
        "eval": ["eval", run.atoms, "--rows", 20],
        "projector train": ["projector", "train", run.atoms, "--steps", 2],
        "projector eval": ["projector", "eval", run.atoms, "--rows", 6],
    }
    for name, args in steps.items():
        run.printed[name] = document(fork(*args, "--json", cwd=run.folder))
    return run


def assert_metrics(value: dict[str, Any], names: set[str]) -> None:
    metrics = value["metrics"]
    assert names <= set(metrics)
    for name, metric in metrics.items():
        assert set(metric) >= METRIC, name
        assert metric["better"] in ("higher", "lower") and metric["unit"] and isinstance(metric["n"], int)
        assert metric["value"] is None or isinstance(metric["value"], float | int)


def test_harvest(ran: Pipeline) -> None:
    value = ran.printed["harvest"]
    assert value["rows"] == 96 and value["tokens"] > 0 and value["tokens_per_second"] > 0
    assert value["out"] == str(ran.store)


def test_store_info(ran: Pipeline) -> None:
    value = inside_json("store", "info", ran.store)
    assert value["rows"] == value["examples"] == 96 and value["d"] == 32 and value["complete"] is True
    assert value["hooks"] == ["blocks.1.hook_resid_post"] and value["bytes"] > 0


def test_fit(ran: Pipeline) -> None:
    value = ran.printed["fit"]
    assert value["n_atoms"] == 6
    assert_metrics(value, {"l0", "fvu", "dead_share", "coherence", "stability"})
    left = {p.name for p in ran.folder.iterdir()}
    assert left == {"facts.gstore", "facts.atoms"}


def test_fit_topk(ran: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "topk.atoms"
    args = ("fit", ran.store, "-o", out, "--method", "topk", "--n-atoms", 6, "--k", 2, "--epochs", 2)
    assert_metrics(inside_json(*args), {"l0", "fvu"})
    assert len(inside_json("ls", out)["atoms"]) == 6


def test_fit_of_several_stores_with_settings(ran: Pipeline, tmp_path: Path) -> None:
    args = ("fit", ran.store, "-o", tmp_path / "k.atoms", "--method", "kmeans", "--n-atoms", 4, "--no-checks")
    value = inside_json(*args, "--set", "batch_size=32", "--patience", 2, "--weight", "norm")
    assert value["n_atoms"] == 4 and "real_share" not in value["metrics"]
    assert {a["verdict"] for a in value["atoms"]} <= {"weak", "noise"}
    config = yaml.safe_load((tmp_path / "k.atoms" / "config.yaml").read_text())["fit"]
    assert (config["batch_size"], config["patience"], config["weight"]) == (32, 2, "norm")


def test_sweep(ran: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    args = ("fit", ran.store, "-o", out, "--sweep", "--n-atoms", "4,6", "--k", "1,2", "--epochs", 2, "--no-checks")
    value = inside_json(*args)
    assert value["varied"] == ["n_atoms", "k"] and len(value["rows"]) == 4
    for row in value["rows"]:
        assert_metrics(row, {"l0", "fvu", "step_recovered"})
        assert Path(row["out"], "cfg.json").exists()
    assert {p.name for p in out.iterdir() if p.is_file()} == {"sweep.json", "sweep.md", "sweep.png"}
    before = {row["out"]: Path(row["out"], "cfg.json").stat().st_mtime_ns for row in value["rows"]}
    table = inside(*args)  # a second call fits nothing again
    assert "n_atoms" in table and "step_recovered" in table
    assert before == {path: Path(path, "cfg.json").stat().st_mtime_ns for path in before}


def test_encode(ran: Pipeline, tmp_path: Path) -> None:
    value = inside_json("encode", ran.atoms, ran.store, "-o", tmp_path / "codes.h5")
    assert value["rows"] == 96 and value["l0"] > 0
    made, kept = (load_codes(path) for path in (tmp_path / "codes.h5", ran.atoms / "codes.h5"))
    np.testing.assert_array_equal(made.toarray(), kept.toarray())


def test_export_push_and_pull(ran: Pipeline, tmp_path: Path) -> None:
    said = inside_json("export", ran.atoms, "saelens", "-o", tmp_path / "sae", "--distil", ran.store)
    assert said["architecture"] == "topk" and 0 < said["distilled"]["fvu_coder"] < said["distilled"]["fvu_distilled"]
    inside("push", ran.atoms, tmp_path / "shared")
    inside("pull", tmp_path / "shared", "-o", tmp_path / "back.atoms")
    assert [a["atom"] for a in inside_json("ls", tmp_path / "back.atoms")["atoms"]]
    assert str(ran.folder) not in (tmp_path / "back.atoms" / "config.yaml").read_text()


def test_export_of_vectors_and_their_nearest_features(ran: Pipeline, tmp_path: Path) -> None:
    vectors, control, features = (tmp_path / name for name in ("v.safetensors", "v.gguf", "n.json"))
    assert inside_json("export", ran.atoms, "vector", "-o", vectors)["tensors"] == ["W_dec"]
    two = inside_json("export", ran.atoms, "vector", "-o", tmp_path / "two.safetensors", "--atom", 0, "--atom", 3)
    assert two["tensors"] == ["atom_0", "atom_3"]
    said = inside_json("export", ran.atoms, "gguf", "-o", control, "--atom", 2, "--norm", 3.5)
    assert (said["tensor"], said["norm"]) == ("direction.1", 3.5)
    (direction,) = GGUFReader(control).tensors
    with safe_open(vectors, framework="np") as file:
        W = file.get_tensor("W_dec")
    np.testing.assert_allclose(direction.data, 3.5 * W[2], rtol=1e-6)
    assert "--norm" in inside("export", ran.atoms, "gguf", "-o", tmp_path / "plain.gguf", "--atom", 2)
    told = inside_json("export", ran.atoms, "neuronpedia", "-o", features)
    found = json.loads(features.read_text(encoding="utf-8"))["features"]
    assert told["features"] == len(found) == 6
    assert told["activations"] == sum(len(f["activations"]) for f in found) > 20
    for activation in (a for f in found for a in f["activations"]):
        values = activation["values"]
        assert len(values) == len(activation["tokens"]) and np.count_nonzero(values) == 1
        assert activation["maxValue"] == values[activation["maxValueTokenIndex"]] > 0
    value = inside_json("nearest", ran.atoms, "--sae", vectors, "-k", 2)
    assert [row["nearest"][0]["feature"] for row in value["atoms"]] == list(range(6))
    assert 0 < value["null"]["mean"] < value["null"]["p95"] < 1 and value["above_null"] == 6
    assert "random direction" in inside("nearest", ran.atoms, "--sae", vectors)


def test_label(ran: Pipeline) -> None:
    value = ran.printed["label"]
    assert value["labelled"] + value["failed"] == 6 and value["labelled"] > 0


def test_labels_by_hand_and_scores(ran: Pipeline, tmp_path: Path) -> None:
    atoms = copy_of(ran, tmp_path)
    said = inside_json("label", atoms, "--set", 1, "my own name")
    assert (said["atom"], said["label"], said["teacher"]) == (1, "my own name", "human")
    best = inside_json("label", atoms, "--variant", "best", "--judge", "likelihood")
    assert sum(best["chosen"].values()) == best["labelled"] and set(best["variants"]) >= {"both", "chosen"}
    assert inside_json("show", atoms, 1)["label"] == "my own name"
    history = inside_json("label", atoms, "--history", 1)["history"]
    assert {row["teacher"] for row in history} == {"human", "rule-3"} and len(history) == 5
    assert "human" in inside("label", atoms, "--history", 1)
    value = inside_json("score", atoms, "--judge", "likelihood")
    assert value["judge"].startswith("likelihood:") and value["metrics"]["detection"]["null"] is not None
    assert "shuffled" in inside("score", atoms, "--judge", "likelihood")
    scored = [row["scores"] for row in inside_json("ls", atoms)["atoms"] if row["label"]]
    assert scored and all("detection" in found for found in scored)
    assert "named by" in inside("show", atoms, 1)


def test_eval(ran: Pipeline) -> None:
    value = ran.printed["eval"]
    assert_metrics(value, {"l0", "fvu", "dead_share", "step_recovered", "coherence", "stability", "real_share"})
    assert value["seconds"] > 0 and value["peak_memory_bytes"] > 0
    assert value["metrics"]["step_recovered"]["n"] <= 20


def test_projector(ran: Pipeline) -> None:
    trained = ran.printed["projector train"]
    assert trained["rows"] > 0 and trained["first_loss"] > 0 and trained["last_loss"] > 0
    value = ran.printed["projector eval"]
    names = {"decoupled_exact", "decoupled_concept_accuracy", "context_capture", "noise_false_positives"}
    assert_metrics(value, names)
    assert value["seconds"] > 0 and value["peak_memory_bytes"] > 0


def test_describe(ran: Pipeline) -> None:
    args = ("describe", ran.atoms, "--prompt", "The capital of France is", "--target", " Paris")
    value = inside_json(*args, "--foil", " Rome", "--context", "Two plus two is")
    assert set(value) >= {"text", "terms", "code_terms", "norm", "confidence", "pressure", "agreement"}
    assert value["norm"] > 0 and 0 <= value["confidence"] <= 1 and isinstance(value["pressure"], bool)
    for term in value["terms"] + value["code_terms"]:
        assert set(term) >= {"atom", "label", "weight"}
    assert "the model says:" in inside(*args)


def test_describe_a_store(ran: Pipeline) -> None:
    args = ("describe", ran.atoms, "--store", ran.store, "--limit", 3)
    rows = [json.loads(line) for line in inside(*args, "--json").splitlines()]
    assert [r["row"] for r in rows] == [0, 1, 2]
    assert all(set(r) >= {"text", "terms", "code_terms", "norm", "confidence", "pressure"} for r in rows)
    lines = inside(*args, "--context", "Two plus two is").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2"] and all(
        len(line.split("\t")) == 3 for line in lines
    )


def test_describe_a_mean_and_a_difference(ran: Pipeline) -> None:
    args = ("describe", ran.atoms, "--store", ran.store, "--mean")
    mean = inside_json(*args)
    assert 0 < mean["norm"] < 1 and "length of the mean" in inside(*args)


@pytest.mark.parametrize("sort", ["atom", "density", "coherence", "label"])
def test_ls(ran: Pipeline, sort: str) -> None:
    rows = inside_json("ls", ran.atoms, "--sort", sort)["atoms"]
    assert sorted(r["atom"] for r in rows) == list(range(6))
    assert all(set(r) >= ATOM for r in rows)
    if sort in ("density", "coherence"):
        values = [r[sort] for r in rows if r[sort] is not None]
        assert values == sorted(values, reverse=True)
    assert len(inside_json("ls", ran.atoms, "--limit", 2)["atoms"]) == 2


def test_show_and_search(ran: Pipeline) -> None:
    labelled = next(r for r in inside_json("ls", ran.atoms)["atoms"] if r["label"])
    page = inside_json("show", ran.atoms, labelled["atom"])
    assert set(page) >= ATOM and page["label"] == labelled["label"]
    assert page["examples"] and len(page["neighbours"]) == 5
    found = inside_json("search", ran.atoms, page["label"].split()[-1])
    assert labelled["atom"] in [r["atom"] for r in found["atoms"]]
    assert inside_json("search", ran.atoms, "xyzzy-no-such-word")["atoms"] == []
    assert "no atom matches" in inside("search", ran.atoms, "xyzzy-no-such-word")


def test_steer(ran: Pipeline) -> None:
    args = ("steer", ran.atoms, 0, "The capital of France is", "--max-tokens", 4, "--json")
    value = document(child(*args, cwd=ran.folder))
    assert set(value) >= {"alpha", "kl", "plain", "steered"}
    assert value["alpha"] > 0 and value["kl"] == pytest.approx(0.5, rel=0.15)
    given = inside_json("steer", ran.atoms, 0, "The capital", "--alpha=-0.25", "--max-tokens", 2)
    assert given["alpha"] == -0.25


def test_steer_curve(ran: Pipeline, tmp_path: Path) -> None:
    """One atom's curve is measured once; all of them go on from there."""
    atoms = shutil.copytree(ran.atoms, tmp_path / "curves.atoms")
    store = open_store(ran.store)
    held = held_out_mask(store, 0.25, 0)
    lead = leading(load_codes(atoms / "codes.h5"))
    atom = int(np.bincount(lead[held & (lead >= 0)]).argmax())
    value = inside_json("steer", atoms, atom, "--curve", "--store", ran.store)
    assert value["atom"] == atom and held[value["rows"]].all() and (lead[value["rows"]] == atom).all()
    assert [dose["budget"] for dose in value["doses"]] == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    assert set(value["doses"][0]) == {
        *"budget alpha kl gain target_rate off_target_kl perplexity perplexity_ratio beats".split()
    }
    assert set(value["baselines"]) == {"random", "mean_difference", "mean_gradient"} and value["prompt"]["request"]
    kept = (atoms / "dose.jsonl").read_text()
    text = inside("steer", atoms, atom, "--curve", "--store", ran.store)
    assert text.startswith(f"atom {atom}: ") and "off target" in text and "safe: " in text
    assert (atoms / "dose.jsonl").read_text() == kept  # read, not measured again
    every = inside_json("steer", atoms, "--curve", "--all", "--store", ran.store)
    assert every["atoms"] == 6 and 1 <= every["curves"] <= 6 and every["file"] == str(atoms / "dose.jsonl")
    found = (atoms / "dose.jsonl").read_text()
    assert found.startswith(kept) and len(found.splitlines()) == 6
    assert "curves of 6 atoms" in inside("steer", atoms, "--curve", "--all", "--store", ran.store)


def test_steer_with_several_atoms_and_every_operator(ran: Pipeline) -> None:
    given = ("steer", ran.atoms, 0, "The capital", "--alpha", 0.5, "--max-tokens", 2)
    plain = inside_json(*given)
    for more in (
        ("--also", "1:-0.5", "--also", "2:0.3"),
        ("--operator", "clamp"),
        ("--operator", "ablate", "--positions", "all"),
        ("--positions", "generated"),
        ("--layers", "0,2"),
    ):
        found = inside_json(*given, *more)
        assert found["plain"] == plain["plain"] and found["alpha"] == 0.5 and found["kl"] != plain["kl"], more
    sampled = [inside_json(*given, "--seed", seed)["plain"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] and plain["plain"] != sampled[0] != sampled[2]


def test_people_can_read_it(ran: Pipeline) -> None:
    assert "rows" in inside("store", "info", ran.store)
    for command in (("ls", ran.atoms), ("show", ran.atoms, 0), ("steer", ran.atoms, 0, "The", "--max-tokens", 2)):
        text = inside(*command)
        assert text.strip() and not text.lstrip().startswith("{")


def test_harvest_resumes(ran: Pipeline) -> None:
    again = inside_json("harvest", ran.corpus, "--model", ran.model, "-o", ran.store, "--resume")
    assert again["rows"] == 0
    assert inside_json("store", "info", ran.store)["rows"] == 96


Refused = Callable[[Pipeline, Path], tuple[list[object], list[str]]]
"""From the pipeline and an empty folder: the arguments, and what the one line must say."""

REFUSED: dict[str, Refused] = {}


def refused(function: Refused) -> Refused:
    """Register a command line that must be refused under the function's name."""
    REFUSED[function.__name__] = function
    return function


def harvest_args(ran: Pipeline, examples: object = None, *more: object) -> list[object]:
    return ["harvest", ran.corpus if examples is None else examples, "--model", ran.model, "-o", "new.gstore", *more]


def corpus_of(folder: Path, text: str) -> Path:
    """A jsonl file outside the folder in which the command runs."""
    path = folder.parent / f"{folder.name}.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def copy_of(ran: Pipeline, folder: Path, *without: str) -> Path:
    """The atoms folder less some files, outside the folder in which the command runs."""
    return shutil.copytree(ran.atoms, folder.parent / f"{folder.name}.atoms", ignore=shutil.ignore_patterns(*without))


@refused
def missing_examples(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return harvest_args(ran, "nowhere.jsonl"), ["nowhere.jsonl", "builtin:corrections"]


@refused
def unknown_corpus(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return harvest_args(ran, "builtin:nothing"), ["builtin:corrections"]


@refused
def malformed_line(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, '{"prompt": "a", "target": " b"}\n{"prompt": "a", "tar\n')
    return harvest_args(ran, path), [str(path), "line 2", "malformed JSON"]


@refused
def missing_field(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, '\n{"prompt": "a"}\n')
    return harvest_args(ran, path), [str(path), "line 2", "'target'"]


@refused
def empty_corpus(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, "\n")
    return harvest_args(ran, path), [str(path), "at least one example"]


@refused
def no_foils(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, '{"prompt": "a", "target": " b"}\n')
    return harvest_args(ran, path, "--objective", "contrast"), ["foil", "example 1"]


@refused
def too_long_a_target(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, json.dumps({"prompt": "a", "target": " b" * 600}) + "\n")
    return harvest_args(ran, path), ["example 1", "512 tokens"]


@refused
def unknown_hook(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    expected = ["blocks.99.hook_resid_post", "blocks.0.hook_resid_post", "blocks.3.hook_resid_post", "model.layers.0"]
    return harvest_args(ran, None, "--hook", "blocks.99.hook_resid_post"), expected


@refused
def unknown_objective(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return harvest_args(ran, None, "--objective", "mse"), ["nll", "contrast", "'mse'"]


@refused
def hub_without_network(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["harvest", ran.corpus, "--model", "nobody/no-such-model", "-o", "new.gstore"]
    return args, ["nobody/no-such-model", "network"]


@refused
def existing_store(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["harvest", ran.corpus, "--model", ran.model, "-o", ran.store]
    return args, [str(ran.store), "exists", "--resume"]


@refused
def resume_with_other_examples(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["harvest", ran.corpus, "--model", ran.model, "-o", ran.store, "--resume", "--limit", 5]
    return args, [str(ran.store)]


@refused
def existing_atoms(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.store, "-o", ran.atoms], [str(ran.atoms), "exists"]


@refused
def missing_store(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["store", "info", "nowhere.gstore"], ["nowhere.gstore"]


@refused
def a_folder_that_is_no_store(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.model, "-o", "new.atoms"], [str(ran.model)]


@refused
def unknown_method(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.store, "-o", "new.atoms", "--method", "nmf"], ["online", "topk", "'nmf'"]


@refused
def setting_of_another_method(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.store, "-o", "new.atoms", "--method", "pca", "--alpha", 0.1], ["pca", "alpha"]


@refused
def several_values_without_a_sweep(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.store, "-o", "new.atoms", "--n-atoms", "4,8"], ["n_atoms", "--sweep"]


@refused
def a_setting_without_a_value(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["fit", ran.store, "-o", "new.atoms", "--set", "resample"], ["NAME=VALUE", "resample"]


@refused
def a_form_that_is_not_written(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["export", ran.atoms, "onnx", "-o", "new"], ["saelens", "'onnx'"]


@refused
def a_control_vector_of_no_atom(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["export", ran.atoms, "gguf", "-o", "new/v.gguf"], ["one atom", "--atom"]


@refused
def an_export_of_no_such_atom(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["export", ran.atoms, "vector", "-o", "new/v.safetensors", "--atom", 6], ["from 0 to 5", "got 6"]


@refused
def an_export_onto_a_file(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    path = corpus_of(folder, "")
    return ["export", ran.atoms, "neuronpedia", "-o", path], [str(path), "exists"]


@refused
def a_norm_for_a_form_without_one(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["export", ran.atoms, "vector", "-o", "new", "--norm", 2], ["vector", "--norm"]


@refused
def features_of_no_dictionary(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["nearest", ran.atoms, "--sae", "nowhere.safetensors"], ["nowhere.safetensors", "W_dec"]


@refused
def features_of_another_hook(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    sae = folder.parent / "other.safetensors"
    save_file({"W_dec": np.eye(32, dtype=np.float32)}, sae, {"hook": "blocks.2.hook_resid_post"})
    return ["nearest", ran.atoms, "--sae", sae], ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post", "--any-hook"]


@refused
def hook_that_the_store_lacks(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["fit", ran.store, "-o", "new.atoms", "--hook", "blocks.3.hook_resid_post"]
    return args, ["blocks.3.hook_resid_post", "blocks.1.hook_resid_post"]


@refused
def missing_atoms(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["ls", "nowhere.atoms"], ["nowhere.atoms", "atoms fit"]


@refused
def no_such_atom(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["show", ran.atoms, 6], ["from 0 to 5", "6"]


@refused
def unknown_sort(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["ls", ran.atoms, "--sort", "size"], ["density", "'size'"]


@refused
def unknown_teacher(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["label", ran.atoms, "--teacher", "oracle"], ["rule", "'oracle'"]


@refused
def a_teacher_with_options_of_another(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["label", ran.atoms, "--budget-tokens", 10], ["rule", "budget_tokens"]


@refused
def a_dry_run_of_what_costs_nothing(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["label", ran.atoms, "--dry-run"], ["openai:MODEL", "rule-3"]


@refused
def a_label_that_is_too_long(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["label", ran.atoms, "--set", 1, "one two three four five six seven eight nine"], ["1 to 8 words"]


@refused
def an_unknown_judge(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["score", ran.atoms, "--judge", "oracle"], ["likelihood", "'oracle'"]


@refused
def scores_before_labels(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["score", copy_of(ran, folder, "labels.jsonl"), "--judge", "likelihood"], ["atoms label"]


@refused
def training_before_labels(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    atoms = copy_of(ran, folder, "labels.jsonl", "projector")
    return ["projector", "train", atoms, "--steps", 1], [str(atoms), "atoms label"]


@refused
def describing_before_training(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["describe", copy_of(ran, folder, "projector"), "--prompt", "a", "--target", " b"]
    return args, ["atoms projector train"]


@refused
def nothing_to_describe(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["describe", ran.atoms, "--prompt", "a"], ["--target", "--store"]


@refused
def a_prompt_and_a_store(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["describe", ran.atoms, "--store", ran.store, "--prompt", "a"], ["got both"]


@refused
def a_difference_without_a_mean(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["describe", ran.atoms, "--store", ran.store, "--minus", ran.store], ["--mean"]


@refused
def a_store_against_itself(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["describe", ran.atoms, "--store", ran.store, "--mean", "--minus", ran.store], ["its length is 0"]


@refused
def an_arm_that_is_not_there(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["projector", "train", ran.atoms, "--arm", "deep"], ["none, affine", "'deep'"]


@refused
def an_unknown_operator(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--operator", "push"], ["add, clamp, ablate", "'push'"]


@refused
def unknown_positions(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--positions", "first"], ["last, generated, all", "'first'"]


@refused
def an_atom_without_a_weight(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--also", "1"], ["ATOM:WEIGHT", "'1'"]


@refused
def a_layer_that_is_not_there(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--layers", "0,99"], ["blocks.99"]


@refused
def nothing_to_steer(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0], ["a prompt", "--curve"]


@refused
def a_curve_of_no_atom(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, "--curve"], ["--all", "neither"]


@refused
def a_curve_of_one_atom_and_all(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "--curve", "--all"], ["one atom", "both"]


@refused
def a_curve_with_a_prompt_and_more(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--curve", "--operator", "clamp"], ["a prompt, --operator"]


@refused
def all_atoms_without_a_curve(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--all"], ["--curve with --all"]


@refused
def a_curve_of_an_atom_that_is_not_there(ran: Pipeline, _: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 6, "--curve"], ["from 0 to 5", "got 6"]


@refused
def strength_that_is_no_number(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    return ["steer", ran.atoms, 0, "The", "--alpha", "strong"], ["--alpha", "'strong'"]


@refused
def demo_in_a_foreign_folder(ran: Pipeline, folder: Path) -> tuple[list[object], list[str]]:
    args = ["demo", "--out", ran.folder, "--model", ran.model, "--examples", ran.corpus]
    return args, [str(ran.folder), "--out"]


def listing(*folders: Path) -> list[tuple[str, int, int]]:
    """Every path below ``folders`` with its size and time of change."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            stat = path.stat()
            found.append((str(path), stat.st_size if path.is_file() else 0, stat.st_mtime_ns))
    return found


def assert_one_line(done: subprocess.CompletedProcess[str], said: list[str]) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.endswith("\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in said:
        assert text in done.stderr


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(fork: Forks, ran: Pipeline, tmp_path: Path, case: Refused) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    args, said = case(ran, folder)
    before = listing(ran.folder, tmp_path)
    assert_one_line(fork(*args, cwd=folder), said)
    assert listing(ran.folder, tmp_path) == before


def test_nan_weights_leave_no_store(fork: Forks, ran: Pipeline, nan_folder: Path, tmp_path: Path) -> None:
    done = fork("harvest", ran.corpus, "--model", nan_folder, "-o", "new.gstore", cwd=tmp_path)
    plan, _, done.stderr = done.stderr.partition("\n")  # the work had begun when they were found
    assert plan.startswith("96 examples, ")
    assert_one_line(done, ["NaN", "example 1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["resume", "describe", "steer", "projector"])
def test_another_model_is_refused(fork: Forks, ran: Pipeline, other_folder: Path, tmp_path: Path, command: str) -> None:
    args: list[object] = {
        "resume": ["harvest", ran.corpus, "-o", ran.store, "--resume"],
        "describe": ["describe", ran.atoms, "--prompt", "a", "--target", " b"],
        "steer": ["steer", ran.atoms, 0, "The"],
        "projector": ["projector", "train", ran.atoms],
    }[command]
    before = listing(ran.folder)
    assert_one_line(fork(*args, "--model", other_folder, cwd=tmp_path), ["model"])
    assert listing(ran.folder) == before


def test_a_store_of_another_model_is_refused(fork: Forks, ran: Pipeline, other_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gstore"
    inside("harvest", ran.corpus, "--model", other_folder, "-o", other, "--limit", 30)
    before = listing(ran.folder)
    assert_one_line(fork("eval", ran.atoms, "--store", other, cwd=tmp_path), ["model", "store"])
    assert listing(ran.folder) == before


def test_eval_on_another_store_of_the_same_model(ran: Pipeline, tmp_path: Path) -> None:
    other, before = tmp_path / "again.gstore", (ran.atoms / "metrics.json").read_bytes()
    inside("harvest", ran.corpus, "--model", ran.model, "-o", other, "--limit", 40)
    assert_metrics(inside_json("eval", ran.atoms, "--store", other, "--rows", 10), {"l0", "fvu", "step_recovered"})
    assert (ran.atoms / "metrics.json").read_bytes() == before


def test_an_interruption_is_one_line(ran: Pipeline, tmp_path: Path) -> None:
    code = """
import gradatoms.dictionary.io as io
from gradatoms_cli.main import main
def interrupted(path):
    raise KeyboardInterrupt
io.load_atoms = interrupted
main()
"""
    done = child("ls", ran.atoms, cwd=tmp_path, code=code)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.startswith("interrupted: ") and len(done.stderr.splitlines()) == 1


def test_a_dry_run_says_what_there_is_to_do(ran: Pipeline, tmp_path: Path) -> None:
    args = ["harvest", ran.corpus, "--model", ran.model, "-o", tmp_path / "a.gstore", "--limit", 10]
    plan = inside_json(*args, "--dry-run")
    assert (plan["examples"], plan["rows"]) == (10, 10) and plan["tokens"] > 10
    assert not (tmp_path / "a.gstore").exists()
    done = child(*args, cwd=tmp_path)
    assert done.stderr.startswith("10 examples, ") and f"{plan['tokens']:,} tokens" in done.stderr
    assert inside_json(*args, "--resume", "--dry-run")["examples"] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_harvest_that_is_told_to_stop_commits_and_goes_on(
    ran: Pipeline, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """What a scheduler sends before it kills, in the middle of the work; then the store is that of an unbroken harvest."""
    stopped, whole = tmp_path / "stopped.gstore", tmp_path / "whole.gstore"
    args = ["harvest", "builtin:corrections", "--model", ran.model, "--positions", "prediction", "-o"]
    command = [sys.executable, "-c", MAIN, *map(str, [*args, stopped])]
    with subprocess.Popen(command, env=ENV, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while '"units": [0, 1' not in "".join(_claims(stopped)) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert errors.splitlines()[-1].startswith("interrupted: ")
    before = store_info(stopped)
    assert before.rows > 0 and not before.complete
    inside(*args, stopped, "--resume")
    inside(*args, whole)
    ours, theirs = open_store(stopped), open_store(whole)
    assert ours.info.complete and verify_store(stopped).ok
    assert ours.n_rows == theirs.n_rows
    by_row = [np.lexsort((store.rows["position"], store.rows["example"])) for store in (ours, theirs)]
    one, other = (store.read(store.hooks[0], rows) for store, rows in zip((ours, theirs), by_row, strict=True))
    # each of the two harvests has measured for itself which batches are fastest: equal but for rounding
    np.testing.assert_allclose(one.gradients, other.gradients, atol=1e-3)
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-5)


def _claims(store: Path) -> list[str]:
    """What the writers of a store have claimed."""
    found = []
    for file in store.glob("writers/*.json"):
        with contextlib.suppress(OSError):
            found.append(file.read_text())
    return found


@pytest.mark.parametrize("args", [["nonsense"], ["harvest"], ["show", "x.atoms", "many"], ["ls", "x.atoms", "--nope"]])
def test_wrong_usage_exits_with_2(tmp_path: Path, args: list[str]) -> None:
    done = child(*args, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and "Usage:" in done.stderr


def test_every_help_works_without_the_heavy_imports(tmp_path: Path) -> None:
    code = """
import json, sys
import typer
from typer.testing import CliRunner
from gradatoms_cli.main import app
def walk(command, path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*path, name])
codes = {" ".join(p): CliRunner().invoke(app, [*p, "--help"]).exit_code for p in walk(typer.main.get_command(app), [])}
heavy = [m for m in ("torch", "transformers", "sae_lens", "numpy", "scipy", "sklearn", "h5py", "numba", "matplotlib") if m in sys.modules]
print(json.dumps({"codes": codes, "heavy": heavy}))
"""
    done = child(cwd=tmp_path, code=code)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert set(value["codes"]) >= {"", "store", "projector", *COMMANDS}
    assert set(value["codes"].values()) == {0}
    assert value["heavy"] == []


def test_control_characters_are_shown_not_obeyed(ran: Pipeline, tmp_path: Path) -> None:
    atoms = shutil.copytree(ran.atoms, tmp_path / "coloured.atoms")
    record = {"atom": 0, "label": "\x1b[31mred\x07", "sentence": "\x1b[2J", "confidence": 1.0, "teacher": "rule-1"}
    with (atoms / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    for text in (inside("ls", atoms), inside("show", atoms, 0)):
        assert "\x1b" not in text and "\x07" not in text and "\\x1b[31mred" in text
    assert inside_json("show", atoms, 0)["label"] == record["label"]


def test_prompts_of_any_script_survive_the_terminal(fork: Forks, ran: Pipeline, tmp_path: Path) -> None:
    text = "naïve 🧪 日本"
    done = fork("describe", ran.atoms, "--prompt", text, "--target", " ça", "--context", text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the model says:" in done.stdout


@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_is_written_with_its_end(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    """Unbuffered, as ``torchrun`` starts its ranks, two writes of a line let another rank's line in between."""
    written: list[str] = []

    class Raw(io.TextIOBase):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Raw())
    emit({"a": 1}, "a line", as_json=as_json)
    emit_line({"a": 1}, "a line", as_json=as_json)
    assert len(written) == 2 and all(text.endswith("\n") for text in written)
