"""Checkpoints of runs."""

from __future__ import annotations

from collections.abc import Iterator

from nanollama.api import schemas
from nanollama.api.calls.transport import FOLLOW_SECONDS, Transport, parse_replies, parse_reply, read_error, segment


class CheckpointCalls(Transport):
    """Checkpoints of runs."""

    def checkpoints(self, run_id: str) -> list[schemas.Checkpoint]:
        """The checkpoints of a run, by step; removed ones too."""
        reply = self._call("GET", f"/runs/{segment(run_id)}/checkpoints")
        return parse_replies(reply, schemas.Checkpoint)

    def pin_checkpoint(self, run_id: str, step: int, *, pinned: bool = True) -> schemas.Checkpoint:
        """Forbid, or allow again, that training removes a checkpoint. Raises Conflict if it is out of reach."""
        path = f"/runs/{segment(run_id)}/checkpoints/{step}/pin"
        return parse_reply(self._call("PUT" if pinned else "DELETE", path, idempotent=True), schemas.Checkpoint)

    def delete_checkpoint(self, run_id: str, step: int) -> schemas.Checkpoint:
        """Remove a checkpoint of a run that has ended. Raises Conflict if it is pinned or out of reach."""
        return parse_reply(self._call("DELETE", f"/runs/{segment(run_id)}/checkpoints/{step}"), schemas.Checkpoint)

    def checkpoint_files(self, run_id: str, step: int) -> list[schemas.CheckpointFile]:
        """The files of a checkpoint."""
        return parse_replies(
            self._call("GET", f"/runs/{segment(run_id)}/checkpoints/{step}/files"), schemas.CheckpointFile
        )

    def download_checkpoint_file(self, run_id: str, step: int, name: str) -> Iterator[bytes]:
        """The bytes of a file of a checkpoint, piece by piece."""
        path = f"/api/v1/runs/{segment(run_id)}/checkpoints/{step}/files/{segment(name)}"
        with self._http.stream("GET", path, timeout=FOLLOW_SECONDS) as reply:
            if not reply.is_success:
                reply.read()
                raise read_error(reply)
            yield from reply.iter_bytes()
