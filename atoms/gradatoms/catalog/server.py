"""``atoms serve``: the catalog as local web pages, rendered here; scripts only make them quicker to use.

Bound to 127.0.0.1, guarded by ``guard.Guard``; what computes is a POST with a token, one job at a time (``worker.Worker``).
Everything a page shows of tokens, prompts and labels is escaped text. Atoms, folders and stores are named by number; no request
holds a path.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from gradatoms.catalog.curves import Curves, curve_of
from gradatoms.catalog.forms import (
    BUSY,
    PAGE,
    ForbiddenError,
    box_of,
    chosen_atoms,
    query_of,
    read_form,
    ride_of,
    texts_of,
)
from gradatoms.catalog.guard import Guard, new_token
from gradatoms.catalog.index import NUMBERS, SORTS, Index, Query, open_index, whole_page
from gradatoms.catalog.meaning import Meanings
from gradatoms.catalog.render import PLOTLY, STATIC, plotly_file, rendered
from gradatoms.catalog.worker import BusyError, Worker
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.io import load_atoms
from gradatoms.dictionary.provenance import folder_of, load_model_of
from gradatoms.errors import AtomsFormatError, ConfigError, GradAtomsError
from gradatoms.labels.judges import EmbeddingJudge
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.progress import Progress, silent
from gradatoms_store import StoreError, open_store

if TYPE_CHECKING:
    from gradatoms.attribution import Attribution
    from gradatoms.catalog.wheel import Ride, Steps
    from gradatoms.models import LoadedModel
    from gradatoms.projector.describe import Describer

T = TypeVar("T")

ON_MAP = 3000
"""Atoms drawn at once; a closer look asks for those in view."""
COMPARED = 200
"""Lines of a comparison."""
SECONDS = 120.0
"""A job that takes longer is given up."""


@dataclass(frozen=True)
class Shelf:
    """What a server shows: a dictionary with its index, and others and stores to compare."""

    atoms: Atoms
    index: Index
    others: Sequence[Atoms] = ()
    stores: Sequence[Path] = ()
    model: str | None = None
    """The model, where it is not the one that the atoms name."""
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return folder_of(self.atoms).name

    @cached_property
    def labels(self) -> dict[int, str]:
        return {r["atom"]: r["label"] for r in self.index.find(Query(limit=-1)).rows if r["label"]}

    def load(self) -> LoadedModel:
        """The model of the atoms."""
        return load_model_of(self.atoms, self.model)

    def describer(self, loaded: LoadedModel) -> Describer | None:
        """The trained projector, opened once; None where there is none."""
        from gradatoms.projector.describe import Describer

        def opened() -> Describer | None:
            try:
                return Describer.open(loaded, self.atoms)
            except AtomsFormatError:
                return None

        return self._once("describer", opened)

    def attribution(self) -> Attribution:
        """The index of documents by atoms, opened once."""
        from gradatoms.attribution import Attribution

        return self._once("attribution", lambda: Attribution(self.atoms))

    def meanings(self) -> Meanings:
        """The search by meaning, with its sentence model, loaded once."""

        def loaded() -> Meanings:
            sentences = EmbeddingJudge()
            return Meanings(self.index, sentences.embed, sentences.name)

        return self._once("meanings", loaded)

    def spectrum(self, number: int) -> dict[str, Any]:
        """What a store holds of each atom, read once."""
        from gradatoms.catalog.compare import spectrum

        return self._once(f"spectrum {number}", lambda: spectrum(self.atoms, open_store(self.stores[number])))

    def _once(self, what: str, make: Callable[[], T]) -> T:
        if what not in self._kept:
            self._kept[what] = make()
        found: T = self._kept[what]
        return found


def open_shelf(
    folder: str | Path,
    *,
    others: Sequence[str | Path] = (),
    stores: Sequence[str | Path] = (),
    model: str | None = None,
    progress: Progress = silent,
) -> Shelf:
    """Open a dictionary for serving; its index is made if it must be.

    Raises:
        AtomsFormatError: a folder is missing or damaged; StoreError: a store is.
    """
    atoms = load_atoms(folder)
    for store in stores:
        open_store(store)
    return Shelf(
        atoms, open_index(atoms, progress=progress), [load_atoms(o) for o in others], [Path(s) for s in stores], model
    )


def create_app(shelf: Shelf, *, hosts: Sequence[str], token: str | None = None) -> FastAPI:
    """The catalog's web application.

    Args:
        hosts: values of the Host header that name this server.
        token: what requests that compute must carry; by default a new one.
    """
    token = token or new_token()
    worker = Worker(shelf.load)
    curves = Curves(shelf.atoms, worker)
    steps: Steps = {}

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await worker.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.add_middleware(Guard, hosts=frozenset(h.lower() for h in hosts), token=token)
    app.state.worker, app.state.token = worker, token
    everywhere = {
        "name": shelf.name, "token": token, "can_compare": bool(shelf.others or len(shelf.stores) > 1),
        "of_weights": shelf.atoms.space == "weights",
    }  # fmt: skip

    def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        text = rendered(template, static=False, root="/", **everywhere, **values)
        return HTMLResponse(text, status_code=status, headers={"cache-control": "no-store"})

    @app.exception_handler(GradAtomsError)
    @app.exception_handler(StoreError)
    async def wrong(request: Request, error: Exception) -> Response:
        return failed(request, 400, str(error))

    @app.exception_handler(404)
    async def missing(request: Request, _: Exception) -> Response:
        return failed(request, 404, "expected a page of this catalog, there is none here")

    def failed(request: Request, status: int, text: str) -> Response:
        if request.url.path.endswith((".json", "/stream")):
            return JSONResponse({"error": text}, status_code=status)
        return page("error.html", status, text=text)

    @app.get("/")
    def catalog(request: Request) -> Response:
        asked = dict(request.query_params)
        query = query_of(asked)
        by_meaning = asked.get("by") == "meaning" and query.text.strip()
        found = shelf.meanings().search(query) if by_meaning else shelf.index.find(query)
        return page(
            "catalog.html",
            asked=asked, found=found, query=query, sorts=SORTS, numbers=NUMBERS, size=PAGE,
            verdicts=shelf.index.values("verdict"), concepts=shelf.index.values("concept")[:500],
            can_mean=EmbeddingJudge.installed(), total=len(shelf.index), hook=shelf.atoms.hook,
        )  # fmt: skip

    @app.get("/map.json")
    def where(request: Request) -> Response:
        return JSONResponse(shelf.index.map(box_of(request.query_params), ON_MAP))

    @app.get("/atom/{number}")
    def atom(number: int) -> Response:
        if not 0 <= number < len(shelf.atoms):
            return page("error.html", 404, text=f"expected an atom from 0 to {len(shelf.atoms) - 1}, got {number}")
        found = whole_page(shelf.index, shelf.atoms, number)
        return page(
            "atom.html", atom=found, curve=curve_of(folder_of(shelf.atoms), number), last=len(shelf.atoms) - 1,
            measuring=curves.state(),
        )  # fmt: skip

    @app.post("/curves")
    async def measure(request: Request) -> Response:
        """Have the curve of one atom (``atom``) or of all measured while the model is idle."""
        asked = await read_form(request, token)
        chosen = chosen_atoms(asked.get("atom", ""), len(shelf.atoms))
        curves.ask(chosen or range(len(shelf.atoms)))
        shown = chosen_atoms(asked.get("shown", ""), len(shelf.atoms))
        return RedirectResponse(f"/atom/{shown[0]}" if shown else "/", status_code=303)

    @app.get("/curves.json")
    def measured() -> Response:
        return JSONResponse(curves.state())

    @app.get("/gradient")
    def gradient() -> Response:
        return page("gradient.html", asked={}, found=None)

    @app.post("/gradient")
    async def read(request: Request) -> Response:
        asked = await read_form(request, token)
        found = await run(lambda loaded: _gradient(shelf, loaded, asked))
        return page("gradient.html", asked=asked, found=found)

    @app.get("/steer")
    def wheel(request: Request) -> Response:
        chosen = chosen_atoms(request.query_params.get("atoms", ""), len(shelf.atoms))
        asked = {"prompt": request.query_params.get("prompt", ""), "atoms": chosen}
        return page("steer.html", asked=asked, rows=shelf.index.rows(chosen), found=None)

    @app.post("/steer")
    async def steered(request: Request) -> Response:
        asked = await read_form(request, token)
        what = ride_of(asked, shelf.atoms, shelf.index)
        latest = {event["kind"]: event async for event in ridden(what)}
        return page("steer.html", asked=asked | {"atoms": what.atoms}, rows=shelf.index.rows(what.atoms), found=latest)

    @app.post("/steer/stream")
    async def streamed(request: Request) -> Response:
        asked = await read_form(request, token)
        what = ride_of(asked, shelf.atoms, shelf.index)  # what is wrong is said before anything is sent
        require_turn()

        async def lines() -> AsyncIterator[str]:
            try:
                async for event in ridden(what):
                    yield json.dumps(event, ensure_ascii=False) + "\n"
            except (GradAtomsError, BusyError) as error:
                yield json.dumps({"kind": "error", "text": str(error) or BUSY}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"cache-control": "no-store"})

    async def ridden(what: Ride) -> AsyncIterator[dict[str, Any]]:
        from gradatoms.catalog.wheel import ride

        events = worker.stream(lambda loaded, job: ride(loaded, shelf.atoms, what, lambda: job.stopped, steps))
        async with aclosing(events):
            async for event in events:
                yield event

    @app.get("/compare")
    def compare(request: Request) -> Response:
        return page("compare.html", **_comparison(shelf, request.query_params), dictionaries=[
            folder_of(o).name for o in shelf.others], stores=[s.name for s in shelf.stores],
        )  # fmt: skip

    async def run(job: Callable[[LoadedModel], Any]) -> Any:
        return await asyncio.wait_for(worker.run(job), SECONDS)

    def require_turn() -> None:
        if worker.full:
            raise BusyError

    @app.exception_handler(BusyError)
    async def busy(request: Request, _: Exception) -> Response:
        response = failed(request, 503, BUSY)
        response.headers["retry-after"] = "2"
        return response

    @app.exception_handler(ForbiddenError)
    async def forbidden(request: Request, _: Exception) -> Response:
        return failed(request, 403, "expected the token of this server's pages; load the page again")

    @app.get(f"/static/{PLOTLY}")
    def plotly() -> Response:
        return FileResponse(plotly_file(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            return page("error.html", 404, text="expected a file of this catalog, there is none of this name")
        return FileResponse(STATIC[name], headers={"cache-control": "no-cache"})

    return app


def _gradient(shelf: Shelf, loaded: LoadedModel, asked: Mapping[str, str]) -> dict[str, Any]:
    from gradatoms.catalog.reading import read_gradient, read_weight_gradient

    texts = texts_of(asked)
    if shelf.atoms.space == "weights":
        return read_weight_gradient(loaded, shelf.attribution(), shelf.labels, texts["prompt"], texts["target"])
    return read_gradient(
        loaded, shelf.atoms, shelf.labels, texts["prompt"], texts["target"],
        foil=texts["foil"] or None, context=texts["context"] or None, describer=shelf.describer(loaded),
    )  # fmt: skip


def _comparison(shelf: Shelf, asked: Mapping[str, str]) -> dict[str, Any]:
    """The matched atoms of another dictionary, or the atoms in which two stores differ; by their numbers."""
    from gradatoms.catalog.compare import By, compare_stores, match_atoms

    chosen = {key: int(asked.get(key, "")) if asked.get(key, "").isdigit() else None for key in ("other", "one", "two")}
    other, one, two = chosen["other"], chosen["one"], chosen["two"]
    by = cast("By | None", asked["by"] if asked.get("by") in get_args(By) else None)
    found: dict[str, Any] = {"chosen": chosen | {"by": by}, "matched": None, "spectra": None, "labels": shelf.labels}
    if other is not None and other < len(shelf.others):
        b = shelf.others[other]
        match = match_atoms(shelf.atoms, b, by)
        found["matched"] = {
            "match": match, "rows": match.rows[:COMPARED],
            "last": match.rows[-COMPARED:][::-1] if len(match.rows) > COMPARED else [],
            "labels": label_texts(load_labels(folder_of(b))), "cosines": [r["cosine"] for r in match.rows],
        }  # fmt: skip
    if one is not None and two is not None and max(one, two) < len(shelf.stores):
        a, b_ = shelf.spectrum(one), shelf.spectrum(two)
        found["spectra"] = {"rows": compare_stores(a, b_)[:COMPARED], "n": [a["rows"], b_["rows"]]}
    return found


def serve(
    shelf: Shelf, *, host: str = "127.0.0.1", port: int = 8765, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until interrupted.

    Args:
        port: 0 takes a free one.
        ready: called with the address once the server listens.

    Raises:
        ConfigError: the port is taken.
    """
    import uvicorn

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"expected a free port, {host}:{port} gave {error.strerror}; choose another --port"
            ) from error
        listening.listen(1024)
        port = listening.getsockname()[1]
        names = {host, "127.0.0.1", "localhost"} if host in ("127.0.0.1", "localhost") else {host}
        app = create_app(shelf, hosts=[f"{name}:{port}" for name in names])
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=5)
        ready(f"http://{host}:{port}/")
        uvicorn.Server(config).run(sockets=[listening])
