"""kill -9 of the service, and of its database, while clients submit, claim and ship."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.database import Database
from backend.migrate import migrate
from tests.support.crashing import ServerProcess, Storm
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer, start_or_skip

WORKERS = 4


def check_kills(database_url: str, folder: Path, rounds: int, kill: Callable[[ServerProcess], None]) -> None:
    server = ServerProcess(database_url, folder, free_ports(1)[0])
    server.start()
    draw = random.Random(rounds)
    try:
        storm = Storm(server.url, WORKERS)
        with storm.running():
            for _ in range(rounds):
                storm.await_progress(draw.randint(1, 60))
                kill(server)
                storm.lives_again()
            storm.await_progress(20)
        assert len(storm.submitted) > rounds / 4
        storm.check()
    finally:
        server.kill()


def test_the_service_killed_three_times(database_url: str, tmp_path: Path) -> None:
    check_kills(database_url, tmp_path, 3, ServerProcess.restart)


@pytest.mark.slow
def test_the_service_killed_fifty_times(database_url: str, tmp_path: Path) -> None:
    check_kills(database_url, tmp_path, 50, ServerProcess.restart)


def check_restarts_of_postgres(folder: Path, rounds: int) -> None:
    postgres: PostgresServer = start_or_skip()
    try:
        url = postgres.create("n2n")
        postgres.commit_for_good("n2n")
        database = Database(url)
        migrate(database)
        database.dispose()
        check_kills(url, folder, rounds, lambda _: postgres.crash())
    finally:
        postgres.stop()


@pytest.mark.postgres
def test_postgres_restarted_twice(tmp_path: Path) -> None:
    check_restarts_of_postgres(tmp_path, 2)


@pytest.mark.postgres
@pytest.mark.slow
def test_postgres_restarted_twenty_times(tmp_path: Path) -> None:
    check_restarts_of_postgres(tmp_path, 20)
