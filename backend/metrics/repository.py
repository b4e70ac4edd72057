"""Queries on what metric lines became."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session, defer

from backend.database import upsert
from backend.tables import MetricBlock, MetricColumn, MetricStream, RunMetric

AT_ONCE = 1000  # values in one IN list
Level = Literal["coarse", "fine", "data"]


class MetricRepository:
    """Streams, blocks, columns and newest values of metrics."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def stream(self, attempt_id: str, rank: int) -> MetricStream | None:
        """The stream of a rank."""
        return self._session.get(MetricStream, (attempt_id, rank))

    def add_stream(self, stream: MetricStream) -> None:
        """Insert a stream."""
        self._session.add(stream)

    def flush(self) -> None:
        """Write what was changed in rows."""
        self._session.flush()

    def streams(self, run_ids: Sequence[str], rank: int) -> list[MetricStream]:
        """The streams of a rank of some runs, oldest attempt first."""
        return [
            row
            for some in _batches(run_ids)
            for row in self._session.scalars(
                select(MetricStream)
                .where(MetricStream.run_id.in_(some), MetricStream.rank == rank)
                .order_by(MetricStream.run_id, MetricStream.attempt)
            )
        ]

    def blocks(self, attempt_ids: Sequence[str], rank: int, *, newest: int | None = None) -> list[MetricBlock]:
        """Blocks in the order of the stream, bytes left out; or only the `newest`, in the reverse order."""
        found: list[MetricBlock] = []
        for some in _batches(attempt_ids):
            query = select(MetricBlock).where(MetricBlock.attempt_id.in_(some), MetricBlock.rank == rank)
            query = query.options(defer(MetricBlock.axes), defer(MetricBlock.text), defer(MetricBlock.layouts))
            query = query.execution_options(populate_existing=True)  # SQLite gives the ids of deleted rows again
            if newest is None:
                query = query.order_by(MetricBlock.attempt_id, MetricBlock.byte_offset)
            else:
                query = query.order_by(MetricBlock.byte_offset.desc()).limit(newest)
            found += self._session.scalars(query)
        return found

    def layouts(self, block_ids: Sequence[int]) -> list[tuple[int, list[list[str]], bytes]]:
        """Id, layouts and axes of blocks, in no order."""
        return [
            tuple(row)
            for some in _batches(block_ids)
            for row in self._session.execute(
                select(MetricBlock.id, MetricBlock.layouts, MetricBlock.axes).where(MetricBlock.id.in_(some))
            )
        ]

    def text(self, block_id: int) -> bytes | None:
        """The deflated text of a block; None where its columns give it."""
        return self._session.scalar(select(MetricBlock.text).where(MetricBlock.id == block_id))

    def points(self, block_ids: Sequence[int], keys: Sequence[str]) -> dict[tuple[int, str], int]:
        """How many points some metrics have in blocks, where they have any."""
        return {(block, key): count for block, key, count in self._columns(MetricColumn.points, block_ids, keys)}

    def bytes_of(self, level: Level, block_ids: Sequence[int], keys: Sequence[str]) -> dict[tuple[int, str], bytes]:
        """The values of metrics in blocks, or their records."""
        column = getattr(MetricColumn, level)
        return {(block, key): data for block, key, data in self._columns(column, block_ids, keys)}

    def data_of(self, block_id: int) -> dict[str, bytes]:
        """The values of every metric of a block."""
        query = select(MetricColumn.key, MetricColumn.data).where(MetricColumn.block_id == block_id)
        return dict(self._session.execute(query).all())

    def add_block(self, block: dict[str, Any], columns: Sequence[dict[str, Any]]) -> None:
        """Insert a block with its columns."""
        block_id = self._session.execute(insert(MetricBlock).values(**block).returning(MetricBlock.id)).scalar_one()
        if columns:
            self._session.execute(insert(MetricColumn), [{"block_id": block_id, **row} for row in columns])

    def remove_blocks(self, block_ids: Sequence[int]) -> None:
        """Delete blocks with their columns."""
        if block_ids:
            unsynchronised = {"synchronize_session": False}
            self._session.execute(
                delete(MetricColumn).where(MetricColumn.block_id.in_(block_ids)), execution_options=unsynchronised
            )
            self._session.execute(
                delete(MetricBlock).where(MetricBlock.id.in_(block_ids)), execution_options=unsynchronised
            )

    def newest_values(self, run_ids: Sequence[str]) -> list[RunMetric]:
        """The newest and best values of runs, by key."""
        return [
            row
            for some in _batches(run_ids)
            for row in self._session.scalars(
                select(RunMetric).where(RunMetric.run_id.in_(some)).order_by(RunMetric.run_id, RunMetric.key)
            )
        ]

    def set_values(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert or replace newest and best values."""
        if not rows:
            return
        statement = upsert(self._session, RunMetric)
        changed = {name: statement.excluded[name] for name in rows[0] if name not in ("run_id", "key")}
        self._session.execute(
            statement.on_conflict_do_update(index_elements=["run_id", "key"], set_=changed), list(rows)
        )

    def clear_values(self, run_id: str) -> None:
        """Forget the newest and best values of a run."""
        self._session.execute(delete(RunMetric).where(RunMetric.run_id == run_id))

    def _columns(self, column: Any, block_ids: Sequence[int], keys: Sequence[str]) -> Iterator[Any]:
        for blocks in _batches(block_ids):
            for names in _batches(keys):
                where = MetricColumn.block_id.in_(blocks), MetricColumn.key.in_(names)
                yield from self._session.execute(select(MetricColumn.block_id, MetricColumn.key, column).where(*where))


def _batches(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]
