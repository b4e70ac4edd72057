"""Lists of 10,000 runs over HTTP, filtered by config and sorted by a metric, on SQLite and Postgres."""

from __future__ import annotations

import random
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, text

from backend.database import Database
from backend.ids import new_id
from backend.runs.params import add_params
from backend.tables import Experiment, Run, RunMetric
from nanollama.api.status import RunState
from tests.bench.service import p95, serve_process
from tests.bench.timing import Row
from tests.support.examples import experiment
from tests.support.postgres import PostgresServer, find_binaries

RUNS, SWEEP = 10_000, 500
METRICS = ("loss", "bound", "excess", "lr", "grad_norm", "tokens_per_second")


def bench_lists() -> list[Row]:
    """Pages of 100 of 10,000 runs, in sweeps of 500 with six metrics each."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _on("SQLite", f"sqlite:///{folder}/n2n.db", Path(folder))
    binaries = find_binaries()
    if binaries is None:
        return [*rows, Row("the same on Postgres", "no server's binaries are here")]
    server = PostgresServer(binaries)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return rows + _on("Postgres", server.create("bench"), Path(folder))
    finally:
        server.stop()


def _on(name: str, url: str, folder: Path) -> list[Row]:
    with serve_process(url, folder) as (address, _process, _started):
        _fill(url)
        asked: dict[str, dict[str, Any]] = {
            "newest": {},
            "by config, sorted by a metric": {"filter": "optim.lr>5e-3", "sort": "-excess"},
            "by tag, metric and config, sorted": {"filter": "tag:a excess<0.5 -optim.lr<1e-4", "sort": "min.loss"},
        }
        with httpx.Client(base_url=f"{address}/api/v1", timeout=120, trust_env=False) as http:
            return [
                Row(
                    f"{name}: page of 100 of {RUNS:,} runs, {what}, p95",
                    f"{1e3 * p95(lambda some=some: http.get('/runs', params={'limit': 100, **some})):.0f} ms",  # type: ignore[misc]
                    goal="50 ms",
                )
                for what, some in asked.items()
            ]


def _fill(url: str) -> None:
    draw, now = random.Random(0), datetime(2026, 1, 1, tzinfo=timezone.utc)
    database = Database(url)
    config = experiment()
    with database.write() as session:
        for sweep in range(RUNS // SWEEP):
            experiment_id = new_id("e", now)
            session.execute(
                insert(Experiment).values(
                    id=experiment_id, name=f"sweep {sweep}", notes="", tags=[], created_at=now, priority=0,
                    resources={}, num_runs=SWEEP,
                )
            )  # fmt: skip
            runs = [_run(experiment_id, i, config, draw, now) for i in range(SWEEP)]
            session.execute(insert(Run), runs)
            add_params(session, experiment_id, [(run["id"], run["config"]) for run in runs])
            values = [
                {"run_id": run["id"], "key": key, "last": value, "last_step": 9, "min": value / 2, "max": 1.0}
                for run in runs
                for key in METRICS
                for value in (draw.random(),)
            ]
            session.execute(insert(RunMetric), values)
    with database.write() as session:
        session.execute(text("ANALYZE"))
    database.dispose()


def _run(
    experiment_id: str, position: int, config: dict[str, Any], draw: random.Random, now: datetime
) -> dict[str, Any]:
    run_id, tags = new_id("r", now), draw.sample(["a", "b", "c"], 1)
    varied = config | {"optim": config["optim"] | {"lr": 10 ** draw.uniform(-5, -1)}}
    return {
        "id": run_id, "experiment_id": experiment_id, "position": position, "name": f"run {position}", "params": {},
        "tags": tags, "search": f"run {position}\n{run_id}\n{tags[0]}", "priority": 0, "app": "gssm", "config": varied,
        "config_hash": "", "training_hash": "", "retries": 0, "counted_from": 1, "state": draw.choice(list(RunState)),
        "cancel_requested": False, "attempt": 1, "created_at": now, "total_steps": 9, "step": 9, "tokens": 9,
        "latest": {},
    }  # fmt: skip
