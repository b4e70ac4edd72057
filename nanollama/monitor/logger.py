"""Files that a run appends to: streams of JSON lines, and text logs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from nanollama.spec.rundir import encode_line


class JsonLines:
    """An append-only file of JSON objects, one a line, numbered by `seq`.

    A line is handed to the kernel in one write, so a process that is killed leaves whole lines only. The file must be
    new: each attempt has a directory of its own, and appending to a stream that another process began could continue
    half a line.

    Raises:
        FileExistsError: the file is there already.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._length = 0
        self._next_seq = 0

    def write(self, record: dict[str, Any]) -> None:
        """Append the record with its `seq` in front.

        Raises:
            OSError: the disk is full or gone; no part of the line stays in the file.
        """
        line = encode_line({"seq": self._next_seq, **record})
        written = os.write(self._handle, line)
        if written < len(line):
            os.ftruncate(self._handle, self._length)
            raise OSError(f"only {written} of {len(line)} bytes could be written; is the disk full?")
        self._length += written
        self._next_seq += 1

    def close(self) -> None:
        """Make the lines durable and close the file."""
        os.fsync(self._handle)
        os.close(self._handle)


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
