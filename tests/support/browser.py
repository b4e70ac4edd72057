"""A headless Chromium for tests: skipped where there is none, a failure under CI=true."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright
from playwright.sync_api import TimeoutError as NotInTime

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 90_000  # milliseconds; only a broken test waits this long


def find_chromium() -> str:
    """Path of a Chromium; without one the test is skipped, or fails under CI=true."""
    for name in (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name) if name else None
        if path:
            return path
    reason = "no Chromium: install the package `chromium`, or set CHROMIUM to its path"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser with a profile of its own."""
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A window of the browser that remembers what went wrong in it and whom it talked to."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        context.set_default_timeout(PATIENCE)
        self.base = base
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.page: Page = context.new_page()
        context.on("request", self._meet)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(f"{m.text} {m.location}") if m.type == "error" else None)

    def _meet(self, request: Request) -> None:
        own = (self.base + "/", self.base.replace("http:", "ws:") + "/", "blob:", "data:")
        if not request.url.startswith(own):
            self.strangers.append(request.url)

    def open(self, path: str) -> Page:
        """Go to a page of the dashboard and wait until its head is drawn; AssertionError with what is there instead."""
        self.page.goto(self.base + path)
        try:
            self.page.locator(".n2n-head h1").first.wait_for()
        except NotInTime:
            there = self.page.locator("body").inner_text()
            raise AssertionError(f"no head on {path}; errors {self.errors}; there is: {there[:2000]!r}") from None
        return self.page

    def complaints(self) -> list[str]:
        """Errors, but for two that a deep link always causes: Streamlit looks for its server under the path first."""
        expected = ("/_stcore/health", "/_stcore/host-config")
        return [e for e in self.errors if not ("404" in e and any(path in e for path in expected))]


@contextlib.contextmanager
def visitor(
    browser: Browser, base: str, *, width: int = 1400, height: int = 900, dark: bool = False
) -> Iterator[Visitor]:
    """A window of its own, without cookies of others."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    try:
        yield Visitor(context, base)
    finally:
        context.close()
