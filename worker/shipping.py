"""Ships what a run appends to its files to the service, by byte offset: the file is the spool.

The stored stream is always a prefix of the file. A repetition is harmless and a lost reply is found out by the next
call, because the service ignores what it has and says where the next bytes belong.

A file that is cut or replaced under way cannot be a prefix of anything. Of a log, a remark is put into the stream and
what the file holds from then on follows it; the place is remembered as a *splice*. Of records no more is sent, since
their numbers would begin anew, and the remark goes into the log.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nanollama.api.errors import Forbidden, InvalidRequest, OffsetMismatch, TooLarge
from nanollama.spec.rundir import EVENTS, LOGS, METRICS, STDOUT

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
ROUND_BATCHES = 8
"""Batches of a stream in one round: a stream with a long backlog does not hold up the others."""

Put = Callable[[str, int, bytes], int]
"""Sends bytes of a stream at an offset and returns the length that the service then has."""


Remember = Callable[[str, "Splice"], None]
"""Keeps a splice of a stream so that a later life of the worker knows of it."""

_TAIL_BYTES = 64
_FRESH_SECONDS = 2.0  # a folder that has changed so lately may change again under the same time stamp


@dataclass(frozen=True)
class Splice:
    """Where a stream is not simply its file: from byte `at` on it holds `text`, then the file from byte `resume` on."""

    at: int = 0
    text: str = ""
    resume: int = 0

    @property
    def data(self) -> bytes:
        """The remark, as it is sent."""
        return self.text.encode()


def find_streams(directory: Path) -> Iterator[str]:
    """Names of the streams that an attempt directory has: paths relative to it."""
    for name in (EVENTS, STDOUT):
        if (directory / name).is_file():
            yield name
    for pattern in (f"{METRICS}/rank*.jsonl", f"{LOGS}/rank*.log"):
        for path in sorted(directory.glob(pattern)):
            yield path.relative_to(directory).as_posix()


class Shipper:
    """The streams of one attempt.

    Args:
        directory: the attempt directory.
        put: sends.
        splices: what earlier lives of the worker have put into streams, by name.
        remember: keeps what is put into one, before it is sent.
    """

    def __init__(
        self,
        directory: Path,
        put: Put,
        splices: Mapping[str, Splice] | None = None,
        remember: Remember = lambda _name, _splice: None,
    ) -> None:
        self._directory = directory
        self._put = put
        self._splices = dict(splices or {})
        self._remember = remember
        self._streams: dict[str, _Stream] = {}
        self._seen: tuple[int, ...] | None = None
        for name in self._splices:
            self._stream(name)

    def ship(self, *, final: bool = False) -> bool:
        """Send what is new, and return whether nothing is left to send.

        Args:
            final: nothing is written any more, so that a last line without its end is complete, or torn.
        """
        if final or self._changed():
            for name in find_streams(self._directory):
                self._stream(name)
        left = [stream for stream in list(self._streams.values()) if not stream.ship(self._put, final)]
        return not left and not any(stream.owes for stream in self._streams.values())

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            splice = self._splices.get(name, Splice())
            self._streams[name] = _Stream(name, self._directory / name, splice, self._remember, self._remark)
        return self._streams[name]

    def _remark(self, text: str) -> None:
        """Put a remark on another stream where people read."""
        self._stream(STDOUT).remark(text)

    def _changed(self) -> bool:
        """Whether files may have been made since the last time: folders are listed only when they have changed."""
        now, stamps = time.time_ns(), []
        for folder in (self._directory, self._directory / METRICS, self._directory / LOGS):
            try:
                stamps.append(folder.stat().st_mtime_ns)
            except (FileNotFoundError, NotADirectoryError):
                stamps.append(0)
        if self._seen == tuple(stamps):
            return False
        fresh = any(now - stamp < _FRESH_SECONDS * 1e9 for stamp in stamps)
        self._seen = None if fresh else tuple(stamps)
        return True


class _Stream:
    """One stream. `_offset` is how much of it the service has, as far as is known; at first nothing is."""

    def __init__(
        self, name: str, path: Path, splice: Splice, remember: Remember, complain: Callable[[str], None]
    ) -> None:
        self._name = name
        self._path = path
        self._splice = splice
        self._remember = remember
        self._complain = complain
        self._offset = splice.at
        self._known = False
        self._remarks: list[str] = []
        self._inode: int | None = None
        self._tail = b""  # the last bytes of the file that were sent: if they change, it is another file
        self._closed = False
        self._records = name.endswith(".jsonl")

    @property
    def owes(self) -> bool:
        """Whether a remark has not been sent yet."""
        return not self._closed and bool(self._remarks or self._in_splice)

    @property
    def _in_splice(self) -> bool:
        return self._offset < self._splice.at + len(self._splice.data)

    def remark(self, text: str) -> None:
        """Put a line of the worker's into the stream, where it is at the next round."""
        self._remarks.append(text)

    def ship(self, put: Put, final: bool) -> bool:
        if self._remarks and not self._closed:
            if not self._known:
                self._offset, self._known = put(self._name, self._offset, b""), True
            for text in self._remarks:
                self._put_in(text, self._position)
            self._remarks.clear()
        for _ in range(ROUND_BATCHES):
            if self._closed:
                return True
            from_file = not self._in_splice
            rest = self._splice.data[self._offset - self._splice.at :]
            batch, more = self._read(final) if from_file else (rest, True)
            if not batch:
                if not self._closed and self._in_splice:
                    continue  # the look has led to a remark
                return True
            end = self._offset + len(batch)
            self._send(put, batch)
            if from_file:
                self._tail = (self._tail + batch)[-_TAIL_BYTES:] if self._offset == end else b""
            if self._offset >= end and not more:
                return True
        return self._closed

    @property
    def _position(self) -> int:
        """The place in the file that the offset stands for."""
        return self._splice.resume + max(0, self._offset - self._splice.at - len(self._splice.data))

    def _put_in(self, text: str, resume: int) -> None:
        line = f"[n2n] {text}\n"
        if self._in_splice:
            self._splice = Splice(self._splice.at, self._splice.text + line, resume)
        else:
            torn = self._tail and not self._tail.endswith(b"\n")
            self._splice = Splice(self._offset, "\n" * bool(torn) + line, resume)
        self._remember(self._name, self._splice)

    def _send(self, put: Put, batch: bytes) -> None:
        """Send a batch, and move the offset to where the service is."""
        before = self._offset
        try:
            self._offset = put(self._name, before, batch)
        except OffsetMismatch as error:
            if error.expected_offset is None or error.expected_offset == before:
                raise
            self._offset, self._known = error.expected_offset, True
        except (InvalidRequest, TooLarge, Forbidden) as error:
            self._close(f"the service refuses it at byte {before:,}: {error}")
        else:
            self._known = True
            if self._offset <= before:
                self._close(f"the service takes no more than {self._offset:,} bytes")
        if self._offset < self._splice.at and not self._closed:
            self._close(f"the service has lost what stood before byte {self._splice.at:,}")

    def _read(self, final: bool) -> tuple[bytes, bool]:
        """The next bytes to send, whole lines unless that cannot be, and whether the file has more."""
        position = self._position
        try:
            found = self._path.stat()
            if not final and (found.st_ino, found.st_size) == (self._inode, position):
                return b"", False  # nothing new: what an idle stream costs
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                file.seek(max(0, position - len(self._tail)))
                tail, data = file.read(len(self._tail)), file.read(BATCH_BYTES)
        except FileNotFoundError:
            if final and self._inode is not None:
                log.warning("%s: the file has been removed; %d bytes of it were sent", self._path, position)
            return b"", False
        another = self._inode not in (None, status.st_ino)
        if status.st_size < position or tail != self._tail or another:
            self._start_over(status.st_size, position, another)
            return b"", False
        self._inode = status.st_ino
        more = position + len(data) < status.st_size
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) == len(data) or (whole and more):
            return whole, more
        if self._records:
            return self._torn(data, whole, final)
        at_end = final and not more
        return (data if at_end or len(data) == BATCH_BYTES else whole), more

    def _start_over(self, size: int, position: int, another: bool) -> None:
        """The file is not the one, or not in the state, that was sent so far."""
        what = "replaced by another file" if another else f"cut or rewritten; it has {size:,} bytes now"
        said = f"was {what}, after {position:,} bytes of it had been sent"
        if self._records:
            self._close(f"it {said}")
            return
        log.warning("%s %s; it is sent from its beginning, behind a remark", self._path, said)
        self._put_in(f"{self._name} {said}; what it holds since then follows", 0)
        self._inode, self._tail = None, b""

    def _torn(self, data: bytes, whole: bytes, final: bool) -> tuple[bytes, bool]:
        if len(data) == BATCH_BYTES and not whole:
            self._close(f"a line of more than {BATCH_BYTES:,} bytes at byte {self._offset:,} is no record")
        elif final and not whole:
            log.warning("%s: the last line, %d bytes without an end, was dropped", self._path, len(data))
            self._closed = True
        return whole, bool(whole) and final

    def _close(self, reason: str) -> None:
        self._closed = True
        log.warning("%s: no more of it is sent: %s", self._path, reason)
        if self._records:
            self._complain(f"no more of {self._name} is sent: {reason}")
