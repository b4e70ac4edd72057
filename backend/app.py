"""The application: rooms, middleware and errors put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

import nanollama
from backend.archive.endpoints import IMPORT
from backend.archive.endpoints import router as archive_router
from backend.archive.tar import SMALLER
from backend.auth.access import SECURITY, Tokens, authorize, is_open, needed_scope
from backend.auth.endpoints import router as tokens_router
from backend.auth.limits import RateLimit
from backend.catalogue.endpoints import router as catalogue_router
from backend.checkpoints.endpoints import router as checkpoints_router
from backend.database import Database
from backend.deps import Clock, Context, refuse_unknown_queries, utc_now
from backend.documentation import add_documentation
from backend.errors import MEDIA_TYPE, install_error_handlers
from backend.evaluations.endpoints import router as evaluations_router
from backend.examples import EXAMPLES
from backend.experiments.endpoints import router as experiments_router
from backend.live.endpoints import router as live_router
from backend.metrics.endpoints import router as metrics_router
from backend.middleware import BodyLimit, EntityTags, LoopbackOnly, RequestIds
from backend.notifier import Notifier
from backend.operations.endpoints import root_router
from backend.operations.endpoints import router as operations_router
from backend.operations.meter import Meter, Metering
from backend.queue.endpoints import queue_router
from backend.queue.endpoints import router as attempts_router
from backend.queue.sync import extend_leases
from backend.revalidation import Answers, NotModified, not_modified
from backend.runs.endpoints import router as runs_router
from backend.settings import Settings
from backend.specs.endpoints import router as specs_router
from backend.streams.endpoints import router as streams_router
from backend.workers.endpoints import router as workers_router

TAGS = [
    {"name": "specs", "description": "Configs: those that ship with the project, and the check of one's own."},
    {"name": "experiments", "description": "A submitted config and the runs that it made."},
    {
        "name": "catalogue",
        "description": "What sequences come from: true models with their entropy, and files of sequences.",
    },
    {"name": "runs", "description": "Training runs: state, logs, checkpoints."},
    {
        "name": "metrics",
        "description": "Curves of any length, thinned out without losing a spike; newest and best values.",
    },
    {"name": "workers", "description": "Machines that execute runs; for daemons, and to see who is alive."},
    {"name": "queue", "description": "Jobs that wait for a worker, and why."},
    {"name": "attempts", "description": "What a worker reports of the attempts that it leases."},
    {"name": "tokens", "description": "Access tokens and their scopes, where tokens are on."},
    {"name": "service", "description": "The service itself."},
]

ROOT = "/api/v1"

ROUTERS = (
    specs_router,
    experiments_router,
    catalogue_router,
    runs_router,
    metrics_router,
    checkpoints_router,
    evaluations_router,
    streams_router,
    archive_router,
    attempts_router,
    live_router,
    queue_router,
    workers_router,
    tokens_router,
    operations_router,
)

SCOPES = {
    (method.lower(), ROOT + route.path_format): needed_scope(route.endpoint, method)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
}
"""The scope that each operation needs, by method and path."""

_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An access token, where the service asks for one; each operation names the scope that it needs.",
}


def create_app(settings: Settings, *, clock: Clock = utc_now) -> FastAPI:
    """The service on a database that is at the newest schema.

    Args:
        settings: where the database is, and the terms of leases.
        clock: the server's clock, which tests move.
    """
    context = Context(settings=settings, database=Database(settings.database_url), notifier=Notifier(), clock=clock)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(_start, context)
        try:
            yield
        finally:
            context.notifier.close()
            context.database.dispose()

    app = FastAPI(
        title="Nodes to Narratives",
        version=nanollama.__version__,
        summary="Submit training configs, follow the runs, compare the loss with its entropy bound.",
        openapi_tags=TAGS,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.context = context
    app.state.meter = Meter()
    api = APIRouter(prefix=ROOT, dependencies=[Depends(authorize), Depends(refuse_unknown_queries)])
    for router in ROUTERS:
        api.include_router(router)
    app.include_router(api)
    app.include_router(root_router, dependencies=[Depends(authorize)])
    add_documentation(app)
    app.state.answers = Answers()
    install_error_handlers(app)
    app.add_exception_handler(NotModified, not_modified)
    limits = {ROOT + IMPORT: (settings.max_import_bytes, SMALLER)}
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, others=limits)
    app.add_middleware(EntityTags)
    app.add_middleware(RateLimit)
    app.add_middleware(Tokens)
    app.add_middleware(LoopbackOnly)
    app.add_middleware(Metering)
    app.add_middleware(RequestIds)
    _document(app)
    return app


def _start(context: Context) -> None:
    with context.database.write() as session:
        extend_leases(session, context.clock(), context.settings)


def _document(app: FastAPI) -> None:
    """Let the documentation give examples, name scopes, and say that errors are application/problem+json."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document.setdefault("components", {})["securitySchemes"] = {SECURITY: _SCHEME}
            for name, example in EXAMPLES.items():
                document["components"]["schemas"][name]["examples"] = [example]
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    needed = SCOPES[method, path]
                    if is_open(path):
                        operation["responses"].pop("401", None)
                    else:
                        operation["security"] = [{SECURITY: []}]
                        operation["description"] += f"\n\nScope: `{needed}`."
                    for status, response in operation["responses"].items():
                        if status >= "400":
                            response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
        return plain()

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend its documentation
