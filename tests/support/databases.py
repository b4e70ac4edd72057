"""Fresh databases at the newest schema, of each kind, as fixtures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from backend.database import Database
from backend.migrate import migrate
from tests.support.postgres import PostgresServer, postgres_server  # noqa: F401 - a fixture

TEMPLATE = "migrated"
_numbers = count()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> PostgresServer:  # noqa: F811
    if TEMPLATE not in postgres_server.databases:
        _migrate(postgres_server.create(TEMPLATE))
    return postgres_server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database at the newest schema, of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "n2n.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("migrated_postgres")
    name = f"t{next(_numbers)}"
    yield server.create(name, TEMPLATE)
    server.drop(name)


def _migrate(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.dispose()
