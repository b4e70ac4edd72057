"""Points of one series as columns, and what is known of many points without looking at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from backend.metrics.codec import Array

AXES = ("step", "tokens", "time", "flops")
Axis = Literal["step", "tokens", "flops", "time", "relative_time"]

_PLACES = ("low", "high", "gap")
_AXIS_TYPES = {"step": "<i8", "tokens": "<i8", "time": "<f8", "flops": "<f8"}
RECORD = np.dtype(
    [("count", "<i8"), ("gaps", "<i8")]
    + [(name, "<f8") for name in ("mean", "squares", "last", "min", "max")]
    + [(f"{place}_{axis}", kind) for place in _PLACES for axis, kind in _AXIS_TYPES.items()]
)
"""A bucket of points: how many, how many of them NaN, mean, squares about it, last, and where minimum, maximum and the
first NaN (zeros without one) stand. Minimum and maximum are over the numbers; NaN without any."""


@dataclass
class Points:
    """Columns [n] of one series, in the order in which the lines came or by step.

    `start` is the axis value that decides about a point's bucket of a chart: that of the summary's bucket which it
    stands for, so that such a bucket is never split. None before it is set.
    """

    step: Array
    tokens: Array
    time: Array
    flops: Array
    value: Array
    start: Array | None = None

    def __len__(self) -> int:
        return len(self.value)

    def take(self, places: Any) -> Points:
        """Some of the points, by index, mask or slice."""
        start = None if self.start is None else self.start[places]
        return Points(
            self.step[places], self.tokens[places], self.time[places], self.flops[places], self.value[places], start
        )

    def axis(self, name: Axis, origin: float) -> Array:
        """The values on an axis as floats; relative time is in seconds since `origin`."""
        if name == "relative_time":
            return self.time - origin
        values: Array = getattr(self, name)
        return values.astype(np.float64)


def no_points() -> Points:
    """An empty series."""
    whole, real = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return Points(whole, whole, real, real, real)


def join_points(parts: Sequence[Points]) -> Points:
    """Points one after the other; every part or none has `start`."""
    if not parts:
        return no_points()
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*AXES, "value")}
    start = None if parts[0].start is None else np.concatenate([part.start for part in parts if part.start is not None])
    return Points(**columns, start=start)


def by_step(points: Points) -> Points:
    """Points in order of step; of several at one step the one that came last."""
    points = points.take(np.argsort(points.step, kind="stable"))
    if len(points) == 0:
        return points
    return points.take(np.append(points.step[1:] != points.step[:-1], True))


def summarise(points: Points, size: int) -> Array:
    """A RECORD for each `size` successive points [ceil(n / size)]."""
    n = len(points)
    rows = -(-n // size)
    padded = np.full(rows * size, np.nan)
    padded[:n] = points.value
    value = padded.reshape(rows, size)
    missing = np.isnan(value)
    counts = np.minimum(size, n - size * np.arange(rows))
    inside = np.arange(size) < counts[:, None]
    records = np.zeros(rows, RECORD)
    records["count"] = counts
    records["gaps"] = (missing & inside).sum(1)
    first = size * np.arange(rows)
    with np.errstate(all="ignore"):  # infinities of both signs, and sums too large for a float
        records["mean"] = np.where(inside, value, 0).sum(1) / counts
        records["squares"] = (np.where(inside, value - records["mean"][:, None], 0) ** 2).sum(1)
    records["last"] = points.value[first + counts - 1]
    places = {
        "low": _first_extreme(np.where(missing, np.inf, value), missing, np.argmin),
        "high": _first_extreme(np.where(missing, -np.inf, value), missing, np.argmax),
        "gap": (missing & inside).argmax(1),
    }
    for place, column in places.items():
        for axis in AXES:
            records[f"{place}_{axis}"] = getattr(points, axis)[first + column]
    records["min"], records["max"] = points.value[first + places["low"]], points.value[first + places["high"]]
    whole = records["gaps"] == 0
    for axis in AXES:
        records[f"gap_{axis}"][whole] = 0
    return records


def _first_extreme(value: Array, missing: Array, pick: Any) -> Array:
    """Column of each row's extreme among what is not missing; 0 where all is."""
    column: Array = pick(value, axis=1)
    rows = np.arange(len(value))
    # an infinity stands in for NaN: where all numbers are that infinity, take the first of them
    astray = missing[rows, column]
    column[astray] = missing[astray].argmin(1)
    return column


def candidates(records: Array, axis: Axis, origin: float) -> Points:
    """The points that the records name, in order, with `start` on the given axis: that of their bucket's first."""
    rows = len(records)
    numbers = records["count"] > records["gaps"]
    low_is_high = records["low_step"] == records["high_step"]
    kept = np.stack([numbers, numbers & ~low_is_high, records["gaps"] > 0], 1)
    columns = [np.stack([records[f"{place}_{name}"] for place in _PLACES], 1) for name in AXES]
    value = np.stack([records["min"], records["max"], np.full(rows, np.nan)], 1)
    bucket = np.broadcast_to(np.arange(rows)[:, None], (rows, 3))
    points = Points(*(column[kept] for column in (*columns, value)))
    bucket = bucket[kept]
    order = np.lexsort((points.step, bucket))
    points, bucket = points.take(order), bucket[order]
    x = points.axis(axis, origin)
    _, first, inverse = np.unique(bucket, return_index=True, return_inverse=True)
    points.start = x[first][inverse]
    return points


@dataclass
class Totals:
    """Statistics of many points, which add up."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = np.nan
    max: float = np.nan

    def add(self, records: Array) -> None:
        """Include the points of some records. NaN and infinities carry over as in a sum over the points."""
        if len(records) == 0:
            return
        count = records["count"]
        n = int(count.sum())
        with np.errstate(all="ignore"):
            mean = float((records["mean"] * (count / n)).sum())
            squares = float((records["squares"] + count * (records["mean"] - mean) ** 2).sum())
            total = self.count + n
            gap = np.float64(mean) - self.mean if self.count else np.float64(0)
            self.squares = float(self.squares + squares + gap * gap * (self.count * n / total))
            self.mean = float(self.mean + gap * (n / total)) if self.count else mean
        self.count = total
        self.min = float(np.fmin(self.min, np.fmin.reduce(records["min"])))
        self.max = float(np.fmax(self.max, np.fmax.reduce(records["max"])))
