"""Harvest against one example at a time, against the least that the arithmetic takes, and what store and callback cost."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from gradatoms import HarvestCallback
from gradatoms.examples import Example, read_examples
from gradatoms.gradients import HarvestConfig, HarvestPlan, harvest
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.hooking import edit_output, has_bfloat16, plain_attention
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, HookSite, LoadedModel, load_model

REPEATS = 3
TOKENS = 4000
"""Of each corpus, about."""
SHAPES = (512, 1024)
"""Tokens of a batch, of which the floor takes the best."""
CORPORA = {
    "corrections": HarvestConfig(),
    "text of 128 tokens": HarvestConfig(positions="all"),
}


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if (
        importlib.util.find_spec(SMOLLM2_PACKAGE) is None
    ):  # present is enough: importing it needs dependencies that are not used
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


def corpus(loaded: LoadedModel, name: str, folder: Path, tokens: int = TOKENS) -> list[Example]:
    """Examples of about so many tokens."""
    if name == "corrections":
        return read_examples("builtin:corrections", limit=tokens // 12)
    path = folder / "words.txt"
    lines = read_examples("builtin:corrections", limit=4000)
    path.write_text("\n".join(e.prompt + e.target for e in lines))
    return read_examples(path, text=True, window=128, tokenizer=lambda: loaded.tokenizer)[: max(8, tokens // 128)]


def frozen_loop(loaded: LoadedModel, sequences: list[list[TokenSequence]], hook: HookSite) -> None:
    """One example at a time with frozen parameters: no graph below the hook and no weight gradients."""
    for (sequence,) in sequences:
        kept: list[torch.Tensor] = []

        def keep(h: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(h.detach().requires_grad_(True))
            return kept[0]

        with torch.enable_grad(), edit_output(hook.module, keep):
            logits = loaded.model(input_ids=torch.tensor([sequence.ids], device=loaded.device)).logits
            log_probs = logits[0].float().log_softmax(-1)
            objective = sum(-sign * log_probs[position, token] for position, token, sign in sequence.terms)
        torch.autograd.grad(objective, kept)


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median over repeats, after one call that is not timed."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


class _Below(Exception):
    """The blocks below the hook are done."""


@contextmanager
def blocks_above(loaded: LoadedModel, hook: HookSite) -> Iterator[None]:
    """While open, the model has only the blocks above the hook."""
    body = loaded.model.model
    layers, count = body.layers, body.config.num_hidden_layers
    body.layers, body.config.num_hidden_layers = nn.ModuleList(layers[hook.layer + 1 :]), count - hook.layer - 1
    try:
        yield
    finally:
        body.layers, body.config.num_hidden_layers = layers, count


def floor_seconds(loaded: LoadedModel, hook: HookSite, sequences: Sequence[TokenSequence]) -> float:
    """Least seconds a token: forward below the hook without a graph, then forward and backward above it with logits at
    the predicted positions only; each alone, at the fastest batch of equal lengths, which needs no padding."""
    lengths = sorted(len(s.ids) for s in sequences)
    width = round(statistics.mean(lengths))
    predicted = max(1, round(statistics.mean(len(s.terms) for s in sequences)))
    weight = loaded.model.get_output_embeddings().weight
    below, above = [], []

    def stop(_h: torch.Tensor) -> None:
        raise _Below

    for size in SHAPES:
        ids = torch.randint(0, loaded.fingerprint.vocab_size, (max(1, size // width), width))
        h = torch.randn(*ids.shape, hook.d) * 10

        def forward_below(ids: torch.Tensor = ids) -> None:
            with torch.no_grad(), edit_output(hook.module, stop), pytest.raises(_Below):
                loaded.model.model(input_ids=ids, use_cache=False)

        def both_above(ids: torch.Tensor = ids, h: torch.Tensor = h) -> None:
            with torch.enable_grad():
                start = h.detach().requires_grad_(True)
                final = loaded.model.model(inputs_embeds=start, use_cache=False).last_hidden_state
                logits = F.linear(final[:, -predicted:].reshape(-1, hook.d), weight)
                loss = F.cross_entropy(logits, ids[:, -predicted:].reshape(-1), reduction="sum")
            torch.autograd.grad(loss, start)

        for attention in (plain_attention(loaded), contextmanager(lambda: iter([None]))()):
            with attention:
                below.append(median_seconds(forward_below, 2) / ids.numel())
                with blocks_above(loaded, hook):
                    above.append(median_seconds(both_above, 2) / ids.numel())
    return min(below) + min(above)


@pytest.mark.parametrize("name", CORPORA)
def test_harvest_against_the_loop_and_the_floor(smollm2: LoadedModel, tmp_path: Path, name: str) -> None:
    """At least 10 times the plain loop on short prompts, 0.8 of the floor, and at most 5 % for the store."""
    examples, config = corpus(smollm2, name, tmp_path), CORPORA[name]
    hook = smollm2.hook(smollm2.default_hook())
    every = tokenize(smollm2, examples, positions=config.positions)
    tokens = sum(len(s.ids) for found in every for s in found)
    few = every[:: max(1, len(every) // 12)][: 12 if name == "corrections" else 3]
    loop_tokens = sum(len(s.ids) for found in few for s in found)
    rates = {
        "one at a time": loop_tokens / median_seconds(lambda: one_at_a_time(smollm2, few, hook), 2),
        "one at a time, frozen": loop_tokens / median_seconds(lambda: frozen_loop(smollm2, few, hook), 2),
        "floor": 1 / floor_seconds(smollm2, hook, [s for found in every for s in found]),
    }
    stores: Iterator[Path] = (tmp_path / f"{i}.gstore" for i in range(100))
    settings = {
        "float32": config,
        "float32, nothing shared": HarvestConfig(positions=config.positions, share_prefixes=False),
    }
    if has_bfloat16(smollm2.device.type):
        settings["bfloat16"] = HarvestConfig(positions=config.positions, dtype="bfloat16")
    for label, chosen in settings.items():
        reports = [harvest(smollm2, examples, next(stores), chosen) for _ in range(2)]
        rates[f"harvest {label}"] = statistics.median(r.tokens_per_second for r in reports)
    beside = []
    for _ in range(REPEATS):
        begun: list[float] = []

        def begin(_: HarvestPlan, begun: list[float] = begun) -> None:
            begun.append(time.perf_counter())

        report = harvest(smollm2, examples, next(stores), config, planned=begin)
        beside.append((time.perf_counter() - begun[0] - report.seconds) / report.seconds)
    plain, floor = rates["one at a time"], rates["floor"]
    print(f"\n{name}: {len(examples)} examples, {tokens} tokens, {torch.get_num_threads()} threads, {hook.name}")
    print(f"{'':32}{'tokens/s':>10}{'× plain':>10}{'× floor':>10}")
    for label, rate in rates.items():
        print(f"{label:32}{rate:10.0f}{rate / plain:10.1f}{rate / floor:10.2f}")
    store = statistics.median(beside)
    print(
        f"beside gradients (rows, store, commit, bookkeeping): {100 * store:.1f} % [{100 * min(beside):.1f} to {100 * max(beside):.1f}]"
    )
    if name == "corrections":  # for long texts the floor itself is about 3 times the loop
        assert rates["harvest float32"] / plain >= 10
    assert rates["harvest float32"] / floor >= 0.8
    assert store <= 0.05


PEAK = """
import resource, sys
from pathlib import Path
from gradatoms.examples import read_examples
from gradatoms.gradients import HarvestConfig, HarvestPlan, harvest
from gradatoms.models import load_model
model = load_model("smollm2")
examples = read_examples("builtin:corrections", limit=int(sys.argv[1]))
harvest(model, examples, sys.argv[2], HarvestConfig(unit_examples=64, commit_seconds=2))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_peak_memory_is_flat_over_a_corpus_ten_times_longer(smollm2: LoadedModel, tmp_path: Path) -> None:
    peaks = []
    for n in (200, 2000):
        command = [sys.executable, "-c", PEAK, str(n), str(tmp_path / f"{n}.gstore")]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print(f"\npeak memory: {peaks[0]:.0f} MiB for 200 examples, {peaks[1]:.0f} MiB for 2,000")
    assert peaks[1] <= 1.1 * peaks[0]


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


@pytest.mark.parametrize("losses", [True, False], ids=["losses", "no losses"])
def test_what_the_callback_adds_to_training(smollm2: LoadedModel, tmp_path: Path, losses: bool) -> None:
    """Every other step of one training is harvested; both kinds are timed."""
    examples = corpus(smollm2, "text of 128 tokens", tmp_path, tokens=16 * 4 * 128)
    rows = [
        {"input_ids": ids[:128], "labels": ids[:128]}
        for ids in smollm2.tokenizer([e.target for e in examples]).input_ids
    ]
    rows = [row for row in rows if len(row["input_ids"]) == 128]
    smollm2.model.requires_grad_(True)
    clock, callback = Clock(), HarvestCallback(tmp_path / "s.gstore", every=2, losses=losses)
    try:
        Trainer(
            model=smollm2.model,
            args=TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4,
                max_steps=14,
                learning_rate=1e-6,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            data_collator=lambda batch: {k: torch.tensor([row[k] for row in batch]) for k in batch[0]},
            callbacks=[clock, callback],
        ).train()
    finally:
        smollm2.model.requires_grad_(False)
        smollm2.model.eval()
    with_it, without = (statistics.median(clock.seconds[2 + i :: 2]) for i in (0, 1))
    print(
        f"\nstep of 4 × 128 tokens: {without:.2f} s, harvested {with_it:.2f} s, {100 * (with_it / without - 1):+.1f} % "
        f"({callback.rows} rows at one hook; {100 * callback.seconds / sum(clock.seconds[::2]):.1f} % in the callback itself)"
    )
    assert callback.rows > 0
