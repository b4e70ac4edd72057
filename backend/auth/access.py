"""Who may call what: every request is let in by its token, every endpoint names the scope that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.auth.service import ANYONE, Principal, TokenService
from backend.deps import AttemptId, Context, ContextDep, WorkerId
from backend.errors import problem_response
from nanollama.api.errors import ApiError, Unauthorized
from nanollama.api.scopes import READ, SUBMIT

OPEN = "/api/v1/health"
"""Where nobody is asked for a token, with what lies under it."""

SECURITY = "token"
_NEEDS = "__needs__"
EndpointT = TypeVar("EndpointT", bound=Callable[..., object])


class Tokens:
    """Asks every request for a token when tokens are on, whatever its path, and notes who calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        if scope["type"] == "http":
            context: Context = scope["app"].state.context
            principal = ANYONE
            if context.settings.tokens and not is_open(scope["path"]):
                try:
                    principal = await run_in_threadpool(_recognise, context, Headers(scope=scope))
                except ApiError as error:
                    headers = {"WWW-Authenticate": "Bearer"}
                    await problem_response(error, headers)(scope, receive, send)
                    return
            scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path == OPEN or path.startswith(f"{OPEN}/")


def _recognise(context: Context, headers: Headers) -> Principal:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Unauthorized("this service asks for a token: set $N2N_TOKEN, or send Authorization: Bearer <token>")
    with context.database.read() as session:
        principal, note = TokenService(session, context.clock()).recognise(secret.strip())
    if note:
        with context.database.write() as session:
            TokenService(session, context.clock()).used(principal)
    return principal


def needs(scope: str) -> Callable[[EndpointT], EndpointT]:
    """Name the scope that an endpoint needs, where it is not the usual one of its method: read or submit."""

    def mark(endpoint: EndpointT) -> EndpointT:
        setattr(endpoint, _NEEDS, scope)
        return endpoint

    return mark


def needed_scope(endpoint: object, method: str) -> str:
    """The scope that an endpoint needs."""
    found: str = getattr(endpoint, _NEEDS, READ if method in ("GET", "HEAD") else SUBMIT)
    return found


def _principal(request: Request) -> Principal:
    found: Principal = request.state.principal
    return found


PrincipalDep = Annotated[Principal, Depends(_principal)]


async def authorize(request: Request, principal: PrincipalDep) -> None:
    """Let only tokens with the endpoint's scope pass. Raises Forbidden."""
    principal.require(needed_scope(request.scope.get("endpoint"), request.method))


async def own_worker(context: ContextDep, principal: PrincipalDep, worker_id: WorkerId) -> None:
    """Let a token speak for its own workers only. Raises Forbidden."""
    if not principal.unlimited:
        await run_in_threadpool(_check, context, lambda tokens: tokens.check_worker(principal, worker_id))


async def own_attempt(context: ContextDep, principal: PrincipalDep, attempt_id: AttemptId) -> None:
    """Let a token touch only what its workers have leased; that the lease is the newest is checked by its epoch.

    Raises:
        Forbidden: the attempt is another's.
    """
    if not principal.unlimited:
        await run_in_threadpool(_check, context, lambda tokens: tokens.check_attempt(principal, attempt_id))


def _check(context: Context, check: Callable[[TokenService], None]) -> None:
    with context.database.read() as session:
        check(TokenService(session, context.clock()))
