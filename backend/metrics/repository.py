"""Queries on metric lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Text, and_, cast, func, insert, or_, select, true
from sqlalchemy.orm import Session

from backend.tables import Attempt, Metric
from nanollama.spec.rundir import MetricLine

MetricRow = tuple[int, int, float, dict[str, Any]]
"""Step, tokens, time and the encoded values of a line."""


class MetricRepository:
    """Metric lines of runs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, attempt: Attempt, rank: int, lines: Sequence[tuple[int, MetricLine]]) -> None:
        """Insert lines with their byte offsets in the stream of a rank."""
        rows = [
            {
                "attempt_id": attempt.id,
                "rank": rank,
                "byte_offset": offset,
                "run_id": attempt.run_id,
                "attempt": attempt.number,
                "step": line.step,
                "tokens": line.tokens,
                "time": line.time,
                "payload": line.values,
            }
            for offset, line in lines
        ]
        if rows:
            self._session.execute(insert(Metric), rows)

    def surviving(self, run_id: str) -> list[MetricRow]:
        """Rank 0's lines of a run, by step, without those that a later attempt made anew.

        A retry goes on from a checkpoint: what earlier attempts logged from its first step on never happened.
        """
        query = (
            select(Metric.attempt, func.min(Metric.step))
            .where(Metric.run_id == run_id, Metric.rank == 0)
            .group_by(Metric.attempt)
            .order_by(Metric.attempt.desc())
        )
        kept, first_later = [], None
        for attempt, first in self._session.execute(query):
            before = true() if first_later is None else Metric.step < first_later
            kept.append(and_(Metric.attempt == attempt, before))
            first_later = first if first_later is None else min(first, first_later)
        if not kept:
            return []
        lines = (
            select(Metric.step, Metric.tokens, Metric.time, cast(Metric.payload, Text))
            .where(Metric.run_id == run_id, Metric.rank == 0, or_(*kept))
            .order_by(Metric.step, Metric.attempt, Metric.byte_offset)
        )
        rows = self._session.execute(lines).all()
        payloads = json.loads(f"[{','.join(row[3] for row in rows)}]")  # one call decodes far faster than one a row
        return [(step, tokens, time, values) for (step, tokens, time, _), values in zip(rows, payloads, strict=True)]
