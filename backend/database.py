"""Connections and transactions.

One request is one transaction, opened and closed by its endpoint within one thread. As a FastAPI dependency, the half
that closes would queue for a thread while it holds SQLite's write lock, behind threads that wait for that lock.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.columns import dump_json
from backend.settings import parse_database_url

BUSY_SECONDS = 30
DISPOSE_SECONDS = 5.0  # how long transactions under way may hold up the end
POOL_SIZE, POOL_OVERFLOW = 10, 30  # together the threads that serve requests: a thread never waits for a connection


class Database:
    """The engine, and the two kinds of transaction.

    Args:
        url: SQLite or Postgres.

    Raises:
        ValueError: a URL that is neither.
    """

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.url = parsed.render_as_string(hide_password=True)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self.kind = "sqlite" if self.sqlite else "postgresql"
        self.path = Path(parsed.database) if self.sqlite and parsed.database else None
        arguments: dict[str, Any] = (
            {"timeout": BUSY_SECONDS, "check_same_thread": False} if self.sqlite else {"connect_timeout": 10}
        )
        self.engine = create_engine(
            parsed,
            connect_args=arguments,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_pre_ping=not self.sqlite,
            json_serializer=dump_json,
            json_deserializer=json.loads,
        )
        if self.sqlite:
            _prepare_sqlite(self.engine)
            self._reader = self.engine.execution_options(read_only=True)
        else:
            _prepare_postgres(self.engine)
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # SQLite lets one writer in and has the others poll with growing pauses; in our own process they can queue
        self._writer: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if self.sqlite else contextlib.nullcontext()
        )
        self._nonce = secrets.token_hex(4)
        self._watch_lock = threading.Lock()
        self._watch: sqlite3.Connection | None = None
        self._under_way = 0
        self._ended = threading.Condition()

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads, from one snapshot."""
        with self._counted(), Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may write: committed when the block ends, undone when it raises."""
        with self._counted(), self._writer, Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def version(self) -> str:
        """A word that changes with every commit, whoever makes it; only this object's own words compare.

        Two equal ones, one read before and one after, mean that nothing was committed between.
        """
        if not self.sqlite:
            with self._counted(), self.engine.connect() as connection:
                # which transactions are visible: equal snapshots see the same rows
                return f"{self._nonce}.{connection.scalar(text('SELECT pg_current_snapshot()::text'))}"
        with self._watch_lock:
            if self._watch is None:
                # a connection that never writes: the pragma counts the commits of all others, of any process
                self._watch = sqlite3.connect(str(self.path), check_same_thread=False, isolation_level=None)
            (number,) = self._watch.execute("PRAGMA data_version").fetchone()
        return f"{self._nonce}.{number}"

    def dispose(self) -> None:
        """Close every connection, once the transactions under way have given theirs back.

        A stream that is cut off leaves its last look at the database to its thread; a connection that came back to a
        pool that is gone would never be closed.
        """
        with self._ended:
            self._ended.wait_for(lambda: self._under_way == 0, DISPOSE_SECONDS)
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        self.engine.dispose()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._ended:
            self._under_way += 1
        try:
            yield
        finally:
            with self._ended:
                self._under_way -= 1
                self._ended.notify_all()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are ours: see begin
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer don't block each other
        # FULL syncs the log at every commit. NORMAL would survive kill -9 of the service but not a power cut, and a
        # worker deletes nothing yet forgets what it was told is stored: acknowledged means on the disk.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred BEGIN that reads first and writes later fails at once with BUSY, whatever the timeout, when another
        # writer came between: a transaction that may write takes the lock at its start.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_postgres(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        # Lists over very many runs are estimated to be so dear that each query would be compiled, which takes far
        # longer than to run it.
        connection.autocommit = True  # within a transaction the pool's reset would undo it
        connection.execute("SET jit = off")
        connection.autocommit = False


def upsert(session: Session, table: Any) -> Any:
    """An INSERT of the session's own dialect, which has ON CONFLICT."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(table)
