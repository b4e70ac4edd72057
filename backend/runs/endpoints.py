"""Runs: list, detail, cancel, attempts, events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.deps import ContextDep, RunId, error_responses
from backend.queue.service import QueueService
from backend.runs.service import RunService, Wanted
from nanollama.api.filters import LANGUAGE, MAX_CHARS
from nanollama.api.schemas import Attempt, Event, Run, RunDetail, RunPage
from nanollama.api.status import RunState

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("", summary="List runs", responses=error_responses())
def list_runs(
    *,
    context: ContextDep,
    state: Annotated[list[RunState], Query(max_length=7, description="only runs in one of these states")] = [],  # noqa: B006
    search: Annotated[str | None, Query(max_length=200, description="part of the name, the id or a tag")] = None,
    experiment: Annotated[
        str | None, Query(max_length=32, description="only runs of this experiment, and those that it reuses")
    ] = None,
    filter: Annotated[  # noqa: A002 - the name on the wire
        str | None,
        Query(max_length=MAX_CHARS, description=LANGUAGE, examples=["state:running optim.lr>1e-3 excess<0.02"]),
    ] = None,
    sort: Annotated[
        str | None,
        Query(
            max_length=201,
            description="a field or a metric, `-` in front for the largest first; the newest first if absent",
            examples=["-excess"],
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the page before")] = None,
) -> RunPage:
    """Runs, newest first unless `sort` says otherwise; what has no value to sort by comes last.

    `counts` is over all runs that match filter, experiment and search, whatever `state` says. Pages hold while runs are
    added: each begins where the one before ended.
    """
    wanted = Wanted(state, search, experiment, filter, sort, limit, cursor)
    with context.database.read() as session:
        return RunService(session).page(wanted, context.clock())


@router.get("/{run_id}", summary="One run", responses=error_responses(404))
def get_run(context: ContextDep, run_id: RunId) -> RunDetail:
    """A run with its config and, once finished, its result."""
    with context.database.read() as session:
        return RunService(session).detail(run_id)


@router.post("/{run_id}/cancel", summary="Cancel a run", responses=error_responses(404))
def cancel_run(context: ContextDep, run_id: RunId) -> Run:
    """Ask for a run to stop: at once when it is queued, otherwise as soon as its worker has evidence.

    Repeating it changes nothing, and neither does cancelling a run that has ended.
    """
    with context.database.write() as session:
        run = QueueService(session, context.clock()).cancel(run_id)
    context.notifier.notify()
    return run


@router.get("/{run_id}/attempts", summary="Attempts of a run", responses=error_responses(404))
def list_attempts(context: ContextDep, run_id: RunId) -> list[Attempt]:
    """Oldest first."""
    with context.database.read() as session:
        return RunService(session).attempts(run_id)


@router.get("/{run_id}/events", summary="What happened to a run", responses=error_responses(404))
def list_events(context: ContextDep, run_id: RunId) -> list[Event]:
    """Transitions, cancel requests and the training's own events, oldest first."""
    with context.database.read() as session:
        return RunService(session).events(run_id)
