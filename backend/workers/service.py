"""Registration and the list of workers."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from backend.settings import Settings
from backend.tables import Worker
from backend.workers.repository import WorkerRepository
from nanollama.api import schemas
from nanollama.api.errors import NotFound


class WorkerService:
    """Workers, as of one moment."""

    def __init__(self, session: Session, now: datetime, settings: Settings) -> None:
        self._now = now
        self._settings = settings
        self._workers = WorkerRepository(session)

    def register(
        self, worker_id: str, registration: schemas.WorkerRegistration, *, token_id: str | None = None
    ) -> schemas.WorkerTerms:
        """Make a worker known, or known anew. Leases stay as they are: a sync brings them back."""
        values = registration.model_dump() | {"draining": False, "last_seen_at": self._now, "token_id": token_id}
        self._workers.put(worker_id, values)
        terms = self._settings.terms(registration.executor)
        return schemas.WorkerTerms(
            worker_id=worker_id,
            lease_seconds=terms.lease_seconds,
            heartbeat_seconds=terms.heartbeat_seconds,
            upload_seconds=self._settings.upload_seconds,
        )

    def all(self) -> list[schemas.Worker]:
        """Every worker, those alive first."""
        views = [self._view(worker, busy) for worker, busy in self._workers.all()]
        return sorted(views, key=lambda view: not view.alive)

    def set_drain(self, worker_id: str, drain: bool) -> schemas.Worker:
        """Ask a worker to take nothing more, or let it take again. Raises NotFound."""
        worker = self._workers.lock(worker_id)
        if worker is None:
            raise no_worker(worker_id)
        worker.drain_requested = drain
        return self._view(worker, self._workers.busy(worker_id))

    def _view(self, row: Worker, busy: int) -> schemas.Worker:
        return schemas.Worker(
            id=row.id,
            name=row.name,
            pool=row.pool,
            executor=row.executor,
            host=row.host,
            user=row.user,
            run_root=row.run_root,
            slots=row.slots,
            busy=busy,
            alive=is_alive(row, self._now, self._settings),
            draining=row.draining or row.drain_requested,
            drain_requested=row.drain_requested,
            version=row.version,
            accelerators=row.accelerators,
            cpus=row.cpus,
            memory_gb=row.memory_gb,
            labels=row.labels,
            problems=row.problems,
            last_seen_at=row.last_seen_at,
        )


def is_alive(worker: Worker, now: datetime, settings: Settings) -> bool:
    """Whether a worker was heard of within its lease."""
    return worker.last_seen_at + timedelta(seconds=settings.terms(worker.executor).lease_seconds) > now


def no_worker(worker_id: str) -> NotFound:
    """The error for a worker that is not registered."""
    return NotFound(f"there is no worker '{worker_id}': register it first, with PUT /api/v1/workers/{worker_id}")
