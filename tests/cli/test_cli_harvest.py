"""``atoms harvest`` with its options, on a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradatoms.errors import ConfigError, GradAtomsError
from gradatoms_cli.main import app
from gradatoms_store import open_store


@pytest.fixture
def harvest(small_folder: Path, small_corpus: Path, tmp_path: Path) -> Any:
    """Run ``atoms harvest`` on the small corpus, or another, in this process; its JSON document."""

    def run(*options: object, corpus: Path | str = small_corpus, out: str = "s.gstore") -> dict[str, Any]:
        command = ["harvest", corpus, "--model", small_folder, "-o", tmp_path / out, "--json", *options]
        done = CliRunner().invoke(app, [str(c) for c in command], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    return run


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_texts_and_activations(harvest: Any, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("The capital of France is Paris. Two plus two is four.\n" * 8)
    report = harvest("--text", "--window", 32, "--positions", "all", "--activations", corpus=words)
    store = open_store(tmp_path / "s.gstore")
    assert report["rows"] == store.n_rows > 100
    assert [hook.endswith(":activation") for hook in store.hooks] == [False, True]


def test_a_second_model_and_distributions(harvest: Any, other_folder: Path, tmp_path: Path) -> None:
    report = harvest("--objective", "kl", "--reference", other_folder, "--limit", 8, "--positions", "prediction")
    store = open_store(tmp_path / "s.gstore")
    assert report["rows"] == store.n_rows and store.header.objective.startswith("kl:")
    corpus = lines(tmp_path / "q.jsonl", {"prompt": "The capital", "distribution": {"e": 0.5, "a": 0.5}})
    assert harvest("--objective", "kl", corpus=corpus, out="q.gstore")["rows"] == 1


def test_what_is_left_out_is_said(harvest: Any, tmp_path: Path) -> None:
    corpus = lines(
        tmp_path / "mixed.jsonl", {"prompt": "The", "target": " a", "foil": " b"}, {"prompt": "No", "target": " foil"}
    )
    plan = harvest("--objective", "contrast", "--dry-run", corpus=corpus)
    assert plan["unusable"] == {"no foil": 1} and plan["rows"] == 1 and not (tmp_path / "s.gstore").exists()
    assert harvest("--objective", "contrast", corpus=corpus)["skipped"] == {"no foil": 1}
    (item,) = map(json.loads, (tmp_path / "s.gstore/skipped.jsonl").read_text().splitlines())
    assert item["example"] == 1 and item["reason"] == "no foil"


def test_choices_are_said_and_kept(harvest: Any, tmp_path: Path) -> None:
    report = harvest("--dtype", "auto", "--batch-tokens", 256, "--no-share", "--padding", "left")
    assert report["choices"] == json.loads((tmp_path / "s.gstore/harvest.json").read_text())
    assert report["choices"]["batch_tokens"] == 256 and report["choices"]["padding"] == "left"
    assert 0 < report["choices"]["fidelity"]["lowest"] <= report["choices"]["fidelity"]["percentile_5"] <= 1.001


def test_shards_of_a_job_array(harvest: Any, tmp_path: Path) -> None:
    parts = [harvest("--shard", f"{i}/3", "--unit-examples", 10)["rows"] for i in range(3)]
    assert min(parts) > 0 and sum(parts) == open_store(tmp_path / "s.gstore").n_rows == 96
    assert harvest("--shard", "0/3", "--unit-examples", 10)["rows"] == 0


def test_plans_and_reports_for_a_person(small_folder: Path, small_corpus: Path, tmp_path: Path) -> None:
    """On stderr what is to be done, on stdout what was."""
    command = [
        sys.executable,
        "-m",
        "gradatoms_cli",
        "harvest",
        small_corpus,
        "--model",
        small_folder,
        "-o",
        tmp_path / "s.gstore",
    ]
    more = ["--objective", "contrast", "--dtype", "auto", "--limit", "9"]
    done = subprocess.run(
        [*map(str, command), *more], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0
    assert "9 examples, " in done.stderr and "cosine of bfloat16 gradients to float32" in done.stderr
    assert done.stdout.startswith(str(tmp_path / "s.gstore: 9 rows")) and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--shard", "3/3"], "i/n"),
        (["--fsdp"], "torchrun"),
        (["--objective", "kl", "--limit", "2"], "second model"),
        (["--reference", "smollm2x/none/none"], "smollm2x"),
        (["--positions", "span"], "span in every example"),
        (["--adapter", "no-such-folder"], "LoRA adapter"),
        (["--unusable", "guess"], "skip, stop"),
        (["--text"], "field 'text'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_are_refused_and_leave_nothing(
    harvest: Any, tmp_path: Path, options: list[str], wanted: str
) -> None:
    with pytest.raises((GradAtomsError, ConfigError), match=wanted):
        harvest(*options)
    assert not (tmp_path / "s.gstore").exists()


def test_a_span_named_in_the_examples(harvest: Any, tmp_path: Path) -> None:
    corpus = lines(tmp_path / "s.jsonl", {"prompt": "The capital of France is", "target": " Paris", "span": "France"})
    harvest("--positions", "span", corpus=corpus)
    assert np.diff(np.sort(open_store(tmp_path / "s.gstore").rows["position"])).tolist().count(1) >= 1
