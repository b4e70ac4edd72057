"""Counts of requests in the text format of Prometheus, which is a few lines: no library of theirs is needed for it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0, 30.0)
"""Of the buckets of durations, in seconds."""

ROOT = "/api/v1"
Labels = tuple[tuple[str, str], ...]


class Meter:
    """Requests of this process by method, route and status, and how long they took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Labels, int] = defaultdict(int)
        self._buckets: dict[Labels, list[int]] = defaultdict(lambda: [0] * len(BOUNDS))
        self._seconds: dict[Labels, float] = defaultdict(float)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request that was answered."""
        timed: Labels = (("method", method), ("route", route))
        labels: Labels = (*timed, ("status", str(status)))
        with self._lock:
            self._counts[labels] += 1
            self._seconds[timed] += seconds
            buckets = self._buckets[timed]
            for i, bound in enumerate(BOUNDS):
                buckets[i] += seconds <= bound

    def render(self) -> str:
        """All of it, as Prometheus reads it."""
        with self._lock:
            counts, seconds = dict(self._counts), dict(self._seconds)
            buckets = {labels: list(found) for labels, found in self._buckets.items()}
        totals: dict[Labels, int] = defaultdict(int)
        for labels, count in counts.items():
            totals[labels[:2]] += count
        lines = [*family("n2n_requests_total", "counter", "Requests answered.", counts)]
        lines += ["# HELP n2n_request_seconds Time to answer.", "# TYPE n2n_request_seconds histogram"]
        for labels, total in totals.items():
            for bound, count in zip(BOUNDS, buckets[labels], strict=True):
                lines.append(sample("n2n_request_seconds_bucket", (*labels, ("le", str(bound))), count))
            lines.append(sample("n2n_request_seconds_bucket", (*labels, ("le", "+Inf")), total))
            lines.append(sample("n2n_request_seconds_sum", labels, seconds[labels]))
            lines.append(sample("n2n_request_seconds_count", labels, total))
        return "\n".join(lines) + "\n"


class Metering:
    """Counts every request under the pattern of its route, so that ids make no new series."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the ASGI interface
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            meter: Meter = scope["app"].state.meter
            route = getattr(scope.get("route"), "path_format", "none")
            if route != "none" and scope["path"].startswith(f"{ROOT}/"):  # the pattern is that of its own router
                route = ROOT + route
            method = scope["method"] if scope["method"] in METHODS else "other"
            meter.count(method, route, status, time.perf_counter() - start)


METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


def family(name: str, kind: str, help_text: str, values: Mapping[Labels, float]) -> Iterable[str]:
    """The lines of a metric."""
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield sample(name, labels, value)


def sample(name: str, labels: Labels, value: float) -> str:
    """One line."""
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inner}}} {value!r}" if inner else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
