"""Store what an archive holds, all of it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Any

from sqlalchemy.orm import Session

from backend.archive.documents import AttemptDocument, ExperimentDocument, RunDocument, stream_file
from backend.archive.export import Exporter
from backend.archive.reading import Contents
from backend.archive.repository import ArchiveRepository
from backend.archive.tar import read_members
from backend.catalogue.models import TrueModel
from backend.catalogue.repository import CatalogueRepository
from backend.metrics.store import MetricStore
from backend.queue.needs import NeedRepository
from backend.runs.editing import search_text
from backend.runs.params import add_params
from backend.streams.names import metrics_rank
from backend.streams.repository import CHUNK_BYTES
from backend.tables import Attempt, Checkpoint, Evaluation, Event, Experiment, Run, Stream, StreamChunk
from nanollama.api import schemas
from nanollama.api.errors import Conflict
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.base import SpecError, hash_data, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import path_hash, training_hash

APPENDED = 4 << 20
"""Bytes of metric lines that are stored at a time."""
_SAME_RUN = ("experiment_id", "position", "app", "config_hash", "created_at", "attempt", "state", "result")
_SAME_ATTEMPT = ("id", "number", "state", "exit_code", "created_at", "started_at", "finished_at", "provenance")
_SAME_EXPERIMENT = ("created_at", "source", "num_runs", "resources")
"""What has to be equal for two to be the same: what happened, not what people wrote on it later."""


class Importer:
    """Imports, as of one moment.

    Args:
        session: of a transaction that may write.
        now: the moment.
        max_stream_bytes: kept of each stream.
    """

    def __init__(self, session: Session, now: datetime, max_stream_bytes: int) -> None:
        self._now = now
        self._max_stream_bytes = max_stream_bytes
        self._rows = ArchiveRepository(session)
        self._exporter = Exporter(session, now, max_stream_bytes)
        self._needs = NeedRepository(session)
        self._catalogue = CatalogueRepository(session)
        self._metrics = MetricStore(session, max_stream_bytes)
        self._session = session

    def store(self, contents: Contents, file: IO[bytes], max_bytes: int) -> schemas.ImportReply:
        """Store what is not there yet.

        Args:
            contents: of the archive, which have been checked.
            file: the same archive, for its streams.
            max_bytes: of the unpacked archive.

        Raises:
            Conflict: something else has one of its ids; whatever was stored before is to be undone.
        """
        new_experiments = [e for e in contents.experiments.values() if not self._has_experiment(e)]
        ended = {run.id: _ended(run, contents.header.created_at) for run in contents.runs.values()}
        new_runs = [run for run in ended.values() if not self._has_run(contents, run)]
        self._check_attempts(new_runs)
        self._rows.add(Experiment, [_experiment_row(experiment) for experiment in new_experiments])
        self._add_runs(contents, new_runs, {experiment.id for experiment in new_experiments})
        for run in new_runs:
            self._add_belongings(contents, run, was=contents.runs[run.id])
        self._add_streams({run.id: run for run in new_runs}, file, max_bytes)
        self._rows.reuse(
            [
                {"experiment_id": experiment.id, **one.model_dump()}
                for experiment in contents.experiments.values()
                for one in experiment.reused
            ]
        )
        added = {experiment.id for experiment in new_experiments} | {run.id for run in new_runs}
        return schemas.ImportReply(
            experiments=[experiment.id for experiment in new_experiments],
            runs=[run.id for run in new_runs],
            skipped=[one for one in (*contents.experiments, *contents.runs) if one not in added],
        )

    # -- what is there already -----------------------------------------------------------------------------------------

    def _has_experiment(self, experiment: ExperimentDocument) -> bool:
        row = self._rows.experiment(experiment.id)
        if row is not None and any(getattr(row, name) != getattr(experiment, name) for name in _SAME_EXPERIMENT):
            raise _other("experiment", experiment.id)
        return row is not None

    def _has_run(self, contents: Contents, run: RunDocument) -> bool:
        there = self._exporter.document(run.id)
        if there is None:
            return False
        same = all(getattr(there, name) == getattr(run, name) for name in _SAME_RUN)
        same = same and len(there.attempts) == len(run.attempts)
        pairs = zip(run.attempts, there.attempts, strict=False)
        if not (same and all(self._is_same(contents, run, *pair) for pair in pairs)):
            raise _other("run", run.id)
        return True

    def _is_same(self, contents: Contents, run: RunDocument, ours: AttemptDocument, there: AttemptDocument) -> bool:
        if any(getattr(there, name) != getattr(ours, name) for name in (*_SAME_ATTEMPT, "streams")):
            return False
        for name in ours.streams:
            size, pieces = self._exporter.stream(there.id, name)
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            if contents.digests[stream_file(run.id, ours.number, name)] != (size, digest.hexdigest()):
                return False
        return True

    def _check_attempts(self, runs: list[RunDocument]) -> None:
        known = self._rows.known_attempts([attempt.id for run in runs for attempt in run.attempts])
        if known:
            raise _other("attempt", min(known))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _add_runs(self, contents: Contents, runs: list[RunDocument], new: set[str]) -> None:
        """Store runs; `new` are the experiments that were not there before."""
        configs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        rows = []
        for run in runs:
            row = self._run_row(run, contents.experiments[run.experiment_id].name)
            rows.append(row)
            configs.setdefault(run.experiment_id, []).append((run.id, run.config))
        self._rows.add(Run, rows)
        for experiment_id, some in configs.items():
            experiment = contents.experiments[experiment_id]
            whole = experiment_id in new and len(some) + len(experiment.reused) == experiment.num_runs
            add_params(self._session, experiment_id, some, whole=whole)

    def _run_row(self, run: RunDocument, experiment_name: str) -> dict[str, Any]:
        learns, model, path = _identity(run)
        if model is not None:
            self._catalogue.register([model], self._now)
        if path is not None:
            self._catalogue.register_paths([path], self._now)
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

    def _add_belongings(self, contents: Contents, run: RunDocument, was: RunDocument) -> None:
        shared = {"run_id": run.id, "experiment_id": run.experiment_id, "needs": None}
        nobody = {"worker_id": None, "pool": None, "lease_expires_at": None, "cancel_told_epoch": None}
        attempts = [attempt.model_dump(exclude={"streams"}) | shared | nobody for attempt in run.attempts]
        self._rows.add(Attempt, attempts)
        events = [event.model_dump() for event in run.events]
        event: dict[str, Any] = dict.fromkeys(("attempt", "from_state", "to_state", "epoch", "step"))
        event |= {"at": self._now, "kind": "imported"}
        header = contents.header
        said = f"from an archive of {header.created_at:%Y-%m-%d %H:%M} UTC, written by version {header.made_by}"
        events.append({**event, "message": said})
        for attempt, before in zip(run.attempts, was.attempts, strict=True):
            if attempt.state is not before.state:
                states = {"from_state": before.state.value, "to_state": attempt.state.value, "epoch": attempt.epoch}
                moved = {"kind": "transition", "attempt": attempt.number, "message": attempt.reason}
                events.append({**event, **states, **moved})
        if run.state is not was.state and run.attempts[-1].state is was.attempts[-1].state:
            states = {"from_state": was.state.value, "to_state": run.state.value}
            events.append({**event, **states, "kind": "transition", "message": run.reason})
        self._rows.add(Event, [{"run_id": run.id, **one} for one in events])
        nothing = {"pending": None, "command_id": None, "command_by": None}
        self._rows.add(Checkpoint, [{"run_id": run.id, **one.model_dump(), **nothing} for one in run.checkpoints])
        self._rows.add(Evaluation, [{"run_id": run.id, **one.model_dump()} for one in run.evaluations])

    # -- streams -------------------------------------------------------------------------------------------------------

    def _add_streams(self, runs: dict[str, RunDocument], file: IO[bytes], max_bytes: int) -> None:
        wanted = {
            stream_file(run.id, attempt.number, name): (attempt, name)
            for run in runs.values()
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


def _experiment_row(experiment: ExperimentDocument) -> dict[str, Any]:
    return experiment.model_dump(exclude={"reused"}) | {"paused_since": None}


def _ended(run: RunDocument, at: datetime) -> RunDocument:
    """The run as it is imported: one that went on when it was exported goes on where it was, not here."""
    if run.state.terminal:
        return run
    reason = f"it was {run.state.value} when it was exported"
    last = run.attempts[-1]
    if not last.state.terminal:
        ending = {"state": AttemptState.CANCELLED, "reason": reason, "finished_at": at}
        last = last.model_copy(update=ending)
    ending = {"state": RunState.CANCELLED, "reason": reason, "finished_at": at, "unknown_since": None}
    return run.model_copy(update={**ending, "attempts": [*run.attempts[:-1], last]})


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


def _other(kind: str, identifier: str) -> Conflict:
    return Conflict(f"{kind} '{identifier}' is here already, with other content; nothing was imported")
