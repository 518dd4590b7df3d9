"""The steps that make a shard part of a store, and the clearing up after a writer that died between them."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np

from gradatoms_store.buffer import RowBuffer
from gradatoms_store.claims import Claims
from gradatoms_store.errors import StoreError
from gradatoms_store.files import PARTIAL, publish, write_text
from gradatoms_store.jsonio import MAX_JSON_BYTES, read_json
from gradatoms_store.layout import example_arrays, expected_blocks, segment_rows
from gradatoms_store.schema import StoreHeader
from gradatoms_store.shard import ShardHashes, write_shard
from gradatoms_store.sidecar import SHARDS, NormSummary, Sidecar, shard_stem

_log = logging.getLogger(__name__)


def commit_shard(path: Path, header: StoreHeader, number: int, buffer: RowBuffer, claims: Claims) -> None:
    """Write shard `number` and its sidecar; on an error nothing of it is left.

    Raises:
        OSError: the disk's.
        StoreError: the claim was lost, so that the units may be another writer's by now.
    """
    shards = path / SHARDS
    shard = shards / f"{shard_stem(number)}.h5"
    sidecar, partial = shard.with_suffix(".json"), shard.with_name(shard.name + PARTIAL)
    examples = example_arrays(buffer.examples)
    text_bytes = {name.split("/")[1]: len(array) for name, array in examples.items() if name.endswith("/data")}
    blocks = expected_blocks(header, buffer.n, len(buffer.examples), text_bytes)
    permutation = np.random.default_rng([header.seed, number]).permutation(buffer.n)
    rows = segment_rows(header)
    pieces = itertools.chain(buffer.pieces(permutation, rows), examples.items())
    published = False
    try:
        hashes = write_shard(
            partial, pieces, blocks, rows if header.schema_version > 1 else None, header.schema_version
        )
        content = _sidecar(header, shard, partial.stat().st_size, buffer, hashes).to_json()
        if len(content) > MAX_JSON_BYTES:
            message = f"{sidecar}: expected at most {MAX_JSON_BYTES} bytes, got {len(content)}"
            raise StoreError(f"{message}; divide the plan into smaller units, or give fewer or shorter concepts")
        with claims.exclusive():
            if not claims.holds() or shard.exists():
                message = (
                    f"{path}: expected to hold shard {number} until its commit, found that others removed the claim"
                )
                raise StoreError(f"{message}; do not clear up the folder of a store that is being written")
            published = True
            publish(partial, shard)
            write_text(sidecar, content)
    except BaseException:
        if not sidecar.exists():
            for file in (partial, sidecar.with_name(sidecar.name + PARTIAL), *([shard] if published else [])):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        raise
    _log.debug("committed %s: %d rows", shard, buffer.n)


def _sidecar(header: StoreHeader, shard: Path, size_bytes: int, buffer: RowBuffer, hashes: ShardHashes) -> Sidecar:
    concept = {example.id: example.concept for example in buffer.examples}
    concepts: Counter[str] = Counter()
    for id_, rows in zip(*np.unique(buffer.rows("example"), return_counts=True), strict=True):
        name = concept[int(id_)]
        if name is not None:
            concepts[name] += int(rows)
    return Sidecar(
        file=shard.name,
        fingerprint=header.fingerprint,
        rows=buffer.n,
        examples=len(buffer.examples),
        bytes=size_bytes,
        units=tuple(sorted(buffer.units)),
        blocks=hashes.blocks,
        norms={hook.name: NormSummary.of(buffer.norms(hook.name)) for hook in header.hooks},
        concepts=dict(sorted(concepts.items())),
        structure=hashes.structure,
        segment_rows=hashes.segment_rows,
        segments=hashes.segments,
        nan_losses=int(np.isnan(buffer.rows("loss")).sum()),
        schema_version=header.schema_version,
    )


def shard_numbers(path: Path) -> set[int]:
    """Numbers that any file in `shards/` bears, committed or not."""
    stems = {file.name.split(".")[0] for file in (path / SHARDS).iterdir()}
    return {int(stem) for stem in stems if stem.isdecimal() and len(stem) < 10}


def committed_units(path: Path, header: StoreHeader, known: set[str]) -> frozenset[int]:
    """Units in committed shards whose sidecars are not `known` yet; their names are added to `known`."""
    found: set[int] = set()
    for file in (path / SHARDS).glob("*.json"):
        if file.name not in known:
            sidecar = Sidecar.from_json(read_json(file), str(file))
            if sidecar.fingerprint == header.fingerprint:
                found |= set(sidecar.units)
            known.add(file.name)
    return frozenset(found)


def remove_leftovers(path: Path, committed: Collection[int], in_work: Collection[int | None]) -> None:
    """Delete what writers that died left: partial files, and shards that are neither committed nor in work.

    Args:
        path: the store; its lock is held (`Claims.exclusive`).
        committed: numbers of committed shards.
        in_work: numbers that living writers have claimed.
    """
    spared = {shard_stem(number) for number in in_work if number is not None}
    stems = spared | {shard_stem(number) for number in committed}
    for file in [*path.glob("*" + PARTIAL), *(path / SHARDS).iterdir()]:
        stem = file.name.split(".")[0]
        partial = file.suffix == PARTIAL and stem not in spared
        uncommitted = file.suffix == ".h5" and stem.isdecimal() and stem not in stems
        if (partial or uncommitted) and file.exists():
            _log.warning("%s: removed, left by a writer that was interrupted before its commit", file)
            file.unlink()
