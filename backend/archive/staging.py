"""What an archive adds, made ready in a database of its own.

Parsing metric lines takes most of the time of an import. On SQLite the service has one writer: it is held only while
rows that are ready are copied, and nobody sees a part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import IO, Any

from sqlalchemy import Table, insert
from sqlalchemy.orm import Session

from backend.archive.comparison import New
from backend.archive.documents import RunDocument, stream_file
from backend.archive.reading import Contents
from backend.archive.repository import ArchiveRepository
from backend.archive.tar import read_members
from backend.catalogue.models import TrueModel
from backend.catalogue.repository import CatalogueRepository
from backend.database import upsert
from backend.metrics.store import MetricStore
from backend.queue.needs import NeedRepository
from backend.rows import batches
from backend.runs.editing import search_text
from backend.runs.params import add_params
from backend.streams.names import metrics_rank
from backend.streams.repository import CHUNK_BYTES
from backend.tables import (
    Attempt,
    Base,
    Checkpoint,
    Evaluation,
    Event,
    Experiment,
    MetricBlock,
    MetricColumn,
    MetricStream,
    Need,
    Param,
    Run,
    RunMetric,
    Stream,
    StreamChunk,
)
from nanollama.api import schemas
from nanollama.spec.base import SpecError, hash_data, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import path_hash, training_hash

APPENDED = 4 << 20
"""Bytes of metric lines that are stored at a time."""
_COPIED = (Run, Param, Attempt, Event, Checkpoint, Evaluation, Stream, StreamChunk, MetricStream, RunMetric)
"""Tables whose rows come along as they are, each behind those that it refers to."""
_NUMBERED = (Param, Event)
"""Those whose rows get new numbers."""


class Stage:
    """The rows of what is new in an archive.

    Args:
        session: of a transaction that may write, on an empty database.
        now: the moment of the import.
        max_stream_bytes: kept of each stream.
    """

    def __init__(self, session: Session, now: datetime, max_stream_bytes: int) -> None:
        Base.metadata.create_all(session.connection())
        self._session = session
        self._now = now
        self._rows = ArchiveRepository(session)
        self._needs = NeedRepository(session)
        self._metrics = MetricStore(session, max_stream_bytes)
        self._models: list[TrueModel] = []
        self._paths: list[str] = []

    def fill(self, contents: Contents, new: New, file: IO[bytes], max_bytes: int) -> None:
        """Make the rows.

        Args:
            contents: of the archive, which have been checked.
            new: what of it is to be stored.
            file: the same archive, for its streams.
            max_bytes: of the unpacked archive.
        """
        experiments = [
            one.model_dump(exclude={"reused"}) | {"paused_since": None} for one in contents.experiments.values()
        ]
        self._rows.add(Experiment, experiments)  # runs refer to all of them
        self._add_runs(contents, new)
        for run in new.runs:
            self._add_belongings(contents, run)
        self._add_streams(new.runs, file, max_bytes)
        self._session.flush()

    def copy(self, new: New, target: Session) -> None:
        """Add the rows to another database, in its transaction."""
        CatalogueRepository(target).register(self._models, self._now)
        CatalogueRepository(target).register_paths(self._paths, self._now)
        for rows in self._batches(Need):
            target.execute(upsert(target, Need).values(rows).on_conflict_do_nothing())
        added = {experiment.id for experiment in new.experiments}
        for rows in self._batches(Experiment):
            ArchiveRepository(target).add(Experiment, [row for row in rows if row["id"] in added])
        for table in _COPIED:
            for rows in self._batches(table):
                if table in _NUMBERED:
                    for row in rows:
                        del row["id"]
                target.execute(insert(table), rows)
        self._copy_blocks(target)

    def _copy_blocks(self, target: Session) -> None:
        """Blocks get new numbers, by which their columns know them."""
        numbers: dict[int, int] = {}
        for rows in self._batches(MetricBlock):
            before = [row.pop("id") for row in rows]
            statement = insert(MetricBlock).returning(MetricBlock.id, sort_by_parameter_order=True)
            numbers |= dict(zip(before, target.scalars(statement, rows), strict=True))
        for rows in self._batches(MetricColumn):
            target.execute(insert(MetricColumn), [row | {"block_id": numbers[row["block_id"]]} for row in rows])

    def _batches(self, table: type[Base]) -> Iterator[list[dict[str, Any]]]:
        assert isinstance(table.__table__, Table)
        return batches(self._session.connection(), table.__table__)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _add_runs(self, contents: Contents, new: New) -> None:
        configs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for run in new.runs:
            configs.setdefault(run.experiment_id, []).append((run.id, run.config))
        self._rows.add(Run, [self._run_row(run, contents.experiments[run.experiment_id].name) for run in new.runs])
        added = {experiment.id for experiment in new.experiments}
        for experiment_id, some in configs.items():
            experiment = contents.experiments[experiment_id]
            whole = experiment_id in added and len(some) + len(experiment.reused) == experiment.num_runs
            add_params(self._session, experiment_id, some, whole=whole)

    def _run_row(self, run: RunDocument, experiment_name: str) -> dict[str, Any]:
        learns, model, path = _identity(run)
        if model is not None:
            self._models.append(model)
        if path is not None:
            self._paths.append(path)
        resources = schemas.Resources.model_validate(run.resources)
        apart = {"resources", "attempts", "events", "checkpoints", "evaluations"}
        return run.model_dump(exclude=apart) | {
            "search": search_text(experiment_name, run.name, run.id, run.tags),
            "training_hash": learns,
            "gssm_hash": None if model is None else model.hash,
            "dataset_hash": None if path is None else path_hash(path),
            "needs": self._needs.put(resources),
            "worker": None,
        }

    def _add_belongings(self, contents: Contents, run: RunDocument) -> None:
        shared = {"run_id": run.id, "experiment_id": run.experiment_id, "needs": None}
        nobody = {"worker_id": None, "pool": None, "lease_expires_at": None, "cancel_told_epoch": None}
        attempts = [attempt.model_dump(exclude={"streams"}) | shared | nobody for attempt in run.attempts]
        self._rows.add(Attempt, attempts)
        events = [event.model_dump() for event in run.events] + self._own_events(contents, run)
        self._rows.add(Event, [{"run_id": run.id, **one} for one in events])
        nothing = {"pending": None, "command_id": None, "command_by": None}
        self._rows.add(Checkpoint, [{"run_id": run.id, **one.model_dump(), **nothing} for one in run.checkpoints])
        self._rows.add(Evaluation, [{"run_id": run.id, **one.model_dump()} for one in run.evaluations])

    def _own_events(self, contents: Contents, run: RunDocument) -> list[dict[str, Any]]:
        """What the import itself does to a run."""
        was, header = contents.runs[run.id], contents.header
        event: dict[str, Any] = dict.fromkeys(("attempt", "from_state", "to_state", "epoch", "step"))
        event |= {"at": self._now, "kind": "imported"}
        said = f"from an archive of {header.created_at:%Y-%m-%d %H:%M} UTC, written by version {header.made_by}"
        events = [{**event, "message": said}]
        for attempt, before in zip(run.attempts, was.attempts, strict=True):
            if attempt.state is not before.state:
                states = {"from_state": before.state.value, "to_state": attempt.state.value, "epoch": attempt.epoch}
                moved = {"kind": "transition", "attempt": attempt.number, "message": attempt.reason}
                events.append({**event, **states, **moved})
        if run.state is not was.state and run.attempts[-1].state is was.attempts[-1].state:
            states = {"from_state": was.state.value, "to_state": run.state.value}
            events.append({**event, **states, "kind": "transition", "message": run.reason})
        return events

    # -- streams -------------------------------------------------------------------------------------------------------

    def _add_streams(self, runs: Iterable[RunDocument], file: IO[bytes], max_bytes: int) -> None:
        wanted = {
            stream_file(run.id, attempt.number, name): (attempt, name)
            for run in runs
            for attempt in run.attempts
            for name in attempt.streams
        }
        for attempt, name in wanted.values():
            self._rows.add(Stream, [{"attempt_id": attempt.id, "name": name, "length": attempt.streams[name]}])
        file.seek(0)
        for member in read_members(file, max_bytes):
            if member.name not in wanted:
                continue
            attempt, name = wanted[member.name]
            rank = metrics_rank(name)
            if rank is None:
                self._add_chunks(attempt.id, name, member.pieces())
            else:
                self._add_metrics(self._rows.attempt(attempt.id), rank, member.pieces())

    def _add_chunks(self, attempt_id: str, name: str, pieces: Iterator[bytes]) -> None:
        offset = 0
        for data in _regrouped(pieces, CHUNK_BYTES):
            row = {"attempt_id": attempt_id, "name": name, "byte_offset": offset, "data": data}
            self._rows.add(StreamChunk, [row])
            offset += len(data)

    def _add_metrics(self, attempt: Attempt, rank: int, pieces: Iterator[bytes]) -> None:
        offset, rest = 0, b""
        for data in _regrouped(pieces, APPENDED):
            end = data.rfind(b"\n") + 1
            whole, rest = rest + data[:end], data[end:] if end else rest + data
            if end:
                self._metrics.append(attempt, rank, offset, whole)
                offset += len(whole)
        if rest:
            self._metrics.append(attempt, rank, offset, rest)


def _regrouped(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of this size, the last one apart."""
    held = b""
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held:
        yield held


def _identity(run: RunDocument) -> tuple[str, TrueModel | None, str | None]:
    """What the run learns, by hash, and from what: computed anew, as others may be offered its result."""
    try:
        spec = parse(ExperimentSpec, run.config)
        data = spec.model_dump(mode="json")["data"]
        if hash_data(spec.model_dump(mode="json")) != run.config_hash:
            return "", None, None  # of a version with other keys: nobody can say what it would learn now
        return training_hash(spec), TrueModel.of(run.name, data), data.get("path")
    except SpecError:
        return "", None, None
