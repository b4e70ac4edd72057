"""Backup, restore and move of whole databases, compared by all that the service answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from backend.__main__ import main
from backend.app import create_app
from backend.database import Database
from backend.migrate import downgrade, migrate
from backend.operations import copying
from backend.operations.backup import BackupError, backup, restore
from backend.operations.copying import Content, copy
from backend.settings import Settings
from tests.support.postgres import PostgresServer
from tests.support.service import Caller, ManualClock, metric_line, serve
from tests.support.whole import answers, fill

_numbers = count()
KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@contextlib.contextmanager
def served(url: str) -> Iterator[Caller]:
    with (
        serve(create_app(Settings(database_url=url), clock=ManualClock())) as address,
        httpx.Client(base_url=f"{address}/api/v1", timeout=60, trust_env=False) as http,
    ):
        yield Caller(http)


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Makes URLs of databases without tables, of a given kind."""
    made: list[str] = []

    def new(kind: str) -> str:
        number = next(_numbers)
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / f'new{number}' / 'n2n.db'}"
        made.append(f"fresh{number}")
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.create(made[-1])

    yield new
    for name in made:
        request.getfixturevalue("postgres_server").drop(name)


@pytest.fixture
def full_url(database_url: str) -> str:
    with served(database_url) as caller:
        fill(caller)
    return database_url


def kind_of(url: str) -> str:
    return "sqlite" if url.startswith("sqlite") else "postgres"


def number_of_tables(url: str) -> int:
    database = Database(url)
    kind = "sqlite_master WHERE type = 'table'" if database.sqlite else "pg_tables WHERE schemaname = 'public'"
    try:
        if database.path is not None and not database.path.exists():
            return 0
        with database.read() as session:
            return int(session.scalar(text(f"SELECT count(*) FROM {kind}")) or 0)
    finally:
        database.dispose()


def check_that_work_goes_on(caller: Caller) -> None:
    """Ids and sequences are free, leases hold, streams are appended to where they end."""
    caller.submit(name="after")
    lease = next(run for run in caller.get("/runs")["items"] if run["name"] == "works")
    (again,) = caller.sync("w")["leases"]  # delivered anew: the worker has lost its memory
    assert again["run_id"] == lease["id"]
    length = caller.put(again, "metrics/rank0.jsonl", b"").json()["length"]
    assert caller.put(again, "metrics/rank0.jsonl", metric_line(900, 900, loss=1.0), offset=length).status_code == 200
    caller.end(again, "SUCCEEDED")
    assert caller.run(lease["id"])["state"] == "SUCCEEDED"


def test_a_restored_database_answers_the_same(full_url: str, new_url: Any, tmp_path: Path) -> None:
    file, target = tmp_path / "backup", new_url(kind_of(full_url))
    with served(full_url) as caller:
        before = answers(caller)
        backup(full_url, file)
    assert len(before) > 200
    restore(file, target)
    with served(target) as caller:
        assert answers(caller) == before
        check_that_work_goes_on(caller)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [], "no partial file stays"


def test_a_backup_while_streams_grow_is_a_prefix(database_url: str, new_url: Any, tmp_path: Path) -> None:
    """Whatever was acknowledged before the backup began is in it; nothing of it is half of a request."""
    lines = [metric_line(i, i, loss=0.5 * i) for i in range(5000)]
    stop, acknowledged = threading.Event(), [0]
    with served(database_url) as caller:
        lease = caller.start()

        def write() -> None:
            offset = 0
            for i, line in enumerate(lines):
                if stop.is_set():
                    return
                reply = caller.put(lease, "metrics/rank0.jsonl", line, offset=offset)
                assert reply.status_code == 200, reply.text
                offset, acknowledged[0] = reply.json()["length"], i + 1

        thread = threading.Thread(target=write)
        thread.start()
        rounds = []
        try:
            for i in range(3):
                target, file = new_url(kind_of(database_url)), tmp_path / f"backup{i}"
                before = acknowledged[0]
                backup(database_url, file)
                rounds.append((before, acknowledged[0], file, target))
        finally:
            stop.set()
            thread.join()
    for before, after, file, target in rounds:
        restore(file, target)
        with served(target) as caller:
            # the service asks from where to go on, the way a worker does
            length = caller.put(lease, "metrics/rank0.jsonl", b"").json()["length"]
            stored = next(n for n in range(len(lines) + 1) if len(b"".join(lines[:n])) == length)
            assert before <= stored <= after + 1  # one more may have been stored, but not yet acknowledged
            series = caller.get(f"/runs/{lease['run_id']}/metrics", max_points=10_000)["series"]
            assert series.get("loss", {"step": []})["step"] == list(range(stored))


def test_refusals_leave_everything_as_it_was(full_url: str, new_url: Any, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    backup(full_url, file)
    whole = file.read_bytes()
    with pytest.raises(BackupError, match="exists"):
        backup(full_url, file)
    with pytest.raises(BackupError, match=r"exists|holds \d+ tables"):
        restore(file, full_url)
    target = new_url(kind_of(full_url))
    for content, reason in (
        (b"", "no backup"),
        (b"words", "no backup"),
        (whole[: len(whole) // 2], "failed|damaged|copy"),
    ):
        bad = tmp_path / "bad"
        bad.write_bytes(content)
        with pytest.raises(BackupError, match=reason):
            restore(bad, target)
        assert number_of_tables(target) == 0
    with pytest.raises(BackupError, match="No such file"):
        restore(tmp_path / "absent", target)
    assert file.read_bytes() == whole
    restore(file, target)


@pytest.mark.postgres
def test_an_empty_database_has_no_backup(new_url: Any, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is empty"):
        backup(new_url("postgres"), tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_a_backup_of_the_other_kind_is_refused(migrated_postgres: PostgresServer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'n2n.db'}"
    database = Database(url)
    migrate(database)
    database.dispose()
    backup(url, tmp_path / "backup")
    with pytest.raises(BackupError, match="n2n db copy"):
        restore(tmp_path / "backup", migrated_postgres.url("migrated"))


@pytest.mark.postgres
def test_a_database_moves_to_the_other_kind_and_back(full_url: str, new_url: Any) -> None:
    with served(full_url) as caller:
        before = answers(caller)
    there = new_url("postgres" if kind_of(full_url) == "sqlite" else "sqlite")
    counts = copy(full_url, there)
    assert counts["runs"] == 43
    assert counts["events"] > 50
    back = new_url(kind_of(full_url))
    assert copy(there, back) == counts
    for url in (there, back):
        with served(url) as caller:
            assert answers(caller) == before
            check_that_work_goes_on(caller)


def test_a_copy_is_all_or_nothing(
    full_url: str, new_url: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = new_url(kind_of(full_url))
    real = copying.content

    def other(connection: Any, table: Any) -> Content:
        found = real(connection, table)
        return Content(found.rows, found.digest ^ 1) if table.name == "metric_columns" else found

    monkeypatch.setattr(copying, "content", other)
    with pytest.raises(BackupError, match="metric_columns came out different"):
        copy(full_url, target)
    monkeypatch.undo()
    assert copy(full_url, target)["runs"] == 43  # the target was left empty
    assert main(["copy", full_url, target]) == 2
    assert "copy to an empty one" in capsys.readouterr().err


def test_what_cannot_be_copied(database_url: str, new_url: Any, tmp_path: Path) -> None:
    for bad in ("nonsense", "mysql://a:secret@b/c"):
        with pytest.raises(BackupError) as caught:
            copy(database_url, bad)
        assert "secret" not in str(caught.value)
    with pytest.raises(BackupError, match="Connection refused"):
        copy(database_url, "postgresql://a:secret@127.0.0.1:1/c")
    absent = f"sqlite:///{tmp_path / 'absent.db'}"
    with pytest.raises(BackupError, match="there is no database"):
        copy(absent, new_url("sqlite"))
    with pytest.raises(BackupError, match="there is no database"):
        backup(absent, tmp_path / "backup")
    assert not (tmp_path / "absent.db").exists()
    database = Database(database_url)
    downgrade(database, "0004")
    database.dispose()
    with pytest.raises(BackupError, match="n2n db upgrade"):
        copy(database_url, new_url("sqlite"))


def test_digests_know_values_and_no_order() -> None:
    rows = [("a", 1, None), ("b", 2.5, b"\x00"), ("c", {"x": [1, 2]}, True)]
    forwards, backwards = Content(), Content()
    for row in rows:
        forwards = forwards.plus(row)
    for row in reversed(rows):
        backwards = backwards.plus(row)
    assert forwards == backwards
    for other in (("a", "1", None), ("a", 1.0, None), ("a1", None), ("a", 1, "None"), ("a", True, None)):
        assert Content().plus(rows[0]) != Content().plus(other)
