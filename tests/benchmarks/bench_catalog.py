"""How quick the catalog's pages are at 50,000 atoms, against 100 ms a page, and the first page after `atoms serve`, against 2 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from catalog_fixtures import N_ATOMS, labelled_folder, running

from gradatoms.catalog.index import FILE, Index, write_rows
from gradatoms.catalog.server import Shelf
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder
from gradatoms.dictionary.io import load_atoms

ATOMS, ROUNDS, PAGE_SECONDS, START_SECONDS = 50_000, 9, 0.1, 2.0
WORDS = "river stone music winter engine paper garden silver doctor island copper letter bridge market".split()


@pytest.fixture(scope="module")
def folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(small_folder, tmp_path_factory.mktemp("catalog"))


@pytest.fixture(scope="module")
def big(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """50,000 atoms of 576 coordinates, each with a page as full as a real one."""
    from gradatoms.catalog.index import open_index

    where = tmp_path_factory.mktemp("big")
    small = open_index(load_atoms(folder))
    rng = np.random.default_rng(0)
    rows, pages = [small.row(a) for a in range(N_ATOMS)], [small.page(a) for a in range(N_ATOMS)]

    def made() -> Iterator[tuple[dict[str, Any], dict[str, Any], tuple[float, float]]]:
        for atom in range(ATOMS):
            label = f"{', '.join(rng.choice(WORDS, 4))} {atom}"
            numbers = {name: float(rng.random()) for name in ("density", "coherence", "stability", "gain")}
            row = (
                (rows[atom % N_ATOMS] or {})
                | numbers
                | {"atom": atom, "label": label, "verdict": ("real", "weak")[atom % 2]}
            )
            yield (
                row,
                (pages[atom % N_ATOMS] or {}) | row | {"promoted": [], "demoted": []},
                tuple(rng.uniform(-1, 1, 2)),
            )

    write_rows(where / FILE, made())
    D = rng.standard_normal((ATOMS, 576)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    return Shelf(
        Atoms(D, np.zeros(576, np.float32), OmpCoder(D[:8], 3), "blocks.1.hook_resid_post", path=where),
        Index(where / FILE),
    )


def test_pages_at_50_000_atoms(big: Shelf) -> None:
    paths = {
        "catalog": "/", "sorted, far down": "/?sort=coherence&page=400", "filtered": "/?sort=density&coherence_min=0.5&verdict=real",
        "search": "/?q=river+stone", "search by meaning": "/?q=river+stone&by=meaning", 
        "search, a word of many": "/?q=river", "atom": "/atom/31415",
        "map": "/map.json",
    }  # fmt: skip
    with running(big) as found, httpx.Client(base_url=found.url, timeout=60) as client:
        print()
        started, calls = time.perf_counter(), 0
        while "have not been read" in client.get(paths["search by meaning"]).text:
            calls += 1
        print(
            f"reading {ATOMS:,} labels for their meaning: {time.perf_counter() - started:.0f} s in {calls + 1} searches"
        )
        for name, path in paths.items():
            took = []
            for _ in range(ROUNDS + 1):  # the first warms up
                started = time.perf_counter()
                assert client.get(path).status_code == 200
                took.append(time.perf_counter() - started)
            median, least, most = statistics.median(took[1:]), min(took[1:]), max(took[1:])
            spread = f"({1000 * least:.0f} to {1000 * most:.0f})"
            print(f"{name}: {1000 * median:.0f} ms {spread}; {median / PAGE_SECONDS:.2f} of 100 ms")


def test_the_first_page(folder: Path) -> None:
    took = []
    for _ in range(4):
        started = time.perf_counter()
        command = [sys.executable, "-m", "gradatoms_cli", "serve", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split("  (")[0].strip()
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.status == 200
            took.append(time.perf_counter() - started)
            server.terminate()
    median, spread = statistics.median(took[1:]), f"({min(took[1:]):.2f} to {max(took[1:]):.2f})"
    print(f"\nfirst page after `atoms serve`: {median:.2f} s {spread}; {median / START_SECONDS:.2f} of 2 s")
