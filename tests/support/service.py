"""A real service for tests: its application under a clock that tests move, or its server on a free port."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from backend.app import create_app
from backend.database import Database
from backend.migrate import migrate
from backend.server import Server, bind
from backend.settings import Settings
from nanollama.spec.rundir import encode_line
from tests.support.waiting import eventually

SPEC_YAML = """\
# Can two layers learn a chain of two nodes?
data:
  seq_len: 16
  batch_size: 8
  gssm:
    nodes:
      - {name: z, state_dim: 4, alpha: 0.1}
      - {name: x, state_dim: 8, alpha: 0.1, parents: [z], observed: true}
model:
  emb_dim: 16
  nb_layers: 2
  block: {nb_heads: 2}
optim:
  steps: 100
  warmup: 10
orchestration:
  name: two-nodes
"""


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@contextlib.contextmanager
def serve(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an application from a thread, on a free port unless one is given; its URL."""
    listener = bind("127.0.0.1", port)
    server = Server(app, "warning")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), what="the start of the server")
        assert server.started, "the server ended at once"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@contextlib.contextmanager
def serve_database(url: str) -> Iterator[str]:
    """Serve a migrated database with the default settings; the URL of the service."""
    with serve(create_app(Settings(database_url=url))) as address:
        yield address


def sqlite_url(folder: Path) -> str:
    """Where the database of a folder is."""
    return f"sqlite:///{folder / 'n2n.db'}"


@contextlib.contextmanager
def serve_new_sqlite(folder: Path) -> Iterator[str]:
    """Serve a new SQLite database in a folder; the URL of the service."""
    url = sqlite_url(folder)
    database = Database(url)
    migrate(database)
    database.dispose()
    with serve_database(url) as address:
        yield address


class Caller:
    """Short forms of what people and workers ask of a service, over HTTP and with the replies as plain data."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def submit(self, **fields: Any) -> str:
        """Submit a run; its id."""
        reply = self.http.post("/experiments", json={"yaml": SPEC_YAML} | fields)
        assert reply.status_code == 201, reply.text
        run_id: str = reply.json()["runs"][0]["id"]
        return run_id

    def register(self, worker_id: str, *, pool: str = "pool", executor: str = "local", **fields: Any) -> None:
        """Make a worker known; without further fields as an older one would."""
        body = {"name": worker_id, "pool": pool, "executor": executor, "host": "h", "user": "u"}
        body |= {"run_root": "/root", "slots": 4, "version": "1"} | fields
        reply = self.http.put(f"/workers/{worker_id}", json=body)
        assert reply.status_code == 200, reply.text

    def sync(self, worker_id: str, *held: dict[str, Any], slots: int = 0, **fields: Any) -> dict[str, Any]:
        """One sync that holds the given leases."""
        listed = [{"attempt_id": lease["attempt_id"], "epoch": lease["epoch"]} for lease in held]
        reply = self.http.post(f"/workers/{worker_id}/sync", json={"held": listed, "free_slots": slots} | fields)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def claim(self, worker_id: str = "w", *held: dict[str, Any]) -> dict[str, Any]:
        """The one lease that a sync with a free slot brings."""
        (lease,) = self.sync(worker_id, *held, slots=1)["leases"]
        assert isinstance(lease, dict)
        return lease

    def start(self) -> dict[str, Any]:
        """A lease of a new run, by the worker w."""
        self.submit()
        self.register("w")
        return self.claim()

    def report(self, lease: dict[str, Any], to: str, **fields: Any) -> httpx.Response:
        """Report a transition."""
        body = {"transition_id": secrets.token_hex(8), "epoch": lease["epoch"], "to": to}
        return self.http.post(f"/attempts/{lease['attempt_id']}/transitions", json=body | fields)

    def end(self, lease: dict[str, Any], to: str, **fields: Any) -> None:
        """Report the end of an attempt, with evidence where it is due."""
        evidence = {"exit_code": 0, "result": {"step": 1}} if to == "SUCCEEDED" else {}
        reply = self.report(lease, to, **evidence, **fields)
        assert reply.status_code == 200, reply.text

    def put(self, lease: dict[str, Any], name: str, data: bytes, *, offset: int = 0, **params: Any) -> httpx.Response:
        """Append to a stream."""
        query = {"offset": offset, "epoch": lease["epoch"]} | params
        return self.http.put(f"/attempts/{lease['attempt_id']}/streams/{name}", content=data, params=query)

    def run(self, run_id: str) -> dict[str, Any]:
        """One run."""
        return self.get(f"/runs/{run_id}")

    def post(self, path: str, **body: Any) -> Any:
        """What a path answers to a request that it carries out."""
        reply = self.http.post(path, json=body) if body else self.http.post(path)
        assert reply.is_success, reply.text
        return reply.json()

    def get(self, path: str, **params: Any) -> Any:
        """What a path answers."""
        reply = self.http.get(path, params=params)
        assert reply.status_code == 200, reply.text
        return reply.json()


def metric_line(seq: int, step: int, **values: float) -> bytes:
    """A line of a metric stream."""
    return encode_line({"seq": seq, "step": step, "tokens": 128 * step, "time": 1000.0 + seq, **values})


def checkpoint_line(seq: int, step: int, kind: str = "checkpoint_saved") -> bytes:
    """A line of an event stream, about a checkpoint."""
    line = {"seq": seq, "kind": kind, "step": step, "time": 1000.0 + seq, "path": f"checkpoints/{step:010d}"}
    return encode_line(line | {"size_bytes": 100 + step, "digest": f"{step:064x}"})
