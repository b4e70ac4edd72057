"""Append to streams, and take over what their lines say in the same transaction; read the end of logs."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy.orm import Session

from backend.checkpoints.repository import CheckpointRepository
from backend.evaluations.lines import read_by_position, read_values
from backend.evaluations.repository import EvaluationRepository
from backend.metrics.store import MetricStore
from backend.queue.repository import AttemptRepository
from backend.queue.transitions import check_lease, lock_attempt
from backend.runs.repository import EventRepository, RunRepository
from backend.runs.service import RunService
from backend.streams.lines import MAX_LINE, checkpoint_path, line_time, parse_events
from backend.streams.names import RANK0_LOG, check_name, is_text, metrics_rank
from backend.streams.repository import StreamRepository
from backend.tables import Attempt
from backend.workers.repository import WorkerRepository
from nanollama.api import schemas
from nanollama.api.errors import Conflict, InvalidRequest, NotFound, OffsetMismatch
from nanollama.spec.base import Problem
from nanollama.spec.rundir import EVENTS, STDOUT, EventLine

PIECE_CHUNKS = 8  # of a log, in one message to whoever follows it


@dataclass(frozen=True)
class LogPiece:
    """Bytes of a log from `start` on; `ended` says that no more will come behind them."""

    number: int
    name: str
    start: int
    data: bytes
    length: int
    ended: bool


class StreamService:
    """Streams of attempts, as of one moment."""

    def __init__(self, session: Session, now: datetime, max_bytes: int) -> None:
        self._now = now
        self._max_bytes = max_bytes
        self._streams = StreamRepository(session)
        self._attempts = AttemptRepository(session)
        self._workers = WorkerRepository(session)
        self._runs = RunRepository(session)
        self._reads = RunService(session)
        self._events = EventRepository(session)
        self._metrics = MetricStore(session, max_bytes)
        self._checkpoints = CheckpointRepository(session)
        self._evaluations = EvaluationRepository(session)

    def put(self, attempt_id: str, name: str, *, epoch: int, offset: int, data: bytes) -> schemas.StreamInfo:
        """Append what is new in `data`, which stands at byte `offset` of the worker's file.

        Of metrics and events only whole lines are taken: the answered length may be less than was sent.

        Raises:
            InvalidRequest: a name that is no stream.
            NotFound: no such attempt.
            StaleEpoch, Conflict: the lease is another's, or the attempt has ended.
            OffsetMismatch: bytes are missing before `offset`.
        """
        check_name(name)
        attempt = lock_attempt(self._attempts, attempt_id)
        check_lease(attempt, epoch)
        if attempt.state.terminal:
            raise Conflict(f"the attempt has ended ({attempt.state.value}): its streams are closed")
        length = self._streams.length(attempt_id, name)
        if offset > length:
            detail = f"'{name}' has {length} bytes here; send those from there on, not from {offset}"
            raise OffsetMismatch(detail, expected_offset=length)
        new = data[length - offset :]
        if not is_text(name):
            new = _whole_lines(new)
        if new:
            keep = (
                max(0, self._max_bytes - length) if metrics_rank(name) is None else 0
            )  # those have a store of their own
            self._streams.append(attempt_id, name, length, new, keep=keep)
            self._ingest(attempt, name, length, new)
        return schemas.StreamInfo(attempt_id=attempt_id, name=name, length=length + len(new))

    def of_attempt(self, attempt_id: str) -> list[schemas.StreamInfo]:
        """The streams of an attempt. Raises NotFound."""
        self._require(attempt_id)
        lengths = self._streams.lengths(attempt_id)
        return [schemas.StreamInfo(attempt_id=attempt_id, name=name, length=lengths[name]) for name in lengths]

    def read(self, attempt_id: str, name: str, start: int, limit: int) -> tuple[bytes, int]:
        """Bytes of a stream as they are stored, and how many have been sent of it.

        Raises:
            InvalidRequest: a name that is no stream.
            NotFound: no such attempt.
        """
        check_name(name)
        self._require(attempt_id)
        length, rank = self._streams.length(attempt_id, name), metrics_rank(name)
        end = min(start + limit, length)
        if start >= end:
            return b"", length
        if rank is not None:
            return self._metrics.read(attempt_id, rank, start, end), length
        return self._streams.read(attempt_id, name, start, end=end), length

    def tail(self, run_id: str, *, number: int | None, name: str | None, max_bytes: int) -> schemas.LogTail:
        """The end of a log of an attempt, the newest one by default. Raises NotFound."""
        attempt = self._attempt(run_id, number)
        names = self._logs(attempt)
        name = _chosen(name, names)
        length = self._streams.length(attempt.id, name)
        end = min(length, self._max_bytes)
        start = max(0, end - max_bytes)
        data = self._streams.read(attempt.id, name, start)
        cut = _continuation_bytes(data) if start else 0
        # not final: a character whose last bytes have not arrived yet is left for the next look
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data[cut:])
        if end < length:
            text += f"\n[truncated: {length - end:,} bytes that follow were not kept]\n"
        return schemas.LogTail(
            attempt=attempt.number, name=name, offset=start + cut, length=length, text=text, streams=names
        )

    def piece(
        self, run_id: str, number: int | None, *, name: str | None, start: int | None, tail_bytes: int
    ) -> LogPiece:
        """Some bytes of a log from `start` on, or of its last `tail_bytes`. Raises NotFound."""
        attempt = self._attempt(run_id, number)
        name = _chosen(name, self._logs(attempt))
        length = self._streams.length(attempt.id, name)
        end = min(length, self._max_bytes)
        if start is None:
            start = max(0, end - tail_bytes)
        data = self._streams.read(attempt.id, name, start, PIECE_CHUNKS) if start < end else b""
        return LogPiece(attempt.number, name, start, data, length, ended=attempt.state.terminal and not data)

    def _attempt(self, run_id: str, number: int | None) -> Attempt:
        newest = self._reads.require(run_id).attempt
        attempt = self._attempts.number(run_id, newest if number is None else number)
        if attempt is None:
            raise NotFound(f"run '{run_id}' has no attempt {number}")
        return attempt

    def _require(self, attempt_id: str) -> None:
        if self._attempts.get(attempt_id) is None:
            raise NotFound(f"there is no attempt '{attempt_id}'")

    def _logs(self, attempt: Attempt) -> list[str]:
        return [stream for stream in self._streams.lengths(attempt.id) if is_text(stream)]

    def _ingest(self, attempt: Attempt, name: str, offset: int, data: bytes) -> None:
        rank = metrics_rank(name)
        if rank is not None:
            warning = self._ingest_metrics(attempt, rank, offset, data, name)
        elif name == EVENTS:
            warning = self._ingest_events(attempt, offset, data)
        else:
            return
        if warning is not None:
            self._events.add(attempt.run_id, "warning", self._now, attempt=attempt.number, message=warning)

    def _ingest_metrics(self, attempt: Attempt, rank: int, offset: int, data: bytes, name: str) -> str | None:
        appended = self._metrics.append(attempt, rank, offset, data)
        if rank == 0 and appended.step is not None:
            (run,) = self._runs.lock([attempt.run_id])
            run.step, run.tokens, run.progress_at = appended.step, appended.tokens, self._now
            run.latest = appended.latest
        return appended.parsed.warning(name)

    def _ingest_events(self, attempt: Attempt, offset: int, data: bytes) -> str | None:
        parsed = parse_events(data, offset)
        for _, line in parsed.records:
            self._events.add(
                attempt.run_id,
                line.kind,
                line_time(line.time),
                attempt=attempt.number,
                step=line.step,
                message=line.message,
            )
            if line.kind == "checkpoint_saved":
                self._save_checkpoint(attempt, line)
            elif line.kind == "checkpoint_removed":
                self._checkpoints.remove(attempt.run_id, line.step)
            elif line.kind == "evaluated":
                curves = read_by_position(line)
                self._evaluations.save(attempt, line.step, line_time(line.time), read_values(line), curves)
            elif line.kind in ("started", "resumed"):
                self._evaluations.supersede(attempt, line.step)
        return parsed.warning(EVENTS)

    def _save_checkpoint(self, attempt: Attempt, line: EventLine) -> None:
        assert line.size_bytes is not None
        assert line.digest is not None
        new = self._checkpoints.save(
            attempt,
            line.step,
            path=str(self._run_dir(attempt) / checkpoint_path(line)),
            size_bytes=line.size_bytes,
            digest=line.digest,
            created_at=line_time(line.time),
        )
        attempt.new_checkpoints += new

    def _run_dir(self, attempt: Attempt) -> PurePosixPath:
        """The run directory: as the worker reported it, or where the contract puts it."""
        if attempt.attempt_dir is not None:
            return PurePosixPath(attempt.attempt_dir).parent
        worker = self._workers.get(attempt.worker_id) if attempt.worker_id is not None else None
        assert worker is not None, "a leased attempt has a worker"
        return PurePosixPath(worker.run_root) / attempt.run_id


def _chosen(name: str | None, names: list[str]) -> str:
    """The log that is meant. Raises InvalidRequest."""
    if name is None:
        return RANK0_LOG if RANK0_LOG in names else STDOUT
    if not is_text(name):
        message = f"'{name[:100]}' is not a log"
        raise InvalidRequest(message, [Problem(path="stream", message=message, remedy="see `streams`")])
    return name


def _whole_lines(data: bytes) -> bytes:
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) >= MAX_LINE:
        return data  # no record is that long; waiting for its end would keep the stream from ever being drained
    return data[:end]


def _continuation_bytes(data: bytes) -> int:
    """How many bytes at the start belong to a character that begins before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count
