"""A page of ours in headless Chromium, drawn in software, that may speak to this machine only."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]


@contextmanager
def browsing(width: int = 1280, height: int = 800) -> Iterator[tuple[Any, list[str]]]:
    """A page, and a list of what went wrong or went elsewhere: errors of scripts, requests that leave loopback."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here, which drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    trouble: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=SOFTWARE_GL)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and trouble.append(f"console: {said.text}"))
        page.on("request", lambda asked: _note_stranger(asked.url, trouble))
        try:
            yield page, trouble
        finally:
            browser.close()


def _note_stranger(url: str, trouble: list[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
        trouble.append(f"left loopback: {url}")


def drag(page: Any, corners: list[tuple[float, float]]) -> None:
    """Draw with the mouse over the latent map, corners as shares of its width and height."""
    box = page.locator("#plot").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()
