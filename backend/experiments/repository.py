"""Queries on experiments and idempotency keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session, undefer

from backend.catalogue.repository import BOUNDS
from backend.database import upsert
from backend.tables import Experiment, IdempotencyKey, ReusedRun


class ExperimentRepository:
    """Experiments."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, experiment: Experiment) -> None:
        """Insert an experiment."""
        self._session.add(experiment)
        self._session.flush()

    def get(self, experiment_id: str, *, source: bool = False) -> Experiment | None:
        """One experiment; `source` loads what was submitted too."""
        options = [undefer(Experiment.source)] if source else []
        return self._session.get(Experiment, experiment_id, options=options)

    def lock(self, experiment_id: str) -> Experiment | None:
        """One experiment, to be changed."""
        query = select(Experiment).where(Experiment.id == experiment_id).with_for_update()
        return self._session.scalars(query).one_or_none()

    def paused(self, experiment_ids: Collection[str]) -> set[str]:
        """Those of the experiments that are paused."""
        query = select(Experiment.id).where(Experiment.id.in_(experiment_ids), Experiment.paused_since.is_not(None))
        return set(self._session.scalars(query))

    def reuse(self, rows: Iterable[dict[str, Any]]) -> None:
        """Let earlier runs stand for runs of an experiment."""
        given = list(rows)
        if given:
            self._session.execute(insert(ReusedRun), given)

    def num_reused(self, experiment_ids: Collection[str]) -> dict[str, int]:
        """By experiment, how many earlier runs it reuses; those that reuse none are left out."""
        query = select(ReusedRun.experiment_id, func.count()).where(ReusedRun.experiment_id.in_(experiment_ids))
        return dict(self._session.execute(query.group_by(ReusedRun.experiment_id)).all())

    def page(self, *, limit: int, cursor: str | None) -> list[Experiment]:
        """Up to `limit` experiments, newest first, older than the one whose id is `cursor`; that of bounds aside."""
        query = select(Experiment).where(Experiment.id != BOUNDS).order_by(Experiment.id.desc()).limit(limit)
        if cursor is not None:
            query = query.where(Experiment.id < cursor)
        return list(self._session.scalars(query))


class IdempotencyRepository:
    """Keys that clients gave to requests."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, key: str, request_hash: str, now: datetime) -> IdempotencyKey | None:
        """Reserve a key. None when it was free, else its row; waits for a request that is about to take it."""
        values = {"key": key, "request_hash": request_hash, "created_at": now}
        statement = upsert(self._session, IdempotencyKey).values(**values).on_conflict_do_nothing()
        taken = self._session.execute(statement.returning(IdempotencyKey.key)).first()
        if taken is not None:
            return None
        return self._session.scalars(select(IdempotencyKey).where(IdempotencyKey.key == key)).one()

    def answered(self, key: str, answer: dict[str, Any]) -> None:
        """Store the answer of the request that took the key."""
        self._session.execute(update(IdempotencyKey).where(IdempotencyKey.key == key).values(answer=answer))
