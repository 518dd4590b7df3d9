"""The catalog in a real browser: Debian's chromium, driven over its debugging protocol. Screenshots are kept as artifacts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_fixtures import LABELS, N_ATOMS, Served, served

from gradatoms.catalog.site import export_site
from gradatoms.dictionary.io import load_atoms

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'gradatoms[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs a browser: apt-get install chromium", allow_module_level=True)

Page = sync_api.Page
WAIT = 60_000
"""Milliseconds that a page may take on a busy machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture
def page(browser: object, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A page on which no script fails and nothing is asked of another host; its last view is kept as a screenshot."""
    size = getattr(request, "param", {"width": 1280, "height": 900})
    context = browser.new_context(viewport=size)  # type: ignore[attr-defined]
    found = context.new_page()
    found.set_default_timeout(WAIT)
    wrong: list[str] = []
    asked: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    found.on("request", lambda sent: asked.append(sent.url))
    yield found
    shots = Path(os.environ.get("GRADATOMS_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    found.screenshot(path=str(shots / f"{re.sub(r'[^A-Za-z0-9]+', '_', request.node.name)}.png"), full_page=True)
    context.close()
    assert wrong == []
    assert all(url.startswith(("http://127.0.0.1:", "file://", "data:", "blob:")) for url in asked), asked


def labels_on(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#atoms td.label").all_inner_texts()]


def test_the_catalog_is_searched_sorted_and_mapped(site: Served, page: Page) -> None:
    page.goto(site.url)
    assert len(labels_on(page)) == N_ATOMS and LABELS[0] in labels_on(page)
    page.locator("#map[data-drawn]").wait_for()
    assert page.locator("#map").get_attribute("data-drawn") == str(N_ATOMS)
    page.select_option("#colour", "concept")
    page.locator("th a", has_text="density").click()
    page.locator("th[aria-sort=descending]").wait_for()
    cells = [float(t) for t in page.locator("#atoms tbody tr td:nth-child(5)").all_inner_texts()]
    assert cells == sorted(cells, reverse=True)
    page.locator("th a", has_text="density").click()
    page.locator("th[aria-sort=ascending]").wait_for()
    page.fill("input[name=q]", "javascript")
    page.get_by_role("button", name="Search").click()
    page.locator("#count", has_text="1 atom").wait_for()
    assert labels_on(page) == [LABELS[1]]
    page.fill("input[name=q]", "no such word")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("No atom matches").wait_for()
    page.get_by_role("link", name="Clear").click()
    page.locator("#atoms").wait_for()


def test_an_atom_is_shown_whole_and_its_lines_copied(site: Served, page: Page) -> None:
    page.goto(f"{site.url}/atom/0")
    assert LABELS[0] in page.locator("h1").inner_text()
    for title in ("Lookahead", "Examples", "Where it is active", "Dose and response", "Close atoms", "Reproduce"):
        assert page.get_by_role("heading", name=title, exact=True).count() == 1
    page.locator("[data-bars] svg.main-svg").first.wait_for()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    page.get_by_role("link", name="1 →").click()
    page.wait_for_url("**/atom/1")
    assert page.locator("h1").inner_text().find(LABELS[1]) >= 0


def test_a_gradient_is_taken(site: Served, page: Page) -> None:
    page.goto(f"{site.url}/gradient")
    page.fill("textarea[name=prompt]", "The capital of France is")
    page.fill("input[name=target]", " <b>Paris</b>")
    page.get_by_role("button", name="Take the gradient").click(no_wait_after=True)
    page.locator("#found").wait_for()
    assert page.locator(".stack rect").count() >= 1 and page.locator(".heat").count() >= 4
    assert page.input_value("input[name=target]") == " <b>Paris</b>"


def test_steering_streams_and_stops(site: Served, page: Page) -> None:
    page.goto(f"{site.url}/atom/3")
    page.get_by_role("link", name="Steer with it").click()
    page.fill("#wheel textarea", "Once upon a <i>time</i>")
    page.fill("#wheel input[name=max_tokens]", "6")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Done.").wait_for()
    assert page.locator("#plain").inner_text().startswith("Once upon a <i>time</i>")
    assert "nats on the next token" in page.locator("#strength").inner_text()
    assert "Off target" in page.locator("#effects").inner_text()
    page.fill("#wheel input[name=max_tokens]", "200")
    page.get_by_role("button", name="Generate").click()
    page.locator("#plain .given").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()


def test_dictionaries_and_stores_are_compared(site: Served, page: Page) -> None:
    page.goto(f"{site.url}/compare")
    page.get_by_role("button", name="Match atoms").click()
    page.get_by_role("heading", name="Matched atoms").wait_for()
    assert page.locator("main table tbody tr, main table tr td:first-child").first.inner_text().startswith("1.00")
    page.get_by_role("button", name="Compare spectra").click()
    page.get_by_role("heading", name="Atoms that differ most").wait_for()


def test_a_curve_is_measured_and_shown_when_it_is_there(alone: Served, page: Page) -> None:
    page.goto(f"{alone.url}/atom/3")
    page.get_by_role("button", name="Measure its curve").click()
    page.get_by_text("Measuring curves").wait_for()
    page.locator("[data-curve] svg.main-svg").first.wait_for()
    assert page.get_by_text("held-out examples").count() == 1


@pytest.mark.parametrize("page", [{"width": 360, "height": 740}], indirect=True, ids=["phone"])
@pytest.mark.parametrize("path", ["/", "/atom/0", "/gradient", "/steer?atoms=0,1", "/compare?other=0"])
def test_a_phone_shows_every_page_without_scrolling_sideways(site: Served, page: Page, path: str) -> None:
    page.goto(f"{site.url}{path}")
    page.wait_for_load_state("networkidle")
    width = page.locator("html").bounding_box()
    assert width is not None and width["width"] <= 360
    assert page.locator("body").evaluate("body => document.documentElement.scrollWidth") <= 360


def test_the_keyboard_alone_is_enough(site: Served, page: Page) -> None:
    page.goto(site.url)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the page"
    page.keyboard.press("Enter")
    page.locator("input[name=q]").focus()
    page.keyboard.type("javascript")
    page.keyboard.press("Enter")
    page.locator("#count", has_text="1 atom").wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.locator(":focus").get_attribute("href") == "/atom/1":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/atom/1")


def test_a_bare_dictionary_has_its_pages(bare_folder: Path, small_folder: Path, page: Page) -> None:
    with served(bare_folder, model=small_folder) as found:
        page.goto(found.url)
        assert labels_on(page) == ["(unlabelled)"] * N_ATOMS
        page.locator("#map[data-drawn]").wait_for()
        page.goto(f"{found.url}/atom/0")
        assert page.get_by_text("No evidence").count() == 1


def test_an_empty_catalog_says_so(empty_folder: Path, page: Page) -> None:
    with served(empty_folder) as found:
        page.goto(found.url)
        page.get_by_text("This dictionary has no atoms.").wait_for()
        assert labels_on(page) == [] and page.locator("#map").count() == 0


def test_the_exported_site_opens_from_a_folder(catalog_folder: Path, tmp_path: Path, page: Page) -> None:
    export_site(load_atoms(catalog_folder), tmp_path / "site")
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.locator("#map[data-drawn]").wait_for()
    assert len(labels_on(page)) == N_ATOMS
    page.fill("input[name=q]", "javascript")
    page.locator("#count", has_text="1 atom").wait_for()
    assert labels_on(page) == [LABELS[1]]
    page.fill("input[name=q]", "")
    page.locator("th a", has_text="density").click()
    cells = [float(t) for t in page.locator("#atoms tbody tr td:nth-child(5)").all_inner_texts()]
    assert cells == sorted(cells, reverse=True)
    page.get_by_role("link", name=LABELS[0]).click()
    page.wait_for_url("**/atom/0.html")
    page.locator("[data-bars] svg.main-svg").first.wait_for()
    assert LABELS[0] in page.locator("h1").inner_text()
