from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from backend.database import Database
from tests.support.waiting import eventually


def test_the_end_waits_for_a_transaction_under_way_and_closes_its_connection(database: Database) -> None:
    entered, leave = threading.Event(), threading.Event()
    connections: list[Any] = []

    def look() -> None:
        with database.read() as session:
            connections.append(session.connection().connection.dbapi_connection)
            entered.set()
            leave.wait(60)

    reader, end = threading.Thread(target=look), threading.Thread(target=database.dispose)
    reader.start()
    assert entered.wait(60)
    end.start()
    eventually(lambda: len(database._ended._waiters) == 1, what="the end waits")  # type: ignore[attr-defined]
    leave.set()
    reader.join(60)
    end.join(60)
    with pytest.raises(Exception, match="closed"):
        connections[0].execute("SELECT 1")


@pytest.mark.parametrize("database_url", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_postgres_compiles_no_queries(database: Database) -> None:
    for transaction in (database.read, database.write):
        with transaction() as session:
            assert session.scalar(text("SHOW jit")) == "off"
