"""Median times, an even pace, and the row of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    work: str
    ours: str
    beside: str = ""
    ratio: str = ""
    goal: str = ""


def interleaved(
    candidates: list[Callable[[], object]],
    *,
    repeat: int = 5,
    pick: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """Median seconds of each candidate; they take turns, so that a noisy neighbour disturbs all alike."""
    times: list[list[float]] = [[] for _ in candidates]
    for candidate in candidates:
        candidate()
    for _ in range(repeat):
        for seconds, candidate in zip(times, candidates, strict=True):
            start = time.perf_counter()
            candidate()
            seconds.append(time.perf_counter() - start)
    return [pick(seconds) for seconds in times]


def each_second(seconds: float) -> Iterator[int]:
    """0, 1, 2, … one a second for so long, whatever the work between two of them takes."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        number = int(passed)
        yield number
        time.sleep(max(0.0, number + 1 - (time.monotonic() - start)))
