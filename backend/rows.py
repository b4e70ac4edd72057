"""Rows of a table as they are, in batches that one statement takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Table, select

FETCHED = 100
BATCH_ROWS, BATCH_BYTES = 500, 8 << 20


def batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table as they lie there, by name of the column."""
    names, batch, size = table.columns.keys(), [], 0
    for row in connection.execute(select(table), execution_options={"yield_per": FETCHED}):
        batch.append(dict(zip(names, row, strict=True)))
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
