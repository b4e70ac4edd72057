"""Queries on whole runs and experiments, with all that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session, undefer

from backend.database import upsert
from backend.tables import (
    Attempt,
    Checkpoint,
    Evaluation,
    Event,
    Experiment,
    Need,
    ReusedRun,
    Run,
    Stream,
    StreamChunk,
)

AT_ONCE = 500


class ArchiveRepository:
    """Rows as they go into archives, and come out of them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def experiment(self, experiment_id: str) -> Experiment | None:
        """One experiment with what was submitted."""
        return self._session.get(Experiment, experiment_id, options=[undefer(Experiment.source)])

    def reused(self, experiment_id: str) -> list[ReusedRun]:
        """Earlier runs that an experiment reuses."""
        query = select(ReusedRun).where(ReusedRun.experiment_id == experiment_id).order_by(ReusedRun.position)
        return list(self._session.scalars(query))

    def run_ids(self, experiment_id: str) -> list[str]:
        """An experiment's own runs."""
        return list(self._session.scalars(select(Run.id).where(Run.experiment_id == experiment_id).order_by(Run.id)))

    def run(self, run_id: str) -> Run | None:
        """One run, whole."""
        options = [undefer(Run.config), undefer(Run.result)]
        return self._session.scalars(select(Run).where(Run.id == run_id).options(*options)).one_or_none()

    def need(self, need_id: str | None) -> dict[str, Any]:
        """What a job needs."""
        row = None if need_id is None else self._session.get(Need, need_id)
        return {} if row is None else row.content

    def attempts(self, run_id: str) -> list[Attempt]:
        """The attempts of a run, whole."""
        query = select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)
        return list(self._session.scalars(query.options(undefer(Attempt.provenance))))

    def events(self, run_id: str) -> list[Event]:
        """What happened to a run."""
        return list(self._session.scalars(select(Event).where(Event.run_id == run_id).order_by(Event.id)))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """The checkpoints of a run."""
        query = select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step)
        return list(self._session.scalars(query))

    def evaluations(self, run_id: str) -> list[Evaluation]:
        """The evaluations of a run, whole."""
        query = select(Evaluation).where(Evaluation.run_id == run_id).order_by(Evaluation.step)
        return list(self._session.scalars(query.options(undefer(Evaluation.by_position))))

    def streams(self, attempt_id: str) -> dict[str, int]:
        """Lengths of the streams of an attempt, by name."""
        query = select(Stream.name, Stream.length).where(Stream.attempt_id == attempt_id).order_by(Stream.name)
        return dict(self._session.execute(query).all())

    def stored(self, attempt_id: str, name: str) -> int:
        """How many bytes of a stream are kept."""
        size = func.coalesce(func.sum(func.length(StreamChunk.data)), 0)
        query = select(size).where(StreamChunk.attempt_id == attempt_id, StreamChunk.name == name)
        return self._session.scalar(query) or 0

    def chunks(self, attempt_id: str, name: str) -> Iterator[bytes]:
        """The bytes of a stream that are kept."""
        query = (
            select(StreamChunk.data)
            .where(StreamChunk.attempt_id == attempt_id, StreamChunk.name == name)
            .order_by(StreamChunk.byte_offset)
        )
        yield from self._session.execute(query.execution_options(yield_per=16)).scalars()

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are experiments' or runs'."""
        found: set[str] = set()
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            found |= set(self._session.scalars(select(Experiment.id).where(Experiment.id.in_(some))))
            found |= set(self._session.scalars(select(Run.id).where(Run.id.in_(some))))
        return found

    def known_attempts(self, attempt_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are attempts'."""
        found: set[str] = set()
        for start in range(0, len(attempt_ids), AT_ONCE):
            query = select(Attempt.id).where(Attempt.id.in_(attempt_ids[start : start + AT_ONCE]))
            found |= set(self._session.scalars(query))
        return found

    def attempt(self, attempt_id: str) -> Attempt:
        """One attempt that is there."""
        return self._session.get_one(Attempt, attempt_id)

    def add(self, table: Any, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, in order."""
        for start in range(0, len(rows), AT_ONCE):
            self._session.execute(insert(table), rows[start : start + AT_ONCE])

    def reuse(self, rows: Sequence[dict[str, Any]]) -> None:
        """Let runs that are there stand for runs of experiments, unless they do so already."""
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            known = set(self._session.scalars(select(Run.id).where(Run.id.in_({row["run_id"] for row in some}))))
            there = [row for row in some if row["run_id"] in known]
            if there:
                self._session.execute(upsert(self._session, ReusedRun).values(there).on_conflict_do_nothing())
