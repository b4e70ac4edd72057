"""Queries on evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, undefer

from backend.database import upsert
from backend.tables import Attempt, Evaluation


class EvaluationRepository:
    """Evaluations of runs, one a step."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def save(
        self, attempt: Attempt, step: int, at: datetime, values: dict[str, Any], by_position: dict[str, Any] | None
    ) -> None:
        """Store an evaluation of a locked attempt, in place of one of the same step."""
        found = {"attempt": attempt.number, "at": at, "values": values, "by_position": by_position}
        row = upsert(self._session, Evaluation).values(run_id=attempt.run_id, step=step, **found)
        self._session.execute(row.on_conflict_do_update(index_elements=["run_id", "step"], set_=found))

    def supersede(self, attempt: Attempt, step: int) -> None:
        """Forget what earlier attempts have evaluated beyond the step at which this one has begun."""
        self._session.execute(
            delete(Evaluation).where(
                Evaluation.run_id == attempt.run_id, Evaluation.attempt < attempt.number, Evaluation.step > step
            )
        )

    def of_run(self, run_id: str) -> list[Evaluation]:
        """Evaluations of a run by step."""
        query = select(Evaluation).where(Evaluation.run_id == run_id).order_by(Evaluation.step)
        return list(self._session.scalars(query.options(undefer(Evaluation.by_position))))

    def values_of_run(self, run_id: str) -> dict[int, dict[str, Any]]:
        """Metrics of the evaluations of a run, by step."""
        query = select(Evaluation.step, Evaluation.values).where(Evaluation.run_id == run_id)
        return dict(self._session.execute(query).all())
