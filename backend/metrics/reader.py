"""Read series of runs: from records where the chart cannot tell them from points, from points where it can."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy.orm import Session

from backend.evaluations.lines import EVALUATED, PROBE
from backend.metrics.blocks import COARSE, FINE, FLOPS, lines_of, points_of
from backend.metrics.codec import Array, decode, inflate
from backend.metrics.lines import Lines, parse_metrics
from backend.metrics.points import RECORD, Axis, Points, Totals, by_step, candidates, join_points, no_points, summarise
from backend.metrics.repository import Level, MetricRepository
from backend.metrics.thin import Spacing, bucket_count, scale, thin
from backend.tables import MetricBlock, MetricStream

SPLIT = 3
"""Records in a bucket of the chart, at least: the edges of its buckets are those of records."""


@dataclass(frozen=True)
class View:
    """What is wanted of each series: at most `max_points` of those from `low` to `high` on an axis, both included."""

    axis: Axis = "step"
    low: float = -math.inf
    high: float = math.inf
    max_points: int = 1000
    spacing: Spacing = "linear"

    @property
    def floor(self) -> float:
        """Where a logarithmic axis starts at the latest: a step, or a millisecond."""
        return 1e-3 if self.axis == "relative_time" else 1.0


@dataclass
class Curve:
    """One series as it is shown, and statistics over all its points in the window."""

    run_id: str
    key: str
    points: Points
    totals: Totals
    x: Array


@dataclass
class _Piece:
    """A block of a stream as one series sees it."""

    block: MetricBlock
    points: int
    inside: bool  # of the window, and all of it survives
    low: float
    high: float
    level: Level = "data"


@dataclass
class _Part:
    """What one series takes from one attempt. Points from step `limit` on are superseded."""

    stream: MetricStream
    limit: float
    tail: Lines
    in_order: bool
    pieces: list[_Piece] = field(default_factory=list)


@dataclass
class _Plan:
    run_id: str
    key: str
    origin: float
    parts: list[_Part]


class SeriesReader:
    """Series of runs, from one snapshot."""

    def __init__(self, session: Session) -> None:
        self._metrics = MetricRepository(session)

    def keys(self, run_ids: Sequence[str], rank: int = 0) -> dict[str, list[str]]:
        """The metrics that have surviving points, by run."""
        found: dict[str, set[str]] = {run_id: set() for run_id in run_ids}
        for stream, limit in _surviving(self._metrics.streams(run_ids, rank)):
            found[stream.run_id] |= {key for key, (first, _, _) in stream.keys.items() if first < limit.of(key)}
        return {run_id: sorted(keys) for run_id, keys in found.items()}

    def read(self, wanted: Sequence[tuple[str, str]], view: View, rank: int = 0) -> list[Curve]:
        """The series of some (run, key) that have points in the window, in that order."""
        plans = self._plans(wanted, view, rank)
        for plan in plans:
            _choose_levels(plan, view)
        stored = _Stored(self._metrics, plans, flops=view.axis == "flops")
        curves = (_curve(plan, view, stored) for plan in plans)
        return [curve for curve in curves if len(curve.points)]

    def extremes(self, run_id: str) -> dict[str, tuple[Array, Array]]:
        """Steps and values that hold the last point of each of rank 0's series, its minimum and its maximum."""
        keys = self.keys([run_id])[run_id]
        curves = self.read([(run_id, key) for key in keys], View(max_points=64))
        return {curve.key: (curve.points.step, curve.points.value) for curve in curves}

    def _plans(self, wanted: Sequence[tuple[str, str]], view: View, rank: int) -> list[_Plan]:
        """Which pieces each series is made of."""
        run_ids = list(dict.fromkeys(run_id for run_id, _ in wanted))
        keys = list(dict.fromkeys(key for _, key in wanted))
        streams = self._metrics.streams(run_ids, rank)
        surviving = list(_surviving(streams))
        tails = {stream.attempt_id: parse_metrics(stream.tail, stream.sealed)[0] for stream, _ in surviving}
        blocks: dict[str, list[MetricBlock]] = {}
        for block in self._metrics.blocks([stream.attempt_id for stream, _ in surviving], rank):
            blocks.setdefault(block.attempt_id, []).append(block)
        counts = self._metrics.points([block.id for some in blocks.values() for block in some], keys)
        by_run: dict[str, list[tuple[MetricStream, _Limit]]] = {}
        for stream, limits in surviving:
            by_run.setdefault(stream.run_id, []).append((stream, limits))
        plans = []
        for run_id, key in wanted:
            own = by_run.get(run_id, [])
            plan = _Plan(run_id, key, own[0][0].first_time or 0.0 if own else 0.0, [])
            for stream, limits in own:
                if key not in stream.keys:
                    continue
                limit = limits.of(key)
                part = _Part(stream, limit, tails[stream.attempt_id], bool(stream.keys[key][2]))
                for block in blocks.get(stream.attempt_id, []):
                    count = counts.get((block.id, key), 0)
                    piece = _piece(block, count, limit, view, plan.origin) if count else None
                    if piece is not None:
                        part.pieces.append(piece)
                plan.parts.append(part)
            plans.append(plan)
        return plans


class _Stored:
    """The bytes that plans need, read in few queries and decoded once."""

    def __init__(self, metrics: MetricRepository, plans: Sequence[_Plan], *, flops: bool) -> None:
        needed: dict[Level, set[tuple[int, str]]] = {"data": set(), "fine": set(), "coarse": set()}
        for plan in plans:
            for piece in (piece for part in plan.parts for piece in part.pieces):
                needed[piece.level].add((piece.block.id, plan.key))
        self._flops = flops
        self._bytes: dict[Level, dict[tuple[int, str], bytes]] = {}
        for level, pairs in needed.items():
            blocks, keys = {block for block, _ in pairs}, {key for _, key in pairs}
            if flops and level == "data":
                keys.add(FLOPS)
            self._bytes[level] = metrics.bytes_of(level, sorted(blocks), sorted(keys))
        ids = sorted({block for block, _ in needed["data"]})
        self._shared = {block: lines_of(layouts, axes, {}, None) for block, layouts, axes in metrics.layouts(ids)}

    def points(self, block_id: int, key: str) -> Points:
        """The points of a metric in a block."""
        data = self._bytes["data"]
        shared = self._shared[block_id]
        names = [key, FLOPS] if self._flops and (block_id, FLOPS) in data else [key]
        return points_of(shared.with_columns({name: decode(data[block_id, name]) for name in names}), key)

    def records(self, level: Level, block_id: int, key: str) -> Array:
        """The records of a metric in a block."""
        return inflate(self._bytes[level][block_id, key], RECORD)


@dataclass(frozen=True)
class _Limit:
    """The step from which on later attempts supersede a stream: that of their first lines, key by key where needed."""

    step: float = math.inf
    keys: dict[str, float] = field(default_factory=dict)

    def of(self, key: str) -> float:
        return min(self.step, self.keys.get(key, math.inf))

    def and_by(self, stream: MetricStream) -> _Limit:
        """The limit of what lies before this stream too.

        An attempt that begins with the evaluation which the one before has left out evaluates at the step of its
        checkpoint. Of that step it makes nothing else anew.
        """
        assert stream.first_step is not None
        at_first = [key for key, (first, _, _) in stream.keys.items() if first == stream.first_step]
        if not at_first or not all(key.startswith((EVALUATED, PROBE)) for key in at_first):
            return _Limit(min(self.step, stream.first_step), self.keys)
        keys = {key: min(self.keys.get(key, math.inf), stream.first_step) for key in at_first}
        return _Limit(min(self.step, stream.first_step + 1), self.keys | keys)


def _surviving(streams: Iterable[MetricStream]) -> Iterable[tuple[MetricStream, _Limit]]:
    """Streams of one rank with what is superseded of them, by run and attempt, oldest first.

    A retry goes on from a checkpoint: what earlier attempts logged beyond it never happened.
    """
    limits: dict[str, _Limit] = {}
    found = []
    for stream in sorted(streams, key=lambda stream: (stream.run_id, -stream.attempt)):
        if stream.first_step is None:
            continue
        limit = limits.get(stream.run_id, _Limit())
        if stream.first_step < limit.step:
            found.append((stream, limit))
            limits[stream.run_id] = limit.and_by(stream)
    return reversed(found)


def _piece(block: MetricBlock, count: int, limit: float, view: View, origin: float) -> _Piece | None:
    """The block as a piece of a series; None where it has nothing to show."""
    assert block.step_min is not None
    assert block.step_max is not None
    if block.step_min >= limit:
        return None
    name = "time" if view.axis == "relative_time" else view.axis
    low, high = getattr(block, f"{name}_min"), getattr(block, f"{name}_max")
    if low is None or high is None:  # FLOPs, which not every line has
        return _Piece(block, count, False, -math.inf, math.inf)
    if view.axis == "relative_time":
        low, high = low - origin, high - origin
    if high < view.low or low > view.high:
        return None
    inside = view.low <= low and high <= view.high and block.step_max < limit
    return _Piece(block, count, inside, low, high)


def _choose_levels(plan: _Plan, view: View) -> None:
    """Records for the pieces in which a bucket of the chart holds several; never for the first and the last piece."""
    in_order = [piece for part in plan.parts if part.in_order for piece in part.pieces]
    every = [piece for part in plan.parts for piece in part.pieces]
    if sum(piece.points for piece in every) <= view.max_points or not in_order:
        return
    ends = (every[0], every[-1])
    known = [piece for piece in every if piece.inside]
    if not known:
        return
    low = max(view.low, min(piece.low for piece in known))
    high = min(view.high, max(piece.high for piece in known))
    edges = scale(np.array([low, high]), view.spacing, view.floor)
    width = (edges[1] - edges[0]) / bucket_count(view.max_points, gaps=False)
    for piece in in_order:
        if not piece.inside or piece in ends:
            continue
        span = scale(np.array([piece.low, piece.high]), view.spacing, view.floor)
        buckets = (span[1] - span[0]) / width if width > 0 else math.inf
        for level, size in (("coarse", COARSE), ("fine", FINE)):
            if -(-piece.points // size) >= SPLIT * buckets:
                piece.level = "coarse" if level == "coarse" else "fine"
                break


def _curve(plan: _Plan, view: View, stored: _Stored) -> Curve:
    totals, parts = Totals(), []
    for part in plan.parts:
        points = _part_points(plan, part, view, stored, totals)
        parts.append(points)
    points = join_points(parts)
    if len(points) == 0:
        return Curve(plan.run_id, plan.key, points, totals, np.zeros(0))
    assert points.start is not None
    kept = points.take(thin(points.start, points.value, view.max_points, view.spacing, view.floor))
    return Curve(plan.run_id, plan.key, kept, totals, kept.axis(view.axis, plan.origin))


def _part_points(plan: _Plan, part: _Part, view: View, stored: _Stored, totals: Totals) -> Points:
    """Points of one attempt that survive and lie in the window, or those that stand for them."""
    raw: list[Points] = []
    found: list[Points] = []

    def take_raw() -> None:
        if raw:
            points = join_points(raw)
            points = _within(points if part.in_order else by_step(points), part.limit, view, plan.origin)
            totals.add(summarise(points, max(1, len(points))))
            found.append(points)
            raw.clear()

    for piece in part.pieces:
        if piece.level == "data":
            raw.append(stored.points(piece.block.id, plan.key))
            continue
        take_raw()
        records = stored.records(piece.level, piece.block.id, plan.key)
        totals.add(records)
        found.append(candidates(records, view.axis, plan.origin))
    if plan.key in part.tail.columns:
        raw.append(points_of(part.tail, plan.key))
    take_raw()
    return join_points(found) if found else _within(no_points(), part.limit, view, plan.origin)


def _within(points: Points, limit: float, view: View, origin: float) -> Points:
    x = points.axis(view.axis, origin)
    points.start = x
    return points.take((points.step < limit) & (x >= view.low) & (x <= view.high) & np.isfinite(x))
