"""Random damage to a shard's structures, checksums made right again: `python tests/store/attacks/fuzz.py -n 2000`.

The guard must refuse each file, or find in it what libhdf5 finds. Prints one JSON object: files `tried`, `refused` by the
guard, `accepted` by it; of the accepted, `same` to libhdf5 and `unread` by it (stricter than the guard); `wrong`, a list;
and, with `--all`, how libhdf5 fared with all files, each opened and listed in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # forks need a process without threads

import h5py
import numpy as np
from forge import address, header_bounds, lookup3, reseal, write_store

from gradatoms_store import StoreFormatError
from gradatoms_store.guard import Place, inspect_shard
from gradatoms_store.layout import expected_blocks
from gradatoms_store.schema import read_header
from gradatoms_store.sidecar import read_sidecars

HOOKS = tuple(f"blocks.{number}.hook" for number in range(20))
"""So many that their links are in a heap with an index."""

SLOW_SECONDS = 2
ADDRESS_SPACE_BYTES = 2**32
SIGNED = {b"FRHP": 142, b"BTHD": 34, b"BTLF": None, b"FHIB": None, b"FHDB": 512}
"""Structures beside object headers, and the bytes before their checksums; that of FHDB is inside."""

Verdict = tuple[str, Any]


class Sample:
    """A sound shard, and where its structures are."""

    def __init__(self, folder: Path) -> None:
        """Write a store into `folder`, whose first shard it is."""
        store = folder / "s.gstore"
        write_store(store, hooks=HOOKS)
        header = read_header(store)
        sidecar = read_sidecars(store, header)[0]
        self.blocks = expected_blocks(header, sidecar.rows, sidecar.examples)
        self.good = (store / "shards" / sidecar.file).read_bytes()
        parts = {name.rsplit("/", cut)[0] for name in self.blocks for cut in range(3)}
        self.headers = sorted({address(bytearray(self.good), name) for name in {"/", *parts}})
        self.others = [(found.start(), found[0]) for found in re.finditer(rb"FRHP|BTHD|BTLF|FHIB|FHDB", self.good)]

    def damaged(self, rng: random.Random) -> bytes:
        """The shard with one to three changes inside its structures."""
        data = bytearray(self.good)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.7:
                start = rng.choice(self.headers)
                low, high = header_bounds(data, start)
                if start < low < high < len(data) - 4:
                    _change(data, rng, start + 4 if rng.random() < 0.2 else low, high)
                if header_bounds(data, start)[1] < len(data) - 4:
                    reseal(data, start)
            else:
                start, signature = rng.choice(self.others)
                self._change_other(data, rng, start, signature)
        return bytes(data)

    def _change_other(self, data: bytearray, rng: random.Random, start: int, signature: bytes) -> None:
        length = SIGNED[signature] or self._length(start)
        _change(data, rng, start + 4, start + length)
        if signature == b"FHDB":
            data[start + 17 : start + 21] = bytes(4)
            data[start + 17 : start + 21] = lookup3(data[start : start + length]).to_bytes(4, "little")
        else:
            data[start + length : start + length + 4] = lookup3(data[start : start + length]).to_bytes(4, "little")

    def _length(self, start: int) -> int:
        """Where the checksum of a structure of variable length is, found by its being right."""
        return next(
            length
            for length in range(8, 2**12)
            if lookup3(self.good[start : start + length]).to_bytes(4, "little")
            == self.good[start + length : start + length + 4]
        )


def _change(data: bytearray, rng: random.Random, low: int, high: int) -> None:
    """Change something in a range: a byte, a bit, a number, or what comes from elsewhere in the file."""
    at, how = rng.randrange(low, high), rng.random()
    if how < 0.4:
        data[at] = rng.randrange(256)
    elif how < 0.6:
        data[at] ^= 1 << rng.randrange(8)
    elif how < 0.8:
        width = rng.choice((2, 4, 8))
        numbers = (0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), len(data), rng.randrange(2 ** (8 * width)))
        at = min(at, high - width)
        data[at : at + width] = (rng.choice(numbers) % 2 ** (8 * width)).to_bytes(width, "little")
    else:
        length = min(rng.randrange(1, 40), high - at)
        source = rng.randrange(len(data) - length)
        data[at : at + length] = data[source : source + length]


def guarded(sample: Sample, path: Path) -> Verdict:
    """What the guard says of a file: `accepted` with the places, `refused`, or an error that it must not give."""
    start = time.perf_counter()
    try:
        verdict: Verdict = ("accepted", inspect_shard(path, sample.blocks, path.stat().st_size))
    except StoreFormatError as error:
        verdict = ("refused", str(error))
    except Exception as error:
        verdict = ("error", repr(error))
    return ("slow", verdict) if time.perf_counter() - start > SLOW_SECONDS else verdict


def in_child(work: Callable[[], str]) -> str:
    """The answer of a function in a process of its own, or how that process died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
            os.write(writer, work().encode()[:4096])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as found:
        answer = found.read()
    status = os.waitpid(child, 0)[1]
    return f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else answer


def compared(path: Path, places: dict[str, Place]) -> str:
    """Whether libhdf5 finds the datasets of a file where the guard found them."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, place in places.items():
                item = file[name].id
                plain = item.get_create_plist()
                found = (item.get_offset(), item.shape, item.dtype, plain.get_layout(), plain.get_nfilters())
                if found != (place.offset, place.shape, np.dtype(place.dtype), h5py.h5d.CONTIGUOUS, 0):
                    return f"wrong: {name} is {found}, got {place}"
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        return f"unread: {error}"
    return "same"


def listed(path: Path) -> str:
    """Let libhdf5 open a file and everything in it."""
    start = time.perf_counter()
    try:
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(lambda _, item: len(item.attrs) * 0 or None)
        verdict = "opened"
    except MemoryError:
        verdict = "out of memory"
    except Exception:
        verdict = "refused"
    return "slow" if time.perf_counter() - start > SLOW_SECONDS else verdict


def main() -> None:
    """Try damages in the order of their seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    library: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        sample, path = Sample(Path(folder)), Path(folder) / "damaged.h5"
        for seed in range(options.seed, options.seed + options.n):
            data = sample.damaged(random.Random(seed))
            path.write_bytes(data)
            verdict, found = guarded(sample, path)
            counts[verdict] += 1
            answer = in_child(lambda places=found: compared(path, places)) if verdict == "accepted" else ""
            counts[answer.partition(":")[0]] += 1
            if verdict in ("error", "slow") or answer[:5] in ("wrong", "kille"):
                wrong.append(f"seed {seed}: {verdict} {answer or found}"[:300])
            if options.all:
                library[in_child(lambda: listed(path))] += 1
    shown = {name: counts[name] for name in ("refused", "accepted", "same", "unread")}
    print(json.dumps({"tried": options.n, **shown, "wrong": wrong, **({"libhdf5": library} if options.all else {})}))


if __name__ == "__main__":
    main()
