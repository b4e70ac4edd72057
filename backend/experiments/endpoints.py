"""Experiments: submit, list, detail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, status

from backend.deps import ContextDep, ExperimentCursor, ExperimentId, error_responses
from backend.experiments.service import ExperimentService
from backend.specs.service import read_sweep
from nanollama.api.errors import InvalidRequest
from nanollama.api.schemas import Experiment, ExperimentCreate, ExperimentDetail, ExperimentPage
from nanollama.spec.base import SpecError

router = APIRouter(prefix="/experiments", tags=["experiments"])

IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="a repetition with the same key and body creates nothing and gets the same answer",
    ),
]


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
    try:
        sweep = read_sweep(body)
    except SpecError as error:
        count = len(error.problems)
        detail = f"the config has {count} problem{'s' if count > 1 else ''}"
        raise InvalidRequest(detail, error.problems) from None
    with context.database.write() as session:
        experiment = ExperimentService(session, context.clock()).submit(body, sweep, idempotency_key)
    context.notifier.notify()
    return experiment


@router.get("", summary="List experiments", responses=error_responses())
def list_experiments(
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: ExperimentCursor = None,
) -> ExperimentPage:
    """Experiments with their first runs, newest first."""
    with context.database.read() as session:
        return ExperimentService(session, context.clock()).page(limit=limit, cursor=cursor)


@router.get("/{experiment_id}", summary="One experiment", responses=error_responses(404))
def get_experiment(context: ContextDep, experiment_id: ExperimentId) -> ExperimentDetail:
    """An experiment with what was submitted and its first runs."""
    with context.database.read() as session:
        return ExperimentService(session, context.clock()).get(experiment_id)
