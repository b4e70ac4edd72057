from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from backend.app import create_app
from backend.database import Database
from backend.deps import Context
from backend.notifier import Notifier
from backend.settings import Settings
from tests.support.databases import database_url, migrated_postgres, migrated_sqlite, postgres_server  # noqa: F401
from tests.support.service import Caller, ManualClock, serve


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def served(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, str]]:  # noqa: F811
    """One served application for all tests of this process, which give it a context each."""
    path = tmp_path_factory.mktemp("served") / "n2n.db"
    shutil.copy(migrated_sqlite, path)
    app = create_app(Settings(database_url=f"sqlite:///{path}"))
    with serve(app) as url:
        yield app, url


@pytest.fixture
def context(served: tuple[FastAPI, str], database: Database, clock: ManualClock) -> Context:
    """The parts of the service: a fresh database and the manual clock."""
    settings = Settings(database_url="sqlite:///unused")
    context = Context(settings=settings, database=database, notifier=Notifier(), clock=clock)
    served[0].state.context = context
    return context


@pytest.fixture
def http(served: tuple[FastAPI, str], context: Context) -> Iterator[httpx.Client]:
    """A client of the service."""
    with httpx.Client(base_url=f"{served[1]}/api/v1", timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def caller(http: httpx.Client) -> Caller:
    """Short forms of what people and workers ask."""
    return Caller(http)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:  # noqa: F811
    """A fresh database without a service."""
    opened = Database(database_url)
    yield opened
    opened.dispose()
