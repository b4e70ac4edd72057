"""A real service for tests: its application under a clock that tests move, or its server on a free port."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from fastapi import FastAPI

from backend.app import create_app
from backend.server import Server, bind
from backend.settings import Settings

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
def serve(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port from a thread; its URL."""
    listener = bind("127.0.0.1", 0)
    server = Server(app, "warning")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server ended at once"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
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
