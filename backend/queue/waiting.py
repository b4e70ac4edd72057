"""Who waits for a worker, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.experiments.repository import ExperimentRepository
from backend.queue.needs import NeedRepository, Offer
from backend.queue.pauses import PauseRepository
from backend.queue.repository import AttemptRepository
from backend.settings import Settings
from backend.tables import Attempt
from backend.workers.repository import WorkerRepository
from backend.workers.service import is_alive
from nanollama.api import schemas


@dataclass(frozen=True)
class Seat:
    """A worker that is alive, what it has left, and how many slots."""

    offer: Offer
    free: int

    @property
    def draining(self) -> bool:
        """Whether it takes nothing more."""
        return self.offer.worker.draining or self.offer.worker.drain_requested


class WaitingService:
    """The line before the workers, as of one moment."""

    def __init__(self, session: Session, now: datetime, settings: Settings) -> None:
        self._now = now
        self._settings = settings
        self._attempts = AttemptRepository(session)
        self._workers = WorkerRepository(session)
        self._needs = NeedRepository(session)
        self._pauses = PauseRepository(session)
        self._experiments = ExperimentRepository(session)

    def list(self, *, offset: int, limit: int) -> schemas.Queue:
        """Jobs that wait, in the order of claims, each with the reason."""
        line = self._attempts.in_line(offset, limit)
        paused = self._pauses.queue()
        paused_experiments = self._experiments.paused({run.experiment_id for _, run in line})
        needs, seats = self._needs.of_waiting(), self._seats()
        items = []
        for position, (attempt, run) in enumerate(line, offset):
            need = needs[attempt.needs] if attempt.needs is not None else {}
            if paused is not None:
                reason: schemas.Waiting = "queue_paused"
                detail = "the queue is paused"
            elif run.experiment_id in paused_experiments:
                reason, detail = "experiment_paused", "its experiment is paused"
            else:
                reason, detail = _why(attempt, need, seats, position)
            items.append(
                schemas.QueueEntry(
                    position=position,
                    run_id=run.id,
                    run_name=run.name,
                    experiment_id=run.experiment_id,
                    attempt=attempt.number,
                    priority=attempt.priority,
                    since=attempt.created_at,
                    resources=schemas.Resources.stored(need),
                    reason=reason,
                    detail=detail,
                )
            )
        return schemas.Queue(paused_since=paused, waiting=self._attempts.count_queued(), items=items)

    def _seats(self) -> Sequence[Seat]:
        alive = [(worker, busy) for worker, busy in self._workers.all() if is_alive(worker, self._now, self._settings)]
        offers = self._needs.offers([worker for worker, _ in alive])
        return [Seat(offer, worker.slots - busy) for offer, (worker, busy) in zip(offers, alive, strict=True)]


def _why(
    attempt: Attempt, need: Mapping[str, Any], seats: Sequence[Seat], position: int
) -> tuple[schemas.Waiting, str]:
    """Why an attempt of nothing that is paused waits."""
    if not seats:
        return "no_worker", "no worker is alive"
    able = [seat for seat in seats if seat.offer.why_never(need) is None]
    if not able:
        nearest = seats[0].offer
        return "no_worker", f"no worker has what it needs; of {nearest.worker.name}: {nearest.why_never(need)}"
    if attempt.pool is not None:
        able = [seat for seat in able if seat.offer.worker.pool == attempt.pool]
        if not able:
            return "no_worker", f"its checkpoints are with the pool {attempt.pool}, of which no worker is alive"
    willing = [seat for seat in able if not seat.draining]
    if not willing:
        return "draining", "each worker that could run it takes nothing more"
    if any(seat.free > 0 and seat.offer.fits(need) for seat in willing):
        return "next", f"a worker is free for it; {_before(position) or 'it is next'}"
    before = _before(position) or "it is the first in line"
    return "busy", f"each worker that could run it is busy; {before}"


def _before(position: int) -> str:
    """How many jobs are before one, in words; empty for the first."""
    if position == 0:
        return ""
    return "1 job is before it" if position == 1 else f"{position:,} jobs are before it"
