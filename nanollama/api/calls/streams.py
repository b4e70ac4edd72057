"""Logs, and the streams that workers send."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment
from nanollama.api.following import Message


class StreamCalls(Transport):
    """Logs, and the streams that workers send."""

    def logs(
        self, run_id: str, *, attempt: int | None = None, stream: str | None = None, tail_bytes: int = 65536
    ) -> schemas.LogTail:
        """The end of a log: of the newest attempt, and of rank 0 or standard output, unless told otherwise."""
        return self._get(
            f"/runs/{segment(run_id)}/logs", schemas.LogTail, attempt=attempt, stream=stream, tail_bytes=tail_bytes
        )

    def follow_log(
        self, run_id: str, *, attempt: int | None = None, stream: str | None = None, tail_bytes: int = 65536
    ) -> Iterator[Message]:
        """A log as it grows, up to the message `end` once its attempt has ended."""
        params = {"attempt": attempt, "stream": stream, "tail_bytes": tail_bytes}
        given = {key: value for key, value in params.items() if value is not None}
        return self._follow(f"/runs/{segment(run_id)}/logs/stream", given, None)

    def streams(self, attempt_id: str) -> list[schemas.StreamInfo]:
        """The streams of an attempt, with their lengths."""
        return parse_replies(self._call("GET", f"/attempts/{segment(attempt_id)}/streams"), schemas.StreamInfo)

    def read_stream(self, attempt_id: str, name: str, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a stream as they are stored, from an offset on, piece by piece."""
        path = f"/attempts/{segment(attempt_id)}/streams/{quote(name)}"
        while piece := self._call("GET", path, params={"offset": offset}).content:
            yield piece
            offset += len(piece)

    def put_stream(self, attempt_id: str, name: str, *, epoch: int, offset: int, data: bytes) -> schemas.StreamInfo:
        """Append bytes to a stream at an offset; what the server already has is ignored.

        Raises:
            OffsetMismatch: the server has less than `offset` bytes; `expected_offset` says how many.
            StaleEpoch: the lease is lost.
        """
        params = {"epoch": epoch, "offset": offset}
        path = f"/attempts/{segment(attempt_id)}/streams/{name}"
        reply = self._call("PUT", path, content=data, params=params, idempotent=True)
        return parse_reply(reply, schemas.StreamInfo)
