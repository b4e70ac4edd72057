"""What a worker is to do with checkpoints whose files the service does not reach: asked for, handed out, reported."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from backend.checkpoints.repository import CheckpointRepository
from backend.ids import new_id
from backend.runs.repository import EventRepository
from backend.runs.service import RunService
from backend.tables import Checkpoint, Worker
from nanollama.api import schemas
from nanollama.api.errors import Conflict

AT_ONCE = 20
"""Commands in one answer: a worker carries them out before it renews its leases again."""

EVENTS: dict[schemas.CommandKind, str] = {
    "pin": "checkpoint_pinned",
    "unpin": "checkpoint_unpinned",
    "delete": "checkpoint_removed",
}
"""Kinds of what is done to a checkpoint by request."""


class CheckpointCommands:
    """Commands, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._checkpoints = CheckpointRepository(session)
        self._runs = RunService(session)
        self._events = EventRepository(session)

    def ask(self, row: Checkpoint, kind: schemas.CommandKind, who: str) -> None:
        """Have a worker of the run's pool do something, in place of what it has not done yet.

        Raises:
            Conflict: no worker can, or it must not be deleted.
        """
        if self._checkpoints.pool_of(row.run_id, row.attempt) is None:
            raise Conflict(
                "neither the service nor a worker reaches the files of this checkpoint: its run was imported"
            )
        if kind == "delete":
            self.check_ended(row.run_id)
            if row.pinned or row.pending == "pin":
                raise Conflict("this checkpoint is pinned; unpin it first")
        row.pending, row.command_id, row.command_by = kind, new_id("c", self._now), who

    def check_ended(self, run_id: str) -> None:
        """Let nothing be deleted that a run may go on from. Raises Conflict."""
        if not self._runs.require(run_id).state.terminal:
            raise Conflict("the run has not ended, and may go on from this checkpoint; cancel it first")

    def done(self, row: Checkpoint, kind: schemas.CommandKind, by: str) -> None:
        """Note what has been done to the files, unless it was so before."""
        if row.removed if kind == "delete" else row.pinned is (kind == "pin"):
            return
        row.pinned = kind == "pin"
        row.removed = row.removed or kind == "delete"
        self._events.add(row.run_id, EVENTS[kind], self._now, step=row.step, message=f"by {by}")

    def pending(self, worker: Worker) -> list[schemas.Command]:
        """The first commands for the pool of a worker."""
        return [
            schemas.Command(
                id=row.command_id, run_id=row.run_id, step=row.step, kind=row.pending, by=row.command_by or ""
            )
            for row in self._checkpoints.pending(worker.pool, AT_ONCE)
        ]

    def any_pending(self, worker: Worker) -> bool:
        """Whether there is a command for the pool of a worker."""
        return bool(self._checkpoints.pending(worker.pool, 1))

    def report(self, worker: Worker, reports: Sequence[schemas.CommandDone]) -> None:
        """Take what a worker says of commands, as often as it says it; of other pools' checkpoints it is ignored."""
        for report in sorted(reports, key=lambda one: (one.run_id, one.step)):  # in one order, as they are locked
            row = self._checkpoints.lock_of_pool(report.run_id, report.step, worker.pool)
            if row is None:
                continue
            current = row.command_id == report.id
            if current:
                row.pending = row.command_id = row.command_by = None
            if report.problem is None:
                self.done(row, report.kind, f"{report.by}, through worker {worker.name}")
            elif current:
                what = {"pin": "pinned", "unpin": "unpinned", "delete": "deleted"}[report.kind]
                message = f"the checkpoint of step {row.step} could not be {what}: {report.problem}"
                self._events.add(row.run_id, "warning", self._now, step=row.step, message=message)
