"""Batches of gradients without a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gradatoms
from gradatoms.errors import ConfigError, ExampleError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients import HarvestConfig, harvest
from gradatoms.models import LoadedModel
from gradatoms_store import open_store

HOOK = "blocks.1.hook_resid_post"
CONFIG = HarvestConfig(positions="prediction", unit_examples=3, store_dtype="float32")


def test_a_stream_gives_what_a_store_holds(tiny: LoadedModel, examples: list[Example], tmp_path: Path) -> None:
    harvest(
        tiny,
        examples,
        tmp_path / "s.gstore",
        HarvestConfig(hooks=(HOOK,), positions="prediction", store_dtype="float32"),
    )
    store = open_store(tmp_path / "s.gstore")
    stored = store.read(HOOK, np.lexsort((store.rows["position"], store.rows["example"])))
    stream = gradatoms.stream(tiny, examples, HOOK, config=CONFIG)
    batches = list(stream.batches(4))
    assert [len(batch.norms) for batch in batches] == [4] * (len(stream) // 4) + [len(stream) % 4] * (
        len(stream) % 4 > 0
    )
    assert len(stream) == store.n_rows and stream.d == 32
    np.testing.assert_allclose(np.concatenate([b.norms for b in batches]), stored.norms, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([b.gradients for b in batches]), stored.gradients, atol=1e-5)
    for name, values in stored.rows.items():
        np.testing.assert_allclose(np.concatenate([b.rows[name] for b in batches]), values, rtol=1e-5)


def test_a_shuffled_pass_holds_every_row_once_in_an_order_of_its_own(
    tiny: LoadedModel, examples: list[Example]
) -> None:
    stream = gradatoms.stream(tiny, examples, HOOK, config=CONFIG)

    def order(seed: int | None, epochs: int = 1) -> list[tuple[int, int]]:
        found = [b.rows for b in stream.batches(5, shuffle=seed, epochs=epochs)]
        return [(int(e), int(p)) for rows in found for e, p in zip(rows["example"], rows["position"], strict=True)]

    plain, one, two = order(None), order(0), order(1)
    assert sorted(one) == sorted(two) == plain and one != two and order(0) == one
    twice = order(0, epochs=2)
    assert twice[: len(one)] == one and twice[len(one) :] != one and sorted(twice[len(one) :]) == plain


@pytest.mark.parametrize(
    "config",
    [
        gradatoms.OnlineConfig(n_atoms=8, epochs=2, batch_size=32),
        gradatoms.TopKConfig(n_atoms=8, k=2, epochs=3, batch_size=32),
    ],
    ids=lambda config: config.method,
)
def test_fit_learns_from_a_stream(tiny: LoadedModel, config: gradatoms.OnlineConfig, tmp_path: Path) -> None:
    """As from a store of the same examples: both explain them far better than atoms at random."""
    examples = read_examples("builtin:corrections", limit=96)
    stream = gradatoms.stream(tiny, examples, HOOK, config=HarvestConfig(unit_examples=32))
    harvest(tiny, examples, tmp_path / "s.gstore", HarvestConfig(hooks=(HOOK,)))
    store = open_store(tmp_path / "s.gstore")
    pushes = np.concatenate([-batch.gradients for batch in stream])
    rng = np.random.default_rng(0)

    def unexplained(atoms: gradatoms.dictionary.base.Atoms) -> float:
        centred = pushes - pushes.mean(axis=0)
        return float(((pushes - atoms.decode(atoms.encode(pushes))) ** 2).sum() / (centred**2).sum())

    streamed, stored = gradatoms.fit(stream, config), gradatoms.fit(store, config)
    noise = gradatoms.fit(rng.standard_normal(pushes.shape).astype(np.float32), config)
    assert streamed.hook == HOOK and len(streamed) == 8
    assert unexplained(streamed) == pytest.approx(unexplained(stored), abs=0.1)
    assert unexplained(streamed) < 0.8 * unexplained(noise)


def test_what_a_stream_cannot_do_is_refused(tiny: LoadedModel, examples: list[Example]) -> None:
    with pytest.raises(ExampleError, match="at least one example"):
        gradatoms.stream(tiny, [])
    with pytest.raises(ConfigError, match="one hook"):
        gradatoms.stream(tiny, examples, config=HarvestConfig(hooks=(HOOK,)))
    with pytest.raises(ConfigError, match="size"):
        next(gradatoms.stream(tiny, examples).batches(0))
