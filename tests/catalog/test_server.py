"""The catalog's server behind a real socket: its pages, what it escapes, and what it turns away."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from catalog_fixtures import HOSTILE, LABELS, N_ATOMS, SCRIPT, Served, served

from gradatoms.catalog.guard import BODY_BYTES, HEADERS
from gradatoms.catalog.render import STATIC, shown_token
from gradatoms.dictionary.provenance import folder_of

PAGES = (
    *("/", "/?q=is&sort=coherence", "/atom/0", "/atom/1", "/gradient", "/steer", "/steer?atoms=0,1"),
    *("/compare", "/compare?other=0", "/compare?other=0&by=codes", "/compare?one=0&two=1"),
)
ASK = {"prompt": "The capital of France is", "target": " Paris"}
STEER = {"prompt": "The capital", "atoms": "0,1", "alpha_0": "0.5", "alpha_1": "-0.2", "auto": "0", "max_tokens": "4"}


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_whole_and_guarded(site: Served, path: str) -> None:
    with site.client() as client:
        found = client.get(path)
    assert found.status_code == 200 and found.text.rstrip().endswith("</html>")
    assert {k: found.headers[k] for k in HEADERS} == HEADERS
    policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
    assert (
        policy["script-src"] == "'self'" and policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    )
    assert found.headers["cache-control"] == "no-store" and "set-cookie" not in found.headers
    assert not re.search(r"<script(?![^>]* src=)", found.text) and not re.search(r"\son\w+=", found.text)
    for reference in re.findall(r'(?:src|href|action)="([^"]*)"', found.text):
        assert urlsplit(reference).scheme in ("", "data") and not reference.startswith("//"), reference


@pytest.mark.parametrize("path", ["/", "/atom/0", "/atom/1", "/atom/2", "/steer?atoms=0,1,2", "/compare?other=0"])
def test_hostile_text_is_text(site: Served, path: str) -> None:
    with site.client() as client:
        text = client.get(path).text
    assert "<script>alert" not in text and "<img" not in text and "\u202e" not in text
    assert "{{ 7*7 }}" in text or "49" not in text.split("javascript:alert(1)")[-1][:10]
    if path == "/atom/0":
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &#34;&#39;&gt;&lt;b&gt;x" in text
    if path in ("/atom/1", "/"):
        assert "javascript:alert(1) {{ 7*7 }} {% raw %}" in text and 'href="javascript' not in text
    if path == "/atom/2":
        assert "turned \\u202e round" in text


def test_hostile_examples_are_text(site: Served) -> None:
    with site.client() as client:
        pages = [client.get(f"/atom/{a}").text for a in range(N_ATOMS)]
    shown = [p for p in pages if "&lt;script&gt;alert(1)&lt;/script&gt; is" in p]
    assert shown and all("<img" not in p and "</td><b>" not in p for p in pages)
    target = shown_token(HOSTILE[0].target).replace('"', "&#34;").replace(">", "&gt;").replace("<", "&lt;")
    assert any(target in p for p in shown)


def test_data_of_the_map_is_json(site: Served) -> None:
    with site.client() as client:
        found = client.get("/map.json")
    assert found.headers["content-type"] == "application/json" and found.headers["x-content-type-options"] == "nosniff"
    assert found.json()["atom"] == list(range(N_ATOMS)) and found.json()["label"][0] == LABELS[0]


@pytest.mark.parametrize(
    "host, status",
    [("{host}", 200), ("localhost:{port}", 200), ("evil.example", 421), ("evil.example:{port}", 421), ("127.0.0.1", 421),
     ("{host}.evil.example", 421), ("127.0.0.1:1", 421), ("", 421)],
)  # fmt: skip
def test_only_its_own_address_is_answered(site: Served, host: str, status: int) -> None:
    """A foreign name that was made to point here (DNS rebinding) sends itself as the Host."""
    name = host.format(host=site.host, port=site.host.rsplit(":", 1)[1])
    with site.client() as client:
        assert client.get("/", headers={"host": name}).status_code == status
        assert client.get("/atom/0", headers={"host": name}).status_code == status


COMPUTING = ("/gradient", "/steer", "/steer/stream", "/curves")


@pytest.mark.parametrize("path", COMPUTING)
@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "https://{host}"}, {"origin": "http://localhost:1"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_a_post_from_another_site_is_refused(site: Served, path: str, headers: dict[str, str]) -> None:
    sent = {k: v.format(host=site.host) for k, v in headers.items()}
    with site.client() as client:
        assert client.post(path, data=ASK | STEER | {"token": site.token}, headers=sent).status_code == 403


@pytest.mark.parametrize("path", COMPUTING)
@pytest.mark.parametrize("token", [None, "", "x", "é"])
def test_a_post_without_the_token_is_refused(site: Served, path: str, token: str | None) -> None:
    with site.client() as client:
        found = client.post(path, data=ASK | STEER | ({} if token is None else {"token": token}))
    assert found.status_code == 403 and "token" in found.text
    assert site.token not in found.text or path != "/steer/stream"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(site: Served, method: str) -> None:
    with site.client() as client:
        assert client.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    "path",
    ["/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static/..%5cserver.py", "/static/%00", "/static//etc/passwd",
     "/..%2f..%2fetc/passwd", "/atom/..%2f0", "/atom/0%00", "/atom/-1", "/atom/99999999999999999999", "/static/", "/nothing"],
)  # fmt: skip
def test_no_path_leads_out(site: Served, path: str) -> None:
    host, port = site.host.split(":")
    with socket.create_connection((host, int(port))) as raw:  # a client library would tidy the path up
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {site.host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"404", b"422", b"400")
    assert b"root:" not in answer and b"def create_app" not in answer


def test_files_of_the_page_are_served(site: Served) -> None:
    with site.client() as client:
        for name, path in STATIC.items():
            assert client.get(f"/static/{name}").content == path.read_bytes()
        assert len(client.get("/static/plotly.min.js").content) > 10**6


def test_too_much_is_not_read(site: Served) -> None:
    with site.client() as client:
        assert client.post("/gradient", content=b"x" * (BODY_BYTES + 1)).status_code == 413

        def endless() -> object:
            for _ in range(BODY_BYTES // 1024 + 10):
                yield b"x" * 1024

        assert client.post("/gradient", content=endless()).status_code == 413


@pytest.mark.parametrize(
    "changes, said",
    [({"prompt": ""}, "prompt of 1 to"), ({"prompt": "x" * 2001}, "prompt of 1 to"), ({"atoms": ""}, "expected atoms from 0"),
     ({"atoms": "999"}, "expected atoms from 0"), ({"alpha_0": "99"}, "strengths from"), ({"alpha_0": "nan"}, "expected a number"),
     ({"max_tokens": "100000"}, "whole number"), ({"max_tokens": "-3"}, "whole number"), ({"operator": "eval"}, "add, clamp, ablate"),
     ({"positions": "x"}, "last, generated, all"), ({"auto": "1", "kl": "1e9"}, "nats"), ({"seed": "x"}, "whole number")],
)  # fmt: skip
def test_what_is_beyond_a_cap_is_refused(site: Served, changes: dict[str, str], said: str) -> None:
    with site.client() as client:
        for path in ("/steer", "/steer/stream"):
            found = client.post(path, data=STEER | changes | {"token": site.token})
            assert found.status_code == 400 and said in found.text, found.text[:300]


@pytest.mark.parametrize("query", ["sort=evil", "coherence_min=x", "page=-1", "page=99999999999", "density_max=inf"])
def test_a_wrong_query_is_one_clear_line(site: Served, query: str) -> None:
    with site.client() as client:
        found = client.get(f"/?{query}")
    assert found.status_code == 400 and 'role="alert">expected' in found.text


def test_sort_filter_and_search_in_the_address(site: Served) -> None:
    with site.client() as client:
        sorted_page = client.get("/?sort=density").text
        densities = [float(x) for x in re.findall(r'<td class="number">(\d\.\d{3})</td>', sorted_page)]
        found = client.get("/", params={"q": "javascript"}).text
        page_two = client.get("/?page=2")
    assert len(densities) == N_ATOMS and densities == sorted(densities, reverse=True)
    assert ">1 atom<" in found and "/atom/1" in found
    assert page_two.status_code == 200


def test_a_gradient_is_taken_apart(site: Served) -> None:
    with site.client() as client:
        found = client.post("/gradient", data=ASK | {"target": f" {SCRIPT}", "token": site.token})
    assert found.status_code == 200 and 'id="found"' in found.text and "the whole push" in found.text
    assert "<script>alert" not in found.text and "No projector is trained" in found.text
    with site.client() as client:
        wrong = client.post("/gradient", data={"prompt": " ", "target": " x", "token": site.token})
    assert wrong.status_code == 400 and "prompt of 1 to" in wrong.text


def events(site: Served, **changes: str) -> list[dict[str, object]]:
    with (
        site.client() as client,
        client.stream("POST", "/steer/stream", data=STEER | changes, headers={"x-token": site.token}) as found,
    ):
        assert found.status_code == 200, found.read()
        return [json.loads(line) for line in found.iter_lines()]


def test_steering_streams_both_texts(site: Served) -> None:
    found = events(site, max_tokens="6")
    assert found[0]["kind"] == "strength" and found[0]["alpha"] == [0.5, -0.2]
    kinds = [e["kind"] for e in found]
    assert kinds[-2:] == ["effects", "end"] and {"plain", "steered"} <= set(kinds) and not found[-1]["cut"]
    again = events(site, max_tokens="6")
    assert [e for e in found if e["kind"] == "steered"][-1] == [e for e in again if e["kind"] == "steered"][-1]
    automatic = events(site, auto="1", kl="0.05")
    assert automatic[0]["kl"] == pytest.approx(0.05, rel=0.1)


def test_steering_without_scripts_is_a_page(site: Served) -> None:
    with site.client() as client:
        found = client.post("/steer", data=STEER | {"token": site.token, "prompt": f"{SCRIPT} x"})
    assert found.status_code == 200 and "KL" in found.text and "<script>alert" not in found.text


def test_a_client_that_hangs_up_stops_the_work(site: Served) -> None:
    """The next job starts at once, not after the 200 tokens that nobody reads any more."""
    with (
        site.client() as client,
        client.stream(
            "POST", "/steer/stream", data=STEER | {"max_tokens": "200"}, headers={"x-token": site.token}
        ) as found,
    ):
        next(found.iter_lines())
    started = time.monotonic()
    while site_busy(site) and time.monotonic() - started < 30:
        time.sleep(0.05)
    assert events(site)[-1]["kind"] == "end"


def site_busy(site: Served) -> bool:
    with site.client() as client:
        return client.post("/steer/stream", data=STEER | {"token": site.token, "max_tokens": "1"}).status_code == 503


def test_a_thousand_requests_at_once(site: Served) -> None:
    async def ask() -> list[int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=site.url, timeout=120, limits=limits) as client:
            paths = ["/", "/atom/1", "/map.json", "/?q=is"]
            found = await asyncio.gather(*(client.get(paths[i % 4]) for i in range(1000)))
            return [f.status_code for f in found]

    assert asyncio.run(ask()) == [200] * 1000


def test_one_job_at_a_time_and_one_that_waits(site: Served) -> None:
    async def ask() -> list[int]:
        async with httpx.AsyncClient(base_url=site.url, timeout=120) as client:
            found = await asyncio.gather(
                *(client.post("/steer", data=STEER | {"token": site.token, "max_tokens": "30"}) for _ in range(12))
            )
            for f in found:
                assert f.status_code == 200 or (f.status_code == 503 and f.headers["retry-after"])
            return [f.status_code for f in found]

    statuses = asyncio.run(ask())
    assert statuses.count(200) >= 1 and statuses.count(503) >= 1


def test_atoms_without_labels_are_shown(bare_folder: Path, small_folder: Path) -> None:
    with served(bare_folder, model=small_folder) as found, found.client() as client:
        assert client.get("/").text.count("(unlabelled)") == N_ATOMS
        assert "No evidence" in client.get("/atom/0").text
        assert client.get("/compare").status_code == 200 and client.get("/steer?atoms=0").status_code == 200


def test_the_model_is_loaded_when_it_is_first_needed(catalog_folder: Path, small_folder: Path) -> None:
    with served(catalog_folder, model=small_folder) as found, found.client() as client:
        for path in PAGES:
            client.get(path)
        assert not found.worker.loaded
        assert client.post("/steer", data=STEER | {"token": found.token}).status_code == 200
        assert found.worker.loaded


def until(client: httpx.Client, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for _ in range(1200):
        state: dict[str, Any] = client.get("/curves.json").json()
        if ready(state):
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def test_curves_are_measured_while_the_model_is_idle(alone: Served) -> None:
    """The one that was asked for last comes first; a job comes between; what is done is kept and shown."""
    kept = folder_of(alone.shelf.atoms) / "dose.jsonl"
    with alone.client() as client:
        assert "Not measured yet" in client.get("/atom/3").text
        asked = client.post("/curves", data={"token": alone.token, "shown": "5"})
        assert asked.status_code == 303 and asked.headers["location"] == "/atom/5"
        assert "Measuring curves: 0 of 8 done" in client.get("/atom/5").text
        client.post("/curves", data={"token": alone.token, "atom": "3", "shown": "3"})
        begun = time.perf_counter()
        assert client.post("/steer", data=STEER | {"token": alone.token}).status_code == 200
        assert time.perf_counter() - begun < 30 and client.get("/curves.json").json()["running"]
        state = until(client, lambda s: s["done"] >= 2)
        assert state["total"] == N_ATOMS and state["error"] == ""
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [line["atom"] for line in lines[:2]] == [3, 0]
        for line in lines:
            text = client.get(f"/atom/{line['atom']}").text
            assert ("data-curve" in text) == ("failure" not in line)
            assert "failure" not in line or "found none; harvest more examples" in text


def test_a_server_ends_in_the_middle_of_a_curve(alone: Served) -> None:
    with alone.client() as client:
        client.post("/curves", data={"token": alone.token})
        until(client, lambda s: alone.worker.loaded)
    begun = time.perf_counter()
    asyncio.run(alone.worker.close())
    assert time.perf_counter() - begun < 20


def test_why_no_curve_can_be_measured_is_said(alone: Served) -> None:
    shutil.rmtree(folder_of(alone.shelf.atoms).parent / "s.gstore")
    (folder_of(alone.shelf.atoms) / "config.yaml").write_text(
        (folder_of(alone.shelf.atoms) / "config.yaml").read_text().replace("s.gstore", "gone.gstore")
    )
    with served(folder_of(alone.shelf.atoms), model=Path(str(alone.shelf.model))) as found, found.client() as client:
        client.post("/curves", data={"token": found.token, "atom": "0", "shown": "0"})
        assert "expected the store of these atoms" in until(client, lambda s: not s["running"])["error"]
        assert "expected the store of these atoms" in client.get("/atom/0").text


def test_the_first_page_needs_neither_torch_nor_transformers(catalog_folder: Path) -> None:
    code = f"""
import sys
from starlette.testclient import TestClient
from gradatoms.catalog.server import create_app, open_shelf
client = TestClient(create_app(open_shelf({str(catalog_folder)!r}), hosts=["testserver"]))
for path in ("/", "/?q=is", "/atom/0", "/map.json", "/steer?atoms=0"):
    assert client.get(path).status_code == 200, path
print(sorted({{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
