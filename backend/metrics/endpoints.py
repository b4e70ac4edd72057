"""Metrics of runs: curves of any length, thinned out; newest and best values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response

from backend.auth.access import needs
from backend.deps import Context, ContextDep, RunId, error_responses
from backend.metrics.points import Axis
from backend.metrics.reader import View
from backend.metrics.service import ARROW, MetricService, encode
from backend.metrics.thin import MIN_POINTS, Spacing
from backend.revalidation import Revalidated
from nanollama.api import schemas
from nanollama.api.scopes import READ

router = APIRouter(tags=["metrics"])

Keys = Annotated[list[str], Query(max_length=200, description="only these series; all when absent")]
Runs = Annotated[list[str], Query(min_length=1, max_length=schemas.MAX_RUNS, description="ids of the runs")]
Rank = Annotated[int, Query(ge=0, le=99_999, description="whose lines; rank 0 writes means over all")]
Accept = Annotated[str, Header(include_in_schema=False)]


def _view(
    max_points: Annotated[int, Query(ge=MIN_POINTS, le=schemas.MAX_POINTS, description="of each series")] = 1000,
    spacing: Annotated[Spacing, Query(description="of the points that are kept, in x")] = "linear",
    x: Annotated[Axis, Query(description="the axis; relative_time: seconds since the run's first line")] = "step",
    x_min: Annotated[float | None, Query(description="only points from here on")] = None,
    x_max: Annotated[float | None, Query(description="only points up to here")] = None,
) -> View:
    low, high = -math.inf if x_min is None else x_min, math.inf if x_max is None else x_max
    return View(axis=x, low=low, high=high, max_points=max_points, spacing=spacing)


ViewDep = Annotated[View, Depends(_view)]
_ARROW_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARROW: {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get(
    "/runs/{run_id}/metrics",
    summary="Metrics of a run",
    response_model=schemas.Metrics,
    responses=error_responses(404),
    dependencies=[Revalidated],
)
def read_run_metrics(context: ContextDep, run_id: RunId, view: ViewDep, key: Keys = [], rank: Rank = 0) -> Response:  # noqa: B006
    """Series as columns, thinned out to `max_points` with the first and last point and every spike kept.

    Where attempts overlap, the newest wins. Loss, bound and excess are in nats per token.
    """
    with context.database.read() as session:
        answer = MetricService(session).read([run_id], key, view, rank)
    return Response(encode(answer.run(run_id)), media_type="application/json")


@router.get(
    "/metrics",
    summary="Metrics of several runs",
    response_model=schemas.MetricsReply,
    responses=error_responses(404) | _ARROW_DOCS,
    dependencies=[Revalidated],
)
def read_metrics(
    *,
    context: ContextDep,
    run: Runs,
    view: ViewDep,
    key: Keys = [],  # noqa: B006
    rank: Rank = 0,
    accept: Accept = "",
) -> Response:
    """As for one run; with `Accept: application/vnd.apache.arrow.stream` as one Arrow table."""
    return _answer(context, run, key, view=view, rank=rank, accept=accept)


@router.post(
    "/metrics",
    summary="Metrics of several runs, asked for in a body",
    response_model=schemas.MetricsReply,
    responses=error_responses(404) | _ARROW_DOCS,
)
@needs(READ)
def query_metrics(context: ContextDep, query: schemas.MetricsQuery, accept: Accept = "") -> Response:
    """The same as GET, for more runs than a URL holds; it changes nothing."""
    view = _view(query.max_points, query.spacing, query.x, query.x_min, query.x_max)
    return _answer(context, query.runs, query.keys, view=view, rank=query.rank, accept=accept)


@router.get(
    "/metrics/values",
    summary="Newest and best values of runs",
    responses=error_responses(404),
    dependencies=[Revalidated],
)
def read_values(context: ContextDep, run: Runs) -> list[schemas.RunValues]:
    """Newest, smallest and largest value of each metric, over the surviving points."""
    with context.database.read() as session:
        return MetricService(session).values(run)


def _answer(
    context: Context, runs: Sequence[str], keys: Sequence[str], *, view: View, rank: int, accept: str
) -> Response:
    with context.database.read() as session:
        answer = MetricService(session).read(runs, keys, view, rank)
    if ARROW in accept:
        return Response(answer.arrow(), media_type=ARROW)
    return Response(answer.json(), media_type="application/json")
