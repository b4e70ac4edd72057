"""What endpoints are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from backend.database import Database
from backend.notifier import Notifier
from backend.settings import Settings
from nanollama.api.schemas import ErrorBody

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The server's clock, the only one that leases know."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Context:
    """The parts of a running service."""

    settings: Settings
    database: Database
    notifier: Notifier
    clock: Clock


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(_context)]

RunId = Annotated[str, Path(max_length=32, description="id of the run", examples=["r1jv3m8wq2x7k4"])]
AttemptId = Annotated[str, Path(max_length=32, description="id of the attempt")]
ExperimentId = Annotated[str, Path(max_length=32, description="id of the experiment")]
WorkerId = Annotated[
    str,
    Path(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@-]+$", description="id that the worker chose"),
]

_REASONS = {
    403: "refused: a foreign host or origin",
    404: "no such resource",
    409: "the state or the lease does not allow this",
    413: "the body is too large",
    416: "bytes beyond the end of the stream",
    422: "invalid input; `problems` holds every reason",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the errors of an endpoint, by status."""
    return {status: {"model": ErrorBody, "description": _REASONS[status]} for status in (*statuses, 403, 422)}
