"""Submission and reads of experiments."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sqlalchemy.orm import Session

from backend.columns import content_digest
from backend.experiments.repository import ExperimentRepository, IdempotencyRepository
from backend.ids import new_id
from backend.queue.service import QueueService
from backend.runs.repository import RunRepository
from backend.runs.service import run_view
from backend.tables import Experiment, Run
from nanollama.api import schemas
from nanollama.api.errors import Conflict, NotFound
from nanollama.api.status import RunState
from nanollama.spec.base import content_hash
from nanollama.spec.experiment import ExperimentSpec


class ExperimentService:
    """Experiments, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._experiments = ExperimentRepository(session)
        self._keys = IdempotencyRepository(session)
        self._runs = RunRepository(session)
        self._queue = QueueService(session, now)

    def submit(
        self, given: schemas.ExperimentCreate, spec: ExperimentSpec, idempotency_key: str | None
    ) -> schemas.Experiment:
        """Create an experiment and queue its runs.

        Raises:
            Conflict: the key was used for another request.
        """
        if idempotency_key is None:
            return self._create(given, spec)
        request_hash = content_digest(given)
        before = self._keys.take(idempotency_key, request_hash, self._now)
        if before is None:
            answer = self._create(given, spec)
            self._keys.answered(idempotency_key, answer.model_dump(mode="json"))
            return answer
        if before.request_hash != request_hash:
            raise Conflict("this Idempotency-Key was used for another request; choose a new key for each submission")
        return schemas.Experiment.model_validate(before.answer)

    def get(self, experiment_id: str) -> schemas.Experiment:
        """One experiment with its runs. Raises NotFound."""
        row = self._experiments.get(experiment_id)
        if row is None:
            raise NotFound(f"there is no experiment '{experiment_id}'")
        return experiment_view(row, self._runs.of_experiments([row.id]))

    def page(self, *, limit: int, cursor: str | None) -> schemas.ExperimentPage:
        """A page of experiments with their runs, newest first."""
        rows = self._experiments.page(limit=limit + 1, cursor=cursor)
        runs: dict[str, list[Run]] = defaultdict(list)
        for run in self._runs.of_experiments([row.id for row in rows[:limit]]):
            runs[run.experiment_id].append(run)
        return schemas.ExperimentPage(
            items=[experiment_view(row, runs[row.id]) for row in rows[:limit]],
            next_cursor=rows[limit - 1].id if len(rows) > limit else None,
        )

    def _create(self, given: schemas.ExperimentCreate, spec: ExperimentSpec) -> schemas.Experiment:
        experiment = Experiment(
            id=new_id("e", self._now),
            name=given.name or spec.orchestration.name,
            notes=given.notes,
            tags=list(dict.fromkeys(given.tags)),
            created_at=self._now,
        )
        self._experiments.add(experiment)
        run = self._new_run(experiment, given.priority, spec)
        self._runs.add(run)
        self._queue.open_attempt(run)
        return experiment_view(experiment, [run])

    def _new_run(self, experiment: Experiment, priority: int, spec: ExperimentSpec) -> Run:
        run_id = new_id("r", self._now)
        return Run(
            id=run_id,
            experiment_id=experiment.id,
            name=experiment.name,
            tags=experiment.tags,
            search="\n".join([experiment.name, run_id, *experiment.tags]).lower(),
            priority=priority,
            app=spec.app,
            config=spec.model_dump(mode="json"),
            config_hash=content_hash(spec),
            state=RunState.QUEUED,
            cancel_requested=False,
            attempt=0,
            created_at=self._now,
            total_steps=spec.optim.steps,
            step=0,
            tokens=0,
            latest={},
        )


def experiment_view(row: Experiment, runs: list[Run]) -> schemas.Experiment:
    """An experiment as the wire shows it."""
    return schemas.Experiment(
        id=row.id,
        name=row.name,
        notes=row.notes,
        tags=row.tags,
        created_at=row.created_at,
        runs=[run_view(run) for run in runs],
    )
