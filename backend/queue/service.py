"""State changes of attempts and of the runs that follow them. A change and its event are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.ids import new_id
from backend.queue.repository import AttemptRepository
from backend.runs.repository import EventRepository, RunRepository
from backend.runs.service import no_run, run_view
from backend.tables import Attempt, Run
from nanollama.api import schemas
from nanollama.api.status import ATTEMPT_TRANSITIONS, AttemptState, RunState

_OF_ATTEMPTS = ("id", "experiment_id", "priority", "needs")
"""Columns of a run from which its attempts have theirs."""
_ENDED_WITHOUT_RUN = {AttemptState.INTERRUPTED: "was interrupted", AttemptState.VOID: "was never started"}


class QueueService:
    """The queue as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._attempts = AttemptRepository(session)
        self._runs = RunRepository(session)
        self._events = EventRepository(session)

    def open_first_attempts(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Queue the first attempts of new runs, given as rows."""
        self._attempts.add_many([self._queued(**{key: run[key] for key in _OF_ATTEMPTS}, number=1) for run in runs])
        event = {"attempt": 1, "kind": "transition", "at": self._now, "to_state": AttemptState.QUEUED.value, "epoch": 0}
        self._events.add_many([{"run_id": run["id"], **event} for run in runs])

    def open_attempt(self, run: Run, reason: str | None = None) -> None:
        """Queue the next attempt of a run."""
        run.attempt += 1
        run.state, run.reason, run.worker = RunState.QUEUED, reason, None
        row = self._queued(**{key: getattr(run, key) for key in _OF_ATTEMPTS}, number=run.attempt)
        self._attempts.add_many([row | {"reason": reason}])
        self._transition_event(run, run.attempt, None, AttemptState.QUEUED, epoch=0, message=reason)

    def _queued(self, *, id: str, number: int, **values: Any) -> dict[str, Any]:  # noqa: A002 - the run's
        """The row of an attempt that waits."""
        return {
            "id": new_id("a", self._now),
            "run_id": id,
            "number": number,
            "state": AttemptState.QUEUED,
            "epoch": 0,
            "new_checkpoints": 0,
            "created_at": self._now,
            **values,
        }

    def cancel(self, run_id: str) -> schemas.Run:
        """Ask for a run to stop; at once when it is queued. A run that has ended stays as it is. Raises NotFound."""
        while True:
            attempt = self._attempts.lock_newest(run_id)
            if attempt is None:
                raise no_run(run_id)
            (run,) = self._runs.lock([run_id])
            if run.attempt == attempt.number:
                break  # otherwise the attempt ended and another was opened while we waited for the lock
        if not run.state.terminal and not run.cancel_requested:
            run.cancel_requested = True
            self._events.add(run.id, "cancel_requested", self._now, attempt=attempt.number)
        if attempt.state is AttemptState.QUEUED:
            self.move(attempt, run, AttemptState.CANCELLED, reason="cancelled while it was queued")
        return run_view(run)

    def move(
        self,
        attempt: Attempt,
        run: Run,
        to: AttemptState,
        *,
        reason: str | None = None,
        exit_code: int | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Take a locked attempt to a legal next state, and its locked run along."""
        before = attempt.state
        assert to in ATTEMPT_TRANSITIONS[before], f"{before} -> {to}"
        assert run.attempt == attempt.number, "only the newest attempt moves"
        attempt.state, attempt.reason, attempt.exit_code = to, reason, exit_code
        self._transition_event(run, attempt.number, before, to, epoch=attempt.epoch, message=reason)
        if to is AttemptState.RUNNING:
            attempt.started_at = self._now
            run.started_at = run.started_at or self._now
        if to.terminal:
            attempt.finished_at, attempt.lease_expires_at = self._now, None
        if to in _ENDED_WITHOUT_RUN:
            self._continue(attempt, run)
        else:
            self._follow(run, RunState(to.value), reason)
            run.result = result

    def _continue(self, attempt: Attempt, run: Run) -> None:
        """What becomes of a run whose attempt ended without ending it."""
        why = f"attempt {attempt.number} {_ENDED_WITHOUT_RUN[attempt.state]}"
        why += f": {attempt.reason}" if attempt.reason else ""
        if run.cancel_requested:
            self._end(run, RunState.CANCELLED, f"cancelled; {why}")
            return
        before = self._attempts.number(run.id, attempt.number - 1)
        if before is not None and before.new_checkpoints == attempt.new_checkpoints == 0:
            numbers = f"{before.number} and {attempt.number}"
            self._end(
                run,
                RunState.FAILED,
                f"attempts {numbers} both saved no new checkpoint, so another would not get further either; {why}",
            )
            return
        self.open_attempt(run, why)

    def _end(self, run: Run, state: RunState, reason: str) -> None:
        """End a run by itself; its newest attempt has ended in a state that does not say how."""
        self._transition_event(run, None, run.state, state, message=reason)
        self._follow(run, state, reason)

    def _follow(self, run: Run, state: RunState, reason: str | None) -> None:
        run.state, run.reason = state, reason
        if state.terminal:
            run.finished_at, run.worker = self._now, None

    def _transition_event(
        self,
        run: Run,
        attempt: int | None,
        before: AttemptState | RunState | None,
        to: AttemptState | RunState,
        *,
        epoch: int | None = None,
        message: str | None = None,
    ) -> None:
        self._events.add(
            run.id,
            "transition",
            self._now,
            attempt=attempt,
            from_state=None if before is None else before.value,
            to_state=to.value,
            epoch=epoch,
            message=message,
        )
