"""A daemon whose threads are the test's, against the service in memory: no processes, and time moves by hand."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from nanollama.api.client import Client
from nanollama.api.errors import ApiError
from tests.support.lease_service import LeaseService
from worker.allow import Allowed
from worker.daemon import Daemon
from worker.executors.base import Executor
from worker.executors.fake import FakeExecutor
from worker.job import Job
from worker.journal import Journal
from worker.settings import Settings

RESULT = {"step": 10, "tokens": 100, "seconds": 1.0}


class Bench:
    """A worker whose threads are this one: each job moves by `tick`, the clock by `advance`."""

    def __init__(
        self, folder: Path, *, slots: int = 2, executor: Executor | None = None, allowed: Allowed | None = None
    ) -> None:
        self.folder = folder
        self.service = LeaseService(patient=False)
        self.executor = FakeExecutor()
        self.used = executor or self.executor
        self.client = Client("http://service", transport=self.service.transport, retries=0)
        self.settings = Settings(
            url="http://service",
            run_root=folder / "runs",
            home=folder,
            slots=slots,
            name="bench",
            pool="pool",
            host="host",
            user="user",
            grace=5.0,
            stop_jobs_on_exit=False,
            allowed=allowed or Allowed(),
        )
        self.settings.run_root.mkdir()
        self.now = 0.0
        self.start_worker()

    def start_worker(self) -> None:
        """The worker's first or next life: all that it knows is in the journal."""
        self.jobs: list[Job] = []
        self.journal = Journal(self.folder / "worker.sqlite")
        self.daemon = Daemon(
            self.settings,
            journal=self.journal,
            client=self.client,
            executor=self.used,
            follow=self.jobs.append,
            clock=lambda: self.now,
        )
        self.daemon.resume()

    def crash(self) -> None:
        """The worker is killed and started again."""
        self.journal.close()
        self.start_worker()

    def sync(self) -> None:
        """One sync, whatever comes of it."""
        with suppress(ApiError):
            self.daemon.sync()

    def tick(self) -> None:
        """A second passes, and each job does what is due."""
        self.now += 1.0
        for job in list(self.jobs):
            job.tick()
        self.jobs[:] = [job for job in self.jobs if not job.over]

    def do_commands(self) -> None:
        """What the service wants done with checkpoints is done."""
        self.daemon._commands.step()

    def settle(self) -> None:
        """Outages are over: until nothing moves any more."""
        self.service.away, self.service.lose_replies = False, 0
        for _ in range(6):
            self.now += 60.0  # longer than any pause
            self.sync()
            self.tick()

    def states(self, attempt_id: str) -> list[str]:
        """What the service was told of an attempt."""
        return [str(request.to) for request in self.service.attempts[attempt_id].transitions]

    def directory(self, attempt_id: str) -> Path:
        """The attempt directory."""
        return self.settings.run_root / f"r-{attempt_id}" / "1"

    def close(self) -> None:
        """Close what is open."""
        self.journal.close()
        self.client.close()


def finish(bench: Bench, attempt_id: str) -> None:
    """The run ends with a result."""
    (bench.directory(attempt_id) / "result.json").write_text(json.dumps(RESULT))
    bench.executor.finish(attempt_id)
