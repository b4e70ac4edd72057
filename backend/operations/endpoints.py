"""Health, readiness and figures."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

import nanollama
from backend.deps import ContextDep, error_responses
from backend.migrate import current_revision, head_revision
from backend.operations.meter import MEDIA_TYPE, Labels, Meter, family
from backend.runs.repository import RunRepository
from backend.workers.service import WorkerService
from nanollama.api.errors import Unavailable
from nanollama.api.schemas import Health
from nanollama.api.status import RunState

router = APIRouter(tags=["service"])
root_router = APIRouter(tags=["service"])


@router.get("/health", summary="Whether the service answers", responses=error_responses())
def health(context: ContextDep) -> Health:
    """Liveness: needs no token, and looks at nothing."""
    return Health(version=nanollama.__version__, database=context.database.kind)


@router.get("/health/ready", summary="Whether the service can work", responses=error_responses(503))
def ready(context: ContextDep) -> Health:
    """Readiness: the database answers and has the schema that this version needs; 503 otherwise. Needs no token."""
    found, head = current_revision(context.database), head_revision()
    if found != head:
        raise Unavailable(f"the database has the schema {found}, but {head} is needed: run `python -m backend migrate`")
    return health(context)


@root_router.get("/metrics", summary="Figures for Prometheus", include_in_schema=False)
def figures(context: ContextDep, request: Request) -> Response:
    """Requests of this process; runs, workers and open streams as of now."""
    with context.database.read() as session:
        counts = RunRepository(session).counts()
        workers = WorkerService(session, context.clock(), context.settings).all()
    runs: dict[Labels, int] = {(("state", state.value),): counts.get(state, 0) for state in RunState}
    alive = sum(worker.alive for worker in workers)
    known: dict[Labels, int] = {(("alive", "true"),): alive, (("alive", "false"),): len(workers) - alive}
    meter: Meter = request.app.state.meter
    lines = [
        *family("n2n_runs", "gauge", "Runs by state.", runs),
        *family("n2n_workers", "gauge", "Workers by whether they are heard of.", known),
        *family("n2n_workers_busy", "gauge", "Attempts that workers hold.", {(): sum(w.busy for w in workers)}),
        *family("n2n_event_streams", "gauge", "Open streams of events.", {(): context.notifier.streams}),
    ]
    return Response("\n".join(lines) + "\n" + meter.render(), media_type=MEDIA_TYPE)
