"""Runs: list, detail, cancel, attempts, events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, status
from sqlalchemy.orm import Session

from backend.deps import Context, ContextDep, IdempotencyKeyHeader, RunId, error_responses
from backend.experiments.endpoints import submit_experiment
from backend.experiments.service import ExperimentService
from backend.queue.service import QueueService
from backend.revalidation import Revalidated
from backend.runs.editing import RunEditor
from backend.runs.service import RunService, Wanted, run_view
from backend.specs.service import stored_problems
from nanollama.api.errors import InvalidRequest
from nanollama.api.filters import LANGUAGE, MAX_CHARS, Term, parse_filter
from nanollama.api.schemas import (
    Archive,
    Attempt,
    Clone,
    Event,
    Experiment,
    Prioritise,
    Resolve,
    Retag,
    Run,
    RunDetail,
    RunPage,
    RunPatch,
    RunsChanged,
    RunSelection,
)
from nanollama.api.status import AttemptState, RunState

MAX_CHANGED = 10_000
"""Runs that one request changes."""

_GO_ON = parse_filter("state:queued,leased,submitted,running")
_CAN_BE_RETRIED = parse_filter("state:failed,cancelled")

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("", summary="List runs", responses=error_responses(), dependencies=[Revalidated])
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


@router.get("/{run_id}", summary="One run", responses=error_responses(404), dependencies=[Revalidated])
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


@router.post("/{run_id}/retry", summary="Retry a run", responses=error_responses(404, 409))
def retry_run(context: ContextDep, run_id: RunId) -> Run:
    """Open a run again that has failed or was cancelled: its next attempt goes on from its checkpoints.

    The attempts that it had stay ended, and its budgets count anew. One that has succeeded can only be cloned.
    """
    with context.database.write() as session:
        run = QueueService(session, context.clock()).retry(run_id)
    context.notifier.notify()
    return run


@router.post("/{run_id}/resolve", summary="Decide on a run that is lost", responses=error_responses(404, 409))
def resolve_run(context: ContextDep, run_id: RunId, body: Resolve) -> Run:
    """Say how a run ended of which nobody knows: its job was started, is gone, and left no account of its end.

    Make sure first that nothing of it executes any more.
    """
    with context.database.write() as session:
        run = QueueService(session, context.clock()).resolve(run_id, AttemptState(body.to), body.reason)
    context.notifier.notify()
    return run


@router.post(
    "/{run_id}/clone",
    status_code=status.HTTP_201_CREATED,
    summary="Run a config once more",
    responses=error_responses(404, 409, 413),
)
def clone_run(
    context: ContextDep, run_id: RunId, body: Clone, idempotency_key: IdempotencyKeyHeader = None
) -> Experiment:
    """Make a new experiment from a run's config, with overrides: from the first step on, or from a checkpoint."""
    with context.database.read() as session:
        given, pool = ExperimentService(session, context.clock()).clone_of(run_id, body)
    try:
        return submit_experiment(context, given, idempotency_key, pool)
    except InvalidRequest as error:
        with context.database.read() as session:
            run = RunService(session).require_whole(run_id)
        if not stored_problems(run.app, run.config):
            raise
        why = f"the config of run '{run_id}' was stored by another version, and does not load in this one"
        raise InvalidRequest(f"{why}; give overrides, or submit a config of today", error.problems) from None


@router.patch("/{run_id}", summary="Change a run", responses=error_responses(404))
def patch_run(context: ContextDep, run_id: RunId, body: RunPatch) -> Run:
    """Change the priority of a run that has not ended, and tags, notes and whether lists leave it out of any."""
    with context.database.write() as session:
        RunService(session).require(run_id)
        if body.priority is not None:
            QueueService(session, context.clock()).prioritise([run_id], body.priority)
        RunEditor(session, context.clock()).change(run_id, body)
        session.flush()
        session.expire_all()
        run = run_view(RunService(session).require(run_id))
    context.notifier.notify()
    return run


@router.post(":cancel", summary="Cancel runs", responses=error_responses())
def cancel_runs(context: ContextDep, body: RunSelection) -> RunsChanged:
    """As the cancel of each; runs that have ended, or are asked already, are passed over."""
    return _change(context, body, lambda queue, ids: queue.cancel_many(ids), [_GO_ON])


@router.post(":retry", summary="Retry runs", responses=error_responses())
def retry_runs(context: ContextDep, body: RunSelection) -> RunsChanged:
    """As the retry of each; runs that have neither failed nor been cancelled are passed over."""
    return _change(context, body, lambda queue, ids: queue.retry_many(ids), [_CAN_BE_RETRIED])


@router.post(":prioritise", summary="Change the priority of runs", responses=error_responses())
def prioritise_runs(context: ContextDep, body: Prioritise) -> RunsChanged:
    """Runs that have ended are passed over."""
    other = parse_filter(f"priority!={body.priority}")
    return _change(context, body, lambda queue, ids: queue.prioritise(ids, body.priority), [_GO_ON, other])


@router.post(":archive", summary="Archive runs", responses=error_responses())
def archive_runs(context: ContextDep, body: Archive) -> RunsChanged:
    """Have lists leave runs out unless their filter names `archived`; with `archived: false`, show them again.

    Nothing is stopped and nothing is deleted.
    """
    other = parse_filter(f"archived:{not body.archived}")
    return _edit(context, body, lambda editor, ids: editor.archive(ids, archived=body.archived), [other])


@router.post(":tag", summary="Change the tags of runs", responses=error_responses())
def tag_runs(context: ContextDep, body: Retag) -> RunsChanged:
    """Add tags, and remove others; the tags that are not named stay."""
    lacking = [Term("tag", "tag", "=", (tag,), negated=True, position=0) for tag in body.add]
    having = [Term("tag", "tag", "=", (tag,), negated=False, position=0) for tag in body.remove]
    return _edit(context, body, lambda editor, ids: editor.retag(ids, body.add, body.remove), [[*lacking, *having]])


Either = Sequence[Sequence[Term]]


def _change(
    context: Context, selection: RunSelection, change: Callable[[QueueService, list[str]], list[str]], either: Either
) -> RunsChanged:
    return _selected(
        context, selection, lambda session, ids: change(QueueService(session, context.clock()), ids), either
    )


def _edit(
    context: Context, selection: RunSelection, change: Callable[[RunEditor, list[str]], list[str]], either: Either
) -> RunsChanged:
    return _selected(context, selection, lambda session, ids: change(RunEditor(session, context.clock()), ids), either)


def _selected(
    context: Context, selection: RunSelection, change: Callable[[Session, list[str]], list[str]], either: Either
) -> RunsChanged:
    """Change what is selected; of what a filter matches, those that it makes a difference to."""
    with context.database.write() as session:
        ids, more = RunService(session).select(selection, context.clock(), MAX_CHANGED, either)
        changed = change(session, ids)
    context.notifier.notify()
    return RunsChanged(changed=changed, more=more)


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
