"""Append metric lines, and keep what lists show of them up to date, in the transaction that counts their bytes.

New lines wait as text in their stream's row. When there is enough of it, they are sealed into a block of columns, which
takes in older blocks as long as those are not much larger: a line is rewritten a logarithmic number of times, and a
stream has few blocks, whatever the size of its uploads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from backend.metrics.blocks import block_row, column_rows, lines_of
from backend.metrics.codec import Array
from backend.metrics.lines import Lines, Record, join, parse_metrics
from backend.metrics.reader import SeriesReader
from backend.metrics.repository import MetricRepository
from backend.streams.lines import Parsed
from backend.tables import Attempt, MetricStream, RunMetric
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem

TAIL_BYTES = 16 << 10
"""Text that waits: a reader parses it, and an append writes it again."""
BLOCK_LINES = 16384
BLOCK_BYTES = 8 << 20
"""Of text: how large blocks grow by taking in others."""
MAX_KEYS = 10_000
"""Different metrics of a stream."""
_LOOK_BACK = 32  # blocks: their sizes at least double, so that more never are taken in


@dataclass(frozen=True)
class Appended:
    """What an append brought: step and tokens of its last line, newest value by metric, and what was wrong."""

    step: int | None
    tokens: int
    latest: dict[str, float]
    parsed: Parsed[Record]


class MetricStore:
    """The metric lines of attempts."""

    def __init__(self, session: Session, max_bytes: int) -> None:
        self._metrics = MetricRepository(session)
        self._reader = SeriesReader(session)
        self._max_bytes = max_bytes

    def append(self, attempt: Attempt, rank: int, offset: int, data: bytes) -> Appended:
        """Store bytes that follow what there is of a stream, whose attempt is locked.

        Raises:
            InvalidRequest: more different metrics than a stream may have.
        """
        stream = self._metrics.stream(attempt.id, rank)
        if stream is None:
            stream = _new_stream(attempt, rank)
            self._metrics.add_stream(stream)
        lines, parsed = parse_metrics(data, offset)
        if lines.text is not None and stream.kept is None and offset >= self._max_bytes:
            stream.kept = offset
        starts_anew = rank == 0 and attempt.number > 1 and _lowers_first_step(stream, lines)
        repeats = _note(stream, lines)
        if len(stream.tail) + len(data) < TAIL_BYTES:
            stream.tail = stream.tail + data
        else:
            self._seal(stream, lines, offset + len(data))
        self._metrics.flush()
        latest: dict[str, float] = {}
        if rank == 0 and len(lines):
            latest = self._update_values(attempt.run_id, lines, from_scratch=starts_anew or repeats)
        step, tokens = (int(lines.columns[key][-1]) for key in ("step", "tokens")) if len(lines) else (None, 0)
        return Appended(step, tokens, latest, parsed)

    def text(self, attempt_id: str, rank: int) -> bytes:
        """The bytes of a stream: all, or up to the cap."""
        stream = self._metrics.stream(attempt_id, rank)
        return b"" if stream is None else b"".join(self.pieces(attempt_id, rank))[: stream.kept]

    def read(self, attempt_id: str, rank: int, start: int, end: int) -> bytes:
        """Some bytes of a stream, as far as they can be read back."""
        stream = self._metrics.stream(attempt_id, rank)
        if stream is None:
            return b""
        end = end if stream.kept is None else min(end, stream.kept)
        parts = []
        for block in self._metrics.blocks([attempt_id], rank):
            if block.byte_offset < end and block.byte_end > start:
                text = self._load(block.id).render()
                parts.append(text[max(0, start - block.byte_offset) : end - block.byte_offset])
        if stream.tail and stream.sealed < end:
            parts.append(stream.tail[max(0, start - stream.sealed) : end - stream.sealed])
        return b"".join(parts)

    def size(self, attempt_id: str, rank: int) -> int:
        """How many bytes there are in the pieces of a stream."""
        stream = self._metrics.stream(attempt_id, rank)
        if stream is None:
            return 0
        if stream.kept is None:  # they are the bytes that were sent
            return stream.sealed + len(stream.tail)
        return sum(len(piece) for piece in self.pieces(attempt_id, rank))

    def pieces(self, attempt_id: str, rank: int) -> Iterator[bytes]:
        """The lines of a stream as text, in pieces. Beyond the cap they are written anew, without what was no line."""
        for block in self._metrics.blocks([attempt_id], rank):
            yield self._load(block.id).render()
        stream = self._metrics.stream(attempt_id, rank)
        if stream is not None and stream.tail:
            yield stream.tail

    def _seal(self, stream: MetricStream, lines: Lines, end: int) -> None:
        start = stream.sealed
        pieces = [parse_metrics(stream.tail, start)[0], lines] if stream.tail else [lines]
        count, taken = sum(map(len, pieces)), []
        for block in self._metrics.blocks([stream.attempt_id], stream.rank, newest=_LOOK_BACK):
            fits = count + block.lines <= BLOCK_LINES and end - block.byte_offset <= BLOCK_BYTES
            if block.lines > 2 * count or not fits:
                break
            count, start = count + block.lines, block.byte_offset
            taken.append(block.id)
        whole = join([*(self._load(block_id) for block_id in reversed(taken)), *pieces])
        if stream.kept is not None and start >= stream.kept:
            whole.text = None
        self._metrics.remove_blocks(taken)
        row = block_row(whole, start, end) | {"attempt_id": stream.attempt_id, "rank": stream.rank}
        self._metrics.add_block(row, column_rows(whole))
        stream.sealed, stream.tail = end, b""

    def _load(self, block_id: int) -> Lines:
        ((_, layouts, axes),) = self._metrics.layouts([block_id])
        return lines_of(layouts, axes, self._metrics.data_of(block_id), self._metrics.text(block_id))

    def _update_values(self, run_id: str, lines: Lines, *, from_scratch: bool) -> dict[str, float]:
        """Bring the run's newest and best values up to date; the newest of all its metrics."""
        if from_scratch:
            self._metrics.clear_values(run_id)
            rows = [_values_row(run_id, key, *found) for key, found in self._reader.extremes(run_id).items()]
            self._metrics.set_values(rows)
            return {row["key"]: _number(row["last"]) for row in rows}
        known = {row.key: row for row in self._metrics.newest_values([run_id])}
        rows = []
        for key in lines.keys:
            value = lines.columns[key].astype(np.float64)
            row = _values_row(run_id, key, lines.columns["step"][lines.places(key)], value)
            rows.append(_better(row, known.get(key)))
        self._metrics.set_values(rows)
        return {key: _number(row.last) for key, row in known.items()} | {
            row["key"]: _number(row["last"]) for row in rows
        }


def _new_stream(attempt: Attempt, rank: int) -> MetricStream:
    return MetricStream(
        attempt_id=attempt.id,
        rank=rank,
        run_id=attempt.run_id,
        attempt=attempt.number,
        lines=0,
        first_step=None,
        first_time=None,
        keys={},
        kept=None,
        sealed=0,
        tail=b"",
    )


def _lowers_first_step(stream: MetricStream, lines: Lines) -> bool:
    return bool(len(lines)) and (stream.first_step is None or int(lines.columns["step"].min()) < stream.first_step)


def _note(stream: MetricStream, lines: Lines) -> bool:
    """Count lines into their stream's row; whether a metric's step does not lie beyond the one before it."""
    if not len(lines):
        return False
    step = lines.columns["step"]
    stream.lines += len(lines)
    stream.first_step = min(int(step.min()), stream.first_step if stream.first_step is not None else int(step.min()))
    if stream.first_time is None:
        stream.first_time = float(lines.columns["time"][0])
    keys, repeats = dict(stream.keys), False
    for key in lines.keys:
        own = step[lines.places(key)]
        low, high = int(own.min()), int(own.max())
        in_order = bool((own[1:] > own[:-1]).all())
        if key in keys:
            first, last, was_in_order = keys[key]
            in_order = in_order and low > last
            keys[key] = [min(first, low), max(last, high), was_in_order and in_order]
        else:
            keys[key] = [low, high, in_order]
        repeats = repeats or not in_order
    if len(keys) > MAX_KEYS:
        message = f"{len(keys):,} different metrics, but a stream may have {MAX_KEYS:,}"
        raise InvalidRequest(message, [Problem(path="metrics", message=message, remedy="use fewer names")])
    stream.keys = keys
    return repeats


def _values_row(run_id: str, key: str, step: Array, value: Array) -> dict[str, Any]:
    """Columns of a RunMetric, from points in order of step."""
    row: dict[str, Any] = {"run_id": run_id, "key": key, "last": _null(value[-1]), "last_step": int(step[-1])}
    row |= dict.fromkeys(("min", "min_step", "max", "max_step"))
    if not np.isnan(value).all():
        low, high = int(np.nanargmin(value)), int(np.nanargmax(value))
        row |= {"min": float(value[low]), "min_step": int(step[low])}
        row |= {"max": float(value[high]), "max_step": int(step[high])}
    return row


def _better(row: dict[str, Any], known: RunMetric | None) -> dict[str, Any]:
    """The row with the best values of both; the earlier one where they are equal."""
    if known is not None and known.min is not None and (row["min"] is None or known.min <= row["min"]):
        row |= {"min": known.min, "min_step": known.min_step}
    if known is not None and known.max is not None and (row["max"] is None or known.max >= row["max"]):
        row |= {"max": known.max, "max_step": known.max_step}
    return row


def _null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
