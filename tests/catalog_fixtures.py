"""A labelled dictionary whose texts are hostile, and a real server in front of it, for the tests of the catalog."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn

from gradatoms.catalog.server import Shelf, create_app, open_shelf
from gradatoms.catalog.worker import Worker
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.labels.label import Label, append_results
from gradatoms.labels.labeler import label_atoms
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.rule import RuleTeacher
from gradatoms.models import load_model

SCRIPT = "<script>alert(1)</script>"
HOSTILE = [
    Example(prompt=f"{SCRIPT} is{i}", target=' "><img src=x onerror=alert(2)>', foil=" '", concept="</td><b>x", meta={})
    for i in range(12)
]
LABELS = {0: f"{SCRIPT} \"'><b>x", 1: "javascript:alert(1) {{ 7*7 }} {% raw %}", 2: "turned \u202e round"}
N_ATOMS = 8


def labelled_folder(model: Path, where: Path, harvest: Callable[..., object] = harvest) -> Path:
    """Atoms of a small model with evidence and labels, on examples of which some are hostile, in ``where``."""
    loaded = load_model(str(model), device="cpu")
    examples = [*read_examples("builtin:corrections", limit=60), *HOSTILE]
    harvest(loaded, examples, where / "s.gstore", HarvestConfig())
    atoms, _ = fit_store(where / "s.gstore", where / "x.atoms", OnlineConfig(n_atoms=N_ATOMS, epochs=4), checks=False)
    few = EvidenceConfig(kl=0.05, contexts=2, tokens=5, random=3, chunk=8)
    label_atoms(atoms, RuleTeacher(), load=lambda: loaded, config=few)
    append_results(where / "x.atoms", [Label(atom=a, label=text, teacher="human") for a, text in LABELS.items()])
    return where / "x.atoms"


@dataclass(frozen=True)
class Served:
    """A server on loopback."""

    url: str
    token: str
    shelf: Shelf
    worker: Worker

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def served(
    folder: Path, others: Sequence[Path] = (), stores: Sequence[Path] = (), model: Path | None = None
) -> Iterator[Served]:
    """The catalog of a folder behind a real socket."""
    with running(
        open_shelf(folder, others=others, stores=stores, model=None if model is None else str(model))
    ) as found:
        yield found


@contextmanager
def running(shelf: Shelf) -> Iterator[Served]:
    """A catalog behind a real socket."""
    listening = uvicorn.Config(lambda scope: None, host="127.0.0.1", port=0, log_level="error").bind_socket()
    port = listening.getsockname()[1]
    app = create_app(shelf, hosts=[f"127.0.0.1:{port}", f"localhost:{port}"])
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{port}", app.state.token, shelf, app.state.worker)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@pytest.fixture(scope="session")
def catalog_folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled atoms with hostile texts; tests leave it as it is."""
    return labelled_folder(small_folder, tmp_path_factory.mktemp("catalog"))


@pytest.fixture(scope="module")
def site(catalog_folder: Path, small_folder: Path) -> Iterator[Served]:
    """A server with a dictionary and two stores to compare."""
    store = catalog_folder.parent / "s.gstore"
    with served(catalog_folder, others=[catalog_folder], stores=[store, store], model=small_folder) as found:
        yield found


@pytest.fixture
def alone(catalog_folder: Path, small_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """A server whose folder a test may change."""
    shutil.copytree(catalog_folder, tmp_path / "x.atoms")
    shutil.copytree(catalog_folder.parent / "s.gstore", tmp_path / "s.gstore")
    with served(tmp_path / "x.atoms", model=small_folder) as found:
        yield found


@pytest.fixture
def bare_folder(catalog_folder: Path, tmp_path: Path) -> Path:
    """The same atoms without labels or evidence."""
    shutil.copytree(catalog_folder, tmp_path / "bare.atoms")
    for name in ("labels.jsonl", "evidence.h5", "catalog.sqlite"):
        (tmp_path / "bare.atoms" / name).unlink(missing_ok=True)
    return tmp_path / "bare.atoms"


@pytest.fixture
def empty_folder(catalog_folder: Path, tmp_path: Path) -> Path:
    """A dictionary without atoms."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "empty.atoms"
    shutil.copytree(catalog_folder, folder)
    for name in ("labels.jsonl", "evidence.h5", "catalog.sqlite", "codes.h5"):
        (folder / name).unlink(missing_ok=True)
    weights = load_file(folder / "sae_weights.safetensors")
    for name, value in weights.items():
        if value.ndim == 2:
            weights[name] = np.ascontiguousarray(value[:0] if name == "W_dec" else value[:, :0])
        elif len(value) == N_ATOMS:
            weights[name] = value[:0]
    save_file(weights, folder / "sae_weights.safetensors")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"atoms": []}))
    return folder
