from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from backend.app import create_app
from backend.settings import Settings
from tests.support.databases import database_url, migrated_postgres, migrated_sqlite, postgres_server  # noqa: F401
from tests.support.service import ManualClock, serve


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def http(
    database_url: str,  # noqa: F811
    clock: ManualClock,
) -> Iterator[httpx.Client]:
    """A client of the application on a port of its own, under the manual clock."""
    app = create_app(Settings(database_url=database_url), clock=clock)
    with serve(app) as url, httpx.Client(base_url=f"{url}/api/v1", timeout=60, trust_env=False) as client:
        yield client
