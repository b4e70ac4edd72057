"""Queries on workers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.database import upsert
from backend.tables import ACTIVE, Attempt, Worker


class WorkerRepository:
    """Workers."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, worker_id: str) -> Worker | None:
        """One worker."""
        return self._session.get(Worker, worker_id)

    def lock(self, worker_id: str) -> Worker | None:
        """One worker, which nobody else changes until the transaction ends."""
        return self._session.get(Worker, worker_id, with_for_update=True, populate_existing=True)

    def put(self, worker_id: str, values: dict[str, Any]) -> None:
        """Insert a worker or overwrite the given columns."""
        statement = upsert(self._session, Worker).values(id=worker_id, syncs=0, drain_requested=False, **values)
        self._session.execute(statement.on_conflict_do_update(index_elements=[Worker.id], set_=values))

    def busy(self, worker_id: str) -> int:
        """Number of attempts that a worker holds."""
        query = select(func.count()).select_from(Attempt)
        return self._session.scalar(query.where(Attempt.worker_id == worker_id, Attempt.state.in_(ACTIVE))) or 0

    def all(self) -> list[tuple[Worker, int]]:
        """Every worker with the number of attempts that it holds, by name."""
        busy = (
            select(Attempt.worker_id, func.count().label("number"))
            .where(Attempt.state.in_(ACTIVE))
            .group_by(Attempt.worker_id)
            .subquery()
        )
        query = (
            select(Worker, func.coalesce(busy.c.number, 0))
            .outerjoin(busy, busy.c.worker_id == Worker.id)
            .order_by(Worker.name, Worker.id)
        )
        return [(worker, number) for worker, number in self._session.execute(query)]
