"""Build every attack file and see what the library makes of each: `python tests/store/attacks/run.py FOLDER`.

Prints one JSON object a line: the attack, the `step` at which it was refused (`open`, `read` or `verify`; `done` when it was
not), error, message, and the seconds and megabytes that it took; and `verified`, the same of `verify_store` alone. Each is
tried in a process of its own, forked from one that has the library loaded.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # forks need a process without threads

import numpy as np
from forge import ATTACKS, Forge, write_store

import gradatoms_store as gs

HUGE = "sparse_"
"""Attacks with files of terabytes that take no place on the disk; to verify them is to read them."""

PATIENCE_SECONDS = 30
ADDRESS_SPACE_BYTES = 2**30
"""What a trial may map beyond what the loaded library has mapped."""


def build(folder: Path) -> None:
    """All stores, in folders by attack; `valid` has the store that nothing was done to."""
    import content_attacks
    import shard_attacks
    import text_attacks
    import view_attacks

    _ = content_attacks, shard_attacks, text_attacks, view_attacks
    for name, changes in {"valid": {}, "bfloat16": {"dtype": "bfloat16"}, "v1": {"schema_version": 1}}.items():
        (folder / name).mkdir()
        write_store(folder / name / "s.gstore", **changes)
    for name, (module, make) in ATTACKS.items():
        base = "bfloat16" if name.startswith("bfloat16") else "valid"
        make(Forge(folder / base / "s.gstore", folder / name))
        if module == "shard_attacks" and base == "valid":  # the guard goes another way there
            make(Forge(folder / "v1" / "s.gstore", folder / f"{name}-v1"))


def use(path: Path) -> Iterator[str]:
    """Open a store and read all of it, step by step."""
    yield "open"
    store = gs.open_store(path)
    _ = store.info
    yield "read"
    for hook in store.hooks:
        for shuffle in (None, 0):
            for number, _ in enumerate(store.batches(hook, 7, shuffle=shuffle)):
                if number > 20:
                    break
    if store.n_rows < 2**20:
        _ = store.rows
        store.read(store.hooks[0], np.arange(store.n_rows))
    store.select(norm=(0, 1), hook=store.hooks[0], loss=(0, 1), concept="concept")
    _ = store.examples
    yield "verify"
    yield from verify(path)


def verify(path: Path) -> Iterator[str]:
    """Verify a store; its first problem becomes an error."""
    yield "verify"
    for problem in gs.verify_store(path).problems:
        raise gs.StoreFormatError(str(problem))
    yield "done"


def trial(path: Path, steps: Callable[[Path], Iterator[str]] = use) -> dict[str, Any]:
    """Use a store in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with open(writer, "w") as out:
                json.dump(_measured(path, steps), out)
        finally:
            os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.0005)
    with open(reader) as found:
        return json.loads(found.read() or '{"error": "no answer: it hung, or the process died"}')


def _measured(path: Path, steps: Callable[[Path], Iterator[str]]) -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else None
    if pages is not None:
        limit = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, start = _peak_megabytes(), time.perf_counter()
    step, error, message = "", "", ""
    try:
        for reached in steps(path):
            step = reached
    except BaseException as caught:
        error, message = type(caught).__name__, str(caught)
    seconds = time.perf_counter() - start
    megabytes = _peak_megabytes() - before
    return {"step": step, "error": error, "message": message, "seconds": seconds, "megabytes": megabytes}


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(folder: Path) -> None:
    """Build in a process of its own, so that no memory is left over from it; then try each."""
    folder.mkdir(parents=True, exist_ok=True)
    builder = os.fork()
    if builder == 0:
        try:
            build(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(builder, 0)[1] != 0:
        raise SystemExit("expected to build all attacks, got the error above")
    list(use(folder / "valid" / "s.gstore"))
    for path in sorted(folder.iterdir()):
        verified = {} if path.name.startswith(HUGE) else trial(path / "s.gstore", verify)
        print(json.dumps({"attack": path.name, **trial(path / "s.gstore"), "verified": verified}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
