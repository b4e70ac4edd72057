"""A log, followed to the end of its attempt."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator

from backend.deps import Context
from backend.live.sse import Message, looks
from backend.streams.service import LogPiece, StreamService


class LogFeed:
    """What a log of an attempt holds from a byte on.

    Args:
        context: the parts of the service.
        run_id: whose log.
        number: of the attempt.
        name: of the stream; the run's main log, as soon as one has bytes, when absent.
        start: first byte; the last `tail_bytes` when absent.
        tail_bytes: how much of what is there already is sent.
    """

    def __init__(
        self, context: Context, run_id: str, number: int, *, name: str | None, start: int | None, tail_bytes: int
    ) -> None:
        self._context = context
        self._run_id = run_id
        self._number = number
        self._name = name
        self._offset = start
        self._tail_bytes = tail_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def messages(self) -> AsyncIterator[Message | None]:
        """Pieces of text, then the message `end`."""
        async for piece in looks(self._context, self._look, lambda piece: bool(piece.data)):
            if piece.data:
                yield self._message(piece)
            elif piece.ended:
                rest = self._decoder.decode(b"", final=True)
                if rest:
                    yield Message("log", {"name": piece.name, "text": rest, "offset": self._offset}, id=self._id())
                yield Message("end", {"name": piece.name, "length": piece.length}, id=self._id())
                return
            else:
                yield None

    def _look(self) -> LogPiece:
        with self._context.database.read() as session:
            service = StreamService(session, self._context.clock(), self._context.settings.max_stream_bytes)
            piece = service.piece(
                self._run_id, self._number, name=self._name, start=self._offset, tail_bytes=self._tail_bytes
            )
        if piece.data:
            self._name = piece.name
        return piece

    def _message(self, piece: LogPiece) -> Message:
        text = self._decoder.decode(piece.data)
        self._offset = piece.start + len(piece.data)
        return Message("log", {"name": piece.name, "text": text, "offset": piece.start}, id=self._id())

    def _id(self) -> str:
        """Where to go on: behind the last whole character."""
        pending = len(self._decoder.getstate()[0])
        return f"{self._number}-{(self._offset or 0) - pending}"
