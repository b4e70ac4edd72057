"""Runs and experiments as files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import httpx

from nanollama.api import schemas
from nanollama.api.calls.transport import SWEEP_SECONDS, Transport, parse_reply, read_error, segment
from nanollama.api.errors import Unavailable

_PIECE = 1 << 20


class ArchiveCalls(Transport):
    """Runs and experiments as files."""

    def export_run(self, run_id: str) -> Iterator[bytes]:
        """A run with all that the service has of it as one .tar.gz, piece by piece; checkpoints stay where they are."""
        return self._download(f"/runs/{segment(run_id)}/export")

    def export_experiment(self, experiment_id: str) -> Iterator[bytes]:
        """An experiment with its runs as one .tar.gz, piece by piece."""
        return self._download(f"/experiments/{segment(experiment_id)}/export")

    def import_archive(self, file: IO[bytes]) -> schemas.ImportReply:
        """Add what an export has written, all of it or nothing; what is there already is passed over.

        Args:
            file: the archive, opened for reading bytes.

        Raises:
            InvalidRequest: it is damaged, of a newer version, or no archive.
            Conflict: something else has one of its ids.
            TooLarge: it is larger than the service allows.
        """
        pieces = iter(lambda: file.read(_PIECE), b"")
        headers = {"Content-Type": "application/octet-stream"}
        timeout = max(self._timeout, 5 * SWEEP_SECONDS)
        try:
            reply = self._http.request("POST", "/api/v1/import", content=pieces, headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            raise Unavailable(f"no answer from {self.url} ({error}); is the service up?") from error
        if not reply.is_success:
            raise read_error(reply)
        return parse_reply(reply, schemas.ImportReply)
