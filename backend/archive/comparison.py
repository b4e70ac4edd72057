"""What of an archive is here already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from backend.archive.documents import AttemptDocument, ExperimentDocument, RunDocument, stream_file
from backend.archive.export import Exporter
from backend.archive.reading import Contents
from backend.archive.repository import ArchiveRepository
from nanollama.api.errors import Conflict
from nanollama.api.status import AttemptState, RunState

_SAME_RUN = ("experiment_id", "position", "app", "config_hash", "created_at", "attempt", "state", "result")
_SAME_ATTEMPT = ("id", "number", "state", "exit_code", "created_at", "started_at", "finished_at", "provenance")
_SAME_EXPERIMENT = ("created_at", "source", "num_runs", "resources")
"""What has to be equal for two to be the same: what happened, not what people wrote on it later."""


@dataclass(frozen=True)
class New:
    """What an archive holds that is not here, as it is imported."""

    experiments: Sequence[ExperimentDocument]
    runs: Sequence[RunDocument]

    @property
    def ids(self) -> list[str]:
        """Of experiments and runs."""
        return [*(one.id for one in self.experiments), *(one.id for one in self.runs)]


class Comparison:
    """Compares archives with one snapshot of the database."""

    def __init__(self, session: Session, now: datetime, max_stream_bytes: int) -> None:
        self._rows = ArchiveRepository(session)
        self._exporter = Exporter(session, now, max_stream_bytes)

    def new_in(self, contents: Contents) -> New:
        """What is not here yet.

        Raises:
            Conflict: something else has one of its ids.
        """
        experiments = [e for e in contents.experiments.values() if not self._has_experiment(e)]
        ended = [_ended(run, contents.header.created_at) for run in contents.runs.values()]
        new = New(experiments, [run for run in ended if not self._has_run(contents, run)])
        attempts = self._rows.known_attempts([attempt.id for run in new.runs for attempt in run.attempts])
        if attempts:
            raise _other("attempt", min(attempts))
        return new

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


def _other(kind: str, identifier: str) -> Conflict:
    return Conflict(f"{kind} '{identifier}' is here already, with other content; nothing was imported")
