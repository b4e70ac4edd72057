"""How often the worker speaks to the service, and how it waits while the service is away."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Pace:
    """What the service has asked for, shared by all jobs."""

    upload_seconds: float = 1.0


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
