"""Store metric lines as compressed columns with summaries, in place of a row for each and its text.

Data move both ways with the store's own code: who changes its tables or formats keeps a copy of the old code here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

from backend.metrics.lines import record_of
from backend.metrics.store import MetricStore
from backend.streams.lines import parse_each
from backend.streams.names import metrics_rank
from backend.tables import Attempt
from nanollama.spec.rundir import METRICS, encode_line

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PIECE = 1 << 20  # of a stream's text, moved at a time
CHUNK = 64 << 10

attempts = sa.table("attempts", sa.column("id"), sa.column("run_id"), sa.column("number"))
streams = sa.table("streams", sa.column("attempt_id"), sa.column("name"), sa.column("length"))
chunks = sa.table(
    "stream_chunks", sa.column("attempt_id"), sa.column("name"), sa.column("byte_offset"), sa.column("data")
)
metrics = sa.table(
    "metrics",
    *(sa.column(name) for name in ("attempt_id", "rank", "byte_offset", "run_id", "attempt", "step", "tokens", "time")),
    sa.column("payload", sa.JSON()),
)
metric_streams = sa.table(
    "metric_streams", *(sa.column(name) for name in ("attempt_id", "rank", "run_id", "attempt", "kept"))
)


def upgrade() -> None:
    _create_tables()
    _move_up(op.get_bind())
    op.drop_index("ix_metrics_run_id_rank_attempt_step", "metrics")
    op.drop_table("metrics")


def downgrade() -> None:
    op.create_table(
        "metrics",
        sa.Column("attempt_id", sa.String(32), nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.Float(precision=53), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_metrics_attempt_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_metrics_run_id"),
        sa.PrimaryKeyConstraint("attempt_id", "rank", "byte_offset", name="pk_metrics"),
    )
    op.create_index("ix_metrics_run_id_rank_attempt_step", "metrics", ["run_id", "rank", "attempt", "step"])
    _move_down(op.get_bind())
    op.drop_table("run_metrics")
    op.drop_table("metric_columns")
    op.drop_table("metric_blocks")
    op.drop_table("metric_streams")


def _create_tables() -> None:
    op.create_table(
        "metric_streams",
        sa.Column("attempt_id", sa.String(32), nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=True),
        sa.Column("first_time", sa.Float(precision=53), nullable=True),
        sa.Column("keys", sa.JSON(), nullable=False),
        sa.Column("kept", sa.BigInteger(), nullable=True),
        sa.Column("sealed", sa.BigInteger(), nullable=False),
        sa.Column("tail", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_metric_streams_attempt_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_metric_streams_run_id"),
        sa.PrimaryKeyConstraint("attempt_id", "rank", name="pk_metric_streams"),
    )
    op.create_index("ix_metric_streams_run_id_rank", "metric_streams", ["run_id", "rank"])
    op.create_table(
        "metric_blocks",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.String(32), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), nullable=False),
        sa.Column("byte_end", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("step_min", sa.BigInteger(), nullable=True),
        sa.Column("step_max", sa.BigInteger(), nullable=True),
        sa.Column("tokens_min", sa.BigInteger(), nullable=True),
        sa.Column("tokens_max", sa.BigInteger(), nullable=True),
        sa.Column("time_min", sa.Float(precision=53), nullable=True),
        sa.Column("time_max", sa.Float(precision=53), nullable=True),
        sa.Column("flops_min", sa.Float(precision=53), nullable=True),
        sa.Column("flops_max", sa.Float(precision=53), nullable=True),
        sa.Column("layouts", sa.JSON(), nullable=False),
        sa.Column("axes", sa.LargeBinary(), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_metric_blocks_attempt_id"),
        sa.PrimaryKeyConstraint("id", name="pk_metric_blocks"),
        sa.UniqueConstraint("attempt_id", "rank", "byte_offset", name="uq_metric_blocks_attempt_id_rank_byte_offset"),
    )
    op.create_table(
        "metric_columns",
        sa.Column(
            "block_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("coarse", sa.LargeBinary(), nullable=False),
        sa.Column("fine", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["block_id"], ["metric_blocks.id"], name="fk_metric_columns_block_id"),
        sa.PrimaryKeyConstraint("block_id", "key", name="pk_metric_columns"),
    )
    op.create_table(
        "run_metrics",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("last", sa.Float(precision=53), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("min", sa.Float(precision=53), nullable=True),
        sa.Column("min_step", sa.BigInteger(), nullable=True),
        sa.Column("max", sa.Float(precision=53), nullable=True),
        sa.Column("max_step", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_metrics_run_id"),
        sa.PrimaryKeyConstraint("run_id", "key", name="pk_run_metrics"),
    )
    op.create_index("ix_run_metrics_key_last", "run_metrics", ["key", "last"])
    if op.get_bind().dialect.name == "postgresql":  # what is compressed already is not tried again
        for column in ("coarse", "fine", "data"):
            op.execute(f"ALTER TABLE metric_columns ALTER COLUMN {column} SET STORAGE EXTERNAL")
        for column in ("axes", "text"):
            op.execute(f"ALTER TABLE metric_blocks ALTER COLUMN {column} SET STORAGE EXTERNAL")


def _move_up(connection: sa.Connection) -> None:
    query = (
        sa.select(streams.c.attempt_id, streams.c.name, streams.c.length, attempts.c.run_id, attempts.c.number)
        .join(attempts, attempts.c.id == streams.c.attempt_id)
        .where(streams.c.name.startswith(f"{METRICS}/"))
        .order_by(attempts.c.run_id, attempts.c.number)
    )
    for attempt_id, name, length, run_id, number in connection.execute(query).all():
        rank = metrics_rank(name)
        assert rank is not None, name
        # transient: the table may not yet have what the class has
        attempt = Attempt(id=attempt_id, run_id=run_id, number=number)
        session = Session(connection)
        store = MetricStore(session, max_bytes=2**63 - 1)
        end = 0
        for text in _pieces(connection, attempt_id, name, length):
            store.append(attempt, rank, end, text)
            end += len(text)
        if end < length:  # the cap on streams cut the text, but not the lines
            for offset, text in _lines_from_rows(connection, attempt_id, rank, end):
                store.append(attempt, rank, offset, text)
            here = metric_streams.c.attempt_id == attempt_id, metric_streams.c.rank == rank
            connection.execute(sa.update(metric_streams).where(*here).values(kept=end))
        session.close()
        connection.execute(sa.delete(chunks).where(chunks.c.attempt_id == attempt_id, chunks.c.name == name))


def _pieces(connection: sa.Connection, attempt_id: str, name: str, length: int) -> Iterator[bytes]:
    """The text of a stream in pieces that end with a line; a line that the cap cut is left out."""
    query = (
        sa.select(chunks.c.byte_offset, chunks.c.data)
        .where(chunks.c.attempt_id == attempt_id, chunks.c.name == name)
        .order_by(chunks.c.byte_offset)
    )
    kept, end = b"", 0
    for offset, data in connection.execute(query).all():
        kept, end = kept + data, offset + len(data)
        whole = kept.rfind(b"\n") + 1
        if whole >= PIECE:
            yield kept[:whole]
            kept = kept[whole:]
    if end < length:
        kept = kept[: kept.rfind(b"\n") + 1]
    if kept:
        yield kept


def _lines_from_rows(connection: sa.Connection, attempt_id: str, rank: int, start: int) -> Iterator[tuple[int, bytes]]:
    query = (
        sa.select(metrics)
        .where(metrics.c.attempt_id == attempt_id, metrics.c.rank == rank, metrics.c.byte_offset >= start)
        .order_by(metrics.c.byte_offset)
    )
    offset, lines = start, b""
    for row in connection.execute(query):
        record: dict[str, Any] = {"seq": 0, "step": row.step, "tokens": row.tokens, "time": row.time, **row.payload}
        lines = lines + encode_line(record)
        if len(lines) >= CHUNK:
            yield offset, lines
            offset, lines = offset + len(lines), b""
    if lines:
        yield offset, lines


def _move_down(connection: sa.Connection) -> None:
    for row in connection.execute(sa.select(metric_streams)).all():
        session = Session(connection)
        pieces = list(MetricStore(session, max_bytes=0).pieces(row.attempt_id, row.rank))
        session.close()
        end = 0
        for piece in pieces:
            records = parse_each(piece, end, record_of).records if piece else []
            _insert(connection, row, records)
            end += len(piece)
        text = b"".join(pieces)[: row.kept]
        name = f"{METRICS}/rank{row.rank}.jsonl"
        for start in range(0, len(text), CHUNK):
            chunk = {"attempt_id": row.attempt_id, "name": name, "byte_offset": start}
            connection.execute(sa.insert(chunks), [{**chunk, "data": text[start : start + CHUNK]}])


def _insert(connection: sa.Connection, stream: Any, records: list[tuple[int, dict[str, Any]]]) -> None:
    rows = []
    for offset, record in records:
        values = {key: value for key, value in record.items() if key not in ("seq", "step", "tokens", "time")}
        rows.append(
            {
                "attempt_id": stream.attempt_id,
                "rank": stream.rank,
                "byte_offset": offset,
                "run_id": stream.run_id,
                "attempt": stream.attempt,
                **{key: record[key] for key in ("step", "tokens", "time")},
                "payload": values,
            }
        )
    if rows:
        connection.execute(sa.insert(metrics), rows)
