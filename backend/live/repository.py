"""Queries of those who follow what happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.tables import Event, Run
from nanollama.api.status import RunState


class LiveRepository:
    """Events and progress since a moment."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def newest_event(self) -> int:
        """Id of the newest event; 0 without any."""
        return self._session.scalar(select(func.max(Event.id))) or 0

    def events(self, after: int, limit: int) -> list[Event]:
        """Events behind one, in order."""
        return list(self._session.scalars(select(Event).where(Event.id > after).order_by(Event.id).limit(limit)))

    def progressed(self, since: datetime, run_ids: Sequence[str]) -> list[Run]:
        """Running runs of which metrics came after a moment."""
        query = select(Run).where(Run.state == RunState.RUNNING, Run.progress_at > since).order_by(Run.id)
        return list(self._session.scalars(query.where(Run.id.in_(run_ids)) if run_ids else query))
