"""The excess of each run of a list in a few points."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import data
from nanollama.api import schemas
from nanollama.api.errors import ApiError

POINTS = 24
MAX_KEPT = 5000
MIN_PROGRESS = 1.02  # a curve is read again when the run has come so much further

Curve = tuple[tuple[float, float], ...]


@st.cache_resource
def _kept() -> dict[str, tuple[int, Curve]]:
    return {}


def excesses(runs: Sequence[schemas.Run]) -> dict[str, Curve]:
    """Step and excess of runs by their ids, where there are any; positive ones, at most `POINTS` of each.

    Runs are asked for together, and again only when they have come further.
    """
    kept = _kept()
    wanted = {run.id: run.progress.step for run in runs if run.progress.excess is not None and run.progress.step > 0}
    stale = [i for i, step in wanted.items() if i not in kept or _further(step, kept[i][0])]
    if stale:
        query = schemas.MetricsQuery(runs=stale, keys=["excess"], max_points=POINTS, spacing="log")
        try:
            reply = data.client().curves(query)
        except ApiError:  # the table is worth more than its ornament
            return {i: kept[i][1] for i in wanted if i in kept}
        if len(kept) + len(stale) > MAX_KEPT:
            kept.clear()
        for found in reply.runs:
            kept[found.run_id] = wanted[found.run_id], _curve(found.series.get("excess"))
    return {i: kept[i][1] for i in wanted if i in kept}


def _further(step: int, before: int) -> bool:
    return step < before or step >= before * MIN_PROGRESS


def _curve(series: schemas.Series | None) -> Curve:
    if series is None:
        return ()
    return tuple((float(s), v) for s, v in zip(series.step, series.value, strict=True) if s > 0 and 0 < v < 1e9)
