"""Queries on runs, attempts and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session, undefer
from sqlalchemy.sql import ColumnElement

from backend.tables import Attempt, Event, Run
from nanollama.api.status import RunState


class RunRepository:
    """Runs and their attempts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, run: Run) -> None:
        """Insert a run."""
        self._session.add(run)
        self._session.flush()

    def get(self, run_id: str, *, details: bool = False) -> Run | None:
        """One run; `details` loads its config and result too."""
        query = select(Run).where(Run.id == run_id)
        if details:
            query = query.options(undefer(Run.config), undefer(Run.result))
        return self._session.scalars(query).one_or_none()

    def existing(self, run_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are runs'."""
        return set(self._session.scalars(select(Run.id).where(Run.id.in_(run_ids))))

    def lock(self, run_ids: Iterable[str]) -> list[Run]:
        """Runs to be changed, in a fixed order. Lock their attempts first: everyone does."""
        query = select(Run).where(Run.id.in_(list(run_ids))).order_by(Run.id)
        return list(self._session.scalars(query.with_for_update().execution_options(populate_existing=True)))

    def page(self, *, states: Sequence[RunState], search: str | None, limit: int, cursor: str | None) -> list[Run]:
        """Up to `limit` runs, newest first, older than the one whose id is `cursor`."""
        query = select(Run).where(*self._matching(search)).order_by(Run.id.desc()).limit(limit)
        if states:
            query = query.where(Run.state.in_(states))
        if cursor is not None:
            query = query.where(Run.id < cursor)
        return list(self._session.scalars(query))

    def counts(self, search: str | None) -> dict[RunState, int]:
        """Number of runs by state; states without any are left out."""
        query = select(Run.state, func.count()).where(*self._matching(search)).group_by(Run.state)
        return dict(self._session.execute(query).all())

    def of_experiments(self, experiment_ids: Sequence[str]) -> list[Run]:
        """All runs of some experiments, oldest first."""
        query = select(Run).where(Run.experiment_id.in_(experiment_ids)).order_by(Run.id)
        return list(self._session.scalars(query))

    def attempts(self, run_id: str) -> list[Attempt]:
        """Attempts of a run, oldest first."""
        return list(self._session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)))

    def set_many(self, run_ids: Sequence[str], **values: Any) -> None:
        """Set the same columns of several runs."""
        self._session.execute(
            update(Run).where(Run.id.in_(run_ids)).values(**values).execution_options(synchronize_session=False)
        )

    @staticmethod
    def _matching(search: str | None) -> list[ColumnElement[bool]]:
        return [Run.search.contains(search.lower(), autoescape=True)] if search else []


class EventRepository:
    """The log of what happened."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        run_id: str,
        kind: str,
        at: datetime,
        *,
        attempt: int | None = None,
        from_state: str | None = None,
        to_state: str | None = None,
        epoch: int | None = None,
        step: int | None = None,
        message: str | None = None,
    ) -> None:
        """Append an event to the log."""
        values = {
            "run_id": run_id,
            "kind": kind,
            "at": at,
            "attempt": attempt,
            "from_state": from_state,
            "to_state": to_state,
            "epoch": epoch,
            "step": step,
            "message": message,
        }
        self._session.execute(insert(Event).values(**values))

    def of_run(self, run_id: str) -> list[Event]:
        """Events of a run, oldest first."""
        return list(self._session.scalars(select(Event).where(Event.run_id == run_id).order_by(Event.id)))
