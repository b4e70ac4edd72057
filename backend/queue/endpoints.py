"""What workers do with attempts."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from backend.auth.access import needs, own_attempt
from backend.deps import AttemptId, ContextDep, error_responses
from backend.queue.transitions import TransitionService
from nanollama.api.schemas import Attempt, TransitionRequest
from nanollama.api.scopes import WORKER

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
