"""Store what an archive holds, all of it or nothing."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from backend.archive.comparison import Comparison, New
from backend.archive.reading import Contents, read_contents
from backend.archive.repository import ArchiveRepository
from backend.archive.staging import Stage
from backend.database import Database
from backend.deps import Clock
from backend.queue.sync import extend_leases
from backend.settings import Settings
from nanollama.api import schemas


def import_archive(database: Database, settings: Settings, clock: Clock, file: IO[bytes]) -> schemas.ImportReply:
    """Store what of an archive is not there yet.

    Its rows are made ready elsewhere, so that the database is written to for no longer than it takes to copy them.

    Raises:
        InvalidRequest, TooLarge: the archive cannot be read.
        Conflict: something else has one of its ids; nothing is stored.
    """
    now = clock()
    file.seek(0)
    contents = read_contents(file, settings.max_import_bytes, settings.max_stream_bytes)
    while True:
        with database.read() as session:
            new = Comparison(session, now, settings.max_stream_bytes).new_in(contents)
        with _stage(now, settings.max_stream_bytes) as stage:
            stage.fill(contents, new, file, settings.max_import_bytes)
            with database.write() as session:
                rows = ArchiveRepository(session)
                if rows.known(new.ids):
                    continue  # another import came between: look again at what is there
                stage.copy(new, session)
                rows.reuse(
                    [
                        {"experiment_id": experiment.id, **one.model_dump()}
                        for experiment in contents.experiments.values()
                        for one in experiment.reused
                    ]
                )
                if database.sqlite:  # it has one writer: no worker could renew its leases meanwhile
                    extend_leases(session, clock(), settings)
        return _reply(contents, new)


@contextlib.contextmanager
def _stage(now: datetime, max_stream_bytes: int) -> Iterator[Stage]:
    """An empty stage, on a disk: an archive may be larger than the memory."""
    with tempfile.TemporaryDirectory(prefix="n2n-import-") as folder:
        database = Database(f"sqlite:///{Path(folder) / 'stage.db'}")
        try:
            with database.write() as session:
                yield Stage(session, now, max_stream_bytes)
        finally:
            database.dispose()


def _reply(contents: Contents, new: New) -> schemas.ImportReply:
    added = set(new.ids)
    return schemas.ImportReply(
        experiments=[experiment.id for experiment in new.experiments],
        runs=[run.id for run in new.runs],
        skipped=[one for one in (*contents.experiments, *contents.runs) if one not in added],
    )
