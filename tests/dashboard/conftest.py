"""The page over a service in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import data
from tests.support.fake_client import FakeClient

Open = Callable[..., AppTest]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The service that the page sees."""
    fake = FakeClient()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
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
