"""How often the worker speaks to the service, and how it waits while the service is away."""

from __future__ import annotations

import random
import threading


class Backoff:
    """Growing pauses with jitter, so that workers do not return all at once.

    Args:
        first: the longest first pause, in seconds.
        longest: the longest pause.
    """

    def __init__(self, first: float = 0.5, longest: float = 15.0) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    @property
    def failing(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def next(self) -> float:
        """The pause after one more failure, in seconds."""
        pause = min(self._longest, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It works again."""
        self._failures = 0


class Pace:
    """What all jobs share: how often the service wants to hear of each, and whether it can be reached at all.

    While it cannot, nobody talks to it but one try after a pause that grows; otherwise 500 jobs would each try, and
    fall upon it together when it is back.
    """

    def __init__(self) -> None:
        self.upload_seconds = 1.0
        self._lock = threading.Lock()
        self._backoff = Backoff()
        self._resume_at = 0.0

    @property
    def resume_at(self) -> float:
        """When to talk to the service again, on the clock of those who say that it is away."""
        return self._resume_at

    def unreachable(self, now: float) -> None:
        """It has not answered, for the reason that it is away; told by one of those who share the pause, or by all."""
        with self._lock:
            if now >= self._resume_at:
                self._resume_at = now + self._backoff.next()

    def reached(self) -> None:
        """It has answered."""
        if self._backoff.failing:
            with self._lock:
                self._backoff.reset()
                self._resume_at = 0.0
