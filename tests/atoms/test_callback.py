"""Harvest during a real ``Trainer`` run, against gradients taken one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from gradatoms import HarvestCallback
from gradatoms.errors import ConfigError, GradientError, OutputExistsError
from gradatoms.examples import Example
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.models import LoadedModel, wrap_model
from gradatoms_store import Store, open_store, verify_store

HOOK = "blocks.1.hook_resid_post"


def rows_of(loaded: LoadedModel, examples: list[Example]) -> list[dict[str, list[int]]]:
    """Examples as a data set with labels on the target only."""
    found = []
    for example in examples:
        prompt = loaded.tokenizer(example.prompt).input_ids
        target = loaded.tokenizer(example.target, add_special_tokens=False).input_ids
        found.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    return found


def collate(left: bool) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    """Pads on the given side."""

    def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def filled(values: list[int], fill: int) -> list[int]:
            rest = [fill] * (width - len(values))
            return rest + values if left else values + rest

        columns = {
            "input_ids": [filled(row["input_ids"], 0) for row in rows],
            "labels": [filled(row["labels"], -100) for row in rows],
            "attention_mask": [filled([1] * len(row["input_ids"]), 0) for row in rows],
        }
        return {name: torch.tensor(column) for name, column in columns.items()}

    return pad


def train(
    loaded: LoadedModel,
    examples: list[Example],
    folder: Path,
    *callbacks: TrainerCallback,
    left: bool = False,
    resume: bool = False,
    **settings: Any,
) -> None:
    """One epoch over the examples, in order."""
    loaded.model.requires_grad_(True)
    options: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "learning_rate": 0.05, "num_train_epochs": 1,
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "seed": 0,
        "train_sampling_strategy": "sequential", "logging_strategy": "no", "remove_unused_columns": False,
    }  # fmt: skip
    Trainer(
        model=loaded.model,
        args=TrainingArguments(**options | settings),
        train_dataset=rows_of(loaded, examples),
        data_collator=collate(left),
        processing_class=loaded.tokenizer,
        callbacks=list(callbacks),
    ).train(resume_from_checkpoint=resume or None)


@pytest.fixture
def loaded(tokenizer: PreTrainedTokenizerFast, make_model: Callable[..., PreTrainedModel]) -> LoadedModel:
    """A model that a test may train."""
    return wrap_model(make_model("llama"), tokenizer, "trained")


def expected(
    loaded: LoadedModel, examples: list[Example], positions: str
) -> tuple[np.ndarray, list[list[TokenSequence]]]:
    sequences = tokenize(loaded, examples, positions=positions)
    return one_at_a_time(loaded, sequences, loaded.hook(HOOK)), sequences


def assert_rows(store: Store, g: np.ndarray, sequences: list[list[TokenSequence]]) -> None:
    """The rows of the first examples are those of the plain loop."""
    mine = np.flatnonzero(store.rows["example"] < len(sequences))
    mine = mine[np.lexsort((store.rows["position"][mine], store.rows["example"][mine]))]
    batch = store.read(HOOK, mine)
    assert list(zip(batch.rows["example"].tolist(), batch.rows["position"].tolist(), strict=True)) == [
        (e, p) for e, (sequence,) in enumerate(sequences) for p in sequence.rows
    ]
    norms = np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(batch.norms, norms, rtol=1e-3)
    assert ((batch.gradients * g).sum(axis=1) / norms).min() > 0.9999


@pytest.mark.parametrize("positions", ["last", "prediction", "all"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["", "checkpointing", "reentrant"])
def test_rows_are_those_of_the_plain_loop_at_the_weights_of_the_step(
    loaded: LoadedModel, examples: list[Example], tmp_path: Path, positions: str, left: bool, checkpointing: bool | None
) -> None:
    """Two micro-batches of two a step; the rows of the first step are compared, before which nothing was learned."""
    g, sequences = expected(loaded, examples[:4], positions)
    out = tmp_path / "s.gstore"
    settings: dict[str, Any] = {}
    if checkpointing is not None:
        kind = {"use_reentrant": checkpointing}
        settings = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kind}
    callback = HarvestCallback(out, hooks=[HOOK], positions=positions, store_dtype="float32")
    train(loaded, examples[:6], tmp_path / "run", callback, left=left, gradient_accumulation_steps=2, **settings)
    store = open_store(out)
    assert store.info.complete and verify_store(out).ok and callback.rows == store.n_rows
    assert_rows(store, g, sequences)
    assert [(e.prompt, e.target) for e in store.examples] == [(e.prompt, e.target) for e in examples[:6]]
    losses = dict(zip(store.rows["example"].tolist(), store.rows["loss"].tolist(), strict=True))
    assert all(loss > 0 for loss in losses.values())
    if checkpointing is None:  # which has hooks of its own
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_training_is_the_same_with_it(loaded: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    other = wrap_model(copy.deepcopy(loaded.model), loaded.tokenizer, "other")
    train(loaded, examples, tmp_path / "a", HarvestCallback(tmp_path / "a.gstore", hooks=["all"], positions="all"))
    train(other, examples, tmp_path / "b")
    for one, two in zip(loaded.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_adapters_alone_are_trained(loaded: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    """Blocks below the lowest adapter need no gradient for training; the hook gets one all the same."""
    peft = pytest.importorskip("peft")
    g, sequences = expected(loaded, examples[:2], "last")
    config = peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[3], task_type="CAUSAL_LM")
    model = peft.get_peft_model(loaded.model, config)
    callback = HarvestCallback(tmp_path / "s.gstore", hooks=[HOOK], positions="last")
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            max_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
        ),
        train_dataset=rows_of(loaded, examples[:2]),
        data_collator=collate(False),
        callbacks=[callback],
    ).train()
    assert_rows(open_store(tmp_path / "s.gstore"), g, sequences)


def test_every_other_step(loaded: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    train(loaded, examples, tmp_path / "run", HarvestCallback(tmp_path / "s.gstore", every=2, losses=False))
    store = open_store(tmp_path / "s.gstore")
    assert store.header.n_units == 2 and store.info.complete
    assert [e.target for e in store.examples] == [examples[i].target for i in (0, 1, 4, 5)]
    assert np.isnan(store.rows["loss"]).all()


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_training_that_goes_on_goes_on_with_its_store(
    tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[..., PreTrainedModel],
    examples: list[Example],
    tmp_path: Path,
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    stores = []
    for name, stop in (("whole", False), ("broken", True)):
        out, run = tmp_path / f"{name}.gstore", tmp_path / name
        model = wrap_model(make_model("llama"), tokenizer, "trained")
        if stop:
            with pytest.raises(KeyboardInterrupt), HarvestCallback(out, hooks=[HOOK]) as callback:
                train(model, examples, run, callback, Stop(), **settings)
            assert not open_store(out).info.complete
            model = wrap_model(make_model("llama"), tokenizer, "trained")
            train(model, examples, run, HarvestCallback(out, hooks=[HOOK]), resume=True, **settings)
        else:
            train(model, examples, run, HarvestCallback(out, hooks=[HOOK]), **settings)
        store = open_store(out)
        assert store.info.complete
        order = np.lexsort((store.rows["position"], store.rows["example"]))
        stores.append(store.read(HOOK, order))
    np.testing.assert_allclose(stores[0].norms, stores[1].norms, rtol=1e-4)
    np.testing.assert_allclose(stores[0].gradients, stores[1].gradients, atol=2e-3)


def test_what_cannot_be_told_apart_is_refused(loaded: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(GradientError, match="label smoothing"):
        train(loaded, examples, tmp_path, HarvestCallback(tmp_path / "a.gstore"), label_smoothing_factor=0.1)
    with pytest.raises(OutputExistsError, match=r"a\.gstore exists"):
        train(loaded, examples, tmp_path, HarvestCallback(tmp_path / "a.gstore"))
    for setting in ({"positions": "first"}, {"every": 0}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            HarvestCallback(tmp_path / "c.gstore", **setting)
