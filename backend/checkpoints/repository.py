"""Queries on checkpoints."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement

from backend.tables import Attempt, Checkpoint, Run
from nanollama.api.status import RunState

ENDED = tuple(state for state in RunState if state.terminal)


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
        if row.pending == "delete":
            row.pending = row.command_id = row.command_by = None  # it was meant for the one before
        for key, value in values.items():
            setattr(row, key, value)
        return False

    def get(self, run_id: str, step: int) -> Checkpoint | None:
        """One checkpoint."""
        return self._session.get(Checkpoint, (run_id, step))

    def lock(self, run_id: str, step: int) -> Checkpoint | None:
        """One checkpoint, to be changed."""
        query = select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.step == step)
        return self._session.scalars(query.with_for_update()).one_or_none()

    def lock_of_pool(self, run_id: str, step: int, pool: str) -> Checkpoint | None:
        """One checkpoint, to be changed, if workers of that pool reach it."""
        query = (
            select(Checkpoint)
            .join(Attempt, _saved_by())
            .where(Checkpoint.run_id == run_id, Checkpoint.step == step, Attempt.pool == pool)
            .with_for_update(of=Checkpoint)
        )
        return self._session.scalars(query).one_or_none()

    def pool_of(self, run_id: str, attempt: int) -> str | None:
        """The pool whose workers reach what an attempt has saved."""
        return self._session.scalar(select(Attempt.pool).where(Attempt.run_id == run_id, Attempt.number == attempt))

    def pending(self, pool: str, limit: int) -> list[Checkpoint]:
        """Checkpoints with which workers of a pool are to do something; those of runs that go on are not deleted."""
        query = (
            select(Checkpoint)
            .join(Attempt, _saved_by())
            .join(Run, Run.id == Checkpoint.run_id)
            .where(Checkpoint.pending.in_(("pin", "unpin", "delete")), Attempt.pool == pool)
            .where(or_(Checkpoint.pending != "delete", Run.state.in_(ENDED)))
            .order_by(Checkpoint.command_id)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def remove(self, run_id: str, step: int) -> None:
        """Note that a checkpoint is gone."""
        self._session.execute(
            update(Checkpoint)
            .where(Checkpoint.run_id == run_id, Checkpoint.step == step)
            .values(removed=True, pending=None, command_id=None, command_by=None)
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


def _saved_by() -> ColumnElement[bool]:
    """Joins a checkpoint with the attempt that has saved it."""
    return and_(Attempt.run_id == Checkpoint.run_id, Attempt.number == Checkpoint.attempt)
