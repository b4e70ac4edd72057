"""Migrate over the connection that backend.migrate hands over, or $N2N_DATABASE_URL for Alembic's own commands."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection

from backend.database import Database
from backend.settings import load_settings
from backend.tables import Base


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",  # SQLite alters a table by making it anew
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over: Connection | None = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with Database(load_settings(os.environ).database_url).engine.begin() as own:
        run(own)
