"""Blocks of metric lines: rows from lines, lines and points from rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backend.metrics.codec import Array, decode, deflate, encode, pack, unpack
from backend.metrics.lines import Lines
from backend.metrics.points import Points, summarise
from nanollama.spec.rundir import RESERVED_METRIC_KEYS

FINE, COARSE = 64, 512
"""Points of a record."""
FLOPS = "flops"
"""The metric that is an axis, too: floating-point operations since the start of the run."""


def block_row(lines: Lines, byte_offset: int, byte_end: int) -> dict[str, Any]:
    """Columns of a MetricBlock, whose stream is the caller's to add."""
    columns = lines.columns
    extents: dict[str, Any] = {}
    for axis in ("step", "tokens", "time"):
        extents |= _extent(axis, columns[axis]) if len(lines) else {}
    flops = columns.get(FLOPS)
    if flops is not None and len(flops) == len(lines) and np.isfinite(flops).all():
        extents |= _extent(FLOPS, flops.astype(np.float64))
    axes = [columns.get(key, np.zeros(0)) for key in RESERVED_METRIC_KEYS]
    return {
        "byte_offset": byte_offset,
        "byte_end": byte_end,
        "lines": len(lines),
        "layouts": [list(layout) for layout in lines.layouts],
        "axes": pack([encode(column) for column in (*axes, lines.layout)]),
        "text": None if lines.text is None else zlib.compress(lines.text),
        **extents,
    }


def column_rows(lines: Lines) -> list[dict[str, Any]]:
    """Columns of the MetricColumns, whose block is the caller's to add."""
    rows = []
    for key in lines.keys:
        points = points_of(lines, key)
        rows.append(
            {
                "key": key,
                "points": len(points),
                "coarse": deflate(summarise(points, COARSE)),
                "fine": deflate(summarise(points, FINE)),
                "data": encode(lines.columns[key]),
            }
        )
    return rows


def lines_of(layouts: Sequence[Sequence[str]], axes: bytes, data: Mapping[str, bytes], text: bytes | None) -> Lines:
    """The lines of a block, from what its row holds and the data of some of its metrics: those of the result."""
    parts = [decode(part) for part in unpack(axes)]
    columns = dict(zip(RESERVED_METRIC_KEYS, parts, strict=False)) if layouts else {}
    columns |= {key: decode(encoded) for key, encoded in data.items()}
    whole = None if text is None else zlib.decompress(text)
    return Lines([tuple(layout) for layout in layouts], parts[-1], columns, whole)


def points_of(lines: Lines, key: str) -> Points:
    """The points of a metric, in the order of the lines; FLOPs are NaN where the line has none."""
    places = lines.places(key)
    flops = np.full(len(lines), np.nan)
    if FLOPS in lines.columns:
        flops[lines.places(FLOPS)] = lines.columns[FLOPS]
    step, tokens, time = (lines.columns[axis][places] for axis in ("step", "tokens", "time"))
    return Points(step, tokens, time.astype(np.float64), flops[places], lines.columns[key].astype(np.float64))


def _extent(axis: str, values: Array) -> dict[str, Any]:
    return {f"{axis}_min": values.min().item(), f"{axis}_max": values.max().item()}
