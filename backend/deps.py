"""What endpoints are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import AfterValidator

from backend.database import Database
from backend.ids import is_id
from backend.notifier import Notifier
from backend.settings import Settings
from nanollama.api.errors import InvalidRequest
from nanollama.api.schemas import ErrorBody
from nanollama.spec.base import Problem, did_you_mean

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


def _check_cursor(prefix: str) -> Callable[[str], str]:
    def check(cursor: str) -> str:
        if not is_id(prefix, cursor):
            raise ValueError(f"{cursor!r} is not a cursor; give `next_cursor` of the page before, or none")
        return cursor

    return check


_CursorQuery = Query(max_length=32, description="`next_cursor` of the page before")
ExperimentCursor = Annotated[Annotated[str, AfterValidator(_check_cursor("e"))] | None, _CursorQuery]


IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="a repetition with the same key and body creates nothing and gets the same answer",
    ),
]


def refuse_unknown_queries(request: Request) -> None:
    """A parameter that a GET endpoint does not have is misspelt: the answer without it would be another's.

    Raises:
        InvalidRequest: with a problem for each.
    """
    route = request.scope.get("route")
    if request.method != "GET" or not isinstance(route, APIRoute):
        return
    known = _query_names(route.dependant)
    problems = [
        Problem(path=name, message="unknown query parameter", remedy=did_you_mean(name, known))
        for name in dict.fromkeys(request.query_params)
        if name not in known
    ]
    if problems:
        raise InvalidRequest(f"the request is invalid: {'; '.join(str(problem) for problem in problems[:3])}", problems)


def _query_names(dependant: Dependant) -> list[str]:
    own = [field.alias for field in dependant.query_params]
    return own + [name for inner in dependant.dependencies for name in _query_names(inner)]


_REASONS = {
    401: "no token, or none that is valid, where tokens are on",
    403: "refused: a scope that the token lacks, or a foreign host or origin",
    404: "no such resource",
    409: "the state or the lease does not allow this",
    413: "the body is too large",
    416: "bytes beyond the end of the stream",
    429: "too many at once: try again after Retry-After seconds",
    503: "not now: the database is away, or of another version",
    422: "invalid input; `problems` holds every reason",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the errors of an endpoint, by status."""
    return {status: {"model": ErrorBody, "description": _REASONS[status]} for status in (*statuses, 401, 403, 422)}
