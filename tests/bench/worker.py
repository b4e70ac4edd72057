"""The worker on this machine: how soon a run starts, is heard of, and is gone; and what 500 live runs cost."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nanollama.api.client import Client
from nanollama.spec.rundir import EXIT, RESULT, metrics_file
from tests.bench.service import _resident_mb, serve_process
from tests.bench.timing import Row, each_second
from tests.support.examples import experiment
from tests.support.lease_service import LeaseService, serve
from tests.support.waiting import eventually
from worker.executors.processes import find_tree

ROUNDS, CANCELS = 20, 10
LIVE, SECONDS = 500, 20
UPLOADS_PER_SECOND = 50  # as the service is set up
BEGINNING = 150  # lines of a run after which it is well under way; it writes a hundred a second
POLL = 0.03  # seconds between two looks, which take time from what is looked at


def bench_worker() -> list[Row]:
    """Latencies of a local worker with a program that imports no torch, on SQLite; and what 500 live runs cost."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _latencies(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        return [*rows, *_many(Path(folder))]


def _latencies(folder: Path) -> list[Row]:
    (folder / "service").mkdir()
    (folder / "runs").mkdir()
    with (
        serve_process(f"sqlite:///{folder}/n2n.db", folder / "service") as (address, _, _),
        Client(address, timeout=60) as client,
        _worker(address, folder),
    ):
        _wait(lambda: any(worker.alive for worker in client.workers()))
        rounds = [_round(client, folder / "runs") for _ in range(ROUNDS)]
        cancels = [_cancel(client, folder / "runs", stubborn=False) for _ in range(CANCELS)]
        stubborn = [_cancel(client, folder / "runs", stubborn=True) for _ in range(3)]
    started, seen, ended = ([row[i] for row in rounds] for i in range(3))
    return [
        Row("local: from queued to the first line of user code, p95", _shown(_p95(started)), goal="1 s and torch"),
        Row("local: from a metric line to its value through the API, p95", _shown(_p95(seen)), goal="2 s"),
        Row(
            "local: from the end of the job to a terminal run with all its metrics, p95",
            _shown(_p95(ended)),
            goal="3 s",
        ),
        Row("local: from a cancel to nothing that runs, p95", _shown(_p95(cancels)), goal="5 s"),
        Row("local: the same where the run is deaf to SIGTERM, longest of 3", _shown(max(stubborn)), goal="5 s"),
    ]


def _round(client: Client, root: Path) -> tuple[float, float, float]:
    """One run: seconds until it starts, until a line that it writes is seen, and from its end until all is known."""
    run_id = client.submit(config=experiment()).runs[0].id
    queued = time.time()
    directory = root / run_id / "1"
    path = metrics_file(directory, 0)
    _wait(lambda: path.exists() and b"\n" in path.read_bytes())
    started = float((directory / "started").read_text()) - queued
    _wait(lambda: path.read_bytes().count(b"\n") > BEGINNING)
    written = path.read_bytes().splitlines()
    last, at = len(written) - 1, _time_of(written[-1])
    _wait(lambda: client.run(run_id).progress.step > last)
    seen = time.time() - at
    (directory / "finish").touch()
    _wait((directory / RESULT).exists)
    over = time.time()
    _wait(lambda: client.run(run_id).state.terminal)
    ended = time.time() - over
    run = client.run(run_id)
    assert run.state.value == "SUCCEEDED", run.reason
    assert run.progress.step == len(path.read_bytes().splitlines())
    return started, seen, ended


def _cancel(client: Client, root: Path, *, stubborn: bool) -> float:
    run_id = client.submit(config=experiment()).runs[0].id
    if stubborn:
        (root / run_id).mkdir()
        (root / run_id / "stubborn").touch()
    _wait(lambda: client.run(run_id).progress.step > 0)
    (attempt,) = client.attempts(run_id)
    start = time.perf_counter()
    client.cancel(run_id)
    _wait((root / run_id / "1" / EXIT).exists)  # which is written when nothing is left
    seconds = time.perf_counter() - start
    assert not list(find_tree(attempt.id))
    _wait(lambda: client.run(run_id).state.terminal)
    return seconds


@contextlib.contextmanager
def _worker(address: str, folder: Path) -> Iterator[None]:
    given = {"--url": address, "--run-root": folder / "runs", "--home": folder / "home", "--slots": 1}
    command = [sys.executable, "-m", "tests.support.tiny_worker", *_flat(given)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _many(folder: Path) -> list[Row]:
    """What live runs cost a daemon: each writes a line a second, and the service asks for them at the pace it would."""
    service = LeaseService(upload_seconds=LIVE / UPLOADS_PER_SECOND)
    for i in range(LIVE):
        service.add(f"a{i}", experiment())
    (folder / "runs").mkdir()
    with serve(service) as url:
        given = {"--url": url, "--run-root": folder / "runs", "--home": folder / "home", "--slots": LIVE}
        command = [sys.executable, "-m", "tests.support.crowded_worker", *_flat(given)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait(lambda: all(stored.state.value == "RUNNING" for stored in service.attempts.values()))
            paths = [folder / "runs" / f"r-a{i}" / "1" / "stdout.log" for i in range(LIVE)]
            _write(paths, seconds=5)
            before, cpu = _resident_mb(process.pid), _cpu_seconds(process.pid)
            start = time.monotonic()
            _write(paths, seconds=SECONDS)
            share = (_cpu_seconds(process.pid) - cpu) / (time.monotonic() - start)
            memory, threads = _resident_mb(process.pid), len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        finally:
            process.terminate()
            process.wait(60)
    return [
        Row(f"daemon with {LIVE} live runs that write a line a second: part of a core", f"{share:.1%}"),
        Row(f"the same: resident memory, {SECONDS} s before and now", f"{before:.0f}, {memory:.0f} MB", goal="flat"),
        Row("the same: threads", str(threads)),
    ]


def _write(paths: list[Path], seconds: int) -> None:
    for _ in each_second(seconds):
        for path in paths:
            with open(path, "ab") as file:
                file.write(b"a line of a log as long as lines of logs are, more or less\n")


def _flat(given: dict[str, object]) -> list[str]:
    return [str(text) for pair in given.items() for text in pair]


def _time_of(line: bytes) -> float:
    time_written: float = json.loads(line)["time"]
    return time_written


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(probe: Callable[[], object]) -> None:
    eventually(probe, within=120, every=POLL)


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s"
