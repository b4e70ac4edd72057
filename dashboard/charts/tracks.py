"""Curves of several runs as one: the mean over those that have come so far, and a band around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GRID = 200
"""Points of the mean over runs whose points lie apart."""


@dataclass(frozen=True)
class Track:
    """The curve of a group: at each x the mean over the runs that have come there, and how many those are.

    `low` and `high` are one standard deviation away, None where fewer than two runs have come.
    """

    x: list[float]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]
    count: list[int]

    @property
    def end(self) -> tuple[float, float] | None:
        """The last point that can be drawn."""
        pairs = zip(reversed(self.x), reversed(self.mean), strict=True)
        return next(((x, y) for x, y in pairs if y is not None), None)


def merge(curves: Sequence[tuple[Sequence[float], Sequence[float]]], *, log_x: bool) -> Track:
    """The curves (x, y) of runs as one track.

    One curve stays as it is, and so do several over the same x. Otherwise they are put on one grid, even in x or log x:
    points near a place of the grid are averaged, and a curve with none there is interpolated between its neighbours.
    """
    cleaned = [_clean(x, y, log_x=log_x) for x, y in curves]
    cleaned = [(x, y) for x, y in cleaned if x]
    if not cleaned:
        return Track([], [], [], [], [])
    first = cleaned[0][0]
    if all(x == first for x, _ in cleaned):
        columns = [[value if math.isfinite(value) else None for value in y] for _, y in cleaned]
        return _over_runs(first, columns)
    scaled = [([math.log(v) for v in x] if log_x else x, y) for x, y in cleaned]
    low, high = min(x[0] for x, _ in scaled), max(x[-1] for x, _ in scaled)
    step = (high - low) / (GRID - 1) or 1.0
    grid = [low + step * i for i in range(GRID)] if high > low else [low]
    columns = [_on_grid(x, y, low, step, len(grid)) for x, y in scaled]
    kept = [i for i in range(len(grid)) if any(column[i] is not None for column in columns)]
    places = [math.exp(grid[i]) if log_x else grid[i] for i in kept]
    return _over_runs(places, [[column[i] for i in kept] for column in columns])


def rescaled(track: Track, factor: float) -> Track:
    """The same in another unit."""
    if factor == 1.0:
        return track
    scaled = [[None if v is None else v * factor for v in column] for column in (track.mean, track.low, track.high)]
    return Track(track.x, scaled[0], scaled[1], scaled[2], track.count)


def positive(track: Track) -> Track:
    """What a logarithmic axis can show of it: a mean above zero, and a band that stays above zero, too."""
    mean = [y if y is not None and y > 0 else None for y in track.mean]
    low = [None if y is None or m is None else max(y, m / 10) for y, m in zip(track.low, mean, strict=True)]
    high = [None if m is None else y for y, m in zip(track.high, mean, strict=True)]
    return Track(track.x, mean, low, high, track.count)


def short(value: float, digits: int) -> float:
    """A number with no more digits than can be seen."""
    return float(f"{value:.{digits}g}")


def _clean(x: Sequence[float], y: Sequence[float], *, log_x: bool) -> tuple[list[float], list[float]]:
    """Points that have a place on the axis, in its order."""
    pairs = [(a, b) for a, b in zip(x, y, strict=False) if math.isfinite(a) and (a > 0 or not log_x)]
    if any(pairs[i][0] > pairs[i + 1][0] for i in range(len(pairs) - 1)):
        pairs.sort(key=lambda pair: pair[0])
    return [a for a, _ in pairs], [b for _, b in pairs]


def _on_grid(x: Sequence[float], y: Sequence[float], low: float, step: float, size: int) -> list[float | None]:
    sums, counts = [0.0] * size, [0] * size
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            i = min(size - 1, max(0, round((a - low) / step)))
            sums[i] += b
            counts[i] += 1
    column = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    known = [i for i, value in enumerate(column) if value is not None]
    for a, b in pairwise(known):
        start, end = column[a], column[b]
        assert start is not None
        assert end is not None
        for i in range(a + 1, b):
            column[i] = start + (end - start) * (i - a) / (b - a)
    return column


def _over_runs(x: list[float], columns: Sequence[Sequence[float | None]]) -> Track:
    if len(columns) == 1:
        nothing: list[float | None] = [None] * len(x)
        return Track(x, list(columns[0]), nothing, list(nothing), [int(v is not None) for v in columns[0]])
    track = Track(x, [], [], [], [])
    for values in zip(*columns, strict=True):
        known = [v for v in values if v is not None]
        track.count.append(len(known))
        mean = sum(known) / len(known) if known else None
        track.mean.append(mean)
        if mean is None or len(known) < 2:
            track.low.append(None)
            track.high.append(None)
            continue
        deviation = math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1))
        track.low.append(mean - deviation)
        track.high.append(mean + deviation)
    return track
