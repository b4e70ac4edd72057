"""The metric store over HTTP, on SQLite and Postgres, beside MLflow on SQLite: the service is a process of its own."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from sqlalchemy import text

from backend.database import Database
from nanollama.api.client import Client
from nanollama.api.schemas import Lease, SyncRequest, WorkerRegistration
from nanollama.spec.rundir import encode_line
from tests.bench import mlflow
from tests.bench.timing import Row
from tests.support.examples import experiment
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer, find_binaries

STREAM = "metrics/rank0.jsonl"
KEYS = ("loss", "bound", "excess", "lr", "grad_norm", "tokens_per_second")
BATCH_BYTES = 1 << 20  # as the worker ships
LINES, CLIENTS, LONG, ROUNDS = 40_000, 8, 1_000_000, 20


def bench_metric_store() -> list[Row]:
    """Ingest by one and by eight clients, curves, size, start and memory; on each database that is there."""
    lines = _lines(LINES)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        theirs, reason = _mlflow_rate(Path(folder))
        rows += _on("SQLite", f"sqlite:///{folder}/n2n.db", Path(folder), lines, theirs, reason)
    binaries = find_binaries()
    if binaries is None:
        return [*rows, Row("the same on Postgres", "no server's binaries are here")]
    server = PostgresServer(binaries)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows += _on("Postgres", server.create("bench"), Path(folder), lines, theirs, reason)
    finally:
        server.stop()
    return rows


def _on(name: str, url: str, folder: Path, lines: list[bytes], theirs: float | None, reason: str) -> list[Row]:
    with serve_process(url, folder) as (address, process, started):
        memory, empty = _resident_mb(process.pid), _size(url)
        with Client(address, timeout=120) as client:
            leases = _leases(client, folder, CLIENTS + 2)
            one = len(KEYS) * LINES / _seconds(lambda: _ship(client, leases[0], b"".join(lines)))
            eight = _eight(address, leases[1 : CLIENTS + 1], b"".join(lines))
            _ship(client, leases[CLIENTS + 1], b"".join(_long_lines(LONG)))
            size = (_size(url) - empty) / (len(KEYS) * LINES * (CLIENTS + 1) + LONG)
            many = {"run": [lease.run_id for lease in leases[: CLIENTS + 1]], "key": list(KEYS), "x_max": 10_000}
            long = {"run": leases[CLIENTS + 1].run_id}
            with httpx.Client(base_url=f"{address}/api/v1", timeout=120, trust_env=False) as http:
                single = p95(lambda: http.get("/metrics", params=long))
                fifty = p95(lambda: http.get("/metrics", params=many))
    beside = reason if theirs is None else f"MLflow {theirs:,.0f} /s"
    ratio = "" if theirs is None else f"{one / theirs:.0f} x"
    return [
        Row(f"{name}: points stored, one client, 1 MiB batches", f"{one:,.0f} /s", beside, ratio, "300,000 /s; 20 x"),
        Row(f"{name}: stored, {CLIENTS} clients", f"{eight:,.0f} /s", "one client", f"{eight / one:.1f} x", "1 x"),
        Row(f"{name}: one series of {LONG:,} to 1,000, p95", f"{single * 1e3:.0f} ms", goal="30 ms"),
        Row(f"{name}: 54 series of 10,000 to 1,000 in one call, p95", f"{fifty * 1e3:.0f} ms", goal="200 ms"),
        Row(f"{name}: size of the database", f"{size:.1f} bytes a point", goal="20 bytes"),
        Row(f"{name}: start to the first 200", f"{started:.2f} s", goal="2 s"),
        Row(f"{name}: idle memory of the service", f"{memory:.0f} MB", goal="120 MB"),
    ]  # fmt: skip


def _mlflow_rate(folder: Path) -> tuple[float | None, str]:
    """Points a second that MLflow stores in batches of its largest size; or why there is no figure."""
    reason = mlflow.install()
    if reason is not None:
        return None, reason
    rounds = 10
    batches = [
        [
            {"key": KEYS[i % len(KEYS)], "value": random.random(), "timestamp": n, "step": n * mlflow.BATCH + i}
            for i in range(mlflow.BATCH)
        ]
        for n in range(rounds)
    ]
    with mlflow.serve_mlflow(folder) as client:
        run_id = mlflow.new_run(client)
        mlflow.log_batch(client, run_id, batches[0])
        seconds = _seconds(lambda: [mlflow.log_batch(client, run_id, batch) for batch in batches[1:]])
    return mlflow.BATCH * (rounds - 1) / seconds, ""


def _eight(address: str, leases: list[Lease], data: bytes) -> float:
    """Points a second of clients that ship at once; every byte is there at the end."""

    def work(lease: Lease) -> int:
        with Client(address, timeout=120) as client:
            return _ship(client, lease, data)

    with ThreadPoolExecutor(len(leases)) as pool:
        lengths: list[int] = []
        seconds = _seconds(lambda: lengths.extend(pool.map(work, leases)))
    assert lengths == [len(data)] * len(leases)
    return len(leases) * len(KEYS) * LINES / seconds


def _ship(client: Client, lease: Lease, data: bytes) -> int:
    offset = 0
    while offset < len(data):
        piece = data[offset : offset + BATCH_BYTES]
        info = client.put_stream(lease.attempt_id, STREAM, epoch=lease.epoch, offset=offset, data=piece)
        offset = info.length
    return offset


def _leases(client: Client, folder: Path, count: int) -> list[Lease]:
    for _ in range(count):
        client.submit(config=experiment())
    registration = WorkerRegistration(
        name="b", pool="b", executor="fake", host="h", user="u", run_root=str(folder), slots=count, version="1"
    )
    client.register("bench-worker", registration)
    return client.sync("bench-worker", SyncRequest(free_slots=count)).leases


def _lines(count: int) -> list[bytes]:
    """Lines as training writes them: values as float32 prints them, differences of them, a schedule and a speed."""
    rng, lines = random.Random(0), []
    for i in range(count):
        loss, bound = 2 + rng.gauss(0, 0.1), 1.9 + rng.gauss(0, 0.05)
        values = (loss, bound, loss - bound, 1e-3 * i / count, rng.random(), rng.gauss(1e5, 3e3))
        shared = {"seq": i, "step": i + 1, "tokens": 4096 * (i + 1), "time": 1.7e9 + 0.3 * i + 0.01 * rng.random()}
        lines.append(encode_line(shared | dict(zip(KEYS, values, strict=True))))
    return lines


def _long_lines(count: int) -> Iterator[bytes]:
    rng = random.Random(1)
    for i in range(count):
        yield b'{"seq":%d,"step":%d,"tokens":%d,"time":%d.5,"loss":%s}\n' % (
            i, i + 1, 64 * i, 1_700_000_000 + i, repr(rng.gauss(2, 0.1)).encode()
        )  # fmt: skip


@contextlib.contextmanager
def serve_process(url: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """A service on a new database; its address, its process, and the seconds from its start to its first answer."""
    command = [sys.executable, "-m", "backend"]
    subprocess.run([*command, "migrate", "--database-url", url], check=True, stdout=subprocess.DEVNULL)
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    start = time.perf_counter()
    process = subprocess.Popen([*command, "serve", "--port", str(port), "--database-url", url], cwd=folder,
                               env=os.environ | {"PYTHONPATH": str(Path.cwd())}, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"serving"), "the service did not start"
        # from here on connections wait for it
        assert httpx.get(f"{address}/api/v1/health", trust_env=False, timeout=60).is_success
        yield address, process, time.perf_counter() - start
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _size(url: str) -> float:
    """Bytes of the database, what its log still holds included."""
    database = Database(url)
    try:
        if database.path is not None:
            return sum(path.stat().st_size for path in database.path.parent.glob(f"{database.path.name}*"))
        with database.read() as session:
            return float(session.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    finally:
        database.dispose()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def p95(ask: Callable[[], httpx.Response]) -> float:
    assert ask().is_success
    return statistics.quantiles((_seconds(ask) for _ in range(ROUNDS)), n=20)[-1]
