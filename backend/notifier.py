"""Wakes the requests that wait for something to happen in this process."""

from __future__ import annotations

import asyncio
import threading


class Notifier:
    """A counter of changes that coroutines can wait on. `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.version = 0
        self.streams = 0  # of events, that are open
        self.closed = False

    @property
    def waiting(self) -> int:
        """Number of coroutines that wait."""
        return len(self._waiting)

    def notify(self) -> None:
        """Something changed: wake everyone."""
        with self._lock:
            self.version += 1
            for loop, event in self._waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """From now on nobody waits: the service is shutting down."""
        self.closed = True
        self.notify()

    async def wait(self, seen: int, timeout: float) -> None:
        """Return once `version` differs from `seen`, or after `timeout` seconds."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self.closed or self.version != seen:
                return
            self._waiting.add(waiter)
        try:
            await asyncio.wait_for(waiter[1].wait(), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(waiter)
