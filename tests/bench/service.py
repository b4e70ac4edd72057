"""The service over HTTP on SQLite: metric lines in, curves out."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nanollama.api.client import Client
from nanollama.api.schemas import Lease, SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState
from nanollama.spec.rundir import encode_line
from tests.bench.timing import Row, interleaved
from tests.support.examples import experiment
from tests.support.service import serve_new_sqlite

STREAM = "metrics/rank0.jsonl"
KEYS = ("loss", "bound", "excess", "lr", "grad_norm", "tokens_per_second")
BATCHED_LINES, SINGLE_LINES, BATCH = 20_000, 300, 2_000


def bench_ingest() -> list[Row]:
    """Lines shipped in batches, beside one request a line."""
    with _leased() as (client, lease):
        offset = 0
        start = time.perf_counter()
        for first in range(SINGLE_LINES):
            offset = _put(client, lease, offset, _lines(first, 1))
        single = SINGLE_LINES / (time.perf_counter() - start)
        start = time.perf_counter()
        for first in range(SINGLE_LINES, SINGLE_LINES + BATCHED_LINES, BATCH):
            offset = _put(client, lease, offset, _lines(first, BATCH))
        batched = BATCHED_LINES / (time.perf_counter() - start)
    work = f"metric lines stored, {len(KEYS)} values each, batches of {BATCH:,}"
    return [Row(work, f"{batched:,.0f} /s", f"one a request {single:,.0f} /s", f"{batched / single:.0f} x")]


def bench_metrics() -> list[Row]:
    """Three curves of 20,000 points, at most 1,000 each, beside all points."""
    with _leased() as (client, lease):
        offset = 0
        for first in range(0, BATCHED_LINES, BATCH):
            offset = _put(client, lease, offset, _lines(first, BATCH))
        run, keys = lease.run_id, ["loss", "bound", "excess"]
        few, everything = interleaved(
            [
                lambda: client.metrics(run, keys, max_points=1000, log_x=True),
                lambda: client.metrics(run, keys, max_points=BATCHED_LINES),
            ]
        )
    work = f"3 curves of {BATCHED_LINES:,} points to 1,000 each, log x"
    return [Row(work, f"{few * 1e3:.0f} ms", f"all points {everything * 1e3:.0f} ms", f"{everything / few:.1f} x")]


def _put(client: Client, lease: Lease, offset: int, data: bytes) -> int:
    return client.put_stream(lease.attempt_id, STREAM, epoch=lease.epoch, offset=offset, data=data).length


def _lines(first: int, count: int) -> bytes:
    return b"".join(
        encode_line({"seq": i, "step": i + 1, "tokens": 4096 * (i + 1), "time": 1.7e9 + i} | _values(i))
        for i in range(first, first + count)
    )


def _values(i: int) -> dict[str, float]:
    return {key: (1 + k) / (1 + i) for k, key in enumerate(KEYS)}


@contextlib.contextmanager
def _leased() -> Iterator[tuple[Client, Lease]]:
    """A service with one running attempt."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_new_sqlite(Path(folder)) as address,
        Client(address, timeout=60) as client,
    ):
        client.submit(config=experiment())
        registration = WorkerRegistration(
            name="bench", pool="bench", executor="fake", host="h", user="u", run_root=folder, slots=1, version="1"
        )
        client.register("bench-worker", registration)
        (lease,) = client.sync("bench-worker", SyncRequest(free_slots=1)).leases
        running = TransitionRequest(
            transition_id="bench-running", epoch=lease.epoch, to=AttemptState.RUNNING, attempt_dir=f"{folder}/r/1"
        )
        client.transition(lease.attempt_id, running)
        yield client, lease
