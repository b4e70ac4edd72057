"""What workers do with attempts, and who waits for a worker."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from backend.auth.access import needs, own_attempt
from backend.deps import AttemptId, Context, ContextDep, error_responses
from backend.queue.pauses import PauseRepository
from backend.queue.transitions import TransitionService
from backend.queue.waiting import WaitingService
from nanollama.api.schemas import Attempt, Queue, Run, TransitionRequest, UnknownReport
from nanollama.api.scopes import ADMIN, WORKER

router = APIRouter(prefix="/attempts", tags=["attempts"])


@router.post(
    "/{attempt_id}/transitions",
    summary="Report a transition",
    responses=error_responses(404, 409),
    dependencies=[Depends(own_attempt)],
)
@needs(WORKER)
def report_transition(context: ContextDep, attempt_id: AttemptId, body: TransitionRequest) -> Attempt:
    """Carry out a worker's report, once: a repeated `transition_id` changes nothing and gets the same answer.

    `stale_epoch` means that the lease is another's; `conflict` that the transition is illegal. INTERRUPTED and VOID
    open the next attempt, unless the run was cancelled or stopped getting further.
    """
    with context.database.write() as session:
        attempt = TransitionService(session, context.clock()).report(attempt_id, body)
    context.notifier.notify()
    return attempt


@router.post(
    "/{attempt_id}/unknown",
    summary="Report that an attempt is lost",
    responses=error_responses(404, 409),
    dependencies=[Depends(own_attempt)],
)
@needs(WORKER)
def report_unknown(context: ContextDep, attempt_id: AttemptId, body: UnknownReport) -> Run:
    """Say that an attempt was started, is gone, and left no account; or, without a reason, that it has been found.

    Absence is not success, and no proof of an end: a person decides, with POST /runs/{id}/resolve. Repeating it
    changes nothing.
    """
    with context.database.write() as session:
        run = TransitionService(session, context.clock()).unknown(attempt_id, body)
    context.notifier.notify()
    return run


queue_router = APIRouter(prefix="/queue", tags=["queue"])


@queue_router.get("", summary="Jobs that wait, and why", responses=error_responses())
def get_queue(
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000, description="entries to pass over")] = 0,
) -> Queue:
    """In the order in which a worker that could run all of them would get them."""
    with context.database.read() as session:
        return WaitingService(session, context.clock(), context.settings).list(offset=offset, limit=limit)


@queue_router.post("/pause", summary="Pause the queue", responses=error_responses())
@needs(ADMIN)
def pause_queue(context: ContextDep) -> Queue:
    """Lease nothing until it is resumed. What is leased already goes on."""
    return _set_paused(context, paused=True)


@queue_router.post("/resume", summary="Resume the queue", responses=error_responses())
@needs(ADMIN)
def resume_queue(context: ContextDep) -> Queue:
    """Let jobs be leased again."""
    return _set_paused(context, paused=False)


def _set_paused(context: Context, *, paused: bool) -> Queue:
    with context.database.write() as session:
        pauses = PauseRepository(session)
        if paused:
            pauses.pause_queue(context.clock())
        else:
            pauses.resume_queue()
        queue = WaitingService(session, context.clock(), context.settings).list(offset=0, limit=100)
    context.notifier.notify()
    return queue
