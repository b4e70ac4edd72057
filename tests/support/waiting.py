"""Wait for a condition, with a deadline that only a broken test reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(probe: Callable[[], T], *, within: float = 60.0, every: float = 0.05, what: str = "the condition") -> T:
    """The first true value that `probe`, called `every` so many seconds, returns; AssertionError after `within`."""
    deadline = time.monotonic() + within
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come within {within:.0f} s; last: {value!r}"
        time.sleep(every)
