"""A database as one file, consistent while the service writes; and a new database from it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import URL

from backend.database import Database
from backend.migrate import current_revision
from backend.settings import parse_database_url

SQLITE_MAGIC, POSTGRES_MAGIC = b"SQLite format 3\x00", b"PGDMP"
_NO_TOOL = "install PostgreSQL's client programs (on Debian or Ubuntu: apt-get install postgresql-client)"


class BackupError(ValueError):
    """A backup, a restore or a copy that is refused or failed, as one line that names the remedy."""


def backup(url: str, file: Path) -> None:
    """Write a consistent copy of the database to a new file, whole or not at all; whoever writes goes on writing.

    The file is an SQLite database, or what `pg_dump` writes in its custom format.

    Raises:
        BackupError: the file exists or cannot be written, there is no database, or the copy is not sound.
    """
    database = Database(url)
    try:
        if database.path is not None and not database.path.is_file():
            raise BackupError(f"there is no database {database.url}; check --database-url")
        if current_revision(database) is None:
            raise BackupError(f"the database {database.url} is empty; there is nothing to back up")
        with _new_file(file) as partial:
            if database.path is not None:
                _copy_sqlite(database.path, partial)
            else:
                _postgres("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={partial}")
    finally:
        database.dispose()


def restore(file: Path, url: str) -> None:
    """Fill an empty database from a backup of its kind, whole or not at all.

    Raises:
        BackupError: no backup, one of another kind or a damaged one, or a database that holds something.
    """
    kind, database = kind_of(file), Database(url)
    try:
        if kind != database.kind:
            raise BackupError(
                f"{file} is a backup of {kind}, and {database.url} is {database.kind}; restore it to a database of its "
                "own kind, then move that with `n2n db copy`"
            )
        if database.path is not None:
            if any(_beside(database.path, end).exists() for end in ("", "-wal", "-journal")):
                raise BackupError(f"{database.path} exists; move it away, or restore to another file")
            database.path.parent.mkdir(parents=True, exist_ok=True)
            with _new_file(database.path) as partial:
                _copy_sqlite(file, partial)
            return
        if tables := inspect(database.engine).get_table_names():
            raise BackupError(f"the database {database.url} holds {len(tables)} tables; restore to an empty one")
        database.engine.dispose()
        whole = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
        _postgres("pg_restore", url, *whole, str(file.resolve()))
    finally:
        database.dispose()


def kind_of(file: Path) -> str:
    """Of which kind of database a file is a backup: sqlite or postgresql. Raises BackupError when of none."""
    try:
        with open(file, "rb") as opened:
            begin = opened.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise BackupError(f"cannot read {file}: {os.strerror(error.errno or 0)}") from None
    if begin == SQLITE_MAGIC:
        return "sqlite"
    if begin.startswith(POSTGRES_MAGIC):
        return "postgresql"
    raise BackupError(f"{file} is no backup; give a file that `n2n db backup` wrote")


@contextlib.contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """A file beside, which takes its name once it is on the disk; nothing is left of one that failed."""
    if file.exists():
        raise BackupError(f"{file} exists; choose another name, or move it away")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    except OSError as error:
        raise BackupError(f"cannot write to {file.parent}: {os.strerror(error.errno or 0)}") from None
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb+") as opened:
            os.fsync(opened.fileno())
        os.link(partial, file)  # unlike a rename it replaces nothing that came meanwhile
        _sync_folder(file.parent)
    except FileExistsError:
        raise BackupError(f"{file} exists; choose another name, or move it away") from None
    except OSError as error:
        raise BackupError(f"cannot write {file}: {os.strerror(error.errno or 0)}") from None
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            _beside(partial, end).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _copy_sqlite(source: Path, target: Path) -> None:
    """All pages from one snapshot, what the log holds included, into a file that is whole without a log."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as read,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as written,
        ):
            # all pages in one step: in several it would begin again each time that somebody writes
            read.backup(written, pages=-1)
            written.execute("PRAGMA journal_mode=DELETE")
            (found,) = written.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise BackupError(f"{source} is damaged ({found}); take an older backup")
            if not written.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
                raise BackupError(f"{source} is no database of this service")
    except sqlite3.Error as error:
        raise BackupError(f"cannot copy {source}: {error}") from None


def _postgres(program: str, url: str, *arguments: str) -> None:
    """Run a program of PostgreSQL's on a database; its password travels by the environment."""
    parsed = parse_database_url(url)
    environment = dict(os.environ)
    if parsed.password:
        environment["PGPASSWORD"] = str(parsed.password)
    command = [find_program(program), f"--dbname={_plain(parsed)}", "--no-password", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupError(f"{program} failed: {' '.join(done.stderr.split())[:1000]}")


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)


def find_program(name: str) -> str:
    """A program of PostgreSQL's: the newest that is installed, for it reads older servers, too. Raises BackupError."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise BackupError(f"there is no {name} here: {_NO_TOOL}")
    return found
