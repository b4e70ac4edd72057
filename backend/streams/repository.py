"""Queries on streams and their bytes."""

from __future__ import annotations

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from backend.tables import Stream, StreamChunk

CHUNK_BYTES = 64 << 10  # small uploads are merged into rows of about this size, so that a tail reads few rows


class StreamRepository:
    """Byte streams, stored as abutting chunks."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def length(self, attempt_id: str, name: str) -> int:
        """Bytes stored; 0 for a stream that has none yet."""
        query = select(Stream.length).where(Stream.attempt_id == attempt_id, Stream.name == name)
        return self._session.scalar(query) or 0

    def lengths(self, attempt_id: str) -> dict[str, int]:
        """Streams of an attempt that have bytes, and how many."""
        query = select(Stream.name, Stream.length).where(Stream.attempt_id == attempt_id).order_by(Stream.name)
        return dict(self._session.execute(query).all())

    def append(self, attempt_id: str, name: str, length: int, data: bytes, keep: int) -> None:
        """Count bytes into a stream of `length` bytes, whose attempt is locked, and keep the first `keep` of them."""
        key = {"attempt_id": attempt_id, "name": name}
        if length == 0:
            self._session.execute(insert(Stream).values(**key, length=len(data)))
        else:
            self._session.execute(
                update(Stream)
                .where(Stream.attempt_id == attempt_id, Stream.name == name)
                .values(length=length + len(data))
            )
        data = data[:keep]
        if not data:
            return
        last = self._last_chunk(attempt_id, name) if length else None
        if last is not None and len(last.data) + len(data) <= CHUNK_BYTES:
            last.data += data
            self._session.flush()
        else:
            self._session.execute(insert(StreamChunk).values(**key, byte_offset=length, data=data))

    def read(
        self, attempt_id: str, name: str, start: int, chunks: int | None = None, *, end: int | None = None
    ) -> bytes:
        """The bytes from `start` to the end, to a given one, or to that of the given number of chunks."""
        first = (
            select(func.max(StreamChunk.byte_offset))
            .where(StreamChunk.attempt_id == attempt_id, StreamChunk.name == name, StreamChunk.byte_offset <= start)
            .scalar_subquery()
        )
        query = (
            select(StreamChunk.byte_offset, StreamChunk.data)
            .where(StreamChunk.attempt_id == attempt_id, StreamChunk.name == name, StreamChunk.byte_offset >= first)
            .order_by(StreamChunk.byte_offset)
            .limit(chunks)
        )
        if end is not None:
            query = query.where(StreamChunk.byte_offset < end)
        rows = self._session.execute(query).all()
        stop = None if end is None or not rows else end - rows[0][0]
        return b"".join(data for _, data in rows)[start - rows[0][0] : stop] if rows else b""

    def _last_chunk(self, attempt_id: str, name: str) -> StreamChunk | None:
        query = (
            select(StreamChunk)
            .where(StreamChunk.attempt_id == attempt_id, StreamChunk.name == name)
            .order_by(StreamChunk.byte_offset.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()
