"""All rows from one database into another, of the same kind or not: how SQLite becomes Postgres, and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, Table, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from backend.columns import dump_json
from backend.database import Database
from backend.migrate import current_revision, head_revision, migrate
from backend.operations.backup import BackupError
from backend.rows import batches
from backend.tables import Base

_MODULUS = 1 << 256


@dataclass(frozen=True)
class Content:
    """What a table holds: how many rows, and the sum of their digests, which knows no order."""

    rows: int = 0
    digest: int = 0

    def plus(self, row: tuple[Any, ...]) -> Content:
        """With one row more."""
        found = hashlib.sha256()
        for value in row:
            part = _canonical(value)
            found.update(len(part).to_bytes(8, "big") + part)
        return Content(self.rows + 1, (self.digest + int.from_bytes(found.digest(), "big")) % _MODULUS)


def copy(source_url: str, target_url: str) -> dict[str, int]:
    """Copy one snapshot of a database into an empty one, all or nothing; the number of rows by table.

    The target gets the schema first. Before anything is committed every table is read back and compared by count and
    digest. What the service writes to the source after the snapshot stays there.

    Raises:
        BackupError: a URL that is none, a source without the newest schema, a target that holds rows, a table that came
            out different, or a database that fails.
    """
    try:
        source, target = Database(source_url), Database(target_url)
    except ValueError as error:
        raise BackupError(str(error)) from None
    try:
        _check_source(source)
        migrate(target)
        with source.read() as reading, target.write() as writing:
            connection, counts = writing.connection(), {}
            _check_empty(target, connection)
            for table in Base.metadata.sorted_tables:
                given = _copy_table(reading.connection(), connection, table)
                found = content(connection, table)
                if found != given:
                    raise BackupError(
                        f"the table {table.name} came out different: {found.rows:,} rows instead of {given.rows:,}, or "
                        "other values; nothing was copied"
                    )
                counts[table.name] = given.rows
            if not target.sqlite:
                _reset_sequences(connection)
        return counts
    except (SQLAlchemyError, CommandError, OSError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise BackupError(f"cannot copy {source.url} to {target.url}: {reason}") from None
    finally:
        source.dispose()
        target.dispose()


def content(connection: Connection, table: Table) -> Content:
    """What a table holds."""
    found = Content()
    for batch in batches(connection, table):
        for row in batch:
            found = found.plus(tuple(row.values()))
    return found


def _check_source(source: Database) -> None:
    if source.path is not None and not source.path.is_file():
        raise BackupError(f"there is no database {source.url}")
    found, head = current_revision(source), head_revision()
    if found != head:
        raise BackupError(
            f"the database {source.url} has {f'the schema {found}' if found else 'no schema'}, but {head} is needed; "
            f"run `n2n db upgrade --database-url {source.url}` first"
        )


def _check_empty(target: Database, connection: Connection) -> None:
    full = [t.name for t in Base.metadata.sorted_tables if connection.execute(select(t).limit(1)).first() is not None]
    if full:
        raise BackupError(f"the database {target.url} holds {', '.join(full)}; copy to an empty one")


def _copy_table(source: Connection, target: Connection, table: Table) -> Content:
    given = Content()
    for batch in batches(source, table):
        for row in batch:
            given = given.plus(tuple(row.values()))
        target.execute(insert(table), batch)
    return given


def _canonical(value: Any) -> bytes:
    """A value of a column as the same bytes whichever database it comes from."""
    if isinstance(value, bytes | memoryview):
        return b"b" + bytes(value)
    if isinstance(value, dict | list):
        return b"j" + dump_json(value).encode()
    return f"{type(value).__name__[0]}{value!r}".encode()


def _reset_sequences(connection: Connection) -> None:
    """Numbers go on behind the largest that came along."""
    for table in Base.metadata.sorted_tables:
        for column in table.primary_key.columns:
            sequence = connection.scalar(select(func.pg_get_serial_sequence(table.name, column.name)))
            if sequence is not None:
                newest = connection.scalar(select(func.max(column)))
                connection.execute(
                    text("SELECT setval(:sequence, :value, :used)"),
                    {"sequence": sequence, "value": newest or 1, "used": newest is not None},
                )
