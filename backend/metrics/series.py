"""Series of a run: columns from lines, thinned out for a chart, summarised in full."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanollama.api import schemas
from nanollama.spec.rundir import decode_number

Spacing = Literal["linear", "log"]
MIN_POINTS = 5  # first, last, and of one bucket between them the minimum, the maximum and a NaN


@dataclass
class Points:
    """Columns of one metric, by step; one point a step."""

    step: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def add(self, step: int, tokens: int, time: float, value: float) -> None:
        """Append a point, in place of an earlier one of the same step."""
        if self.step and self.step[-1] == step:
            self.tokens[-1], self.time[-1], self.value[-1] = tokens, time, value
            return
        self.step.append(step)
        self.tokens.append(tokens)
        self.time.append(time)
        self.value.append(value)


def collect(lines: Sequence[tuple[int, int, float, dict[str, Any]]]) -> dict[str, Points]:
    """Points by metric from lines in order of step: (step, tokens, time, encoded values)."""
    series: dict[str, Points] = {}
    for step, tokens, time, values in lines:
        for key, value in values.items():
            points = series.get(key)
            if points is None:
                points = series[key] = Points()
            points.add(step, tokens, time, value if type(value) is float else decode_number(value))
    return series


def view(points: Points, max_points: int, spacing: Spacing) -> schemas.Series:
    """The series as the wire shows it: at most `max_points` of its points, and a summary of all."""
    kept = thin(points.step, points.value, max_points, spacing)
    return schemas.Series(
        step=[points.step[i] for i in kept],
        tokens=[points.tokens[i] for i in kept],
        time=[points.time[i] for i in kept],
        value=[points.value[i] for i in kept],
        summary=summarise(points.value),
    )


def thin(step: Sequence[int], value: Sequence[float], max_points: int, spacing: Spacing) -> list[int]:
    """Indices of at most `max_points` points (at least MIN_POINTS), ascending.

    The first and the last stay; those between are put into buckets of even width in step or in log step, and each
    bucket keeps its minimum, its maximum and, if it has one, a NaN.
    """
    assert max_points >= MIN_POINTS
    count = len(step)
    if count <= max_points:
        return list(range(count))
    log = spacing == "log"
    has_nan = any(map(math.isnan, value))
    buckets = max(1, (max_points - 2) // (3 if has_nan else 2))
    low, high = (math.log(max(s, 1)) if log else float(s) for s in (step[1], step[count - 2]))
    kept = [0]
    start = 1
    for bucket in range(1, buckets + 1):
        edge = low + (high - low) * bucket / buckets
        last = bucket == buckets
        end = count - 1 if last else bisect_left(step, math.exp(edge) if log else edge, start, count - 1)
        if start < end:
            kept += _extremes(value[start:end], start)
        start = end
    return [*kept, count - 1]


def _extremes(values: Sequence[float], first: int) -> list[int]:
    """Indices of the minimum, the maximum and a NaN, ascending; `first` is the index of values[0]."""
    missing = next((i for i, value in enumerate(values) if math.isnan(value)), None)
    numbers = values if missing is None else [value for value in values if not math.isnan(value)]
    kept = {values.index(min(numbers)), values.index(max(numbers))} if numbers else set()
    if missing is not None:
        kept.add(missing)
    return [first + i for i in sorted(kept)]


def summarise(values: Sequence[float]) -> schemas.Summary:
    """Statistics of at least one value; mean and stderr are NaN or infinite where the values make them so."""
    count = len(values)
    numbers = [value for value in values if not math.isnan(value)] or [math.nan]
    mean = _sum(values) / count
    stderr = None
    if count > 1:
        squares = [(value - mean) * (value - mean) for value in values]
        stderr = math.sqrt(_sum(squares) / (count - 1) / count)
    return schemas.Summary(count=count, mean=mean, stderr=stderr, min=min(numbers), max=max(numbers), last=values[-1])


def _sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return sum(values)
