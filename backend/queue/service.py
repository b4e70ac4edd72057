"""State changes of attempts and of the runs that follow them. A change and its event are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.catalogue.bounds import keep_result
from backend.checkpoints.repository import CheckpointRepository
from backend.ids import new_id
from backend.queue.repository import AttemptRepository
from backend.runs.repository import EventRepository, RunRepository
from backend.runs.service import no_run, run_view
from backend.specs.service import stored_problems
from backend.tables import Attempt, Run
from nanollama.api import schemas
from nanollama.api.errors import Conflict
from nanollama.api.status import ATTEMPT_TRANSITIONS, AttemptState, RunState
from nanollama.spec.identity import start
from nanollama.spec.rundir import EXIT_BAD_INPUT

_OF_ATTEMPTS = ("id", "experiment_id", "priority", "needs")
"""Columns of a run from which its attempts have theirs."""
_NOT_THE_END = {
    AttemptState.INTERRUPTED: "was interrupted",
    AttemptState.VOID: "was never started",
    AttemptState.FAILED: "failed",
}
"""States of an attempt after which its run may go on."""
_CAN_BE_RETRIED = (RunState.FAILED, RunState.CANCELLED)


class QueueService:
    """The queue as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._session = session
        self._attempts = AttemptRepository(session)
        self._checkpoints = CheckpointRepository(session)
        self._runs = RunRepository(session)
        self._events = EventRepository(session)

    def open_first_attempts(self, runs: Sequence[Mapping[str, Any]], pool: str | None = None) -> None:
        """Queue the first attempts of new runs, given as rows; for a pool that has what they start from, if any."""
        rows = [self._queued(**{key: run[key] for key in _OF_ATTEMPTS}, number=1, pool=pool) for run in runs]
        self._attempts.add_many(rows)
        event = {"attempt": 1, "kind": "transition", "at": self._now, "to_state": AttemptState.QUEUED.value, "epoch": 0}
        self._events.add_many([{"run_id": run["id"], **event} for run in runs])

    def _open_next(self, last: Attempt, run: Run, reason: str) -> None:
        """Queue the attempt after the last one; only for its pool where that has what the run goes on from."""
        run.attempt += 1
        run.state, run.reason, run.worker, run.finished_at = RunState.QUEUED, reason, None, None
        row = self._queued(**{key: getattr(run, key) for key in _OF_ATTEMPTS}, number=run.attempt)
        bound = self._checkpoints.any_left(run.id) or start(run.config) is not None
        self._attempts.add_many([row | {"reason": reason, "pool": last.pool if bound else None}])
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
        attempt, run = self._lock(run_id)
        self._cancel(attempt, run)
        return run_view(run)

    def retry(self, run_id: str) -> schemas.Run:
        """Open a run again that has failed or was cancelled, with an attempt that goes on from its checkpoints.

        Its budgets count anew.

        Raises:
            NotFound: no such run.
            Conflict: it goes on by itself, has succeeded, or its config is none of this version's.
        """
        attempt, run = self._lock(run_id)
        problems = stored_problems(run.app, run.config) if run.state in _CAN_BE_RETRIED else []
        if problems:
            why = "its config was stored by another version, and does not load in this one"
            raise Conflict(f"run '{run_id}' cannot be retried: {why}; clone it with overrides", problems)
        if not self._reopen(attempt, run):
            remedy = "clone it to run it once more" if run.state is RunState.SUCCEEDED else "cancel it first"
            raise Conflict(
                f"run '{run_id}' is {run.state.value}: only one that failed or was cancelled can be retried; {remedy}"
            )
        return run_view(run)

    def cancel_many(self, run_ids: Sequence[str]) -> list[str]:
        """As cancel, for several runs; the ids of those that it made a difference to."""
        return [run.id for attempt, run in self._lock_many(run_ids) if self._cancel(attempt, run)]

    def retry_many(self, run_ids: Sequence[str]) -> list[str]:
        """As retry, for several runs, passing over those that cannot be; the ids of the others."""
        return [run.id for attempt, run in self._lock_many(run_ids) if self._reopen(attempt, run)]

    def prioritise(self, run_ids: Sequence[str], priority: int) -> list[str]:
        """Change the priority of runs that have not ended; their ids. Those that are leased already stay so."""
        changed = [run for _, run in self._lock_many(run_ids) if not run.state.terminal and run.priority != priority]
        for run in changed:
            run.priority = priority
            self._events.add(run.id, "prioritised", self._now, attempt=run.attempt, message=f"priority {priority}")
        self._attempts.prioritise([run.id for run in changed], priority)
        return [run.id for run in changed]

    def report_unknown(self, attempt: Attempt, reason: str | None) -> None:
        """Note that nobody knows of a locked attempt, or, without a reason, that it has been found again."""
        (run,) = self._runs.lock([attempt.run_id])
        if (run.unknown_since is None) == (reason is None):
            return
        run.unknown_since = None if reason is None else self._now
        kind = "found" if reason is None else "unknown"
        self._events.add(run.id, kind, self._now, attempt=attempt.number, message=reason)

    def resolve(self, run_id: str, to: AttemptState, reason: str | None) -> schemas.Run:
        """End an attempt of which nobody knows, on a person's word that nothing of it executes.

        Raises:
            NotFound: no such run.
            Conflict: it is not lost.
        """
        attempt, run = self._lock(run_id)
        if run.unknown_since is None:
            raise Conflict(f"run '{run_id}' is {run.state.value} and not lost; cancel it to end it")
        self._events.add(run.id, "resolved", self._now, attempt=attempt.number, message=reason)
        said = "lost, and given up by hand" if to is AttemptState.FAILED else "lost, and ended by hand"
        self.move(attempt, run, to, reason=f"{said}: {reason}" if reason else said)
        return run_view(run)

    def _lock(self, run_id: str) -> tuple[Attempt, Run]:
        """A run and its newest attempt. Raises NotFound."""
        while True:
            attempt = self._attempts.lock_newest(run_id)
            if attempt is None:
                raise no_run(run_id)
            (run,) = self._runs.lock([run_id])
            if run.attempt == attempt.number:
                return attempt, run
            # otherwise the attempt ended and another was opened while we waited for the lock

    def _lock_many(self, run_ids: Sequence[str]) -> list[tuple[Attempt, Run]]:
        """Runs and their newest attempts, by age; those that just now got another attempt are passed over."""
        attempts = {attempt.run_id: attempt for attempt in self._attempts.lock_newest_of(run_ids)}
        runs = self._runs.lock(attempts)
        return [(attempts[run.id], run) for run in runs if attempts[run.id].number == run.attempt]

    def _cancel(self, attempt: Attempt, run: Run) -> bool:
        asked = not run.state.terminal and not run.cancel_requested
        if asked:
            run.cancel_requested = True
            self._events.add(run.id, "cancel_requested", self._now, attempt=attempt.number)
        if attempt.state is AttemptState.QUEUED:
            self.move(attempt, run, AttemptState.CANCELLED, reason="cancelled while it was queued")
        return asked

    def _reopen(self, attempt: Attempt, run: Run) -> bool:
        if run.state not in _CAN_BE_RETRIED:
            return False
        why = f"retried after attempt {attempt.number}"
        self._events.add(run.id, "reopened", self._now, attempt=attempt.number, message=why)
        run.cancel_requested, run.result, run.counted_from = False, None, attempt.number + 1
        self._open_next(attempt, run, why)
        return True

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
        run.unknown_since = None
        if to in _NOT_THE_END:
            self._continue(attempt, run)
        else:
            self._follow(run, RunState(to.value), reason)
            run.result = result
            if to is AttemptState.SUCCEEDED:
                keep_result(self._session, run, result, self._now)

    def _continue(self, attempt: Attempt, run: Run) -> None:
        """What becomes of a run whose attempt ended without finishing it."""
        failed = attempt.state is AttemptState.FAILED
        why = f"attempt {attempt.number} {_NOT_THE_END[attempt.state]}"
        why += f": {attempt.reason}" if attempt.reason else ""
        if failed and (run.retries == 0 or run.cancel_requested):
            self._follow(run, RunState.FAILED, attempt.reason)
            return
        if run.cancel_requested:
            self._end(run, RunState.CANCELLED, f"cancelled; {why}")
            return
        stop = self._why_stop(attempt, run)
        if stop is None:
            self._open_next(attempt, run, why)
        elif failed:  # the attempt's transition is the run's
            self._follow(run, RunState.FAILED, f"{stop}; {why}")
        else:
            self._end(run, RunState.FAILED, f"{stop}; {why}")

    def _why_stop(self, attempt: Attempt, run: Run) -> str | None:
        """Why there is to be no attempt after this one; None when there is."""
        if attempt.state is AttemptState.FAILED:
            if attempt.exit_code == EXIT_BAD_INPUT:
                return "bad input stays bad however often it is tried"
            if self._attempts.count_ended(run.id, attempt.state, run.counted_from) > run.retries:
                return f"its {run.retries} {'retry has' if run.retries == 1 else 'retries have'} been used"
        most = run.max_interruptions
        if attempt.state is AttemptState.INTERRUPTED and most is not None:
            count = self._attempts.count_ended(run.id, attempt.state, run.counted_from)
            if count > most:
                return f"it was interrupted {count} times, and {most} are allowed"
        before = self._attempts.number(run.id, attempt.number - 1)
        if before is None or before.number < run.counted_from or before.new_checkpoints or attempt.new_checkpoints:
            return None
        numbers = f"{before.number} and {attempt.number}"
        return f"attempts {numbers} both saved no new checkpoint, so another would not get further either"

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
