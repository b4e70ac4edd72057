"""The connection to the service: timeouts, retries where a repetition is harmless, typed errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from nanollama.api import schemas
from nanollama.api.calls.memory import Memory, question
from nanollama.api.errors import ERRORS, ApiError, NotFound, Unavailable
from nanollama.api.following import Message, read_messages
from nanollama.spec.base import Problem, SpecError

DEFAULT_URL = "http://127.0.0.1:8420"
SWEEP_SECONDS = 120.0
"""How long a call may take in which the service checks, and perhaps stores, each run of a sweep."""
FOLLOW_SECONDS = 60.0
"""Silence after which a stream is taken for dead; its heartbeats come more often."""

ModelT = TypeVar("ModelT", bound=BaseModel)
TransportT = TypeVar("TransportT", bound="Transport")


def server_url() -> str:
    """The server to talk to: $N2N_URL, or the default on loopback."""
    return os.environ.get("N2N_URL") or DEFAULT_URL


class Transport:
    """A connection to the service. Safe to share between threads.

    Args:
        url: root of the service, for example http://127.0.0.1:8420; $N2N_URL when absent.
        token: access token, where the service asks for one; $N2N_TOKEN when absent.
        timeout: seconds for one try, long polls excepted.
        retries: how often an idempotent call is repeated after a failed connection or a 502, 503, 504.
        transport: replaces the network, for tests.

    Raises:
        SpecError: a URL that is none, or a token that cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url or server_url())
        self._retries = retries
        self._timeout = timeout
        self._memory = Memory()
        # trust_env off: a proxy of the environment must not swallow what is meant for loopback
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout, transport=transport, trust_env=False, headers=_authorization(token)
        )

    def __enter__(self: TransportT) -> TransportT:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def use_token(self, token: str) -> None:
        """Send another access token from now on. Raises SpecError for one that cannot be sent."""
        self._http.headers.update(_authorization(token))

    def _get(self, path: str, model: type[ModelT], **params: Any) -> ModelT:
        given = {key: value for key, value in params.items() if value is not None}
        return parse_reply(self._call("GET", path, params=given), model)

    def _follow(self, path: str, params: dict[str, Any], last: str | None) -> Iterator[Message]:
        failures = 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
            try:
                with self._http.stream(
                    "GET", f"/api/v1{path}", params=params, headers=headers, timeout=FOLLOW_SECONDS
                ) as reply:
                    if not reply.is_success:
                        reply.read()
                        raise read_error(reply)
                    for message in read_messages(reply.iter_lines()):
                        failures, last = 0, message.id or last
                        yield message
                        if message.kind == "end":
                            return
            except httpx.HTTPError as error:
                failures += 1
                if failures > self._retries:
                    raise Unavailable(f"no answer from {self.url} ({error}); is the service up?") from error
            time.sleep(0.2 * 2**failures)

    def _download(self, path: str, *, timeout: float = FOLLOW_SECONDS, **params: Any) -> Iterator[bytes]:
        """The bytes of an answer of any size, piece by piece; `timeout`, in seconds, for the first and each after it.

        Raises:
            Unavailable: the connection broke, perhaps after some of them.
        """
        try:
            with self._http.stream("GET", f"/api/v1{path}", params=params, timeout=timeout) as reply:
                if not reply.is_success:
                    reply.read()
                    raise read_error(reply)
                yield from reply.iter_raw()
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self.url} ({error}); is the service up?") from error

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        content: bytes | None = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> httpx.Response:
        headers = dict(headers or {})
        if body is not None:
            content = body.model_dump_json(exclude_unset=True).encode()
            headers["Content-Type"] = "application/json"
        elif content is not None:
            headers["Content-Type"] = "application/octet-stream"
        asked = question(path, params) if method == "GET" and not headers else None
        known = self._memory.get(asked) if asked is not None else None
        if known is not None:
            headers["If-None-Match"] = known.headers["ETag"]
        tries = 1 + (self._retries if idempotent or method == "GET" else 0)
        for attempt in range(tries):
            last = attempt == tries - 1
            try:
                reply = self._http.request(
                    method,
                    f"/api/v1{path}",
                    content=content,
                    params=params,
                    headers=headers,
                    timeout=timeout or self._timeout,
                )
            except httpx.HTTPError as error:
                if last:
                    raise Unavailable(
                        f"no answer from {self.url} ({error}); is the service up? `n2n up` starts it"
                    ) from error
            else:
                if reply.status_code == 304 and known is not None:
                    return known
                if reply.is_success:
                    if asked is not None:
                        self._memory.keep(asked, reply)
                    return reply
                if last or reply.status_code not in (502, 503, 504):
                    raise read_error(reply)
            time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


def parse_reply(reply: httpx.Response, model: type[ModelT]) -> ModelT:
    """The answer as a model. Raises Unavailable when it is not this service's."""
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise _foreign(reply) from error


def parse_replies(reply: httpx.Response, model: type[ModelT]) -> list[ModelT]:
    """The answer as a list of models. Raises Unavailable when it is not this service's."""
    try:
        return TypeAdapter(list[model]).validate_json(reply.content)  # type: ignore[valid-type] # mypy wants a literal
    except ValidationError as error:
        raise _foreign(reply) from error


def segment(identifier: str) -> str:
    """An id as one segment of a path, whatever it holds."""
    if identifier in ("", ".", ".."):
        raise NotFound(f"there is nothing with the id '{identifier}'")
    return quote(identifier, safe="")


def read_error(reply: httpx.Response) -> ApiError:
    """The error in an answer."""
    try:
        body = parse_reply(reply, schemas.ErrorBody)
    except Unavailable as error:
        return error
    kind = ERRORS.get(body.code, ApiError)
    problems: list[Problem] = body.problems
    return kind(body.detail, problems, expected_offset=body.expected_offset)


def _foreign(reply: httpx.Response) -> Unavailable:
    text = " ".join(reply.text[:200].split())
    return Unavailable(f"{reply.request.url} answered {reply.status_code}, but not as this service does: {text}")


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        message = f"'{text}' is not the URL of a service"
        raise SpecError([Problem(path="url", message=message, remedy=f"write one like {DEFAULT_URL}")])
    return text.rstrip("/")


def _authorization(token: str | None) -> dict[str, str]:
    token = (token or os.environ.get("N2N_TOKEN") or "").strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        message = "this is not a token: it holds characters that no token has"
        raise SpecError([Problem(path="token", message=message, remedy="set $N2N_TOKEN to what `n2n token` showed")])
    return {"Authorization": f"Bearer {token}"}
