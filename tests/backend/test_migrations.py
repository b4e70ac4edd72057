"""Migrations, for real, on both databases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, inspect, select, text

from backend.database import Database
from backend.metrics.reader import SeriesReader, View
from backend.metrics.store import MetricStore
from backend.migrate import current_revision, downgrade, head_revision, migrate
from backend.tables import GSSM, Base, Dataset, Run
from nanollama.spec.identity import gssm_hash, path_hash
from nanollama.spec.rundir import encode_line
from tests.backend.test_backup import served
from tests.support.databases import TEMPLATE
from tests.support.postgres import PostgresServer
from tests.support.whole import fill

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


def fill_first_schema(database: Database, text_lines: list[bytes], kept: int) -> None:
    """A run with one stream in the first schema: a row for each line, and the first `kept` bytes as text."""
    tables = MetaData()
    with database.engine.begin() as connection:
        tables.reflect(connection)
        now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        experiment = {"id": "e", "name": "x", "notes": "", "tags": [], "created_at": now}
        run = {
            "id": "r", "experiment_id": "e", "name": "x", "tags": [], "search": "", "priority": 0, "app": "gssm",
            "config": {}, "config_hash": "", "state": "RUNNING", "cancel_requested": False, "attempt": 1,
            "created_at": now, "total_steps": 9, "step": 0, "tokens": 0, "latest": {},
        }  # fmt: skip
        attempt = {
            "id": "a", "run_id": "r", "experiment_id": "e", "number": 1, "priority": 0, "state": "RUNNING", "epoch": 1,
            "new_checkpoints": 0, "created_at": now,
        }  # fmt: skip
        stream = {"attempt_id": "a", "name": "metrics/rank0.jsonl"}
        for name, row in (("experiments", experiment), ("runs", run), ("attempts", attempt)):
            connection.execute(tables.tables[name].insert(), row)
        data, offset = b"".join(text_lines), 0
        connection.execute(tables.tables["streams"].insert(), stream | {"length": len(data)})
        for start in range(0, kept, 700):
            chunk = stream | {"byte_offset": start, "data": data[start : min(start + 700, kept)]}
            connection.execute(tables.tables["stream_chunks"].insert(), chunk)
        for line in text_lines:
            if b"oops" not in line:
                record = json.loads(line)
                shared = {key: record.pop(key) for key in ("seq", "step", "tokens", "time")}
                del shared["seq"]
                row = {"attempt_id": "a", "rank": 0, "byte_offset": offset, "run_id": "r", "attempt": 1, **shared}
                connection.execute(tables.tables["metrics"].insert(), row | {"payload": record})
            offset += len(line)


def metric_rows(database: Database) -> list[Any]:
    query = text("SELECT step, tokens, time, CAST(payload AS TEXT) AS payload FROM metrics ORDER BY byte_offset")
    with database.engine.connect() as connection:
        return [(*row[:3], json.loads(row.payload)) for row in connection.execute(query)]


@pytest.mark.parametrize("kept", [None, 20_000])
def test_metrics_move_to_columns_and_back(empty: Database, kept: int | None) -> None:
    values = [0.5, "NaN", 1e-7, "Infinity", -3.25]
    lines = [
        encode_line({"seq": i, "step": i, "tokens": 8 * i, "time": i / 4, "a": values[i % 5], "b": float(i)})
        for i in range(800)
    ]
    lines[3] = b"oops\n"
    data = b"".join(lines)
    migrate(empty, "0001")
    fill_first_schema(empty, lines, len(data) if kept is None else kept)
    before = metric_rows(empty)
    migrate(empty, "0002")
    whole = data if kept is None else data[: data.rfind(b"\n", 0, kept) + 1]
    with empty.read() as session:
        assert MetricStore(session, 1 << 30).text("a", 0) == whole
        curves = {c.key: c for c in SeriesReader(session).read([("r", "a"), ("r", "b")], View())}
    assert curves["b"].points.step.tolist() == [i for i in range(800) if i != 3]
    assert math.isinf(curves["a"].points.value[7]) == (values[8 % 5] == "Infinity")
    downgrade(empty, "0001")
    assert metric_rows(empty) == before
    with empty.engine.connect() as connection:
        chunks = connection.execute(text("SELECT data FROM stream_chunks ORDER BY byte_offset")).scalars().all()
    assert b"".join(map(bytes, chunks)) == whole
    assert tables(empty) >= {"metrics"}


PARAMS = text(
    "SELECT experiment_id, run_id, key, number, text FROM params ORDER BY experiment_id, key, coalesce(run_id, '')"
)


def param_rows(database: Database) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(PARAMS)]


def test_configs_become_rows_that_runs_are_found_by(database_url: str) -> None:
    """What 0005 fills in is what the service writes, and whatever stands in old configs goes through."""
    with served(database_url) as caller:
        fill(caller)
    database = Database(database_url)
    before = param_rows(database)
    assert len(before) > 100
    assert sum(row[1] is not None for row in before) >= 40, "each run of the sweep has a seed of its own"
    downgrade(database, "0004")
    assert "params" not in tables(database)
    odd = {
        "a": {"b": [1, "x" * 500]},
        "long" * 100: 1e400,
        "huge": 10**400,
        "flag": True,
        "none": None,
        "word": "ü\x07",
    }
    with database.engine.begin() as connection:
        reflected = MetaData()
        reflected.reflect(connection, only=["runs"])
        runs = reflected.tables["runs"]
        (chosen,) = connection.execute(select(runs.c.id).where(runs.c.name == "fails")).scalars()
        content = json.dumps(odd).replace("Infinity", '"Infinity"')
        setting = "UPDATE runs SET config = :config WHERE id = :id"
        connection.execute(text(setting), {"config": content, "id": chosen})
    migrate(database)
    after = param_rows(database)
    (experiment,) = {row[0] for row in after if row[2] == "flag"}
    assert [row for row in after if row[0] != experiment] == [row for row in before if row[0] != experiment]
    found = {row[2]: row[3:] for row in after if row[0] == experiment}
    assert found["a.b.0"] == (1.0, "1")
    assert found["flag"] == (None, "true")
    assert found["none"] == (None, "null")
    assert found["word"] == (None, "ü\x07")
    assert len(found["a.b.1"][1]) == len(next(key for key in found if key.startswith("long"))) == 200
    assert found["huge"][0] is None
    database.dispose()
    with served(database_url) as caller:
        names = [run["name"] for run in caller.get("/runs", filter="a.b.0:1")["items"]]
        assert names == ["fails"]


def test_runs_of_before_are_entered_with_what_they_are_trained_on(empty: Database) -> None:
    migrate(empty, "0007")
    graph = {"nodes": [{"name": "x", "state_dim": 4}]}
    sampled = [{"gssm": graph, "seed": 3, "seq_len": length, "batch_size": 1} for length in (16, 64, 32)]
    others: list[Any] = [{"path": "/data/a.h5"}, {"path": "/data/a.h5"}, {"gssm": graph, "seed": 4, "seq_len": 8}, None]
    reflected = MetaData()
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    with empty.engine.begin() as connection:
        reflected.reflect(connection)
        experiment = {
            "id": "e", "name": "x", "notes": "", "tags": [], "created_at": now, "priority": 0, "resources": {},
            "num_runs": 7,
        }  # fmt: skip
        connection.execute(reflected.tables["experiments"].insert(), experiment)
        for i, data in enumerate([*sampled, *others]):
            run = {
                "id": f"r{i}", "experiment_id": "e", "position": i, "name": f"run {i}", "params": {}, "tags": [],
                "search": "", "priority": 0, "app": "gssm.train", "config": {} if data is None else {"data": data},
                "config_hash": "", "training_hash": "", "retries": 0, "counted_from": 1, "state": "SUCCEEDED",
                "cancel_requested": False, "attempt": 1, "created_at": now, "total_steps": 9, "step": 0, "tokens": 0,
                "latest": {},
            }  # fmt: skip
            connection.execute(reflected.tables["runs"].insert(), run)
    migrate(empty)
    with empty.read() as session:
        gssms = {(g.hash, g.name, g.seed, g.seq_len): g.graph for g in session.query(GSSM)}
        assert gssms == {
            (gssm_hash(graph, 3), "run 0", 3, 64): graph,
            (gssm_hash(graph, 4), "run 5", 4, 8): graph,
        }
        assert [(d.path, d.path_hash, d.pool) for d in session.query(Dataset)] == [
            ("/data/a.h5", path_hash("/data/a.h5"), None)
        ]
        known = {run.id: (run.gssm_hash, run.dataset_hash) for run in session.query(Run)}
    assert known["r1"] == (gssm_hash(graph, 3), None)
    assert known["r4"] == (None, path_hash("/data/a.h5"))
    assert known["r6"] == (None, None)
    downgrade(empty, "0007")
    with empty.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar() == 7
    migrate(empty)
    with empty.read() as session:
        assert session.query(GSSM).count() == 2
