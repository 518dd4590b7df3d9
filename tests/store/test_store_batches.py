"""Streams and random access: every row once, orders by seed, subsets, bounded pieces."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gradatoms_store import (
    ExampleRecord,
    GradientBatch,
    GradientBlock,
    HookSpec,
    Store,
    StoreValueError,
    StoreWriter,
    open_store,
)
from gradatoms_store.layout import SEGMENT_BYTES, SEGMENT_ROWS, segment_rows


def indices(store: Store, **options: object) -> np.ndarray:
    batches = list(store.batches(store.hooks[0], 7, **options))  # type: ignore[arg-type]
    return np.concatenate([batch.index for batch in batches])


@pytest.fixture
def wide(tmp_path: Path, samples: SimpleNamespace) -> Store:
    """10 shards of 4,000 rows of width 2: more than one block a shard, one chunk and one window of shards."""
    path = tmp_path / "wide.gstore"
    header = samples.header(hooks=(HookSpec(name="h", hf_name="h", d=2),), n_units=10, n_examples=10)
    with StoreWriter.create(path, header, rows_per_shard=4000) as writer:
        for unit in range(10):
            n = 4000
            token = (unit * n + np.arange(n)).astype(np.int32)
            angle = token.astype(np.float64)
            g = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32) * (1 + token[:, None])
            example = np.full(n, unit, np.int64)
            block = GradientBlock(
                gradients={"h": g.astype(np.float32)},
                example=example,
                position=token,
                token=token,
                target=token,
                loss=token.astype(np.float32),
            )
            record = ExampleRecord(id=unit, prompt="p", target="t", foil=None, concept=None, meta="{}")
            writer.append(unit, block, [record])
    return open_store(path)


def check(batch: GradientBatch) -> None:
    """Gradient, norm and row fields of a wide store's batch belong to one another."""
    token = batch.rows["token"].astype(np.float64)
    want = np.stack([np.cos(token), np.sin(token)], 1)
    np.testing.assert_allclose(batch.gradients, want, atol=1e-3)
    np.testing.assert_allclose(batch.norms, 1 + token, rtol=1e-6)


def test_sequential_is_the_storage_order(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    np.testing.assert_array_equal(indices(store), np.arange(samples.n_rows))
    sizes = [len(batch.norms) for batch in store.batches(store.hooks[1], 50)]
    assert sizes == [50, 50, 20]
    whole = store.read(store.hooks[1], np.arange(samples.n_rows))
    np.testing.assert_array_equal(
        np.concatenate([batch.gradients for batch in store.batches(store.hooks[1], 50)]), whole.gradients
    )


def test_shuffled_epoch_has_every_row_once(wide: Store) -> None:
    seen = []
    for batch in wide.batches("h", 999, shuffle=3):
        check(batch)
        seen.append(batch.index)
    assert {len(index) for index in seen[:-1]} == {999}
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(wide.n_rows))


def test_shuffle_mixes_shards_and_blocks(wide: Store) -> None:
    first = next(wide.batches("h", 4096, shuffle=0)).index
    shards = np.unique(first // 4000)
    assert len(shards) >= 5
    assert (np.diff(first) == 1).mean() < 0.01


def test_shuffle_draws_the_shards_at_random(wide: Store) -> None:
    firsts = [next(wide.batches("h", 4096, shuffle=s, buffer_bytes=2**17)).index // 4000 for s in range(6)]
    assert len({frozenset(np.unique(shards).tolist()) for shards in firsts}) > 1
    assert any(9 in shards for shards in firsts)


def test_seed_gives_the_order(store_path: Path) -> None:
    store = open_store(store_path)
    one = indices(store, shuffle=1)
    np.testing.assert_array_equal(one, indices(open_store(store_path), shuffle=1))
    assert not np.array_equal(one, indices(store, shuffle=2))
    assert not np.array_equal(one, np.arange(len(one)))


def test_order_does_not_depend_on_the_batch_size(wide: Store) -> None:
    orders = [
        np.concatenate([batch.index for batch in wide.batches("h", size, shuffle=4)]) for size in (100, 4096, 30000)
    ]
    np.testing.assert_array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])


def test_epochs_differ_and_each_is_whole(store_path: Path, samples: SimpleNamespace) -> None:
    both = indices(open_store(store_path), shuffle=1, epochs=2)
    first, second = np.split(both, 2)
    for part in (first, second):
        np.testing.assert_array_equal(np.sort(part), np.arange(samples.n_rows))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(indices(open_store(store_path), epochs=2), np.tile(np.arange(samples.n_rows), 2))
    assert list(open_store(store_path).batches(samples.hooks[0], 7, epochs=0)) == []


def test_row_subset_by_numbers_and_by_mask(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    mask = store.rows["example"] % 4 == 1
    chosen = np.flatnonzero(mask)
    assert 0 < len(chosen) < samples.n_rows
    np.testing.assert_array_equal(indices(store, rows=mask), chosen)
    given = chosen[::-1].copy()
    np.testing.assert_array_equal(indices(store, rows=given), given)
    shuffled = indices(store, rows=given, shuffle=0)
    np.testing.assert_array_equal(np.sort(shuffled), chosen)
    assert not np.array_equal(shuffled, chosen)
    for batch in store.batches(store.hooks[0], 7, rows=mask, shuffle=0):
        assert (batch.rows["example"] % 4 == 1).all()


def test_read_is_random_access_in_the_given_order(wide: Store) -> None:
    rows = np.array([39999, 0, 17, 0, 4000, 3999, 12345])
    batch = wide.read("h", rows)
    np.testing.assert_array_equal(batch.index, rows)
    check(batch)
    tokens = wide.rows["token"][rows]
    np.testing.assert_array_equal(batch.rows["token"], tokens)


@pytest.mark.parametrize("rows", [[0, 1, 1, 3], [0, 2, 1, 3], [3, 2, 1, 0], [5, 6, 7], [3998, 3999, 4000, 4001], [7]])
def test_read_of_neighbours(wide: Store, rows: list[int]) -> None:
    batch = wide.read("h", np.array(rows))
    check(batch)
    np.testing.assert_array_equal(batch.rows["token"], wide.rows["token"][rows])


def test_rows_that_are_not_there_are_refused(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    for rows in (np.array([-1]), np.array([samples.n_rows]), np.array([0.5]), np.zeros((2, 2), int), np.ones(5, bool)):
        with pytest.raises(StoreValueError, match="rows expected"):
            store.read(samples.hooks[0], rows)


def test_wrong_arguments_are_refused_at_the_call(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    with pytest.raises(
        StoreValueError, match=r"blocks\.3\.hook_resid_post, blocks\.7\.hook_resid_post; got 'blocks\.9'"
    ):
        store.batches("blocks.9", 4)
    with pytest.raises(StoreValueError, match="size"):
        store.batches(samples.hooks[0], 0)
    for seed in (True, -1):
        with pytest.raises(StoreValueError, match="seed"):
            store.batches(samples.hooks[0], 4, shuffle=seed)


def test_batches_are_the_callers_to_change(store_path: Path, samples: SimpleNamespace) -> None:
    store = open_store(store_path)
    before = store.read(samples.hooks[0], np.arange(20)).gradients.copy()
    for batch in store.batches(samples.hooks[0], 7):
        batch.gradients[:] = -1
        batch.norms[:] = -1
    np.testing.assert_array_equal(store.read(samples.hooks[0], np.arange(20)).gradients, before)


@pytest.mark.parametrize("d", [2, 576, 6800, 10**6])
def test_segment_is_bounded(samples: SimpleNamespace, d: int) -> None:
    rows = segment_rows(samples.header(hooks=(HookSpec(name="h", hf_name="h", d=d),)))
    assert SEGMENT_ROWS[0] <= rows <= SEGMENT_ROWS[1]
    assert rows.bit_count() == 1
    assert 2 * d * rows <= SEGMENT_BYTES or rows == SEGMENT_ROWS[0]


def test_a_reader_sees_what_was_committed_when_it_opened(
    tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace
) -> None:
    path = fill(tmp_path / "s.gstore", units=range(4))
    store = open_store(path)
    with StoreWriter.resume(path, samples.header()) as writer:
        writer.append(4, *samples.unit(4))
    assert store.n_rows == 40
    assert len(np.concatenate([batch.index for batch in store.batches(store.hooks[0], 8)])) == 40
    assert open_store(path).n_rows == 50


def assert_same(one: GradientBatch, other: GradientBatch) -> None:
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.gradients, other.gradients)
    np.testing.assert_array_equal(one.norms, other.norms)
    assert list(one.rows) == list(other.rows)
    for field, values in one.rows.items():
        np.testing.assert_array_equal(values, other.rows[field])


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_workers_together_read_the_stream_of_one(wide: Store, shuffle: int | None, n: int) -> None:
    options = {"shuffle": shuffle, "epochs": 2, "buffer_bytes": 2**18}
    alone = list(wide.batches("h", 999, **options))  # type: ignore[arg-type]
    parts = [list(wide.batches("h", 999, worker=(i, n), **options)) for i in range(n)]  # type: ignore[arg-type]
    assert sum(map(len, parts)) == len(alone)
    for number, batch in enumerate(alone):
        assert_same(parts[number % n][number // n], batch)
    rows = np.arange(wide.n_rows)[::-2]
    alone = list(wide.batches("h", 999, rows=rows, shuffle=shuffle))
    parts = [list(wide.batches("h", 999, rows=rows, shuffle=shuffle, worker=(i, n))) for i in range(n)]
    for number, batch in enumerate(alone):
        assert_same(parts[number % n][number // n], batch)


READ = """
import sys, numpy as np
from gradatoms_store import open_store
found = list(open_store(sys.argv[1]).batches("h", 999, shuffle=3, worker=(int(sys.argv[2]), 2)))
np.savez(sys.argv[3], index=np.concatenate([b.index for b in found]), g=np.concatenate([b.gradients for b in found]))
"""


def test_two_processes_read_the_stream_of_one(wide: Store, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    commands = [[sys.executable, "-c", READ, str(wide.path), str(i), str(file)] for i, file in enumerate(files)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    for i, file in enumerate(files):
        alone = list(wide.batches("h", 999, shuffle=3))[i::2]
        found = np.load(file)
        np.testing.assert_array_equal(found["index"], np.concatenate([batch.index for batch in alone]))
        np.testing.assert_array_equal(found["g"], np.concatenate([batch.gradients for batch in alone]))


@pytest.mark.parametrize("buffer_bytes", [1, 5000, 2**20])
@pytest.mark.parametrize("shuffle", [None, 1])
def test_any_buffer_gives_every_row_once(wide: Store, buffer_bytes: int, shuffle: int | None) -> None:
    mask = wide.rows["token"] % 3 != 0
    index = np.concatenate(
        [b.index for b in wide.batches("h", 5000, shuffle=shuffle, rows=mask, buffer_bytes=buffer_bytes)]
    )
    np.testing.assert_array_equal(np.sort(index), np.flatnonzero(mask))
    for batch in wide.batches("h", 5000, shuffle=shuffle, buffer_bytes=buffer_bytes):
        check(batch)


def test_only_the_fields_asked_for_are_read(wide: Store) -> None:
    for rows in (None, np.array([5, 3])):
        (batch,) = wide.batches("h", 50000, fields=("token", "loss"), rows=rows)
        assert list(batch.rows) == ["token", "loss"]
        check(batch)
    assert wide.read("h", np.array([1]), fields=()).rows == {}
    with pytest.raises(StoreValueError, match="fields expected"):
        wide.batches("h", 5, fields=("text",))


def test_weights_set_how_often_a_row_comes(wide: Store) -> None:
    weights = np.random.default_rng(0).exponential(size=wide.n_rows)
    weights[::7] = 0
    weights[100] = 500
    expected = weights * wide.n_rows / weights.sum()
    seen = np.zeros(wide.n_rows)
    for epoch in range(4):
        index = np.concatenate([b.index for b in wide.batches("h", 999, shuffle=epoch, weights=weights)])
        assert len(index) == wide.n_rows
        counts = np.bincount(index, minlength=wide.n_rows)
        assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
        seen += counts
    assert (seen[expected > 0.5] > 0).all()
    assert (seen[::7] == 0).all()
    assert abs(seen[expected < 1].sum() / 4 - expected[expected < 1].sum()) < 0.01 * wide.n_rows
    chosen = np.arange(50, 3050)
    for batch in wide.batches("h", 999, shuffle=0, rows=chosen, weights=weights):
        check(batch)
        assert np.isin(batch.index, chosen).all() and (weights[batch.index] > 0).all()


@pytest.mark.parametrize(
    ("weights", "shuffle"), [(np.ones(40000), None), (np.ones(3), 0), (-np.ones(40000), 0), (np.zeros(40000), 0)]
)
def test_wrong_weights_are_refused(wide: Store, weights: np.ndarray, shuffle: int | None) -> None:
    with pytest.raises(StoreValueError, match="weights expected"):
        wide.batches("h", 5, weights=weights, shuffle=shuffle)


@pytest.mark.parametrize("options", [{}, {"shuffle": 0}, {"shuffle": 0, "weights": True}, {"shuffle": 0, "rows": True}])
def test_memory_while_streaming_follows_the_buffer(tmp_path: Path, samples: SimpleNamespace, options: dict) -> None:
    n, d, buffer_bytes = 16000, 512, 2**21
    path = tmp_path / "s.gstore"
    header = samples.header(hooks=(HookSpec(name="h", hf_name="h", d=d),), n_units=8, n_examples=8, dtype="float32")
    with StoreWriter.create(path, header, rows_per_shard=4000) as writer:
        for unit in range(8):
            numbers = np.arange(n // 8, dtype=np.int32)
            g = np.random.default_rng(unit).standard_normal((n // 8, d)).astype(np.float32)
            fields = {"position": numbers, "token": numbers, "target": numbers, "loss": numbers.astype(np.float32)}
            block = GradientBlock(gradients={"h": g}, example=np.full(n // 8, unit), **fields)
            writer.append(
                unit, block, [ExampleRecord(id=unit, prompt="", target="", foil=None, concept=None, meta="{}")]
            )
    store = open_store(path)
    size_bytes = 4 * d * n
    assert size_bytes > 8 * buffer_bytes
    if "weights" in options:
        options = options | {"weights": np.r_[1e9, np.ones(n - 1)]}
    if "rows" in options:
        options = options | {"rows": np.arange(0, n, 3)}
    tracemalloc.start()
    for _ in store.batches("h", 256, buffer_bytes=buffer_bytes, **options):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < buffer_bytes + 2 * 256 * d * 4 + 2 * SEGMENT_BYTES + 2**20
