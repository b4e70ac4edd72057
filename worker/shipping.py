"""Ships what a run appends to its files to the service, by byte offset: the file is the spool.

The stored stream is always a prefix of the file. A repetition is harmless and a lost reply is found out by the next
call, because the service ignores what it has and says where the next bytes belong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from nanollama.api.errors import Forbidden, InvalidRequest, OffsetMismatch, TooLarge
from nanollama.spec.rundir import EVENTS, LOGS, METRICS, STDOUT

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
ROUND_BATCHES = 8
"""Batches of a stream in one round: a stream with a long backlog does not hold up the others."""

Put = Callable[[str, int, bytes], int]
"""Sends bytes of a stream at an offset and returns the length that the service then has."""


def find_streams(directory: Path) -> Iterator[str]:
    """Names of the streams that an attempt directory has: paths relative to it."""
    for name in (EVENTS, STDOUT):
        if (directory / name).is_file():
            yield name
    for pattern in (f"{METRICS}/rank*.jsonl", f"{LOGS}/rank*.log"):
        for path in sorted(directory.glob(pattern)):
            yield path.relative_to(directory).as_posix()


class Shipper:
    """The streams of one attempt."""

    def __init__(self, directory: Path, put: Put) -> None:
        self._directory = directory
        self._put = put
        self._streams: dict[str, _Stream] = {}

    def ship(self, *, final: bool = False) -> bool:
        """Send what is new, and return whether nothing is left to send.

        Args:
            final: nothing is written any more, so that a last line without its end is complete, or torn.
        """
        for name in find_streams(self._directory):
            if name not in self._streams:
                self._streams[name] = _Stream(name, self._directory / name)
        left = [stream for stream in self._streams.values() if not stream.ship(self._put, final)]
        return not left


class _Stream:
    """One file. `offset` is how much of it the service has, as far as is known; at first nothing is."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._offset = 0
        self._closed = False
        self._records = name.endswith(".jsonl")

    def ship(self, put: Put, final: bool) -> bool:
        for _ in range(ROUND_BATCHES):
            if self._closed:
                return True
            batch, more = self._read(final)
            if not batch:
                return True
            end = self._offset + len(batch)
            self._send(put, batch)
            if self._offset >= end and not more:
                return True
        return self._closed

    def _send(self, put: Put, batch: bytes) -> None:
        """Send a batch, and move the offset to where the service is."""
        before = self._offset
        try:
            self._offset = put(self._name, before, batch)
        except OffsetMismatch as error:
            if error.expected_offset is None or error.expected_offset == before:
                raise
            self._offset = error.expected_offset
        except (InvalidRequest, TooLarge, Forbidden) as error:
            self._close(f"the service refuses it at byte {before:,}: {error}")
        else:
            if self._offset <= before:
                self._close(f"the service takes no more than {self._offset:,} bytes")

    def _read(self, final: bool) -> tuple[bytes, bool]:
        """The next bytes to send, whole lines unless that cannot be, and whether the file has more."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._close(f"it has shrunk to {size:,} bytes, of which {self._offset:,} were sent")
                    return b"", False
                file.seek(self._offset)
                data = file.read(BATCH_BYTES)
        except FileNotFoundError:
            if self._offset:
                self._close("the file has been removed")
            return b"", False
        more = self._offset + len(data) < size
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) == len(data) or (whole and more):
            return whole, more
        if self._records:
            return self._torn(data, whole, final)
        at_end = final and not more
        return (data if at_end or len(data) == BATCH_BYTES else whole), more

    def _torn(self, data: bytes, whole: bytes, final: bool) -> tuple[bytes, bool]:
        if len(data) == BATCH_BYTES and not whole:
            self._close(f"a line of more than {BATCH_BYTES:,} bytes at byte {self._offset:,} is no record")
        elif final and not whole:
            self._close(f"the last line, {len(data):,} bytes without an end, was dropped")
        return whole, bool(whole) and final

    def _close(self, reason: str) -> None:
        self._closed = True
        log.warning("%s: no more of it is sent: %s", self._path, reason)
