"""Take the pictures of the README: ``python scripts/screenshots.py X.atoms [--with Y.atoms] [--store A.gstore --store B.gstore]``.

Serves the catalog on loopback, opens it in Debian's chromium with playwright, and writes ``docs/img/*.png``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "img"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("atoms")
    parser.add_argument("--atom", type=int, default=5)
    parser.add_argument("--with", dest="others", action="append", default=[])
    parser.add_argument("--store", dest="stores", action="append", default=[])
    parser.add_argument("--prompt", default="In their sport, Lionel Messi plays as a")
    parser.add_argument("--target", default=" forward")
    asked = parser.parse_args()
    more = [w for o in asked.others for w in ("--with", o)] + [w for s in asked.stores for w in ("--store", s)]
    command = [sys.executable, "-m", "gradatoms_cli", "serve", asked.atoms, "--port", "0", *more]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].split("  (")[0].strip()
        OUT.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
            page = browser.new_page(viewport={"width": 1180, "height": 760})
            page.set_default_timeout(180_000)
            _take(page, url, asked)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _take(page: Page, url: str, asked: argparse.Namespace) -> None:
    def shot(name: str) -> None:
        page.screenshot(path=OUT / f"{name}.png")

    page.goto(url)
    page.locator("#map[data-drawn]").wait_for()
    page.locator("#map").scroll_into_view_if_needed()
    shot("map")
    page.goto(f"{url}?sort=coherence")
    shot("catalog")
    page.goto(f"{url}atom/{asked.atom}")
    page.locator("[data-bars] svg.main-svg").first.wait_for()
    shot("atom")
    page.goto(f"{url}gradient")
    page.fill("textarea[name=prompt]", asked.prompt)
    page.fill("input[name=target]", asked.target)
    page.get_by_role("button", name="Take the gradient").click(no_wait_after=True)
    page.locator("#found").scroll_into_view_if_needed()
    shot("gradient")
    page.goto(f"{url}steer?atoms={asked.atom}")
    page.fill("#wheel textarea", "My brother")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Done.").wait_for()
    shot("steer")
    if asked.others:
        page.goto(f"{url}compare?other=0")
        page.locator("[data-values] svg.main-svg").first.wait_for()
        shot("compare")


if __name__ == "__main__":
    main()
