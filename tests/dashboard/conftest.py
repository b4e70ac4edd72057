"""The page over a service in memory; and for tests in a browser, the page as a process over a real service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from playwright.sync_api import Browser
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import data
from dashboard.data import shared
from nanollama.api.client import Client
from tests.support.acting_worker import ActingWorker
from tests.support.browser import Visitor, visitor
from tests.support.fake_client import FakeClient
from tests.support.page import serve_page
from tests.support.service import serve_new_sqlite

Open = Callable[..., AppTest]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The service that the page sees."""
    fake = FakeClient()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
    shared.forget()
    return fake


@pytest.fixture
def visit(client: FakeClient) -> Open:
    """Open a view with its query parameters, as its address does."""

    def visit(view: str = "runs", **params: str) -> AppTest:
        page = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=120)
        for key, value in params.items():
            page.query_params[key] = value
        page.switch_page(f"views/{view}.py").run()
        assert not page.exception
        return page

    return visit


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a new database, for the tests of a file."""
    with serve_new_sqlite(tmp_path_factory.mktemp("service")) as address:
        yield address


@pytest.fixture(scope="module")
def api(service: str) -> Iterator[Client]:
    """A client of that service, where `client` is of the one in memory."""
    with Client(service) as connection:
        yield connection


@pytest.fixture(scope="module")
def worker(api: Client) -> ActingWorker:
    """A worker that does what a test tells it."""
    return ActingWorker(api)


@pytest.fixture(scope="module")
def base(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page over that service; its URL."""
    with serve_page(service, tmp_path_factory.mktemp("page")) as address:
        yield address


@pytest.fixture
def window(browser: Browser, base: str) -> Iterator[Visitor]:
    """A window in which nothing may go wrong, and which may ask nobody but the page's server."""
    with visitor(browser, base) as opened:
        yield opened
        assert opened.strangers == []
        assert opened.complaints() == []
        assert opened.page.evaluate("() => window.hacked") is None
