"""Harvest: what is written, what a resume does, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import gradatoms
from gradatoms.errors import ConfigError, ExampleError, GradientError, HookError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.gradients import read_skipped, tuning
from gradatoms.gradients.harvest import harvest, is_complete, plan_harvest
from gradatoms.gradients.plan import HarvestPlan
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig, examples_of
from gradatoms.hooking import edit_output, has_bfloat16
from gradatoms.models import LoadedModel, wrap_model
from gradatoms_store import Store, StoreMismatchError, open_store, verify_store

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
CONFIG = HarvestConfig(hooks=HOOKS, objective="contrast", positions="prediction", batch_tokens=32, unit_examples=3)


def in_order(store: Store, hook: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Directions, norms and row fields, sorted by (example, position); shards hold their rows shuffled."""
    order = np.lexsort((store.rows["position"], store.rows["example"]))
    batch = store.read(hook, order)
    return batch.gradients, batch.norms, batch.rows


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.fixture(scope="module")
def store(tiny: LoadedModel, examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("harvest") / "facts.gstore"
    report = harvest(tiny, examples, path, CONFIG)
    found = open_store(path)
    assert report.rows == found.n_rows
    return found


def test_the_header_says_what_was_harvested(store: Store, tiny: LoadedModel, examples: list[Example]) -> None:
    header = store.header
    assert header.model == tiny.fingerprint.to_dict()
    assert [(h.name, h.hf_name, h.d) for h in header.hooks] == [
        (HOOKS[0], "model.layers.1", 32),
        (HOOKS[1], "model.layers.2", 32),
    ]
    assert (header.objective, header.positions, header.dtype, header.space) == (
        "contrast", "prediction", "float16", "activation",
    )  # fmt: skip
    assert (header.n_units, header.n_examples) == (3, len(examples))
    assert store.info.complete and is_complete(store.path)


def test_the_examples_come_back(store: Store, examples: list[Example]) -> None:
    assert examples_of(store) == examples
    assert [record.id for record in store.examples] == list(range(len(examples)))


def test_the_rows_are_those_of_the_plain_loop(store: Store, tiny: LoadedModel, examples: list[Example]) -> None:
    sequences = tokenize(tiny, examples, objective="contrast", positions="prediction")
    expected = [(e, p) for e, branches in enumerate(sequences) for p in branches[0].rows]
    terms = {(e, p): token for e, branches in enumerate(sequences) for p, token, sign in branches[0].terms if sign > 0}
    for hook in HOOKS:
        directions, norms, rows = in_order(store, hook)
        assert list(zip(rows["example"].tolist(), rows["position"].tolist(), strict=True)) == expected
        assert rows["target"].tolist() == [terms[key] for key in expected]
        assert rows["token"].tolist() == [sequences[e][0].ids[p] for e, p in expected]
        g = one_at_a_time(tiny, sequences, tiny.hook(hook))
        wanted = np.linalg.norm(g, axis=1)
        np.testing.assert_allclose(norms, wanted, rtol=1e-3)
        assert ((directions * g).sum(axis=1) / wanted).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=2e-3)


def test_every_row_of_an_example_has_its_loss(store: Store) -> None:
    for example in range(7):
        assert len(set(store.rows["loss"][store.rows["example"] == example].tolist())) == 1


def test_no_hook_means_the_middle(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    harvest(tiny, examples, tmp_path / "a.gstore", HarvestConfig())
    assert open_store(tmp_path / "a.gstore").hooks == (tiny.default_hook(),)


def test_progress_ends_at_the_last_example(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    harvest(tiny, examples, tmp_path / "a.gstore", CONFIG, progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert calls[-1] == ("harvest", 7, 7) and done == sorted(done)


def test_an_interrupted_harvest_resumes_to_the_same_rows(
    store: Store, tiny: LoadedModel, examples: list[Example], tmp_path: Path
) -> None:
    path, calls = tmp_path / "facts.gstore", 0

    def interrupt(_stage: str, done: int, _total: int) -> None:
        nonlocal calls
        calls += 1
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(tiny, examples, path, CONFIG, progress=interrupt)
    assert calls and not is_complete(path)
    before = open_store(path).n_rows
    assert 0 < before < store.n_rows
    report = harvest(tiny, examples, path, CONFIG, resume=True)
    assert report.rows == store.n_rows - before
    resumed = open_store(path)
    assert resumed.info.complete and examples_of(resumed) == examples
    for hook in HOOKS:
        found, expected = in_order(resumed, hook), in_order(store, hook)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
        for field, values in expected[2].items():
            np.testing.assert_allclose(found[2][field], values, rtol=1e-5, err_msg=field)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "alone"])
def test_a_resume_with_other_batches_gives_the_same_rows(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path, share: bool
) -> None:
    """To 1e-5, in float32."""
    config = replace(CONFIG, store_dtype="float32", share_prefixes=share)
    whole, broken = tmp_path / "whole.gstore", tmp_path / "broken.gstore"
    harvest(tiny, examples, whole, config)

    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(tiny, examples, broken, config, progress=interrupt)
    other = replace(config, batch_tokens=9, share_prefixes=not share)
    assert harvest(tiny, examples, broken, other, resume=True).rows > 0
    for hook in HOOKS:
        a, norms, fields = in_order(open_store(whole), hook)
        b, others, other_fields = in_order(open_store(broken), hook)
        np.testing.assert_allclose(b, a, atol=1e-5)
        np.testing.assert_allclose(others, norms, rtol=1e-5)
        for name, values in fields.items():
            np.testing.assert_allclose(other_fields[name], values, rtol=1e-5, atol=1e-5)


def test_a_resume_of_a_complete_store_does_nothing(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    path = tmp_path / "facts.gstore"
    harvest(tiny, examples, path, CONFIG)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert harvest(tiny, examples, path, CONFIG, resume=True).rows == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_resume_without_a_store_starts_one(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    harvest(tiny, examples, tmp_path / "facts.gstore", CONFIG, resume=True)
    assert is_complete(tmp_path / "facts.gstore")


def test_a_resume_with_another_model_is_refused(
    tiny: LoadedModel,
    examples: list[Example],
    tmp_path: Path,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    path = tmp_path / "facts.gstore"
    harvest(tiny, examples, path, CONFIG)
    other = wrap_model(make_model("llama", seed=1), tokenizer, tiny.fingerprint.name)
    with pytest.raises(StoreMismatchError, match=r"model\.sha") as error:
        harvest(other, examples, path, CONFIG, resume=True)
    text = one_line(error)
    assert tiny.fingerprint.sha in text and other.fingerprint.sha in text
    assert is_complete(path)


@pytest.mark.parametrize(
    "change, named",
    [({"objective": "nll"}, "objective"), ({"store_dtype": "float32"}, "dtype"), ({"hooks": HOOKS[:1]}, HOOKS[1])],
    ids=["objective", "dtype", "hooks"],
)
def test_a_resume_with_other_settings_is_refused(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    path = tmp_path / "facts.gstore"
    harvest(tiny, examples, path, CONFIG)
    with pytest.raises(StoreMismatchError, match=named) as error:
        harvest(tiny, examples, path, replace(CONFIG, **change), resume=True)
    one_line(error)


def test_a_resume_with_other_examples_is_refused(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    path = tmp_path / "facts.gstore"
    harvest(tiny, examples, path, CONFIG)
    with pytest.raises(StoreMismatchError, match="plan"):
        harvest(tiny, [*examples[:-1], replace(examples[-1], target=" other")], path, CONFIG, resume=True)


def test_an_existing_output_is_refused_and_kept(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    path = tmp_path / "facts.gstore"
    path.mkdir()
    (path / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError) as error:
        harvest(tiny, examples, path, CONFIG)
    assert str(path) in one_line(error)
    assert [file.name for file in path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "change, error",
    [({"hooks": ("blocks.9.hook_resid_post",)}, HookError), ({"objective": "contrast"}, ExampleError)],
    ids=["hook", "foil"],
)
def test_what_is_refused_leaves_no_folder(
    tiny: LoadedModel, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        harvest(tiny, [Example(prompt="a", target=" b")], tmp_path / "facts.gstore", HarvestConfig(**change))
    assert not list(tmp_path.iterdir())


def test_no_examples_are_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ExampleError) as error:
        harvest(tiny, [], tmp_path / "facts.gstore", HarvestConfig())
    one_line(error)
    assert not list(tmp_path.iterdir())


def broken_model(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, token: int | None = None
) -> LoadedModel:
    """A model with a NaN weight: in the last block, or in one token's embedding only."""
    model = make_model("llama")
    with torch.no_grad():
        if token is None:
            model.model.layers[3].mlp.up_proj.weight[0, 0] = torch.nan
        else:
            model.get_input_embeddings().weight[token] = torch.nan
    return wrap_model(model, tokenizer, "broken")


def test_a_gradient_that_is_no_number_leaves_no_folder(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    with pytest.raises(GradientError, match="NaN") as error:
        harvest(broken_model(make_model, tokenizer), examples, tmp_path / "facts.gstore", CONFIG)
    text = one_line(error)
    assert "example 1 " in text and examples[0].prompt in text and HOOKS[0] in text
    assert not list(tmp_path.iterdir())


def test_a_late_nan_keeps_the_units_before_it(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    (token,) = set(tokenizer("!").input_ids)
    bad = Example(prompt="Hot!", target=" is", foil="x")
    loaded, path = broken_model(make_model, tokenizer, token), tmp_path / "facts.gstore"
    with pytest.raises(GradientError, match="the first in example 7") as error:
        harvest(loaded, [*examples[:6], bad], path, CONFIG)
    assert "Hot!" in one_line(error)
    assert set(open_store(path).rows["example"].tolist()) == set(range(6))


@pytest.mark.parametrize(
    "setting",
    [
        {"objective": "mse"},
        {"positions": "first"},
        {"dtype": "float8"},
        {"batch_tokens": 0},
        {"unit_examples": 0},
        {"padding": "up"},
        {"unusable": "guess"},
        {"nan": "zero"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        HarvestConfig(**setting)


def test_bfloat16_reports_its_fidelity(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    report = harvest(tiny, examples, tmp_path / "a.gstore", replace(CONFIG, dtype="bfloat16"))
    assert report.fidelity is not None and 0.95 < report.fidelity.lowest <= report.fidelity.percentile_5 < 1
    assert harvest(tiny, examples, tmp_path / "b.gstore", CONFIG).fidelity is None


def test_examples_that_cannot_be_used_are_counted_and_listed(tiny: LoadedModel, tmp_path: Path) -> None:
    good = [Example(prompt=f"The capital {i}", target=" is", foil="x") for i in range(4)]
    bad = [
        Example(prompt="no foil", target=" b"),
        Example(prompt="x" * 70, target=" b", foil="c"),
        Example(prompt="y", target=" b"),
    ]
    path, config = tmp_path / "s.gstore", replace(CONFIG, objective="contrast")
    corpus = [bad[0], *good[:2], bad[1], *good[2:], bad[2]]
    plan = plan_harvest(tiny, corpus, path, config)
    assert plan.unusable == {"no foil": 2, "too long": 1}
    report = harvest(tiny, corpus, path, config)
    assert report.skipped == {"no foil": 2, "too long": 1}
    listed = read_skipped(path)
    assert [(item.example, item.position, item.reason) for item in listed] == [
        (0, None, "no foil"), (3, None, "too long"), (6, None, "no foil"),
    ]  # fmt: skip
    assert "64" in listed[1].detail
    store = open_store(path)
    assert set(store.rows["example"].tolist()) == {1, 2, 4, 5} and store.info.complete
    assert examples_of(store) == corpus and verify_store(path).ok
    harvest(tiny, corpus, path, config, resume=True)
    assert read_skipped(path) == listed
    with (path / "skipped.jsonl").open("a") as file:
        file.write('{"example": 9, "pos')
    assert read_skipped(path) == listed
    with pytest.raises(ExampleError, match=r"example 1 .*and 2 more"):
        harvest(tiny, corpus, tmp_path / "b.gstore", replace(config, unusable="stop"))
    with pytest.raises(ExampleError, match=r"example 1 .*foil"):
        harvest(tiny, [bad[0]] * 3, tmp_path / "b.gstore", config)
    assert not (tmp_path / "b.gstore").exists()


def test_a_unit_without_a_usable_example_is_done(tiny: LoadedModel, tmp_path: Path) -> None:
    corpus = [*[Example(prompt="none", target=" b")] * 3, Example(prompt="The", target="s", foil="x")]
    for name, activations in (("a", False), ("b", True)):
        path = tmp_path / f"{name}.gstore"
        assert harvest(tiny, corpus, path, replace(CONFIG, positions="last", activations=activations)).rows == 1
        assert open_store(path).info.complete and verify_store(path).ok


def test_rows_that_are_no_numbers_are_dropped_and_listed_if_asked(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    (token,) = set(tokenizer("!").input_ids)
    loaded = broken_model(make_model, tokenizer, token)
    corpus = [*examples[:2], Example(prompt="Hot!", target=" is", foil="x"), *examples[2:6]]
    report = harvest(loaded, corpus, tmp_path / "s.gstore", replace(CONFIG, nan="drop"))
    (item, *others) = read_skipped(tmp_path / "s.gstore")
    assert (item.example, item.reason) == (2, "not finite") and all(o.example == 2 for o in others)
    assert report.skipped == {"not finite": 1 + len(others)}
    store, whole = (
        open_store(tmp_path / "s.gstore"),
        harvest(loaded, corpus[:2] + corpus[3:], tmp_path / "w.gstore", CONFIG),
    )
    assert set(store.rows["example"].tolist()) == {0, 1, 3, 4, 5, 6} and store.n_rows == whole.rows


def test_activations_spans_and_distributions_come_back(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path
) -> None:
    path = tmp_path / "s.gstore"
    harvest(tiny, examples, path, replace(CONFIG, objective="kl", positions="span", activations=True), resume=True)
    store = open_store(path)
    assert store.hooks == (*HOOKS, *(f"{hook}:activation" for hook in HOOKS))
    assert examples_of(store) == examples and verify_store(path).ok
    row = int(np.flatnonzero(store.rows["example"] == 0)[0])
    kept: list[torch.Tensor] = []
    with torch.no_grad(), edit_output(tiny.hook(HOOKS[0]).module, kept.append):
        tiny.model(torch.tensor([tiny.tokenizer(examples[0].prompt).input_ids]))
    h = kept[0][0, store.rows["position"][row]].numpy()
    batch = store.read(f"{HOOKS[0]}:activation", np.asarray([row]))
    np.testing.assert_allclose(batch.gradients[0] * batch.norms[0], h, rtol=5e-3, atol=5e-3)
    fitted = gradatoms.fit(store, gradatoms.OnlineConfig(n_atoms=2, epochs=1), hook=HOOKS[0])
    assert fitted.hook == HOOKS[0]
    with pytest.raises(ConfigError, match="has 2 of gradients"):
        gradatoms.fit(store, gradatoms.OnlineConfig(n_atoms=2))


def test_kl_to_a_second_model(
    tiny: LoadedModel,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    second = wrap_model(make_model("gpt2", seed=3), tokenizer, "second")
    config = replace(CONFIG, objective="kl")
    harvest(tiny, examples, tmp_path / "s.gstore", config, reference=second)
    store = open_store(tmp_path / "s.gstore")
    assert store.header.objective == f"kl:{second.fingerprint.sha}"
    sequences = tokenize(tiny, examples, objective="kl", positions="prediction", reference=True)
    g = one_at_a_time(tiny, sequences, tiny.hook(HOOKS[0]), reference=second)
    np.testing.assert_allclose(in_order(store, HOOKS[0])[1], np.linalg.norm(g, axis=1), rtol=1e-3)
    with pytest.raises(StoreMismatchError, match="objective"):
        harvest(tiny, examples, tmp_path / "s.gstore", config, resume=True)
    with pytest.raises(ConfigError, match="objective kl"):
        harvest(tiny, examples, tmp_path / "b.gstore", CONFIG, reference=second)
    same = harvest(tiny, examples, tmp_path / "c.gstore", config, reference=tiny)
    assert same.rows and open_store(tmp_path / "c.gstore").rows["loss"].max() < 1e-5


def test_auto_takes_bfloat16_only_where_it_is_safe(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, dtype="auto")
    report = harvest(tiny, examples, tmp_path / "a.gstore", config)
    assert report.fidelity is not None
    safe = report.fidelity.percentile_5 >= tuning.FIDELITY and has_bfloat16("cpu")
    assert report.dtype == ("bfloat16" if safe else "float32")
    for bar, dtype in ((1.1, "float32"), (0.5, "bfloat16" if has_bfloat16("cpu") else "float32")):
        monkeypatch.setattr(tuning, "FIDELITY", bar)
        path = tmp_path / f"{bar}.gstore"
        assert harvest(tiny, examples, path, config).dtype == dtype
        monkeypatch.setattr(tuning, "FIDELITY", 1.2)
        assert harvest(tiny, examples, path, config, resume=True).dtype == dtype  # as it was begun


def test_what_is_left_open_is_measured_and_kept(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long work is worth measuring for; who goes on with it takes what was found."""
    monkeypatch.setattr(tuning, "WORTH_SECONDS", 0.0)
    monkeypatch.setitem(tuning.BATCH_TOKENS, "cpu", 16)
    corpus = [example for _ in range(40) for example in examples]
    path, config = tmp_path / "s.gstore", HarvestConfig(hooks=HOOKS, unit_examples=100)
    report = harvest(tiny, corpus, path, config)
    assert report.choices == tuning.Choices.load(path)
    assert report.choices.batch_tokens > 64 and dict(report.choices.attention)[32] in ("eager", "sdpa")
    changed = replace(report.choices, batch_tokens=77, attention=((64, "sdpa"),))
    changed.save(path)
    assert harvest(tiny, corpus, path, config, resume=True).choices == changed
    assert harvest(tiny, corpus, path, replace(config, batch_tokens=32), resume=True).choices.batch_tokens == 32
    (path / "harvest.json").write_text("{}")
    assert harvest(tiny, corpus, path, config, resume=True).choices.batch_tokens > 64


SCARCE = """
import sys, resource
from gradatoms.examples import read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.models import load_model
import torch
torch.set_num_threads(1)
model, corpus, out, size, room = sys.argv[1:]
loaded, examples = load_model(model), read_examples(corpus) * 40
harvest(loaded, examples[:96], out + ".warm", HarvestConfig())
if int(room):
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + int(room) * 2**20, -1))
report = harvest(loaded, examples, out, HarvestConfig(batch_tokens=int(size), unit_examples=4000, positions="prediction"))
print(report.rows, report.choices.batch_tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_out_of_memory_halves_the_batches_and_goes_on(small_folder: Path, small_corpus: Path, tmp_path: Path) -> None:
    """One batch of the corpus does not fit into the memory that the process may have."""
    found = []
    for size, room in ((1_000_000, 300), (1024, 0)):
        out = tmp_path / f"{size}.gstore"
        command = [sys.executable, "-c", SCARCE, small_folder, small_corpus, out, size, room]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        rows, last = map(int, done.stdout.split())
        found.append((rows, last, *in_order(open_store(out), open_store(out).hooks[0])))
    (rows, last, a, norms, fields), (all_rows, _, b, other_norms, other_fields) = found
    assert rows == all_rows and 1024 <= last < 200_000
    np.testing.assert_allclose(norms, other_norms, rtol=1e-4)
    np.testing.assert_allclose(a, b, atol=2e-3)
    np.testing.assert_allclose(fields["loss"], other_fields["loss"], rtol=1e-4)


TOGETHER = """
import sys, torch
from gradatoms.examples import read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.models import load_model
torch.set_num_threads(1)
model, corpus, out = sys.argv[1:]
report = harvest(load_model(model), read_examples(corpus), out, HarvestConfig(unit_examples=2), resume=True)
print(report.rows)
"""


def test_processes_harvest_one_store_together(small_folder: Path, small_corpus: Path, tmp_path: Path) -> None:
    together, alone = tmp_path / "together.gstore", tmp_path / "alone.gstore"
    command = [sys.executable, "-c", TOGETHER, str(small_folder), str(small_corpus)]
    processes = [
        subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True) for out in (together, together, alone)
    ]
    rows = [int(process.communicate(timeout=240)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert rows[0] + rows[1] == rows[2] == 96
    one, other = open_store(together), open_store(alone)
    assert verify_store(together).ok and one.info.complete
    assert one.header == other.header
    (a, b, rows_a), (c, d, rows_c) = in_order(one, one.hooks[0]), in_order(other, other.hooks[0])
    np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(b, d)
    for field, values in rows_a.items():
        np.testing.assert_array_equal(values, rows_c[field])


def test_the_plan_is_what_is_then_done(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    path = tmp_path / "facts.gstore"
    plan = plan_harvest(tiny, examples, path, CONFIG)
    assert not path.exists()
    assert (plan.examples, plan.hooks) == (len(examples), HOOKS)
    assert 0 < plan.seconds < 60 and plan.free_bytes > plan.bytes
    told: list[HarvestPlan] = []
    report = harvest(tiny, examples, path, CONFIG, planned=told.append)
    assert (plan.tokens, plan.rows) == (report.tokens, report.rows)
    assert replace(told[0], seconds=0.0, free_bytes=0) == replace(plan, seconds=0.0, free_bytes=0)
    stored = open_store(path)
    data = sum(place.length_bytes for shard in stored.shards for place in shard.places.values())
    assert plan.bytes == pytest.approx(data, rel=0.1)


def test_the_plan_of_a_resumed_harvest_is_what_is_left(
    tiny: LoadedModel, examples: list[Example], tmp_path: Path
) -> None:
    path, config = tmp_path / "facts.gstore", replace(CONFIG, objective="nll")

    def stop(_stage: str, done: int, _total: int) -> None:
        if done > config.unit_examples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(tiny, examples, path, config, progress=stop)
    done = open_store(path).info.examples
    assert 0 < done < len(examples)
    assert plan_harvest(tiny, examples, path, config, resume=True).examples == len(examples) - done
    with pytest.raises(OutputExistsError):
        plan_harvest(tiny, examples, path, config)
    with pytest.raises(StoreMismatchError, match="positions"):
        plan_harvest(tiny, examples, path, replace(config, positions="last"), resume=True)
    harvest(tiny, examples, path, config, resume=True)
    plan = plan_harvest(tiny, examples, path, config, resume=True)
    assert (plan.examples, plan.tokens, plan.rows, plan.bytes, plan.seconds) == (0, 0, 0, 0, 0.0)
