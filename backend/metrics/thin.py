"""Thin out a series for a chart: no spike is lost."""

from __future__ import annotations

from typing import Literal

import numpy as np

from backend.metrics.codec import Array

Spacing = Literal["linear", "log"]
MIN_POINTS = 5  # first, last, and of one bucket between them the minimum, the maximum and a NaN


def thin(x: Array, value: Array, max_points: int, spacing: Spacing, floor: float = 1.0) -> Array:
    """Indices of at most `max_points` points (at least MIN_POINTS), ascending.

    The first and the last stay; those between are put into buckets of even width in x or in log x, and each bucket
    keeps its minimum, its maximum and, if it has one, a NaN.

    Args:
        x: [n] where each point stands, or rather the piece of the series for which it stands.
        value: [n]
        max_points: how many to keep.
        spacing: of the buckets' edges.
        floor: on a log axis, what lies below it is put there.
    """
    assert max_points >= MIN_POINTS
    n = len(value)
    if n <= max_points:
        return np.arange(n)
    inner = value[1:-1]
    missing = np.isnan(inner)
    buckets = bucket_count(max_points, gaps=bool(missing.any()))
    at = scale(x[1:-1], spacing, floor)
    low, high = at.min(), at.max()
    width = (high - low) / buckets
    bucket = np.minimum((at - low) / width, buckets - 1).astype(np.int64) if width > 0 else np.zeros(n - 2, np.int64)
    order = np.argsort(bucket, kind="stable")  # where x goes back, too
    bucket, inner, missing = bucket[order], inner[order], missing[order]
    starts = np.flatnonzero(np.append(True, bucket[1:] != bucket[:-1]))
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n - 2)))
    is_min = inner == np.fmin.reduceat(inner, starts)[group]
    is_max = inner == np.fmax.reduceat(inner, starts)[group]
    kept = [order[_first_of_each(group, mask)] for mask in (is_min, is_max, missing)]
    return np.unique(np.concatenate([[0], *(places + 1 for places in kept), [n - 1]]))


def bucket_count(max_points: int, *, gaps: bool) -> int:
    """How many buckets `max_points` are enough for; `gaps`: some values are NaN."""
    return max(1, (max_points - 2) // (3 if gaps else 2))


def scale(x: Array, spacing: Spacing, floor: float) -> Array:
    """Places on the axis of the chart."""
    places: Array = np.log(np.maximum(x, floor)) if spacing == "log" else x
    return places


def _first_of_each(group: Array, mask: Array) -> Array:
    places = np.flatnonzero(mask)
    _, first = np.unique(group[places], return_index=True)
    return places[first]
