"""Queries on checkpoints."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.tables import Attempt, Checkpoint


class CheckpointRepository:
    """Checkpoints of runs, one a step."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def save(self, attempt: Attempt, step: int, **values: Any) -> bool:
        """Store a checkpoint of a locked attempt, in place of one of the same step; whether the step is new."""
        row = self._session.get(Checkpoint, (attempt.run_id, step))
        if row is None:
            self._session.add(
                Checkpoint(run_id=attempt.run_id, step=step, attempt=attempt.number, removed=False, **values)
            )
            self._session.flush()
            return True
        row.attempt, row.removed = attempt.number, False
        for key, value in values.items():
            setattr(row, key, value)
        return False

    def get(self, run_id: str, step: int) -> Checkpoint | None:
        """One checkpoint."""
        return self._session.get(Checkpoint, (run_id, step))

    def remove(self, run_id: str, step: int) -> None:
        """Note that a checkpoint is gone."""
        self._session.execute(
            update(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.step == step).values(removed=True)
        )

    def any_left(self, run_id: str) -> bool:
        """Whether a run has a checkpoint that has not been removed."""
        query = select(Checkpoint.step).where(Checkpoint.run_id == run_id, Checkpoint.removed.is_(False)).limit(1)
        return self._session.scalar(query) is not None

    def of_run(self, run_id: str) -> list[Checkpoint]:
        """Checkpoints of a run by step, removed ones too."""
        return list(
            self._session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step))
        )
