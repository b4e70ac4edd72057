"""The pages that show the API, in a real browser: they are drawn, and ask nobody else for anything."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser

from tests.support.browser import visitor
from tests.support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def test_docs_stay_on_this_machine(browser: Browser, served: tuple[FastAPI, str]) -> None:
    with visitor(browser, served[1]) as window:
        window.page.goto(f"{served[1]}/docs")
        window.page.get_by_text("List runs").first.wait_for()
        window.page.get_by_text("List runs").first.click()
        window.page.get_by_role("button", name="Try it out").wait_for()
        assert (window.strangers, window.errors) == ([], [])


def test_redoc_stays_on_this_machine(browser: Browser, served: tuple[FastAPI, str]) -> None:
    """Its script wants a picture from its makers, which the page's policy refuses before anything is sent."""
    with visitor(browser, served[1]) as window:
        refused: list[str] = []
        window.page.on("requestfailed", lambda r: refused.append(r.url) if r.failure == "csp" else None)
        window.page.goto(f"{served[1]}/redoc")
        window.page.get_by_role("heading", name="List runs").first.wait_for()
        eventually(lambda: set(window.strangers) <= set(refused), what="the refusal")
