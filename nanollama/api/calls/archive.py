"""Runs and experiments as files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

import httpx

from nanollama.api import schemas
from nanollama.api.calls.transport import SWEEP_SECONDS, Transport, parse_reply, read_error, segment
from nanollama.api.errors import Unavailable

_PIECE = 1 << 20
_SECONDS = 5 * SWEEP_SECONDS
"""How long the service may take to write an archive, before its first byte, or to store one."""


class ArchiveCalls(Transport):
    """Runs and experiments as files."""

    def export_run(self, run_id: str) -> Iterator[bytes]:
        """A run with all that the service has of it as one .tar.gz, piece by piece; checkpoints stay where they are."""
        return self._download(f"/runs/{segment(run_id)}/export", timeout=_SECONDS)

    def export_experiment(self, experiment_id: str) -> Iterator[bytes]:
        """An experiment with its runs as one .tar.gz, piece by piece."""
        return self._download(f"/experiments/{segment(experiment_id)}/export", timeout=_SECONDS)

    def import_archive(self, file: IO[bytes]) -> schemas.ImportReply:
        """Add what an export has written, all of it or nothing; what is there already is passed over.

        Args:
            file: the archive, opened for reading bytes.

        Raises:
            InvalidRequest: it is damaged, of a newer version, or no archive.
            Conflict: something else has one of its ids.
            TooLarge: it is larger than the service allows.
            Unavailable: there is no service, or it ended the connection.
        """
        pieces = iter(lambda: file.read(_PIECE), b"")
        headers = {"Content-Type": "application/octet-stream"}
        with contextlib.suppress(OSError):  # of a pipe nobody knows the length
            headers["Content-Length"] = str(_left(file))
        timeout = max(self._timeout, _SECONDS)
        try:
            reply = self._http.request("POST", "/api/v1/import", content=pieces, headers=headers, timeout=timeout)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            why = f"{self.url} ended the connection while the archive was sent ({error})"
            raise Unavailable(f"{why}; see its log, and look at what is there before another try") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self.url} ({error}); is the service up?") from error
        if not reply.is_success:
            raise read_error(reply)
        return parse_reply(reply, schemas.ImportReply)


def _left(file: IO[bytes]) -> int:
    """How many bytes of a file are still to be read. Raises OSError where nobody knows."""
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here
