"""Answers about metrics: which series, in which form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from sqlalchemy.orm import Session

from backend.metrics.points import Totals
from backend.metrics.reader import Curve, SeriesReader, View
from backend.metrics.repository import MetricRepository
from backend.runs.repository import RunRepository
from backend.runs.service import no_run
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem

MAX_VALUES = 2_000_000
"""Points of one answer."""
ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Answer:
    """Series of some runs under one view."""

    view: View
    keys: dict[str, list[str]]
    curves: list[Curve]

    def run(self, run_id: str) -> dict[str, Any]:
        """A run's part as plain data, a `schemas.Metrics`."""
        own = [curve for curve in self.curves if curve.run_id == run_id]
        series = {curve.key: self._series(curve) for curve in own}
        return {"run_id": run_id, "keys": self.keys[run_id], "series": series}

    def json(self) -> bytes:
        """A `schemas.MetricsReply` as JSON."""
        return encode({"x": self.view.axis, "runs": [self.run(run_id) for run_id in self.keys]})

    def arrow(self) -> bytes:
        """One Arrow table with a row for each point; its metadata hold the rest of the reply under `n2n`."""
        import pyarrow as pa  # noqa: PLC0415 - large, and most services are never asked for it

        def column(name: str) -> Any:
            return pa.concat_arrays([pa.array(getattr(curve.points, name)) for curve in self.curves])

        def labels(values: list[str]) -> Any:
            places = [place for place, curve in enumerate(self.curves) for _ in range(len(curve.points))]
            return pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), pa.array(values, pa.string()))

        columns: dict[str, Any] = {}
        if self.curves:
            columns = {"run": labels([curve.run_id for curve in self.curves])}
            columns["key"] = labels([curve.key for curve in self.curves])
            columns |= {name: column(name) for name in ("step", "tokens", "time", "value")}
            columns["x"] = pa.concat_arrays([pa.array(curve.x) for curve in self.curves])
        rest = {"x": self.view.axis, "keys": self.keys, "summaries": [
            {"run": curve.run_id, "key": curve.key, "summary": summary(curve)} for curve in self.curves
        ]}  # fmt: skip
        table = pa.table(columns).replace_schema_metadata({"n2n": encode(rest)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    def _series(self, curve: Curve) -> dict[str, Any]:
        points = curve.points
        columns = {name: getattr(points, name).tolist() for name in ("step", "tokens", "time", "value")}
        if self.view.axis not in columns:
            columns["x"] = curve.x.tolist()
        return {**columns, "summary": summary(curve)}


class MetricService:
    """Reads of metrics."""

    def __init__(self, session: Session) -> None:
        self._runs = RunRepository(session)
        self._reader = SeriesReader(session)
        self._metrics = MetricRepository(session)

    def read(self, run_ids: Sequence[str], keys: Sequence[str], view: View, rank: int) -> Answer:
        """Series of runs: those of `keys`, or all.

        Raises:
            NotFound: one of the runs does not exist.
            InvalidRequest: more points than one answer may have.
        """
        run_ids = self._existing(run_ids)
        known = self._reader.keys(run_ids, rank)
        wanted = [
            (run_id, key)
            for run_id in run_ids
            for key in (known[run_id] if not keys else dict.fromkeys(keys))
            if key in known[run_id]
        ]
        if len(wanted) * view.max_points > MAX_VALUES:
            message = f"{len(wanted)} series of {view.max_points:,} points are more than {MAX_VALUES:,}"
            raise InvalidRequest(message, [Problem(path="max_points", message=message, remedy="ask for fewer")])
        return Answer(view, known, self._reader.read(wanted, view, rank))

    def values(self, run_ids: Sequence[str]) -> list[schemas.RunValues]:
        """Newest and best values of runs. Raises NotFound."""
        found = {run_id: schemas.RunValues(run_id=run_id, values={}) for run_id in self._existing(run_ids)}
        for row in self._metrics.newest_values(list(found)):
            found[row.run_id].values[row.key] = schemas.MetricValues(
                last=math.nan if row.last is None else row.last,
                last_step=row.last_step,
                min=row.min,
                min_step=row.min_step,
                max=row.max,
                max_step=row.max_step,
            )
        return list(found.values())

    def _existing(self, run_ids: Sequence[str]) -> list[str]:
        ids = list(dict.fromkeys(run_ids))
        there = self._runs.existing(ids)
        for run_id in ids:
            if run_id not in there:
                raise no_run(run_id)
        return ids


def summary(curve: Curve) -> dict[str, Any]:
    """A `schemas.Summary` as plain data; mean and stderr are NaN or infinite where the values make them so."""
    totals: Totals = curve.totals
    stderr = None
    if totals.count > 1:
        stderr = math.sqrt(totals.squares / (totals.count - 1) / totals.count)
    last = curve.points.value[-1].item()
    return {
        "count": totals.count, "mean": totals.mean, "stderr": stderr, "min": totals.min, "max": totals.max, "last": last
    }  # fmt: skip


def encode(data: dict[str, Any]) -> bytes:
    """Plain data as JSON, non-finite numbers as words."""
    return to_json(data, inf_nan_mode="strings")
