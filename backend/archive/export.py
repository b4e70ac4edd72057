"""Write a run or an experiment, with everything that the service has of it, into one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import IO, Any, Literal

from pydantic import BaseModel
from sqlalchemy.orm import Session

import nanollama
from backend.archive.documents import (
    FORMAT,
    HEADER,
    MANIFEST,
    VERSION,
    AttemptDocument,
    CheckpointDocument,
    EvaluationDocument,
    EventDocument,
    ExperimentDocument,
    File,
    Header,
    Manifest,
    Reused,
    RunDocument,
    experiment_file,
    run_file,
    stream_file,
)
from backend.archive.repository import ArchiveRepository
from backend.archive.tar import ArchiveWriter
from backend.catalogue.repository import BOUNDS
from backend.columns import dump_json
from backend.experiments.service import no_experiment
from backend.metrics.store import MetricStore
from backend.runs.service import no_run
from backend.streams.names import metrics_rank
from nanollama.api.errors import Conflict


class Exporter:
    """Archives of what one snapshot of the database holds."""

    def __init__(self, session: Session, now: datetime, max_stream_bytes: int) -> None:
        self._now = now
        self._rows = ArchiveRepository(session)
        self._metrics = MetricStore(session, max_stream_bytes)

    def export_run(self, run_id: str, file: IO[bytes]) -> None:
        """Write a run, and the experiment that it is of.

        Raises:
            NotFound: no such run.
            Conflict: the job of a bound, which belongs to no experiment of anybody's.
        """
        row = self._rows.run(run_id)
        if row is None:
            raise no_run(run_id)
        self._write(file, "run", run_id, [row.experiment_id], [run_id])

    def export_experiment(self, experiment_id: str, file: IO[bytes]) -> None:
        """Write an experiment with its runs and those of others that it reuses, with the experiments of these.

        Raises:
            NotFound, Conflict: as for a run.
        """
        if self._rows.experiment(experiment_id) is None:
            raise no_experiment(experiment_id)
        run_ids = self._rows.run_ids(experiment_id)
        experiments = [experiment_id]
        for reused in self._rows.reused(experiment_id):
            run = self._rows.run(reused.run_id)
            assert run is not None, "a reused run is there"
            run_ids.append(run.id)
            experiments.append(run.experiment_id)
        self._write(file, "experiment", experiment_id, experiments, run_ids)

    def document(self, run_id: str) -> RunDocument | None:
        """What an archive says of a run, its streams apart."""
        row = self._rows.run(run_id)
        if row is None:
            return None
        attempts = [
            _document(AttemptDocument, attempt, streams=self._rows.streams(attempt.id))
            for attempt in self._rows.attempts(run_id)
        ]
        found: RunDocument = _document(
            RunDocument,
            row,
            resources=self._rows.need(row.needs),
            attempts=attempts,
            events=[_document(EventDocument, event) for event in self._rows.events(run_id)],
            checkpoints=[_document(CheckpointDocument, saved) for saved in self._rows.checkpoints(run_id)],
            evaluations=[_document(EvaluationDocument, one) for one in self._rows.evaluations(run_id)],
        )
        return found

    def stream(self, attempt_id: str, name: str) -> tuple[int, Iterator[bytes]]:
        """How many bytes of a stream there are, and these."""
        rank = metrics_rank(name)
        if rank is None:
            return self._rows.stored(attempt_id, name), self._rows.chunks(attempt_id, name)
        return self._metrics.size(attempt_id, rank), self._metrics.pieces(attempt_id, rank)

    def _write(
        self,
        file: IO[bytes],
        kind: Literal["run", "experiment"],
        about: str,
        experiments: Sequence[str],
        runs: Sequence[str],
    ) -> None:
        if BOUNDS in experiments:
            raise Conflict("this is the job of a bound, which is computed anew wherever it is asked for")
        header = Header(
            format=FORMAT, version=VERSION, kind=kind, id=about, created_at=self._now, made_by=nanollama.__version__
        )
        with ArchiveWriter(file) as archive:
            _add(archive, HEADER, header)
            for experiment_id in dict.fromkeys(experiments):
                row = self._rows.experiment(experiment_id)
                reused = [_document(Reused, one) for one in self._rows.reused(experiment_id)]
                _add(archive, experiment_file(experiment_id), _document(ExperimentDocument, row, reused=reused))
            for run_id in dict.fromkeys(runs):
                document = self.document(run_id)
                assert document is not None, "within one snapshot"
                _add(archive, run_file(run_id), document)
                self._add_streams(archive, run_id, document.attempts)
            files = [File(name=name, size_bytes=size, sha256=sha256) for name, size, sha256 in archive.digests]
            _add(archive, MANIFEST, Manifest(files=files))
            archive.finish()

    def _add_streams(self, archive: ArchiveWriter, run_id: str, attempts: Iterable[AttemptDocument]) -> None:
        for attempt in attempts:
            for name in attempt.streams:
                archive.add(stream_file(run_id, attempt.number, name), *self.stream(attempt.id, name))


def _document(model: Any, row: Any, **given: Any) -> Any:
    """A document from the columns of a row that are called as its fields."""
    columns = {name: getattr(row, name) for name in model.model_fields if name not in given}
    return model.model_construct(**columns, **given)


def _add(archive: ArchiveWriter, name: str, document: BaseModel) -> None:
    data = dump_json(document.model_dump(mode="json", warnings=False)).encode()
    archive.add(name, len(data), [data])
