"""Files that a run appends to: streams of JSON lines, and text logs."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

from nanollama.spec.rundir import encode_line

_FULL = (errno.ENOSPC, errno.EDQUOT)


class JsonLines:
    """An append-only file of JSON objects, one a line, numbered by `seq`. Several threads may write.

    A line is handed to the kernel in one write, so a process that is killed leaves whole lines only. The file must be
    new: each attempt has a directory of its own, and appending to a stream that another process began could continue
    half a line. While the disk is full lines wait in memory, and are written with the first one that fits again.

    Raises:
        FileExistsError: the file is there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._length = 0
        self._next_seq = 0
        self._waiting = b""
        self._lock = threading.Lock()

    def write(self, record: dict[str, Any]) -> None:
        """Append the record with its `seq` in front.

        Raises:
            OSError: the disk is gone; no part of the line stays in the file.
        """
        with self._lock:
            self._waiting += encode_line({"seq": self._next_seq, **record})
            self._next_seq += 1
            try:
                self._append()
            except OSError as error:
                if error.errno not in _FULL:
                    raise

    def flush(self) -> None:
        """Make the lines durable.

        Raises:
            OSError: the disk is full, and the last lines still wait.
        """
        with self._lock:
            self._append()
            os.fsync(self._handle)

    def close(self) -> None:
        """Make the lines durable and close the file.

        Raises:
            OSError: the disk is full, and the last lines are lost.
        """
        try:
            self.flush()
        finally:
            os.close(self._handle)

    def _append(self) -> None:
        """Write what waits, all of it or nothing."""
        written = os.write(self._handle, self._waiting) if self._waiting else 0
        if written < len(self._waiting):
            os.ftruncate(self._handle, self._length)
            raise OSError(errno.ENOSPC, f"only {written} of {len(self._waiting)} bytes could be written")
        self._length += written
        self._waiting = b""


def open_log(path: Path, level: str) -> logging.FileHandler:
    """Send the library's log records to a file, appending; `close_log` ends that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    library = logging.getLogger("nanollama")
    library.setLevel(level)
    library.addHandler(handler)
    return handler


def close_log(handler: logging.Handler) -> None:
    """Undo `open_log`."""
    logging.getLogger("nanollama").removeHandler(handler)
    handler.close()
