"""Metrics of a run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.deps import ContextDep, RunId, error_responses
from backend.metrics import series
from backend.metrics.repository import MetricRepository
from backend.runs.service import RunService
from nanollama.api.schemas import Metrics

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/metrics", summary="Metrics of a run", responses=error_responses(404))
def read_metrics(
    context: ContextDep,
    run_id: RunId,
    key: Annotated[list[str], Query(max_length=200, description="only these series; all when absent")] = [],  # noqa: B006
    max_points: Annotated[int, Query(ge=series.MIN_POINTS, le=100_000, description="of each series")] = 1000,
    spacing: Annotated[series.Spacing, Query(description="of the points that are kept, in step")] = "linear",
) -> Metrics:
    """Series as columns, thinned out to `max_points` with the first and last point and every extreme kept.

    Where attempts overlap, the newest wins. Loss, bound and excess are in nats per token.
    """
    with context.database.read() as session:
        RunService(session).require(run_id)
        lines = MetricRepository(session).surviving(run_id)
    points = series.collect(lines)
    wanted = [name for name in dict.fromkeys(key) if name in points] if key else list(points)
    return Metrics(
        run_id=run_id,
        keys=sorted(points),
        series={name: series.view(points[name], max_points, spacing) for name in wanted},
    )
