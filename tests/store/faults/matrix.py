"""The corruption matrix: each damage must be found by name, must never give wrong rows, and must be repairable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from check import Finding, inspect, inspect_complete
from children import Job, run
from content import Content, Rows, contents, fill, read_rows
from damage import PAGE, Region, cut, flip, junk, regions, swap, zero
from tally import Bench, Tally

from gradatoms_store import StoreError, StoreFormatError, StoreNotFoundError, open_store, repair_store, verify_store
from gradatoms_store.jsonio import DIGEST, digest_of

UNITS, COMMITTED = 16, 12
"""Units of the plan, and of a store that is damaged before it is complete; every other trial takes one."""


@dataclass(frozen=True)
class Injury:
    """What was done to a store, and what must be said of it."""

    what: str
    stems: frozenset[str]
    """Shards that a report must name."""
    block: str | None = None
    """Dataset that it must name."""
    touched: frozenset[str] = frozenset()
    """Shards that were changed beside those."""


Injure = Callable[[np.random.Generator, Path, int], Injury]
"""Damages a store's `shards/`; given the number of the trial."""


def _matrix(bench: Bench, tally: Tally, injure: Injure) -> None:
    give = contents(bench.folder, UNITS)
    clean: dict[tuple[str, int], tuple[Path, Finding]] = {}
    for rng, folder, where in bench.trials(tally, bench.n):
        content = give(tally.trials)
        units = (UNITS, COMMITTED)[tally.trials % 2]
        key = content.header.dtype, units
        if key not in clean:
            source = bench.folder / f"source-{key[0]}-{units}.gstore"
            clean[key] = source, inspect(fill(source, content.header, content.units, range(units), 30), content)
        source, before = clean[key]
        path = Path(shutil.copytree(source, folder / "s.gstore"))
        injury = injure(rng, path / "shards", tally.trials)
        where = f"{where} ({injury.what}, {content.header.dtype})"
        tally.rows += before.rows
        _must_be_found(tally, path, injury, where)
        _must_not_mislead(tally, path, content, where)
        _must_be_repaired(tally, path, content, before, injury, where)


def _must_be_found(tally: Tally, path: Path, injury: Injury, where: str) -> None:
    problems = verify_store(path).problems
    named = {problem.shard.split(".")[0] for problem in problems if problem.shard}
    blocks = {problem.block for problem in problems}
    texts = [f"{problem.shard} {problem.block}" for problem in problems]
    met = named == injury.stems and (injury.block is None or injury.block in blocks)
    met = met and all(problem.shard in problem.message for problem in problems if problem.shard)
    tally.expect(met, f"{where}: verify was to name {sorted(injury.stems)} {injury.block or ''}, named {texts}")


def _must_not_mislead(tally: Tally, path: Path, content: Content, where: str) -> None:
    """Reading gives committed rows, exactly, or is refused."""
    try:
        store = open_store(path)
        rows = read_rows(store)
        _ = store.rows, store.examples
    except StoreFormatError as error:
        tally.fail_if("\n" in str(error), f"{where}: the refusal has several lines")
        return
    except Exception as error:
        tally.failures.append(f"{where}: reading broke with {type(error).__name__}: {error}")
        return
    wrong = _wrong_rows(rows, content)
    tally.lost += wrong
    tally.fail_if(wrong, f"{where}: {wrong} wrong rows were read")
    tally.fail_if(any(content.examples[e.id] != e for e in store.examples), f"{where}: wrong examples were read")


def _wrong_rows(rows: Rows, content: Content) -> int:
    tokens = rows.fields["token"]
    known = np.isin(tokens, content.rows.fields["token"])
    exact = rows.take(np.flatnonzero(known)).equal(content.rows.take(tokens[known]))
    return int((~known).sum() + (~exact).sum() + len(tokens) - len(np.unique(tokens)))


def _must_be_repaired(tally: Tally, path: Path, content: Content, before: Finding, injury: Injury, where: str) -> None:
    """Repair and resume bring a complete store, and leave the good shards alone."""
    try:
        report = repair_store(path)
    except StoreError as error:
        tally.failures.append(f"{where}: repair refused: {error}")
        return
    good = Finding(
        files={name: digest for name, digest in before.files.items() if name[:5] not in injury.stems | injury.touched}
    )
    found = inspect(path, content, (), good)
    tally.take(found, f"{where}, after the repair")
    missing = tuple(unit for unit in range(UNITS) if unit not in found.units)
    tally.fail_if(report.units != missing, f"{where}: repair says that {report.units} are missing, not {missing}")
    child = run(Job(path, content, 0, 30), path.with_name("resumed.log"))
    tally.fail_if(child.status, f"{where}: the resume ended with {child.error}")
    tally.take(inspect_complete(path, content, found, aside=True), f"{where}, at the end")


def _some_shard(rng: np.random.Generator, shards: Path) -> Path:
    return Path(rng.choice(sorted(map(str, shards.glob("*.h5")))))


def datasets(bench: Bench, tally: Tally) -> None:
    """A bit flipped, or a page zeroed, in each dataset."""

    def injure(rng: np.random.Generator, shards: Path, number: int) -> Injury:
        shard = _some_shard(rng, shards)
        found = [region for region in regions(shard) if region.block]
        region = found[number // 2 % len(found)]
        done = "page zeroed" if (number // 2 // len(found) + number) % 2 and zero(shard, rng, region) else "flip"
        if done == "flip":
            flip(shard, rng, region)
        return Injury(f"{done} in {shard.name} {region.name}", frozenset({shard.stem}), region.block)

    _matrix(bench, tally, injure)


def structures(bench: Bench, tally: Tally) -> None:
    """A bit flipped, or a page zeroed, outside the datasets; and whole pages of the file zeroed, whatever they hold."""

    def injure(rng: np.random.Generator, shards: Path, number: int) -> Injury:
        shard = _some_shard(rng, shards)
        found = [region for region in regions(shard) if not region.block]
        region = found[0] if number % 2 == 0 else found[number // 2 % len(found)]
        region = next(each for each in found if each.name == "structure") if number % 2 == 0 else region
        if number % 4 == 3:
            size = shard.stat().st_size
            start = PAGE * int(rng.integers(-(-size // PAGE)))
            region = Region("page", start, min(start + PAGE, size))
        done = "page zeroed" if number % 4 > 1 and zero(shard, rng, region) else "flip"
        if done == "flip":
            flip(shard, rng, region)
        return Injury(f"{done} in {shard.name} {region.name} at {region.start}", frozenset({shard.stem}))

    _matrix(bench, tally, injure)


def json_files(bench: Bench, tally: Tally) -> None:
    """Sidecars, damaged in every way."""

    def injure(rng: np.random.Generator, shards: Path, number: int) -> Injury:
        sidecar = _some_shard(rng, shards).with_suffix(".json")
        what = _harm_text(sidecar, rng, number)
        return Injury(f"{what} in {sidecar.name}", frozenset({sidecar.stem}))

    _matrix(bench, tally, injure)


def _harm_text(file: Path, rng: np.random.Generator, number: int) -> str:
    """Damage a JSON file so that it means something else; half of the times a flip."""
    whole = Region(file.name, 0, file.stat().st_size)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("page zeroed", partial(zero, file, rng, whole)),
        ("cut by 2", partial(cut, file, 2)),  # without its last byte, a newline, it means the same
        ("cut by 100", partial(cut, file, 100)),
        ("cut by half", partial(cut, file, None)),
        ("emptied", partial(cut, file, whole.stop)),
        ("junk appended", partial(junk, file, rng, 40)),
    ]
    what, way = ("flip", partial(flip, file, rng)) if number % 2 else ways[number // 2 % len(ways)]
    way()
    return what


def header(bench: Bench, tally: Tally) -> None:
    """`store.json`, damaged in every way or removed: nothing is read; restored, the store is whole."""
    content = contents(bench.folder, UNITS)(0)
    source = fill(bench.folder / "source.gstore", content.header, content.units, range(UNITS), 30)
    before = inspect(source, content)
    for rng, folder, where in bench.trials(tally, bench.n):
        path = Path(shutil.copytree(source, folder / "s.gstore"))
        file = path / "store.json"
        good = file.read_bytes()
        what = "removed" if tally.trials % 8 == 7 else _harm_text(file, rng, tally.trials)
        if what == "removed":
            file.unlink()
        tally.rows += before.rows
        for name, use in (("verify", verify_store), ("open", open_store), ("repair", repair_store)):
            try:
                use(path)
            except (StoreFormatError, StoreNotFoundError) as error:
                met = "store.json" in str(error) and "\n" not in str(error)
            else:
                met = False
            tally.expect(met, f"{where} ({what}): {name} was to refuse and to name store.json")
        file.write_bytes(good)
        tally.take(inspect_complete(path, content, before), where)


def lengths(bench: Bench, tally: Tally) -> None:
    """Shards cut, and shards with junk behind them."""
    ways: list[tuple[str, Callable[[Path, np.random.Generator], None]]] = [
        ("cut by 1", lambda file, rng: cut(file, 1)),
        ("cut by 100", lambda file, rng: cut(file, 100)),
        ("cut by half", lambda file, rng: cut(file, None)),
        ("emptied", lambda file, rng: cut(file, file.stat().st_size)),
        ("1 byte of junk", lambda file, rng: junk(file, rng, 1)),
        ("100 bytes of junk", lambda file, rng: junk(file, rng, 100)),
        ("10000 bytes of junk", lambda file, rng: junk(file, rng, 10000)),
    ]

    def injure(rng: np.random.Generator, shards: Path, number: int) -> Injury:
        shard = _some_shard(rng, shards)
        what, way = ways[number % len(ways)]
        way(shard, rng)
        return Injury(f"{what} in {shard.name}", frozenset({shard.stem}))

    _matrix(bench, tally, injure)


def arrangements(bench: Bench, tally: Tally) -> None:
    """Files missing, swapped, doubled, renamed."""
    ways = (_missing, _without_sidecar, _swapped, _swapped_of_one_size, _swapped_pairs, _doubled, _renamed, _moved)

    def injure(rng: np.random.Generator, shards: Path, number: int) -> Injury:
        way = ways[number % len(ways)]
        one = _some_shard(rng, shards)
        others = [file for file in sorted(shards.glob("*.h5")) if file != one]
        stems = way(one, rng.permutation(others).tolist())
        return Injury(f"{way.__name__[1:]}: {', '.join(stems)}", frozenset(stems), touched=frozenset({one.stem}))

    _matrix(bench, tally, injure)


def _missing(one: Path, others: list[Path]) -> list[str]:
    one.unlink()
    return [one.stem]


def _without_sidecar(one: Path, others: list[Path]) -> list[str]:
    one.with_suffix(".json").unlink()
    return [one.stem]


def _swapped(one: Path, others: list[Path]) -> list[str]:
    swap(one, others[0])
    return [one.stem, others[0].stem]


def _swapped_of_one_size(one: Path, others: list[Path]) -> list[str]:
    """Their sizes and structures are the same, so that only hashes tell."""
    by_size: dict[int, list[Path]] = {}
    for file in (one, *others):
        by_size.setdefault(file.stat().st_size, []).append(file)
    pair = max(by_size.values(), key=len)[:2]
    assert len(pair) == 2, "no two shards of one size"
    swap(*pair)
    return [file.stem for file in pair]


def _swapped_pairs(one: Path, others: list[Path]) -> list[str]:
    swap(one, others[0])
    swap(one.with_suffix(".json"), others[0].with_suffix(".json"))
    return [one.stem, others[0].stem]


def _doubled(one: Path, others: list[Path]) -> list[str]:
    """A copy under a new number, with a sidecar made to fit."""
    copy = one.with_name("00050.h5")
    shutil.copy(one, copy)
    data = json.loads(one.with_suffix(".json").read_text()) | {"file": copy.name}
    data.pop(DIGEST, None)
    copy.with_suffix(".json").write_text(json.dumps(data | {DIGEST: digest_of(data)}))
    return [copy.stem]


def _renamed(one: Path, others: list[Path]) -> list[str]:
    one.rename(one.with_name("00050.h5"))
    return [one.stem, "00050"]


def _moved(one: Path, others: list[Path]) -> list[str]:
    """A shard and its sidecar under a new number, which the sidecar does not know."""
    one.rename(one.with_name("00050.h5"))
    one.with_suffix(".json").rename(one.with_name("00050.json"))
    return ["00050"]
