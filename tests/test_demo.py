"""The whole pipeline in one folder: on SmolLM2 once, and interrupted and resumed on a small model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradatoms.demo import DemoConfig, DemoReport, run_demo
from gradatoms.errors import ConfigError, ExampleError, ModelLoadError
from gradatoms.labels.judges import EmbeddingJudge
from gradatoms.labels.label import load_history
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE
from gradatoms.progress import Progress
from gradatoms_store import open_store

NAMES = set(
    "l0 fvu dead_share step_recovered coherence stability real_share concept_purity decoupled_exact decoupled_concept_accuracy "
    "context_capture noise_false_positives harvest_tokens_per_second harvest_speedup".split()
)
FILES = ("report.json", "report.md", "metrics.png", "atoms.png")
VOLATILE = ("seconds", "seconds_this_call", "peak_memory_bytes", "stages")


def assert_reported(out: Path, report: DemoReport) -> None:
    values = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert values == json.loads(json.dumps(report.to_dict()))
    assert set(values["metrics"]) >= NAMES
    for name, metric in values["metrics"].items():
        assert set(metric) >= {"value", "null", "unit", "better", "n"}, name
        assert metric["better"] in ("higher", "lower") and metric["unit"] and isinstance(metric["n"], int)
    assert values["seconds"] > 0 and values["peak_memory_bytes"] > 0
    assert (out / "report.md").read_text(encoding="utf-8") == report.text
    for name in FILES[2:]:
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name
    for link in ("metrics.png", "atoms.png"):
        assert f"]({link})" in report.text
    assert not list(out.rglob("*.partial")) and not list(out.rglob("checkpoint.pt"))


@pytest.fixture(scope="module")
def smollm2_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoConfig, DemoReport]:
    """The demo on few examples."""
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    config = DemoConfig(
        out=tmp_path_factory.mktemp("demo") / "run", limit=240, n_atoms=16, projector_steps=3, decoupling_rows=12
    )
    return config, run_demo(config)


def test_the_demo_reports(smollm2_run: tuple[DemoConfig, DemoReport]) -> None:
    config, report = smollm2_run
    assert_reported(config.out, report)
    values = report.to_dict()
    assert values["corpus"] == {"source": "builtin:corrections", "examples": 240, "rows": 240}
    assert values["n_atoms"] == len(values["atoms"]) == 16 and 0 < values["labels"] <= 16
    assert set(values["description"]) >= {"text", "terms", "code_terms", "truth", "context", "prompt", "target"}
    assert values["description"]["context"] != values["description"]["prompt"]
    assert values["steering"]["kl"] == pytest.approx(1.0, rel=0.15)
    metrics = values["metrics"]
    assert metrics["step_recovered"]["value"] > metrics["step_recovered"]["null"]
    assert metrics["harvest_speedup"]["value"] > 1
    for text in ("## Metrics", "## Ten atoms", "## One atom at the wheel", "atoms describe", "concept"):
        assert text in report.text


def test_the_demo_says_each_metric_with_its_null(smollm2_run: tuple[DemoConfig, DemoReport]) -> None:
    _, report = smollm2_run
    for name in NAMES:
        assert f"| {name} |" in report.text


def test_a_second_call_does_nothing_again(smollm2_run: tuple[DemoConfig, DemoReport]) -> None:
    config, first = smollm2_run
    stages = (config.out / "stages.json").read_bytes()

    def at_work(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} ran again")

    second = run_demo(config, progress=at_work)
    assert (config.out / "stages.json").read_bytes() == stages
    a, b = ({k: v for k, v in r.to_dict().items() if k not in VOLATILE} for r in (first, second))
    assert a == b
    assert second.to_dict()["seconds"] == first.to_dict()["seconds"]
    assert second.to_dict()["seconds_this_call"] < first.to_dict()["seconds_this_call"]


@dataclass(frozen=True)
class Small:
    """A demo on a small model."""

    config: DemoConfig
    report: DemoReport


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads slow the products of a small model down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_config(out: Path, corpus: Path, model: Path, **changes: Any) -> DemoConfig:
    return DemoConfig(
        **{
            "out": out,
            "examples": str(corpus),
            "model": str(model),
            "n_atoms": 6,
            "projector_steps": 24,
            "decoupling_rows": 8,
        }
        | changes
    )


@pytest.fixture(scope="module")
def small(
    one_thread: None, small_folder: Path, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Small, list[str]]:
    """An uninterrupted demo on a small model, and the stages that reported progress."""
    seen: list[str] = []
    config = small_config(tmp_path_factory.mktemp("demo") / "small", small_corpus, small_folder)
    report = run_demo(config, progress=lambda stage, done, total: seen.append(stage))
    return Small(config, report), list(dict.fromkeys(seen))


def interrupt_at(stage: str, call: int) -> Progress:
    """Stops at the ``call``-th report of ``stage``, as Ctrl-C would."""
    calls = 0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal calls
        calls += name == stage
        if name == stage and calls == call:
            raise KeyboardInterrupt

    return progress


STAGES = {
    "harvest": 2,
    "fit": 3,
    "lookahead": 1,
    "step recovered": 1,
    "projector warm start": 2,
    "projector": 22,
    "projector eval": 3,
}
"""Where a demo is interrupted: a stage, and at which of its reports."""
CHECKS = ("seed", "half-a", "half-b", "null", "null-seed", "null-a", "null-b")
LABELS = ("hard negatives", "lookahead", "label", *(["embedding"] if EmbeddingJudge.installed() else []))
EVERY = [*list(STAGES)[:2], *CHECKS, *LABELS, *list(STAGES)[3:]]
"""All stages in their order, with the fits that atoms are compared with."""


def test_every_stage_reports_progress(small: tuple[Small, list[str]]) -> None:
    run, seen = small
    assert_reported(run.config.out, run.report)
    assert seen == EVERY


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_demo_goes_on(
    small: tuple[Small, list[str]], small_corpus: Path, small_folder: Path, tmp_path: Path, stage: str
) -> None:
    whole, _ = small
    config = small_config(tmp_path / "run", small_corpus, small_folder)
    with pytest.raises(KeyboardInterrupt):
        run_demo(config, progress=interrupt_at(stage, STAGES[stage]))
    assert not (config.out / "report.json").exists()
    kept = json.loads((config.out / "stages.json").read_text(encoding="utf-8"))["stages"]
    seen: list[str] = []
    report = run_demo(config, progress=lambda name, done, total: seen.append(name))
    assert_reported(config.out, report)
    assert list(dict.fromkeys(seen)) == EVERY[EVERY.index(stage) :]
    after = json.loads((config.out / "stages.json").read_text(encoding="utf-8"))["stages"]
    assert {name: after[name] for name in kept} == kept
    mine, theirs = (open_store(c.out / "demo.gstore") for c in (config, whole.config))
    assert mine.n_rows == theirs.n_rows == 96
    for hook in mine.hooks:
        a, b = (next(s.batches(hook, 96)).gradients for s in (mine, theirs))
        np.testing.assert_array_equal(a, b)
    made, whole_made = (
        [replace(row, at="") for row in load_history(c.out / "demo.atoms")] for c in (config, whole.config)
    )
    assert made == whole_made
    for name in ("sae_weights.safetensors", "projector/weights.safetensors"):
        first, second = ((c.out / "demo.atoms" / name).read_bytes() for c in (config, whole.config))
        assert first == second, name
    a, b = (r.to_dict()["metrics"]["decoupled_exact"] for r in (report, whole.report))
    assert a == b


def test_another_run_is_refused(small: tuple[Small, list[str]], small_corpus: Path, small_folder: Path) -> None:
    out = small[0].config.out
    before = (out / "stages.json").read_bytes()
    with pytest.raises(ConfigError, match="n_atoms 6 there, 7 asked"):
        run_demo(small_config(out, small_corpus, small_folder, n_atoms=7))
    assert (out / "stages.json").read_bytes() == before


def test_a_foreign_folder_is_left_alone(small_corpus: Path, small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="other files"):
        run_demo(small_config(tmp_path, small_corpus, small_folder))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_corpus_that_is_not_there_leaves_no_folder(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"nowhere\.jsonl"):
        run_demo(small_config(tmp_path / "run", tmp_path / "nowhere.jsonl", small_folder))
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_leaves_no_folder(small_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no-model"):
        run_demo(small_config(tmp_path / "run", small_corpus, tmp_path / "no-model"))
    assert not list(tmp_path.iterdir())
