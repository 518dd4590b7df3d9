"""The fault tests: `python tests/store/faults/run.py -n 500`, or `make faults N=500`.

Kills writers, resumes and repairs at exact stages and random times, damages files, fills disks, lets processes meet, and
compares every row with what was given. Ends with a table and, on any failure, with status 1. Equal seeds give equal
choices; the moments of kills from outside, and the order in which processes meet, are the system's.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # forks need a process without threads

import disk
import kills
import matrix
import refusals
import torn
import traffic
from children import end_all
from tally import Bench, Skip, Tally, remove, stage_table, table
from tqdm import tqdm

KINDS = {
    "kill at a stage, 1 writer": (0.13, lambda b, t: kills.at_stages(b, t, 1)),
    "kill at a stage, 2 writers": (0.14, lambda b, t: kills.at_stages(b, t, 2)),
    "kill at a stage, 3 writers": (0.15, lambda b, t: kills.at_stages(b, t, 3)),
    "kill at a random time, 1 writer": (0.08, lambda b, t: kills.at_random_times(b, t, 1)),
    "kill at a random time, 2 writers": (0.08, lambda b, t: kills.at_random_times(b, t, 2)),
    "kill at a random time, 3 writers": (0.08, lambda b, t: kills.at_random_times(b, t, 3)),
    "kill during recovery, twice": (0.2, kills.in_recovery),
    "kill during creation": (0.06, kills.in_creation),
    "kill during repair, twice": (0.08, kills.in_repair),
    "damaged datasets": (0.5, matrix.datasets),
    "damaged structure and gaps": (0.15, matrix.structures),
    "damaged sidecars": (0.25, matrix.json_files),
    "damaged store.json": (0.1, matrix.header),
    "truncated, junk appended": (0.15, matrix.lengths),
    "missing, swapped, doubled, renamed": (0.17, matrix.arrangements),
    "torn last write": (0.12, torn.last_writes),
    "disk full before a shard": (0.06, disk.full_before),
    "disk full at a stage": (0.2, disk.full_at_stages),
    "file-size limit at a stage": (0.1, disk.limited_at_stages),
    "read-only disk": (0.02, disk.read_only_mount),
    "read-only folder": (0.02, disk.read_only_rights),
    "no rename across devices": (0.02, disk.other_device),
    "reader during commits": (0.03, traffic.readers),
    "two writers on one unit": (0.03, traffic.one_unit),
    "resumes at once": (0.05, traffic.resumes),
    "writers that come and go": (0.02, traffic.passers_by),
    "fork that outlives its writer": (0.02, traffic.forks),
    "resume with another header": (0.02, refusals.headers),
    "NaN and Inf": (0.03, refusals.non_finite),
    "zero, tiny and huge gradients": (0.03, refusals.extremes),
}
"""Kind of fault to its share of N, and what tries it."""


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    logging.getLogger("gradatoms_store").addHandler(logging.NullHandler())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.work))
    folder.chmod(0o755)
    tallies: list[Tally] = []
    tqdm.monitor_interval = 0  # no thread
    kinds = [kind for kind in KINDS if not options.only or any(word in kind for word in options.only)]
    try:
        with tqdm(total=len(kinds), unit="kind", disable=None, file=sys.stderr) as bar:
            for kind in kinds:
                bar.set_description(kind)
                tallies.append(_run(kind, folder, options, bar))
                bar.update()
    finally:
        end_all()
        disk.unmount_all(folder)
        if not (options.keep and any(tally.failures for tally in tallies)):
            remove(folder)
    _report(tallies, time.monotonic() - started, options)
    if options.keep and folder.exists():
        print(f"kept in {folder}")
    return int(any(tally.failures for tally in tallies))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=200, help="kills, and in proportion all other faults (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices (default 0)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only kinds of faults whose names hold one of these")
    parser.add_argument("--work", type=Path, help="folder for the stores (default: a new temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials that failed")
    return parser.parse_args()


def _run(kind: str, folder: Path, options: argparse.Namespace, bar: tqdm) -> Tally:
    share, work = KINDS[kind]
    tally = Tally(kind)
    room = folder / kind.replace(" ", "-").replace(",", "")
    room.mkdir()
    room.chmod(0o755)

    def tick() -> None:
        bar.set_postfix_str(f"{tally.trials} trials, {len(tally.failures)} failures")

    n = max(1, round(share * options.n))
    try:
        work(Bench(room, options.seed, n, tick, options.keep), tally)
    except Skip as reason:
        tally.skipped = str(reason)
    except Exception:
        tally.failures.append(f"{kind}: the harness broke: {traceback.format_exc()}")
    if not (options.keep and tally.failures):
        remove(room)
    return tally


def _report(tallies: list[Tally], seconds: float, options: argparse.Namespace) -> None:
    print(table(tallies))
    stages = stage_table(tallies)
    if stages:
        print(f"\nfaults at each stage:\n{stages}")
    for tally in tallies:
        if tally.skipped:
            print(f"skipped: {tally.kind}: {tally.skipped}")
    failures = [failure for tally in tallies for failure in tally.failures]
    print(f"\n{len(failures)} failures; N = {options.n}, seed {options.seed}, {seconds:.0f} s")
    for failure in failures[:40]:
        print(f"FAILED {failure}")


if __name__ == "__main__":
    sys.exit(main())
