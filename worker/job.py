"""One job's life: start or adopt it, follow it, ship what it writes, end it when asked, report how it ended."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanollama.api.client import Client
from nanollama.api.errors import ApiError, Conflict, NotFound, StaleEpoch, Unauthorized, Unavailable
from nanollama.api.schemas import Held, TransitionRequest
from nanollama.api.status import AttemptState
from nanollama.spec.files import NO_ROOM
from nanollama.spec.rundir import PROVENANCE, STOP_REQUESTED, Provenance
from worker.allow import Allowed
from worker.executors.base import Attempt, Busy, Executor, Forbidder, Phase, Refused, Status
from worker.journal import Journal, Record
from worker.outcome import Ending, Outcome, judge
from worker.pace import Backoff, Pace
from worker.root import RootAway, RunRoot
from worker.shipping import Shipper

log = logging.getLogger(__name__)

SAME_SECONDS = 60.0
"""The least time between two reports that only tell another reason for a wait."""

OUT_OF_SIGHT_SECONDS = 5.0
"""Between two looks at what cannot be seen: it costs a look at every process, or one that a file system may delay."""

_REASON_CHARS = 4000
_PATIENCE_SECONDS = 10.0


class Job:
    """An attempt that this worker holds; a task for a crew of threads that follow all of them.

    Args:
        record: the attempt, as it is in the journal.
        executor: executes it.
        client: connection to the service.
        journal: remembers what must survive.
        pace: how often to ship.
        grace: seconds that a run which is interrupted has to save and stop by itself.
        on_over: called when the job is over for this worker: reported, or lost to another.
        wake: called when a step is due at once.
        allowed: what may be started here.
        root: the run root.
        is_deleting: whether a checkpoint of a run, given by its id, is being deleted.
        untouched: whether nobody can have started it before: no earlier life of this worker, no other worker.
        clock: tells the time in seconds, from any origin.
    """

    def __init__(
        self,
        record: Record,
        *,
        executor: Executor,
        client: Client,
        journal: Journal,
        pace: Pace,
        grace: float,
        on_over: Callable[[Job], None],
        wake: Callable[[Job], None] = lambda _job: None,
        allowed: Allowed | None = None,
        root: RunRoot,
        is_deleting: Callable[[str], bool] = lambda _run_id: False,
        untouched: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        lease = record.lease
        self.attempt = Attempt(
            lease.attempt_id, record.directory, lease.app, lease.config, experiment=lease.experiment_id
        )
        self._title = f"{lease.run_name} ({lease.run_id}, attempt {lease.number})"
        self._executor = executor
        self._client = client
        self._journal = journal
        self._pace = pace
        self._grace = grace
        self._on_over = on_over
        self._wake = wake
        self._allowed = allowed or Allowed()
        self._root = root
        self._is_deleting = is_deleting
        self._untouched = untouched
        self._clock = clock
        attempt_id = lease.attempt_id
        self._shipper = Shipper(
            record.directory,
            self._put,
            journal.splices(attempt_id),
            lambda name, splice: journal.splice(attempt_id, name, splice),
        )
        self._lock = threading.Lock()  # guards the record
        self._detached = self._lost = self._reported = self._done = self._hurry = False
        self._outcome: Outcome | None = None
        self._busy = False  # whether it waits for something that other runs of this worker use
        self._stuck_since: float | None = None  # since when its directory cannot be used
        self._unknown: str | None = None  # why nobody knows what became of it
        # the same, as the service was told; by an earlier life nobody knows what
        self._said_unknown: str | None = None if untouched else ""
        self._complaint = ""  # the last trouble that was told, so that it is told once
        self._waiting: str | None = None  # why it waits, as the service was told
        self._next_waiting = 0.0
        self._has_run = False  # and has ended
        self._silent = False  # given up before anything could write: there is nothing to ship
        self._escalation: list[tuple[float, Callable[[], None]]] | None = None
        self._backoff = Backoff()
        self._next_talk = 0.0
        self._reports = journal.pending(record)  # as in the journal: to be sent, in this order

    # -- what others may call --------------------------------------------------------------------------------------

    @property
    def held(self) -> Held:
        """The lease, as it is renewed."""
        return Held(attempt_id=self._record.lease.attempt_id, epoch=self._record.lease.epoch)

    @property
    def ended(self) -> bool:
        """Whether nothing executes any more, though it may not be reported yet."""
        return self._outcome is not None

    @property
    def out_of_sight(self) -> bool:
        """Whether it cannot be seen how it goes on, or has ended."""
        return self._unknown is not None

    @property
    def over(self) -> bool:
        """Whether it is reported, or lost to another."""
        return self._done

    def end(self, ending: Ending, *, hurry: bool = False) -> None:
        """Ask for its end: for good, or for now. With `hurry` it gets no time to save.

        Raises:
            sqlite3.Error: it is ended, but the journal does not know.
        """
        with self._lock:
            if self._record.ending not in (ending, "cancel"):
                log.info("%s: to be %s", self._title, "cancelled" if ending == "cancel" else "interrupted")
                record, self._record = self._record, replace(self._record, ending=ending)
                self._escalation = None
                self._journal.end(record, ending)
            if hurry and not self._hurry:
                self._hurry = True
                self._escalation = None
        self._wake(self)

    def lose(self) -> None:
        """The lease is gone: forget it and leave its process alone, it is another's now."""
        self._lost = True
        self._wake(self)

    def detach(self) -> None:
        """Stop following it; it goes on, and the next life of the worker takes it up."""
        self._detached = True
        self._wake(self)

    # -- the life ----------------------------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Do what is due; the seconds until the next step, or None when the worker has nothing more to do with it."""
        if self._detached or self._done:
            return None
        try:
            self.tick()
            pause = self._pause()
            self._complaint = ""
        except (OSError, sqlite3.Error) as error:  # a full disk, a file system that is away: nothing is decided
            if not self._detached:
                self._complain(self._journal.in_words(error) if isinstance(error, sqlite3.Error) else str(error))
            pause = self._backoff.next()
        except Exception:
            if not self._detached:
                log.exception("%s: a bug in the worker; trying again", self._title)
            pause = self._backoff.next()
        return None if self._detached or self._done else pause

    def _complain(self, trouble: str) -> None:
        """Tell of a trouble that passes, once."""
        if trouble != self._complaint:
            log.error("%s: %s; trying again", self._title, trouble)
            self._complaint = trouble

    def tick(self) -> None:
        """Do what is due, without waiting for anything but the service's answers."""
        if self._outcome is None and not self._lost:
            self._advance()
        if self._clock() >= self._talk_at and not self._lost:
            self._talk()
        if self._lost or self._reported:
            if not self._reported:
                log.warning("%s: this worker does not hold it any more; its process is left alone", self._title)
            self._journal.forget(self._record)
            self._executor.release(self.attempt)
            self._on_over(self)
            self._done = True

    @property
    def _talk_at(self) -> float:
        return max(self._next_talk, self._pace.resume_at)

    def _pause(self) -> float:
        until_talk = max(0.0, self._talk_at - self._clock())
        if self._outcome is not None:
            return until_talk
        seconds = self._executor.look_seconds
        return min(seconds if self._unknown is None else max(seconds, OUT_OF_SIGHT_SECONDS), until_talk)

    def _advance(self) -> None:
        """Look, and do what follows from it."""
        try:
            status = self._look()
        except OSError as error:
            if self._untouched:
                self._bear(error)
            elif isinstance(error, RootAway):
                self._stay_unknown(Status(Phase.UNKNOWN, reason=str(error)))
            else:
                raise  # it may be running, only out of sight
            return
        if status.phase is Phase.UNKNOWN:
            self._stay_unknown(status)
            self._announce_running()
            return
        self._note_unknown(None)
        if status.phase is Phase.ABSENT:
            self._begin()
        elif status.phase is Phase.FAILED_TO_START:
            self._give_up(judge(self.attempt.directory, status, None))
        elif status.phase in (Phase.SUBMITTED, Phase.STARTING, Phase.RUNNING):
            if self._record.ending is not None:
                self._escalate(status)  # first: what is told needs room in the journal
            if status.phase is Phase.SUBMITTED:
                self._announce_submitted(status.reason)
            elif status.phase is Phase.RUNNING:
                self._announce_running()
        else:
            self._conclude(status)

    @property
    def _has_begun(self) -> bool:
        """Whether the service was, or is about to be, told that it waits or runs."""
        return self._record.state is not AttemptState.LEASED or bool(self._reports)

    def _look(self) -> Status:
        """Where it is.

        Raises:
            RootAway: its files are out of sight, so that nothing follows from what is not there.
            OSError: it cannot be seen.
        """
        status = self._executor.look(self.attempt)
        if status.phase in (Phase.ABSENT, Phase.VANISHED):
            self._root.check()
        if status.phase is Phase.ABSENT and self._has_begun:
            return self._executor.look_without_files(self.attempt)
        return status

    def _stay_unknown(self, status: Status) -> None:
        """Wait until more is known; whoever wants its end need not."""
        self._note_unknown(status.reason or "it is not to be found")
        if self._record.ending is not None:
            self._escalate(status)

    def _note_unknown(self, unknown: str | None) -> None:
        if unknown is not None and unknown != self._unknown:
            log.warning("%s: %s; nothing follows from it for the run", self._title, unknown)
        elif unknown is None and self._unknown is not None:
            log.info("%s: it is found again", self._title)
        self._unknown = unknown

    def _begin(self) -> None:
        """Start what has not been started."""
        try:
            if self._record.ending is not None:
                self._executor.forbid(self.attempt, self._forbidder)  # the next look tells who has won
            else:
                self._allowed.check(self.attempt)
                if self._is_deleting(self._record.lease.run_id):
                    raise Busy("a checkpoint of it is being deleted")
                self._executor.start(self.attempt)
                log.info("%s: started in %s", self._title, self.attempt.directory)
        except Busy as busy:
            if not self._busy:
                log.info("%s: waits: %s", self._title, busy)
            self._busy = True
        except Refused as refusal:
            self._give_up(Outcome(AttemptState.FAILED, str(refusal)))
        except OSError as error:
            self._bear(error)
        else:
            self._untouched, self._stuck_since = False, None

    def _bear(self, error: OSError) -> None:
        """Nothing has been started, and its directory cannot be used: hope for a while, or for room, then give up.

        Raises:
            OSError: the error, as long as there is hope.
        """
        now = self._clock()
        if self._stuck_since is None:
            self._stuck_since = now
        # the run is in order, and there will be room
        passes = (error.errno in NO_ROOM or isinstance(error, RootAway)) and self._record.ending is None
        if passes or now - self._stuck_since < _PATIENCE_SECONDS:
            raise error
        directory = self.attempt.directory
        outcome = Outcome(
            AttemptState.FAILED, f"cannot write {directory}: {error.strerror or error} - check the worker's --run-root"
        )
        if self._record.ending is not None:
            outcome = judge(directory, Status(Phase.FORBIDDEN, forbidder=self._forbidder), None)
        self._give_up(outcome)
        self._silent = self._outcome is not None

    def _give_up(self, outcome: Outcome) -> None:
        """It cannot be started: make sure that nobody else is about to, then report it."""
        try:
            forbidden = self._executor.forbid(self.attempt, "void")
        except OSError:
            forbidden = True  # where no claim can be written, nobody can start
        if forbidden:
            self._set_outcome(outcome)

    def _conclude(self, status: Status) -> None:
        if status.phase is Phase.VANISHED:
            self._executor.kill(self.attempt)  # its supervisor is gone, but what it supervised may not be
        self._has_run = status.phase in (Phase.ENDED, Phase.JUDGED)
        self._set_outcome(judge(self.attempt.directory, status, self._record.ending))

    def _set_outcome(self, outcome: Outcome) -> None:
        log.info("%s: %s%s", self._title, outcome.to, f": {outcome.reason}" if outcome.reason else "")
        self._outcome = outcome
        if not self._backoff.failing:
            self._next_talk = 0.0

    # -- ending ------------------------------------------------------------------------------------------------------

    @property
    def _forbidder(self) -> Forbidder:
        return "cancel" if self._record.ending == "cancel" else "void"

    def _escalate(self, status: Status) -> None:
        """Take every step that is due: ask, tell, kill. One that fails stays due."""
        with self._lock:
            plan = self._escalation
        if plan is None:
            unseen = status.phase is Phase.UNKNOWN
            if status.phase is not Phase.RUNNING and not unseen:
                self._root.check()
                if self._executor.forbid(self.attempt, self._forbidder):
                    return
            with self._lock:
                plan = self._escalation = self._plan_ending(unseen=unseen)
        while plan and plan[0][0] <= self._clock():
            plan[0][1]()
            del plan[0]

    def _plan_ending(self, *, unseen: bool) -> list[tuple[float, Callable[[], None]]]:
        """When to do what, on the monotonic clock; what cannot be seen cannot be asked either."""
        now = self._clock()
        gentle = self._record.ending == "interrupt" and not self._hurry
        stop_at = now + (self._grace if gentle else 0.0)
        if unseen:
            return [(stop_at, lambda: self._executor.kill(self.attempt))]
        # the executor kills after its own grace; to kill from here is for one that cannot act any more
        kill_at = stop_at + 2 * self._grace + _PATIENCE_SECONDS
        plan: list[tuple[float, Callable[[], None]]] = [
            (stop_at, lambda: self._executor.stop(self.attempt)),
            (kill_at, lambda: self._executor.kill(self.attempt)),
        ]
        return [(now, (self.attempt.directory / STOP_REQUESTED).touch), *plan] if gentle else plan

    # -- talking to the service --------------------------------------------------------------------------------------

    def _talk(self) -> None:
        """Send what is due. Reports go first, but the last one only after every byte of the streams."""
        drained = False
        if self._has_run:  # here, as the end counts also where the journal has no room for this
            self._announce_running()
        try:
            self._send_reports()
            self._report_unknown()
            drained = self._reported or self._silent or self._shipper.ship(final=self._outcome is not None)
            if drained and self._outcome is not None and not self._reported:
                self._intend_outcome(self._outcome)
                self._send_reports()
        except (StaleEpoch, Conflict, NotFound) as error:
            log.warning("%s: %s", self._title, error)
            self._lost = True
        except (Unavailable, Unauthorized):
            self._pace.unreachable(self._clock())  # whoever syncs says so, once for all jobs
        except ApiError as error:
            if not self._backoff.failing:
                log.warning("%s: %s; it goes on, and is reported later", self._title, error)
            self._next_talk = self._clock() + self._backoff.next()
        else:
            self._backoff.reset()
            pause = max(self._pace.upload_seconds, self._executor.look_seconds)
            self._next_talk = self._clock() + (pause if drained else 0.0)

    def _put(self, name: str, offset: int, data: bytes) -> int:
        lease = self._record.lease
        length = self._client.put_stream(lease.attempt_id, name, epoch=lease.epoch, offset=offset, data=data).length
        self._pace.reached()
        return length

    def _report_unknown(self) -> None:
        """Tell whether somebody knows what has become of it, where that has changed."""
        if self._unknown == self._said_unknown or self._outcome is not None:
            return
        try:
            self._client.report_unknown(self.attempt.id, epoch=self._record.lease.epoch, reason=self._unknown)
        except NotFound:
            # a service of an older version; one that has lost the attempt says so in a sync
            if self._said_unknown is None:
                log.warning("%s: %s; the service does not take note of it", self._title, self._unknown)
        self._said_unknown = self._unknown

    def _announce_running(self) -> None:
        told = any(report.to is AttemptState.RUNNING or report.to.terminal for report in self._reports)
        if self._record.state in (AttemptState.LEASED, AttemptState.SUBMITTED) and not told:
            directory = self.attempt.directory
            self._intend(to=AttemptState.RUNNING, attempt_dir=str(directory), provenance=_provenance(directory))

    def _announce_submitted(self, reason: str | None) -> None:
        """Tell that it waits for a scheduler, and now and then another reason for it."""
        if reason is not None:
            reason = reason[:_REASON_CHARS]
        first = self._record.state is AttemptState.LEASED
        again = self._record.state is AttemptState.SUBMITTED and reason != self._waiting
        if (first or (again and self._clock() >= self._next_waiting)) and not self._reports:
            self._intend(to=AttemptState.SUBMITTED, reason=reason, attempt_dir=str(self.attempt.directory))
            self._waiting, self._next_waiting = reason, self._clock() + SAME_SECONDS

    def _intend_outcome(self, outcome: Outcome) -> None:
        reason = outcome.reason[:_REASON_CHARS] if outcome.reason else None
        self._intend(to=outcome.to, reason=reason, exit_code=outcome.exit_code, result=outcome.result)

    def _intend(self, **report: Any) -> None:
        epoch, transition_id = self._record.lease.epoch, uuid.uuid4().hex
        request = TransitionRequest(transition_id=transition_id, epoch=epoch, **report)
        self._journal.intend(self._record, request)
        self._reports.append(request)

    def _send_reports(self) -> None:
        while self._reports:
            request = self._reports[0]
            self._client.transition(self.attempt.id, request)
            self._pace.reached()
            with self._lock:
                self._record = self._journal.acknowledge(self._record, request)
            del self._reports[0]
            self._reported = request.to.terminal


def _provenance(directory: Path) -> dict[str, Any] | None:
    """What stands in provenance.json; None where the executor has written none."""
    try:
        return Provenance.model_validate_json((directory / PROVENANCE).read_bytes()).model_dump()
    except (FileNotFoundError, ValidationError):
        return None
