from __future__ import annotations

from collections.abc import Iterator

import pytest

from nanollama.api.client import Client
from tests.support.databases import database_url, migrated_postgres, migrated_sqlite, postgres_server  # noqa: F401
from tests.support.service import serve_database


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:  # noqa: F811
    """The client of a real service."""
    with serve_database(database_url) as url, Client(url) as connected:
        yield connected
