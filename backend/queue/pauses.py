"""Pauses: nothing of what is paused is leased. What runs goes on."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from backend.database import upsert
from backend.tables import Experiment, Pause

QUEUE = "queue"


class PauseRepository:
    """Pauses of the queue and of experiments."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def queue(self) -> datetime | None:
        """Since when the queue is paused; None when it is not."""
        pause = self._session.get(Pause, QUEUE)
        return None if pause is None else pause.since

    def pause_queue(self, now: datetime) -> None:
        """Pause the queue; one that is paused stays so."""
        self._session.execute(upsert(self._session, Pause).values(scope=QUEUE, since=now).on_conflict_do_nothing())

    def resume_queue(self) -> None:
        """Let attempts be leased again."""
        self._session.execute(delete(Pause).where(Pause.scope == QUEUE))

    def set_experiment(self, experiment_id: str, since: datetime | None) -> None:
        """Pause an experiment, or let it go on; one that is paused keeps its time."""
        change = update(Experiment).where(Experiment.id == experiment_id)
        if since is not None:
            change = change.where(Experiment.paused_since.is_(None))
        self._session.execute(change.values(paused_since=since))
