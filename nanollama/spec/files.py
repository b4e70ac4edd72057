"""Files that must be whole: how they are written, and the names of those by which an attempt is started and ended.

With the standard library alone: the process that starts a run waits for every import. All other names and the records
are in nanollama.spec.rundir.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

STDOUT = "stdout.log"
START_CLAIM = "start.claim"
PROC = "proc.json"
EXIT = "exit.json"

EXIT_CLAIM_LOST = 77

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Numbers of the errors that pass when somebody makes room."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, others see nothing, the old content, or all of the new.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    temporary = write_beside(path, data)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_beside(path: Path, data: bytes) -> Path:
    """Write what is to become a file under another name in its folder, for others to read too; that name.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: a worker of another user may have to read it
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename survives a power cut only after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
