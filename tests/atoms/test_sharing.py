"""Common beginnings computed once, against one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.atoms.test_architectures import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gradatoms.examples import Example
from gradatoms.gradients import sharing
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.gradients.sharing import by_shared_budget, head_of, saving, share
from gradatoms.gradients.task import HarvestConfig, HarvestTask
from gradatoms.models import LoadedModel, wrap_model

HOOKS = ("blocks.0.*", "blocks.1.hook_resid_post")
CORPUS = [
    *(Example(prompt=f"The capital of {place} is", target=f" {name}", foil=" x y") for place, name in
      [("France", "Paris"), ("Japan", "Tokyo"), ("Japan", "Kyoto"), ("Peru", "Lima, of course")]),
    Example(prompt="The capital", target=" of France", foil=" e"),
    Example(prompt="Two plus two is", target=" four", foil=" five"),
    Example(prompt="Two plus", target=" three is five", foil=" three is six"),
]  # fmt: skip
SHARED = set(CONFIGS) - {"gemma2", "gemma3", "mistral", "falcon sequential", "bloom", "mamba"}
"""The others have windows shorter than the examples, look at distances by themselves, or have no keys and values."""


def nodes(sequences: list[TokenSequence]) -> int:
    return len({head_of(s)[: i + 1] for s in sequences for i in range(len(head_of(s)))})


@pytest.mark.parametrize("line", [4, 192])
@pytest.mark.parametrize("positions", ["last", "prediction", "span"])
@pytest.mark.parametrize("objective", ["nll", "contrast", "logit", "kl"])
def test_rows_are_those_of_plain_autograd(
    architecture: LoadedModel, objective: str, positions: str, line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LINE", line)
    examples = [
        Example(
            prompt=e.prompt,
            target=e.target,
            foil=e.foil,
            span=(len(e.prompt) - 4, len(e.prompt) - 1),
            distribution={"e": 1.0},
        )
        for e in CORPUS
    ]
    sequences = tokenize(architecture, examples, objective=objective, positions=positions)
    branches = [branch for example in sequences for branch in example]
    sites = architecture.find_hooks(HOOKS)
    take = ResidualGradients(architecture, sites, activations=True)
    groups = list(by_shared_budget(branches, 20))
    assert len(groups) > 1 and sorted(b.example for g in groups for b in g) == sorted(b.example for b in branches)
    block = merge_rows([take(share(group, architecture.device)) for group in groups], sequences)
    plain = merge_rows([take(share([branch], architecture.device)) for branch in branches], sequences)
    for site in sites:
        expected = one_at_a_time(architecture, sequences, site)
        found, norms = block.gradients[site.name], np.linalg.norm(expected, axis=1)
        assert (np.linalg.norm(found - expected, axis=1) <= 1e-3 * norms).all(), site.name
        np.testing.assert_allclose(
            block.gradients[f"{site.name}:activation"], plain.gradients[f"{site.name}:activation"], rtol=1e-3, atol=1e-4
        )
    for name in ("example", "position", "token", "target"):
        np.testing.assert_array_equal(getattr(block, name), getattr(plain, name))
    np.testing.assert_allclose(block.loss, plain.loss, rtol=1e-4, atol=1e-5)


def test_each_beginning_is_computed_once(tiny: LoadedModel) -> None:
    sequences = [s for (s,) in tokenize(tiny, CORPUS)]
    batch = share(sequences, tiny.device)
    assert batch.heads is not None and batch.heads.ids_LN.shape == (1, nodes(sequences))
    tails = sum(len(s.ids) - len(head_of(s)) for s in sequences)
    assert batch.ids_LS.shape == (1, tails) and batch.n_tokens == sum(len(s.ids) for s in sequences)
    assert saving(sequences, 0.5) == pytest.approx(1.5 * batch.n_tokens / (nodes(sequences) + 1.5 * tails))
    groups = list(by_shared_budget(sequences, 10))
    assert all(nodes(g) + sum(len(s.ids) - len(head_of(s)) for s in g) <= 10 or len(g) == 1 for g in groups)


@pytest.mark.parametrize("name", CONFIGS)
def test_sharing_is_tried_before_it_is_relied_on(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Where a model takes our masks otherwise than meant, nothing is shared; where it does, rows are exact."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    loaded = wrap_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)), tokenizer, name)
    task = HarvestTask.of(loaded, CORPUS, HarvestConfig(hooks=HOOKS, positions="prediction"), None)
    choices = task.choose()
    assert choices.shared == (name in SHARED)
    block = task.block(task.make(choices), choices, [b for e in task.sequences for b in e])
    assert block is not None
    for site in task.hooks:
        expected = one_at_a_time(loaded, task.sequences, site)
        apart = np.linalg.norm(block.gradients[site.name] - expected, axis=1)
        assert (apart <= 1e-3 * np.linalg.norm(expected, axis=1)).all(), site.name


def test_nothing_is_shared_where_it_saves_nothing_or_is_not_wanted(tiny: LoadedModel) -> None:
    for config in (HarvestConfig(positions="all"), HarvestConfig(share_prefixes=False), HarvestConfig(padding="left")):
        assert not HarvestTask.of(tiny, CORPUS, config, None).choose().shared
    one = [Example(prompt="The", target=" capital of France is Paris")]
    assert not HarvestTask.of(tiny, one * 2, HarvestConfig(positions="prediction"), None).choose().shared


def test_lines_stay_short_however_often_a_beginning_is_there(tiny: LoadedModel) -> None:
    """Attention takes the square of a line, in time and memory."""
    sequences = [s for (s,) in tokenize(tiny, CORPUS * 50, positions="prediction")]
    longest = max(len(s.ids) for s in sequences)
    batch = share(sequences, tiny.device)
    assert batch.heads is not None
    assert batch.ids_LS.shape[1] <= sharing.LINE + longest and batch.heads.ids_LN.shape[1] <= sharing.LINE
    assert len(batch.ids_LS) > 5
