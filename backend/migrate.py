"""Bring a database to the newest schema, and tell whether it is there."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from backend.database import Database

_LOCK = 0x6E326E  # of Postgres, so that two services that start together migrate one after the other


def migrations_folder() -> Path:
    """Where the migrations lie: in the installed package, or in the checkout."""
    package = Path(__file__).parent
    places = (package / "migrations", package.parent / "migrations")
    return next(place for place in places if (place / "env.py").is_file())


def migrate(database: Database, revision: str = "head") -> None:
    """Upgrade the database, all or nothing; makes the folder of an SQLite file."""
    if database.path is not None:
        database.path.parent.mkdir(parents=True, exist_ok=True)
    with database.engine.begin() as connection:
        if not database.sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str) -> None:
    """Take the database back to an older schema, all or nothing."""
    with database.engine.begin() as connection:
        command.downgrade(_config(connection), revision)


def current_revision(database: Database) -> str | None:
    """The schema that the database has; None for an empty one."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """The newest schema."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None, "there are migrations"
    return head


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["connection"] = connection
    return config
