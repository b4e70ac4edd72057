"""Jobs that wait."""

from __future__ import annotations

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_reply


class QueueCalls(Transport):
    """Jobs that wait."""

    def queue(self, *, limit: int = 100, offset: int = 0) -> schemas.Queue:
        """Jobs that wait, in the order of claims, each with the reason."""
        return self._get("/queue", schemas.Queue, limit=limit, offset=offset)

    def pause_queue(self) -> schemas.Queue:
        """Lease nothing until the queue is resumed."""
        return parse_reply(self._call("POST", "/queue/pause", idempotent=True), schemas.Queue)

    def resume_queue(self) -> schemas.Queue:
        """Let jobs be leased again."""
        return parse_reply(self._call("POST", "/queue/resume", idempotent=True), schemas.Queue)
