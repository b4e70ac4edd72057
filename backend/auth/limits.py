"""How often a token may ask: a bucket each, which fills steadily and holds a burst."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from backend.auth.service import Principal
from backend.errors import problem_response
from nanollama.api.errors import TooManyRequests

BURST_SECONDS = 4  # of the rate, that may come at once


class Buckets:
    """Tells whether a caller may ask now, or in how many seconds.

    Args:
        clock: seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._filled: dict[str, tuple[float, float]] = {}  # by token: what was in it, and when

    def take(self, caller: str, rate: float) -> float:
        """Take one; 0 if it was there, else the seconds until it is."""
        size = max(1.0, BURST_SECONDS * rate)
        with self._lock:
            now = self._clock()
            held, at = self._filled.get(caller, (size, now))
            held = min(size, held + (now - at) * rate)
            if held < 1:
                return (1 - held) / rate
            self._filled[caller] = held - 1, now
            return 0.0


class RateLimit:
    """Answers 429 to a token that asks too often. Without tokens callers are not told apart, nor limited."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._buckets = Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        principal: Principal | None = scope.get("state", {}).get("principal") if scope["type"] == "http" else None
        if principal is not None and principal.token_id is not None:
            rate = scope["app"].state.context.settings.requests_per_second
            wait = self._buckets.take(principal.token_id, rate)
            if wait > 0:
                error = TooManyRequests(f"the token '{principal.name}' asks more than {rate:g} times a second")
                await problem_response(error, {"Retry-After": str(math.ceil(wait))})(scope, receive, send)
                return
        await self._app(scope, receive, send)
