"""What every request passes: host and origin checks, the size limit, a request id and the access log."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import problem_response
from backend.logs import request_id
from backend.revalidation import TAG_HEADERS, Answers, question_of, tags_of
from backend.settings import is_loopback
from nanollama.api.errors import ApiError, Forbidden, TooLarge

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DISCARD = 8  # times the limit on bodies: how much of a refused one is read
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

access_log = logging.getLogger("backend.access")


class RequestIds:
    """Gives each request an id, kept from the caller when it sent one, and logs a line about it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identifier = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identifier
        request_id.set(identifier)  # each request has a task, and so a context, of its own
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = identifier
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            fields = {
                "request_id": identifier,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            }
            access_log.info("answered", extra={"fields": fields})


class LoopbackOnly:
    """Refuses requests that a web page of somebody else made, where no token tells friend from foe.

    A foreign name in Host means that a name was rebound to this machine; a foreign Origin on a method that changes
    something means that another site's page sent it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        guarded = scope["type"] == "http" and not scope["app"].state.context.settings.tokens
        error = self._check(scope) if guarded else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await problem_response(error)(scope, receive, send)

    @staticmethod
    def _check(scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_loopback(_hostname(host)):
            return Forbidden(f"the host '{host[:100]}' is not this machine's loopback; use http://127.0.0.1:<port>")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in SAFE_METHODS and urlsplit(origin).netloc != host:
            return Forbidden(f"pages of '{origin[:100]}' may not change anything here; call the service from a program")
        return None


def _hostname(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


class EntityTags:
    """Tags what GET answers as JSON by its content; whoever has it already gets 304 and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        known = tags_of(Headers(scope=scope).get("if-none-match", ""))
        start: Message | None = None

        async def answer(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_tagged(message):
                start = message  # kept back until the body is there
                return
            if start is None:
                await send(message)
                return
            begun, start = start, None
            if not message.get("more_body", False):
                tag = f'"{hashlib.blake2b(message.get("body", b""), digest_size=16).hexdigest()}"'
                headers = MutableHeaders(scope=begun)
                headers.update(TAG_HEADERS | {"ETag": tag})
                _remember(scope, tag)
                if tag in known or "*" in known:
                    del headers["Content-Length"]
                    del headers["Content-Type"]
                    begun["status"], message = 304, {"type": "http.response.body", "body": b""}
            await send(begun)
            await send(message)

        await self._app(scope, receive, answer)


def _remember(scope: Scope, tag: str) -> None:
    version = scope.get("state", {}).get("version")
    if version is not None:
        answers: Answers = scope["app"].state.answers
        answers.remember(question_of(Request(scope)), version, tag)


def _is_tagged(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type") == "application/json"


class BodyLimit:
    """Refuses bodies over a size, whether announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int, others: Mapping[str, tuple[int, str]]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._others = others  # limits of single paths, each with what to do about it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, remedy = self._others.get(scope["path"], (self._max_bytes, "send less at a time"))
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > most:
            await _discard(receive, DISCARD * self._max_bytes)
            error = TooLarge(f"the body has {int(announced[:20]):,} bytes, and {most:,} are allowed; {remedy}")
            await problem_response(error)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                if message.get("more_body", False):
                    await _discard(receive, DISCARD * self._max_bytes)
                detail = f"the body has more than the {most:,} bytes that are allowed; {remedy}"
                raise HTTPException(TooLarge.status, detail)  # what FastAPI lets through while it reads a body
            return message

        await self._app(scope, counted, send)


async def _discard(receive: Receive, max_bytes: int) -> None:
    """Read on for a while: a caller whose connection is closed while it still sends never sees the answer."""
    while max_bytes > 0:
        message = await receive()
        max_bytes -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return
