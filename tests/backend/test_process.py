"""The service as a process: how it starts, refuses, stops, and what survives when it is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.service import Caller, metric_line

ROOT = Path(__file__).parents[2]
SECONDS = 120


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("N2N_")}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


@contextlib.contextmanager
def serving(url: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], Caller]]:
    """A server process on a free port, and a caller of it."""
    command = [sys.executable, "-m", "backend", "serve", "--port", "0", "--database-url", url]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+)\n", line)
        assert match, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
        transport = httpx.HTTPTransport(retries=20)  # the line comes just before it accepts
        with httpx.Client(
            base_url=f"{match.group(1)}/api/v1", timeout=60, trust_env=False, transport=transport
        ) as http:
            yield process, Caller(http)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "backend", "serve", "--migrate", "--port", port]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: cannot listen on 127.0.0.1:{port}: .*in use; .*--port.*\n", done.stderr)
    assert list(tmp_path.iterdir()) == [], "nothing is half-created"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(database_url: str, tmp_path: Path, number: int) -> None:
    with serving(database_url, tmp_path) as (process, caller):
        caller.get("/health")
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")


def test_kill_and_restart_keep_what_was_acknowledged(database_url: str, tmp_path: Path) -> None:
    lines = [metric_line(i, i, loss=1.0 / (i + 1)) for i in range(40)]
    with serving(database_url, tmp_path) as (process, caller):
        run_id = caller.submit()
        caller.register("w")
        lease = caller.claim()
        assert caller.report(lease, "RUNNING").status_code == 200
        offset = 0
        for line in lines[:20]:
            offset = caller.put(lease, "metrics/rank0.jsonl", line, offset=offset).json()["length"]
        before = caller.run(run_id), caller.get(f"/runs/{run_id}/events")
        process.kill()
        process.wait(SECONDS)
    with serving(database_url, tmp_path) as (_, caller):
        assert (caller.run(run_id), caller.get(f"/runs/{run_id}/events")) == before
        assert caller.sync("w", lease)["lost"] == []
        # the worker goes on as if nothing had been; what it repeats counts once
        data = b"".join(lines[10:])
        start = len(b"".join(lines[:10]))
        assert caller.put(lease, "metrics/rank0.jsonl", data, offset=start).status_code == 200
        assert caller.get(f"/runs/{run_id}/metrics")["series"]["loss"]["step"] == list(range(40))
        caller.end(lease, "SUCCEEDED")
        assert caller.run(run_id)["state"] == "SUCCEEDED"


def test_it_lives_without_torch_and_loads_arrow_only_on_demand() -> None:
    program = """
import sys
for name in ("torch", "numba", "h5py", "pyarrow"):
    sys.modules[name] = None  # an import of it raises
import backend.__main__
from backend.app import create_app
from backend.settings import Settings
create_app(Settings(database_url="sqlite:///unused.db")).openapi()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
