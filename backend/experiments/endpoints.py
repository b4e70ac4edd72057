"""Experiments: submit, list, detail."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, status

from backend.deps import Context, ContextDep, ExperimentCursor, ExperimentId, IdempotencyKeyHeader, error_responses
from backend.experiments.service import ExperimentService
from backend.revalidation import Revalidated
from backend.specs.service import read_sweep, refusal
from nanollama.api.schemas import Experiment, ExperimentCreate, ExperimentDetail, ExperimentPage, ExperimentPatch
from nanollama.spec.base import SpecError

router = APIRouter(prefix="/experiments", tags=["experiments"])


@router.post(
    "", status_code=status.HTTP_201_CREATED, summary="Submit a config or a sweep", responses=error_responses(409, 413)
)
def create_experiment(
    context: ContextDep, body: ExperimentCreate, idempotency_key: IdempotencyKeyHeader = None
) -> Experiment:
    """Create an experiment and queue its runs, all of them or none.

    A config with a `grid` makes up to 10,000 runs, in the grid's order and with the values in their names. An invalid
    config is refused with every problem, and nothing is kept.
    """
    return submit_experiment(context, body, idempotency_key)


def submit_experiment(
    context: Context, given: ExperimentCreate, idempotency_key: str | None, pool: str | None = None
) -> Experiment:
    """Read a config and its grid, outside of the transaction that stores them. Raises InvalidRequest."""
    try:
        sweep = read_sweep(given)
    except SpecError as error:
        raise refusal(error) from None
    with context.database.write() as session:
        experiment = ExperimentService(session, context.clock()).submit(given, sweep, idempotency_key, pool)
    context.notifier.notify()
    return experiment


@router.get("", summary="List experiments", responses=error_responses(), dependencies=[Revalidated])
def list_experiments(
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: ExperimentCursor = None,
) -> ExperimentPage:
    """Experiments with their first runs, newest first."""
    with context.database.read() as session:
        return ExperimentService(session, context.clock()).page(limit=limit, cursor=cursor)


@router.get("/{experiment_id}", summary="One experiment", responses=error_responses(404), dependencies=[Revalidated])
def get_experiment(context: ContextDep, experiment_id: ExperimentId) -> ExperimentDetail:
    """An experiment with what was submitted and its first runs."""
    with context.database.read() as session:
        return ExperimentService(session, context.clock()).get(experiment_id)


@router.patch("/{experiment_id}", summary="Change an experiment", responses=error_responses(404))
def patch_experiment(context: ContextDep, experiment_id: ExperimentId, body: ExperimentPatch) -> Experiment:
    """Change its name, tags or notes. Its runs keep their names and tags: POST /runs:tag changes those."""
    with context.database.write() as session:
        experiment = ExperimentService(session, context.clock()).change(experiment_id, body)
    context.notifier.notify()
    return experiment


@router.post("/{experiment_id}/pause", summary="Pause an experiment", responses=error_responses(404))
def pause_experiment(context: ContextDep, experiment_id: ExperimentId) -> Experiment:
    """Lease none of its runs until it is resumed. Those that are leased already go on."""
    return _set_paused(context, experiment_id, context.clock())


@router.post("/{experiment_id}/resume", summary="Resume an experiment", responses=error_responses(404))
def resume_experiment(context: ContextDep, experiment_id: ExperimentId) -> Experiment:
    """Let its runs be leased again."""
    return _set_paused(context, experiment_id, None)


def _set_paused(context: Context, experiment_id: str, since: datetime | None) -> Experiment:
    with context.database.write() as session:
        experiment = ExperimentService(session, context.clock()).set_paused(experiment_id, since)
    context.notifier.notify()
    return experiment
