"""Files whose digest is computed while they are written, so that they need not be read again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType

_BLOCK_BYTES = 1 << 20


class DigestingFile:
    """A new binary file, written from front to back. Use as a context manager.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._error: OSError | None = None

    def __enter__(self) -> DigestingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said by `finish`
            self._file.close()

    def write(self, data: bytes | memoryview) -> int:
        """Append; an error is kept for `finish`: torch's writer would turn it into a riddle about positions."""
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._file.write(view)
            except OSError as error:
                self._error = error
        self._digest.update(view)
        self._size_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Nothing: `finish` flushes."""

    def finish(self) -> tuple[int, str]:
        """Bring everything to the disk; returns size and SHA-256 of the file.

        Raises:
            OSError: something could not be written.
        """
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._size_bytes, self._digest.hexdigest()


def read_digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        return file.tell(), digest.hexdigest()
