"""Checkpoints of runs."""

from __future__ import annotations

from collections.abc import Iterator

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment


class CheckpointCalls(Transport):
    """Checkpoints of runs."""

    def checkpoints(self, run_id: str) -> list[schemas.Checkpoint]:
        """The checkpoints of a run, by step; removed ones too."""
        reply = self._call("GET", f"/runs/{segment(run_id)}/checkpoints")
        return parse_replies(reply, schemas.Checkpoint)

    def pin_checkpoint(self, run_id: str, step: int, *, pinned: bool = True) -> schemas.Checkpoint:
        """Forbid, or allow again, that training removes a checkpoint.

        Where the service does not reach the files a worker does it, and the answer's `pending` says so.
        """
        path = f"/runs/{segment(run_id)}/checkpoints/{step}/pin"
        return parse_reply(self._call("PUT" if pinned else "DELETE", path, idempotent=True), schemas.Checkpoint)

    def delete_checkpoint(self, run_id: str, step: int) -> schemas.Checkpoint:
        """Remove a checkpoint of a run that has ended, perhaps by a worker (`pending`). Raises Conflict if pinned."""
        return parse_reply(self._call("DELETE", f"/runs/{segment(run_id)}/checkpoints/{step}"), schemas.Checkpoint)

    def evaluations(self, run_id: str) -> list[schemas.Evaluation]:
        """What the learner was worth on held-out sequences, by step."""
        return parse_replies(self._call("GET", f"/runs/{segment(run_id)}/evaluations"), schemas.Evaluation)

    def checkpoint_files(self, run_id: str, step: int) -> list[schemas.CheckpointFile]:
        """The files of a checkpoint."""
        return parse_replies(
            self._call("GET", f"/runs/{segment(run_id)}/checkpoints/{step}/files"), schemas.CheckpointFile
        )

    def download_checkpoint_file(self, run_id: str, step: int, name: str) -> Iterator[bytes]:
        """The bytes of a file of a checkpoint, piece by piece."""
        return self._download(f"/runs/{segment(run_id)}/checkpoints/{step}/files/{segment(name)}")

    def download_checkpoint(self, run_id: str, step: int) -> Iterator[bytes]:
        """A whole checkpoint as an uncompressed tar file, piece by piece."""
        return self._download(f"/runs/{segment(run_id)}/checkpoints/{step}/archive")
