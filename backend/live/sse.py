"""Server-sent events: a response that ends by itself when nobody takes it, or the service stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from backend.deps import Context
from nanollama.api.errors import TooManyRequests

MEDIA_TYPE = "text/event-stream"
MAX_OPEN = 200  # streams at once; each looks into the database about once a second
RETRY_MILLISECONDS = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """One event. A client that comes back names the last `id` that it has seen."""

    kind: str
    data: dict[str, Any]
    id: str | None = None

    def encode(self) -> bytes:
        """As it is sent."""
        head = f"event: {self.kind}\n" + (f"id: {self.id}\n" if self.id is not None else "")
        return f"{head}data: {json.dumps(self.data, separators=(',', ':'), allow_nan=False)}\n\n".encode()


class EventStream(Response):
    """Sends messages until they end, the client leaves or takes nothing for a while, or the service stops.

    Args:
        context: the parts of the service.
        messages: what to send; None says that there is nothing new.

    Raises:
        TooManyRequests: too many streams are open.
    """

    media_type = MEDIA_TYPE

    def __init__(self, context: Context, messages: AsyncIterator[Message | None]) -> None:
        if context.notifier.streams >= MAX_OPEN:
            raise TooManyRequests(f"{MAX_OPEN} streams are open already; close one, or ask for pages instead")
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._context = context
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002, D102 - ASGI
        self._context.notifier.streams += 1
        gone = asyncio.create_task(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, f"retry: {RETRY_MILLISECONDS}\n\n".encode())
            with contextlib.suppress(OSError, asyncio.TimeoutError):  # it has left, or takes nothing
                await self._pass_on(send, gone)
            with contextlib.suppress(OSError):
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._context.notifier.streams -= 1
            gone.cancel()

    async def _pass_on(self, send: Send, gone: asyncio.Task[None]) -> None:
        clock = asyncio.get_running_loop().time
        said = clock()
        async for message in self._messages:
            if gone.done() or self._context.notifier.closed:
                return
            if message is not None:
                await self._send(send, message.encode())
            elif clock() - said >= self._context.settings.heartbeat_seconds:
                await self._send(send, b": still here\n\n")
            else:
                continue
            said = clock()

    async def _send(self, send: Send, data: bytes) -> None:
        """To a client that stops reading `send` does not return once the buffers are full."""
        body = {"type": "http.response.body", "body": data, "more_body": True}
        await asyncio.wait_for(send(body), self._context.settings.stall_seconds)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def looks(context: Context, look: Callable[[], T], found: Callable[[T], bool]) -> AsyncIterator[T]:
    """What looks into the database find: again at once after a find, else after a change here, and now and then."""
    while not context.notifier.closed:
        seen = context.notifier.version
        result = await run_in_threadpool(look)
        yield result
        if not found(result):
            await context.notifier.wait(seen, context.settings.poll_seconds)
