"""Migrations, for real, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from backend.database import Database
from backend.migrate import current_revision, downgrade, head_revision, migrate
from backend.tables import Base
from tests.support.databases import TEMPLATE
from tests.support.postgres import PostgresServer

_numbers = count()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables; on SQLite not even a file or a folder."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'new' / 'folder' / 'n2n.db'}")
        yield database
        database.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"empty{next(_numbers)}"
    database = Database(server.create(name))
    yield database
    database.dispose()
    server.drop(name)


def differences(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def test_up_down_up(empty: Database) -> None:
    migrate(empty)
    assert current_revision(empty) == head_revision()
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}
    assert differences(empty) == []
    migrate(empty)  # again: nothing to do
    downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    assert current_revision(empty) is None
    migrate(empty)
    assert differences(empty) == []


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    if empty.path is not None:
        empty.path.parent.mkdir(parents=True)
    with empty.engine.begin() as connection:
        connection.execute(text("CREATE TABLE transitions (id INTEGER)"))  # in the way of the last table
    with pytest.raises(Exception, match="transitions"):
        migrate(empty)
    assert tables(empty) == {"transitions"}


def test_constraints_are_enforced(database: Database) -> None:
    """Foreign keys are off in SQLite unless each connection turns them on."""
    with pytest.raises(Exception, match=r"(?i)foreign key"), database.write() as session:
        session.execute(text("INSERT INTO streams (attempt_id, name, length) VALUES ('a0', 'stdout.log', 1)"))


@pytest.mark.postgres
def test_reads_cannot_write_on_postgres(migrated_postgres: PostgresServer) -> None:
    name = f"reads{next(_numbers)}"
    database = Database(migrated_postgres.create(name, TEMPLATE))
    with pytest.raises(Exception, match="read-only"), database.read() as session:
        session.execute(text("DELETE FROM runs"))
    database.dispose()
    migrated_postgres.drop(name)
