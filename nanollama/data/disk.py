"""A file that HDF5 writes to without noticing failures, which it does not survive."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class Disk(io.RawIOBase):
    """A file for HDF5 to write to, that keeps the first failure to itself.

    HDF5 does not survive a write that fails: closing the file fails as well, and the process crashes at its end. So
    every write succeeds as far as HDF5 can tell, and `check` raises what really happened.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, empty."""
        self._file = path.open("w+b", buffering=0)
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any, /) -> int:
        """Write all of the data at the current position."""
        rest = memoryview(data)
        while rest and self._error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except BaseException as error:  # noqa: BLE001 - `check` raises it, Ctrl-C too
                self._error = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size."""
        try:
            return self._file.truncate(size)
        except BaseException as error:  # noqa: BLE001 - as in `write`
            self._error = self._error or error
            return size or 0

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from the current position."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the current position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current position."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is buffered."""

    def sync(self) -> None:
        """Wait until the data is on the disk."""
        self.check()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, after HDF5 has closed its view of it."""
        self._file.close()
        super().close()
