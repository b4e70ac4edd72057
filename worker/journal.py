"""What must survive a crash of the worker: its id, the attempts that it holds, and reports not yet acknowledged."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nanollama.api.schemas import Lease, TransitionRequest
from nanollama.api.status import AttemptState
from nanollama.spec.base import Problem, SpecError
from worker.outcome import Ending
from worker.shipping import Splice

FILE = "worker.sqlite"
_VERSION = 3
_SCHEMA = """
CREATE TABLE worker (id TEXT NOT NULL);
CREATE TABLE attempts (
    attempt_id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    directory TEXT NOT NULL,
    lease TEXT NOT NULL,
    state TEXT NOT NULL,
    ending TEXT
);
CREATE TABLE reports (
    transition_id TEXT PRIMARY KEY,
    attempt_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    request TEXT NOT NULL
);
"""
_SECOND = """
CREATE TABLE devices (
    attempt_id TEXT PRIMARY KEY,
    names TEXT NOT NULL
);
CREATE TABLE splices (
    attempt_id TEXT NOT NULL,
    stream TEXT NOT NULL,
    splice TEXT NOT NULL,
    PRIMARY KEY (attempt_id, stream)
);
"""
_THIRD = """
CREATE TABLE roots (path TEXT PRIMARY KEY);
"""


_KNOWN_ROOT = "SELECT 1 FROM roots WHERE path = ?"


@dataclass(frozen=True)
class Record:
    """An attempt that the worker holds: its lease, the state last acknowledged, and whether it is being ended."""

    lease: Lease
    directory: Path
    state: AttemptState
    ending: Ending | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Attempt and epoch: a later lease of the same attempt is another record."""
        return self.lease.attempt_id, self.lease.epoch


class Journal:
    """A SQLite file in the worker's home. Safe to share between threads.

    Raises:
        SpecError: a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise _unusable(path, error) from None
        try:
            self.worker_id = self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _open(self) -> str:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, this worker writes version {_VERSION}")
        script = ""
        if version < 1:
            script += f"{_SCHEMA} INSERT INTO worker VALUES ('{uuid.uuid4().hex}');"  # noqa: S608 - hexadecimal digits
        if version < 2:
            script += _SECOND
        if version < _VERSION:
            script += f"{_THIRD} PRAGMA user_version = {_VERSION};"
            self._db.executescript(f"BEGIN IMMEDIATE; {script} COMMIT;")
        (worker_id,) = self._db.execute("SELECT id FROM worker").fetchone()
        return str(worker_id)

    def in_words(self, error: sqlite3.Error | OSError) -> str:
        """What it means that something could not be written here."""
        return f"cannot write in {self._path.parent}: {error} - is the disk full?"

    # -- attempts ----------------------------------------------------------------------------------------------------

    def hold(self, record: Record) -> None:
        """Remember an attempt; an earlier lease of it is replaced, its reports forgotten."""
        attempt_id, epoch = record.key
        values = (attempt_id, epoch, str(record.directory), record.lease.model_dump_json(), record.state, record.ending)
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM reports WHERE attempt_id = ? AND epoch <> ?", (attempt_id, epoch))
            self._db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?)", values)

    def end(self, record: Record, ending: Ending) -> Record:
        """Remember that the attempt is being ended; a cancel is never taken back."""
        statement = "UPDATE attempts SET ending = ? WHERE attempt_id = ? AND epoch = ?"
        with self._lock:
            self._db.execute(statement, (ending, *record.key))
        return replace(record, ending=ending)

    def forget(self, record: Record) -> None:
        """Drop an attempt and its reports, unless a later lease of it has come."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for table in ("reports", "attempts"):
                self._db.execute(f"DELETE FROM {table} WHERE attempt_id = ? AND epoch = ?", record.key)  # noqa: S608 - two words of ours
            unheld = "attempt_id = ? AND attempt_id NOT IN (SELECT attempt_id FROM attempts)"
            self._db.execute(f"DELETE FROM splices WHERE {unheld}", record.key[:1])  # noqa: S608 - as above

    def held(self) -> list[Record]:
        """Every attempt that is held, oldest first."""
        query = "SELECT directory, lease, state, ending FROM attempts ORDER BY rowid"
        with self._lock:
            rows = self._db.execute(query).fetchall()
        return [
            Record(Lease.model_validate_json(lease), Path(directory), AttemptState(state), ending)
            for directory, lease, state, ending in rows
        ]

    # -- reports -----------------------------------------------------------------------------------------------------

    def intend(self, record: Record, request: TransitionRequest) -> None:
        """Remember a report before it is sent, so that it is sent again under the same id until it is acknowledged."""
        attempt_id, epoch = record.key
        values = (request.transition_id, attempt_id, epoch, request.model_dump_json(exclude_unset=True))
        with self._lock:
            self._db.execute("INSERT INTO reports VALUES (?, ?, ?, ?)", values)

    def pending(self, record: Record) -> list[TransitionRequest]:
        """The reports of an attempt that are not acknowledged, in the order in which they were made."""
        query = "SELECT request FROM reports WHERE attempt_id = ? AND epoch = ? ORDER BY rowid"
        with self._lock:
            rows = self._db.execute(query, record.key).fetchall()
        return [TransitionRequest.model_validate_json(request) for (request,) in rows]

    def acknowledge(self, record: Record, request: TransitionRequest) -> Record:
        """The server has the report: the attempt is in its state."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM reports WHERE transition_id = ?", (request.transition_id,))
            statement = "UPDATE attempts SET state = ? WHERE attempt_id = ? AND epoch = ?"
            self._db.execute(statement, (request.to, *record.key))
        return replace(record, state=request.to)

    # -- run roots ---------------------------------------------------------------------------------------------------

    def remember_root(self, root: Path) -> None:
        """Remember that a run root has been seen."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO roots VALUES (?)", (str(root),))

    def knows_root(self, root: Path) -> bool:
        """Whether a run root has been seen, by this life of the worker or another."""
        with self._lock:
            return bool(self._db.execute(_KNOWN_ROOT, (str(root),)).fetchone())

    # -- accelerators ------------------------------------------------------------------------------------------------

    def assign(self, attempt_id: str, names: Sequence[str]) -> None:
        """Remember which accelerators an attempt is given, before it is started."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO devices VALUES (?, ?)", (attempt_id, json.dumps(list(names))))

    def assigned(self) -> dict[str, tuple[str, ...]]:
        """The accelerators of each attempt that has been given some."""
        with self._lock:
            rows = self._db.execute("SELECT attempt_id, names FROM devices").fetchall()
        return {attempt_id: tuple(json.loads(names)) for attempt_id, names in rows}

    def unassign(self, attempt_id: str) -> None:
        """Forget the accelerators of an attempt."""
        with self._lock:
            self._db.execute("DELETE FROM devices WHERE attempt_id = ?", (attempt_id,))

    # -- streams -----------------------------------------------------------------------------------------------------

    def splices(self, attempt_id: str) -> dict[str, Splice]:
        """Where streams of an attempt go on after a remark, by name."""
        query = "SELECT stream, splice FROM splices WHERE attempt_id = ?"
        with self._lock:
            rows = self._db.execute(query, (attempt_id,)).fetchall()
        return {stream: Splice(**json.loads(splice)) for stream, splice in rows}

    def splice(self, attempt_id: str, stream: str, splice: Splice) -> None:
        """Remember, before it is sent, where a remark is put into a stream."""
        values = (attempt_id, stream, json.dumps(asdict(splice)))
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO splices VALUES (?, ?, ?)", values)


def has_seen(home: Path, root: Path) -> bool:
    """Whether the worker of a home has seen a run root; nothing is made where there is no journal."""
    try:
        with contextlib.closing(sqlite3.connect(f"{(home / FILE).as_uri()}?mode=ro", uri=True)) as db:
            return bool(db.execute(_KNOWN_ROOT, (str(root),)).fetchone())
    except sqlite3.Error:
        return False


def _unusable(path: Path, error: sqlite3.Error) -> SpecError:
    remedy = f"choose another --home, or remove {path} if no run of it is under way"
    return SpecError([Problem(path="--home", message=f"cannot use {path}: {error}", remedy=remedy)])
