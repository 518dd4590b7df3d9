"""Harvest against one example at a time, as transformers gives the model and with frozen parameters."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gradatoms.examples import read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.hooking import edit_output, has_bfloat16
from gradatoms.models import SMOLLM2_INSTALL, SMOLLM2_PACKAGE, HookSite, LoadedModel, load_model

REPEATS = 3
EXAMPLES, LOOP_EXAMPLES = 96, 12


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if (
        importlib.util.find_spec(SMOLLM2_PACKAGE) is None
    ):  # present is enough: importing it needs dependencies that are not used
        pytest.skip(f"needs the packaged weights: {SMOLLM2_INSTALL}")
    return load_model("smollm2")


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


def tokens_per_second(work: Callable[[], object], tokens: int) -> float:
    """Median over repeats, after one call that is not timed."""
    work()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(tokens / (time.perf_counter() - started))
    return statistics.median(found)


def test_harvest_against_one_at_a_time(smollm2: LoadedModel, tmp_path: Path) -> None:
    examples = read_examples("builtin:corrections", limit=EXAMPLES)
    hook = smollm2.hook(smollm2.default_hook())
    sequences = tokenize(smollm2, examples[:: EXAMPLES // LOOP_EXAMPLES])
    tokens = sum(len(s.ids) for found in sequences for s in found)
    stores: Iterator[Path] = (tmp_path / f"{i}.gstore" for i in range(100))
    rows = {
        "one at a time": tokens_per_second(lambda: one_at_a_time(smollm2, sequences, hook), tokens),
        "one at a time, frozen": tokens_per_second(lambda: frozen_loop(smollm2, sequences, hook), tokens),
    }
    dtypes = ["float32", "bfloat16"] if has_bfloat16(smollm2.device.type) else ["float32"]
    for dtype in dtypes:
        config = HarvestConfig(dtype=dtype)
        reports = [harvest(smollm2, examples, next(stores), config) for _ in range(REPEATS + 1)]
        rows[f"harvest {dtype}"] = statistics.median(r.tokens_per_second for r in reports[1:])
    plain, frozen = rows["one at a time"], rows["one at a time, frozen"]
    print(
        f"\n{'':24}{'tokens/s':>10}{'× plain':>10}{'× frozen':>10}   ({torch.get_num_threads()} threads, {hook.name})"
    )
    for name, speed in rows.items():
        print(f"{name:24}{speed:10.0f}{speed / plain:10.1f}{speed / frozen:10.1f}")
    assert rows["harvest float32"] / plain > 6
