"""The queue: how fast a sweep is stored, and how soon an idle worker has a job that has just been queued."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nanollama.api.client import Client
from nanollama.api.schemas import SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState
from tests.bench.service import serve_process
from tests.bench.timing import Row
from tests.support.examples import experiment
from tests.support.postgres import PostgresServer, find_binaries
from tests.support.waiting import eventually

ROUNDS, RUNS = 60, 10_000
WORKER = "bench-worker"


def bench_queue() -> list[Row]:
    """Dispatch to an idle worker, alone and behind a sweep that waits; a sweep of 10,000 runs; on each database."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _on("SQLite", f"sqlite:///{folder}/n2n.db", Path(folder))
    binaries = find_binaries()
    if binaries is None:
        return [*rows, Row("the same on Postgres", "no server's binaries are here")]
    server = PostgresServer(binaries)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return [*rows, *_on("Postgres", server.create("bench"), Path(folder))]
    finally:
        server.stop()


def _on(name: str, url: str, folder: Path) -> list[Row]:
    with serve_process(url, folder) as (address, _, _), Client(address, timeout=120) as client:
        alone = _dispatch(client, address)
        grid = {"orchestration.utils.seed": f"range(0, {RUNS})"}
        start = time.perf_counter()
        sweep = client.submit(config=experiment() | {"grid": grid}, priority=-1)
        stored = time.perf_counter() - start
        client.pause(sweep.id)
        behind = _dispatch(client, address)
    return [
        Row(f"{name}: from queued to leased by an idle worker, p95", f"{alone * 1e3:.0f} ms", goal="300 ms"),
        Row(f"{name}: the same beside {RUNS:,} that wait paused", f"{behind * 1e3:.0f} ms", goal="300 ms"),
        Row(f"{name}: a sweep of {RUNS:,} runs checked and stored", f"{stored:.1f} s"),
    ]


def _dispatch(client: Client, address: str) -> float:
    """Seconds from the answer to a submission until the worker's long poll has brought it, p95."""
    registration = WorkerRegistration(
        name="b", pool="b", executor="fake", host="h", user="u", run_root="/r", slots=1, version="1"
    )
    client.register(WORKER, registration)
    return statistics.quantiles((_round(client, address) for _ in range(ROUNDS)), n=20)[-1]


def _round(client: Client, address: str) -> float:
    arrived: list[float] = []
    with Client(address, timeout=60) as worker:

        def poll() -> None:
            lease = worker.sync(WORKER, SyncRequest(free_slots=1, wait_seconds=30)).leases[0]
            arrived.append(time.perf_counter())
            end = TransitionRequest(
                transition_id=f"bench-{lease.attempt_id}", epoch=1, to=AttemptState.CANCELLED, exit_code=0
            )
            worker.transition(lease.attempt_id, end)

        before = client.workers()[0].last_seen_at
        thread = _started(poll)
        eventually(lambda: client.workers()[0].last_seen_at > before, what="the poll")  # from here on it waits
        client.submit(config=experiment())
        queued = time.perf_counter()
        thread.join()
    return max(0.0, arrived[0] - queued)


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread
