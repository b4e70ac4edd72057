"""Reports of workers: fenced by the epoch, repeatable by their id."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from backend.columns import content_digest
from backend.queue.repository import AttemptRepository
from backend.queue.service import QueueService
from backend.runs.repository import RunRepository
from backend.runs.service import attempt_view, run_view
from backend.tables import Attempt, Transition
from nanollama.api import schemas
from nanollama.api.errors import Conflict, InvalidRequest, NotFound, StaleEpoch
from nanollama.api.status import ATTEMPT_TRANSITIONS, AttemptState
from nanollama.spec.base import Problem


class TransitionService:
    """Reports, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._attempts = AttemptRepository(session)
        self._runs = RunRepository(session)
        self._queue = QueueService(session, now)

    def report(self, attempt_id: str, request: schemas.TransitionRequest) -> schemas.Attempt:
        """Carry out a report, once.

        Raises:
            NotFound: no such attempt.
            StaleEpoch: the lease is another's.
            Conflict: the transition is illegal, or the id was used for another report.
            InvalidRequest: success without evidence.
        """
        attempt = lock_attempt(self._attempts, attempt_id)
        request_hash = content_digest(request)
        done = self._attempts.transition(request.transition_id)
        if done is not None:
            if (done.attempt_id, done.request_hash) != (attempt_id, request_hash):
                raise Conflict(f"the transition_id '{request.transition_id}' was used for another report")
            return schemas.Attempt.model_validate(done.answer)
        check_lease(attempt, request.epoch)
        if request.to not in ATTEMPT_TRANSITIONS[attempt.state]:
            raise Conflict(f"an attempt that is {attempt.state.value} cannot become {request.to.value}")
        _check_evidence(request)
        (run,) = self._runs.lock([attempt.run_id])
        if request.attempt_dir is not None:
            attempt.attempt_dir = request.attempt_dir
        if request.provenance is not None:
            attempt.provenance = request.provenance
        self._queue.move(
            attempt, run, request.to, reason=request.reason, exit_code=request.exit_code, result=request.result
        )
        answer = attempt_view(attempt)
        self._attempts.add_transition(
            Transition(
                transition_id=request.transition_id,
                attempt_id=attempt_id,
                request_hash=request_hash,
                answer=answer.model_dump(mode="json"),
            )
        )
        return answer

    def unknown(self, attempt_id: str, report: schemas.UnknownReport) -> schemas.Run:
        """Take a worker's word that its attempt is lost, or has been found.

        Raises:
            NotFound: no such attempt.
            StaleEpoch, Conflict: the lease is another's, or the attempt has ended.
        """
        attempt = lock_attempt(self._attempts, attempt_id)
        check_lease(attempt, report.epoch)
        if attempt.state.terminal:
            raise Conflict(f"the attempt has ended ({attempt.state.value})")
        self._queue.report_unknown(attempt, report.reason)
        (run,) = self._runs.lock([attempt.run_id])
        return run_view(run)


def lock_attempt(attempts: AttemptRepository, attempt_id: str) -> Attempt:
    """The attempt, locked. Raises NotFound."""
    attempt = attempts.lock(attempt_id)
    if attempt is None:
        raise NotFound(f"there is no attempt '{attempt_id}'")
    return attempt


def check_lease(attempt: Attempt, epoch: int) -> None:
    """Let only the holder of the newest lease pass.

    Raises:
        StaleEpoch: `epoch` is not the newest.
        Conflict: nobody holds the attempt.
    """
    if epoch != attempt.epoch:
        raise StaleEpoch(f"epoch {epoch} is not the attempt's, {attempt.epoch}: drop your record of it, not the job")
    if attempt.state is AttemptState.QUEUED:
        raise Conflict("the attempt is queued: it has to be leased first")


def _check_evidence(request: schemas.TransitionRequest) -> None:
    if request.to is not AttemptState.SUCCEEDED:
        return
    problems = []
    if request.exit_code != 0:
        found = "none was sent" if request.exit_code is None else f"found {request.exit_code}"
        problems.append(Problem(path="exit_code", message=f"SUCCEEDED needs exit code 0, {found}"))
    if request.result is None:
        problems.append(Problem(path="result", message="SUCCEEDED needs the content of result.json"))
    if problems:
        raise InvalidRequest("success needs evidence", problems)
