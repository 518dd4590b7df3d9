"""The suite that every writer of the format passes; all is checked with h5py, json and xxhash, never with this reader."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gradatoms_store.errors import StoreError
from gradatoms_store.schema import ExampleRecord, GradientBlock, HookSpec, StoreHeader
from gradatoms_store.testing.forge import SampleShard, write_store
from gradatoms_store.testing.json_rules import check_header
from gradatoms_store.testing.reading import ROUNDING, packed
from gradatoms_store.testing.rules import check_store
from gradatoms_store.testing.samples import MANY_HOOKS, SAMPLE_HOOKS, UNITS, sample_header, sample_unit
from gradatoms_store.testing.suite import Suite, demand
from gradatoms_store.testing.watch import PATIENCE_SECONDS, Watch, claims, flocked, is_free
from gradatoms_store.testing.written import Unit, assert_holds, committed, units

SEGMENTED_ROWS = 20_000
"""Rows of the unit that a writer should cut to segments."""

WAIT_SECONDS = 0.25
"""How long a writer is kept from the lock."""

_OTHER_HOOKS = (HookSpec(name="other", hf_name="", d=24), SAMPLE_HOOKS[1])
_OTHER: dict[str, Any] = {
    "model": {"name": "tiny/ü🧪\x7f", "sha": "ab13", "d_model": 24},
    "hooks": _OTHER_HOOKS,
    "hooks in another order": SAMPLE_HOOKS[::-1],
    "hooks of another width": (replace(SAMPLE_HOOKS[0], d=25), SAMPLE_HOOKS[1]),
    "hooks of another module": (replace(SAMPLE_HOOKS[0], hf_name="model.layers.4"), SAMPLE_HOOKS[1]),
    "objective": "nll",
    "positions": "last",
    "dtype": "float32",
    "space": "weights",
    "plan": "c0ffef",
    "n_units": UNITS + 1,
    "n_examples": 1,
    "seed": 6,
}
_NOT_FINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "a norm beyond float32": 3e38}


class WriterSuite(Suite):
    """What is on the disk while a writer writes, when it has ended, and when another goes on."""

    refusals: ClassVar[tuple[type[Exception], ...]] = (StoreError,)
    """What the writer raises when it refuses a header or a unit."""

    def create(self, path: Path, header: StoreHeader) -> Any:
        """Make a new store and give its writer; to be given by the subclass, as the next three."""
        raise NotImplementedError

    def resume(self, path: Path, header: StoreHeader) -> Any:
        """Go on writing a store."""
        raise NotImplementedError

    def append(self, writer: Any, unit: int, block: GradientBlock, examples: Sequence[ExampleRecord]) -> None:
        """Append a work unit; it may be committed now or later."""
        raise NotImplementedError

    def close(self, writer: Any) -> None:
        """Commit what was appended and let the store go."""
        raise NotImplementedError

    def cases(self, test: str) -> Sequence[str]:
        """See `Suite`."""
        return list({"test_writes": ROUNDING, "test_refuses_another_header": _OTHER}.get(test, _NOT_FINITE))

    def test_writes(self, tmp_path: Path, case: str) -> None:
        """Three writers, one after the other, leave every row of every unit, and nothing else."""
        path, header = tmp_path / "sample.gstore", sample_header(dtype=case)
        self._write(path, header, units(header, 5, 0, 3), units(header, 2), units(header, 1, 7, 6, 4))
        assert_holds(path, header, units(header, *range(UNITS)))

    def test_writes_a_header_at_once(self, tmp_path: Path) -> None:
        """`store.json` is there before the first shard; a store without units is whole."""
        path, header = tmp_path / "sample.gstore", sample_header()
        writer = self.create(path, header)
        check_header(path / "store.json")
        self.close(writer)
        assert_holds(path, header, {})

    def test_writes_units_without_rows(self, tmp_path: Path) -> None:
        """Units without rows, with examples and without; alone in a shard and with others."""
        path, header = tmp_path / "sample.gstore", sample_header()
        empty = {0: sample_unit(0, header, 0, 0), 1: sample_unit(1, header, 0, 2)}
        self._write(path, header, {0: empty[0]}, units(header, 2) | {1: empty[1]})
        assert_holds(path, header, empty | units(header, 2))

    def test_writes_many_rows(self, tmp_path: Path) -> None:
        """A unit of many rows, in segments."""
        path, header = tmp_path / "sample.gstore", sample_header(hooks=(HookSpec(name="h", hf_name="", d=2),))
        many = {0: sample_unit(0, header, SEGMENTED_ROWS)}
        self._write(path, header, many)
        assert_holds(path, header, many)

    def test_writes_any_hooks(self, tmp_path: Path) -> None:
        """Hooks of many names and widths."""
        path, header = tmp_path / "sample.gstore", sample_header(hooks=MANY_HOOKS, model={}, space="weights", seed=0)
        self._write(path, header, units(header, 0, 1))
        assert_holds(path, header, units(header, 0, 1))

    def test_continues_version_1(self, tmp_path: Path) -> None:
        """A store of version 1 stays one."""
        path, header = tmp_path / "sample.gstore", sample_header(schema_version=1)
        write_store(path, header, [SampleShard.of(header, 0, [0]), SampleShard.of(header, 4, [1])], version=1)
        self._write(path, header, units(header, 2, 3), units(header, 4))
        assert_holds(path, header, units(header, *range(5)))

    def test_never_changes_what_is_committed(self, tmp_path: Path) -> None:
        """Files of committed shards, and `store.json`, stay what they are; new numbers are taken by no other."""
        path, header = tmp_path / "sample.gstore", sample_header()
        write_store(path, header, [SampleShard.of(header, 0, [0]), SampleShard.of(header, 4, [1])])
        files = [path / name for name in packed(path)]
        before = [(file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
        self._write(path, header, units(header, 2, 3), units(header, 4))
        after = [(file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
        for file, was, now in zip(files, before, after, strict=True):
            demand(was == now, f"{file}: a committed file is never touched")
        assert_holds(path, header, units(header, *range(5)))

    def test_commits_whole_files(self, tmp_path: Path) -> None:
        """A file that has its name is whole, and a sidecar comes after its shard."""
        path, header = tmp_path / "sample.gstore", sample_header()
        with Watch(path) as watch:
            self._write(path, header, *(units(header, unit) for unit in range(UNITS)))
        demand(not watch.early, f"{watch.early}: a sidecar comes after its shard")
        after = packed(path)
        for name, content in watch.seen.items():
            demand(content == after.get(name), f"{name}: has its name only when it is whole")

    def test_claims_what_it_writes(self, tmp_path: Path) -> None:
        """A writer at work has a claim, and a shared lock on the store's folder; afterwards nothing is held."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, {})
        writer = self.resume(path, header)
        self.append(writer, 1, *sample_unit(1, header))
        claimed = {unit for claim in claims(path).values() for unit in claim["units"]}
        demand(len(claims(path)) == 1, f"{path}: one locked claim a writer in writers/")
        demand(1 in claimed | committed(path), f"{path}: a unit is claimed before it is appended")
        demand(is_free(path / "writers/lock"), f"{path}: writers/lock is held for moments only")
        with flocked(path) as taken:
            demand(not taken, f"{path}: a writer holds a lock on the folder")
        demand(is_free(path, shared=True), f"{path}: a shared one")
        self.close(writer)
        demand(not claims(path), f"{path}: no claim after the end")
        demand(is_free(path), f"{path}: no lock on the folder after the end")
        assert_holds(path, header, units(header, 1))

    def test_waits_for_the_lock(self, tmp_path: Path) -> None:
        """While another holds `writers/lock`, nothing is claimed and nothing committed."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, units(header, 0))
        writer = self.resume(path, header)

        def work() -> None:
            self.append(writer, 1, *sample_unit(1, header))
            self.close(writer)

        thread = threading.Thread(target=work)
        with flocked(path / "writers/lock") as taken:
            demand(taken, f"{path}: writers/lock is held for moments only")
            thread.start()
            thread.join(WAIT_SECONDS)
            claimed = {unit for claim in claims(path).values() for unit in claim["units"]}
            demand(1 not in claimed, f"{path}: writers/lock is held to claim")
            demand(committed(path) == {0}, f"{path}: writers/lock is held to commit")
        thread.join(12 * PATIENCE_SECONDS)
        assert_holds(path, header, units(header, 0, 1))

    def test_leaves_living_writers_alone(self, tmp_path: Path) -> None:
        """Units, shard numbers and files that a living writer has claimed stay its own."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, units(header, 0))
        claim = path / "writers/0000000000000001.json"
        claim.write_text('{"units": [1], "shard": 1}')
        theirs = [path / "shards/00001.h5", path / "shards/00001.json.partial"]
        for file in theirs:
            file.write_bytes(b"in work")
        with flocked(claim):
            writer = self.resume(path, header)
            demand(self._refuses(lambda: self.append(writer, 1, *sample_unit(1, header))), "another's unit is refused")
            self.append(writer, 2, *sample_unit(2, header))
            self.close(writer)
            demand(claim.exists(), f"{claim}: a living writer's claim stays")
            for file in theirs:
                demand(file.read_bytes() == b"in work", f"{file}: a living writer's file stays")
        claim.unlink()
        for file in theirs:
            file.unlink()
        assert_holds(path, header, units(header, 0, 2))

    def test_clears_up_after_dead_writers(self, tmp_path: Path) -> None:
        """Partial files, shards without sidecar and claims that nobody holds are removed, and the units are free."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, units(header, 0))
        (shard,) = (path / "shards").glob("*.h5")
        for name in ("shards/00005.h5", "shards/00006.h5.partial", "shards/00001.h5.partial"):
            shutil.copy(shard, path / name)
        for name in ("shards/00005.json.partial", "store.json.partial", "view.h5.partial"):
            (path / name).write_text("{}")
        (path / "writers/0000000000000001.json").write_text('{"units": [1], "shard": 5}')
        (path / "writers/0000000000000002.json").write_text("")
        self._write(path, header, units(header, 1))
        assert_holds(path, header, units(header, 0, 1))

    def test_refuses_another_header(self, tmp_path: Path, case: str) -> None:
        """A store is resumed only with a header equal in every key."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, units(header, 0))
        before = packed(path)
        other = sample_header(**{case.split(" ")[0]: _OTHER[case]})
        demand(self._refuses(lambda: self.resume(path, other)), f"a header with another value in {case} is refused")
        demand(packed(path) == before, "a refused resume changes nothing")

    def test_refuses_what_is_not_finite(self, tmp_path: Path, case: str) -> None:
        """One gradient that is not finite, or has no finite norm, keeps its unit out of the store."""
        path, header = tmp_path / "sample.gstore", sample_header()
        block, examples = sample_unit(1, header)
        block.gradients[SAMPLE_HOOKS[0].name][7, [3, 4]] = _NOT_FINITE[case]
        writer = self.create(path, header)
        refused = self._refuses(lambda: self.append(writer, 1, block, examples))
        self.append(writer, 2, *sample_unit(2, header))
        refused = self._refuses(lambda: self.close(writer)) or refused
        demand(refused, f"a gradient with {case} is refused")
        check_store(path)
        demand(1 not in committed(path), f"a unit with {case} is not in the store")

    def test_refuses_units_that_are_not_free(self, tmp_path: Path) -> None:
        """A unit is in the store once, and is one of the plan."""
        path, header = tmp_path / "sample.gstore", sample_header()
        self._write(path, header, units(header, 0))
        writer = self.resume(path, header)
        self.append(writer, 1, *sample_unit(1, header))
        for unit in (0, 1, UNITS, -1):
            again = sample_unit(abs(unit), header)
            refused = self._refuses(lambda unit=unit, again=again: self.append(writer, unit, *again))  # type: ignore[misc]
            demand(refused, f"unit {unit} is refused where 0 and 1 are done, of {UNITS}")
        self.close(writer)
        assert_holds(path, header, units(header, 0, 1))

    def _write(self, path: Path, header: StoreHeader, *turns: dict[int, Unit]) -> None:
        """Let writers write, each its own units."""
        for turn in turns:
            writer = self.resume(path, header) if path.exists() else self.create(path, header)
            for unit, (block, examples) in turn.items():
                self.append(writer, unit, block, examples)
            self.close(writer)

    def _refuses(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except self.refusals:
            return True
        return False
