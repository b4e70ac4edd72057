"""Workers: to look at, and what they say themselves."""

from __future__ import annotations

from nanollama.api import schemas
from nanollama.api.calls.transport import Transport, parse_replies, parse_reply, segment


class WorkerCalls(Transport):
    """Workers: to look at, and what they say themselves."""

    def workers(self) -> list[schemas.Worker]:
        """Every worker that has registered, those alive first."""
        return parse_replies(self._call("GET", "/workers"), schemas.Worker)

    def drain_worker(self, worker_id: str) -> schemas.Worker:
        """Let a worker finish what it holds and take nothing more."""
        path = f"/workers/{segment(worker_id)}/drain"
        return parse_reply(self._call("POST", path, idempotent=True), schemas.Worker)

    def resume_worker(self, worker_id: str) -> schemas.Worker:
        """Let a worker that was drained take jobs again."""
        path = f"/workers/{segment(worker_id)}/resume"
        return parse_reply(self._call("POST", path, idempotent=True), schemas.Worker)

    def register(self, worker_id: str, registration: schemas.WorkerRegistration) -> schemas.WorkerTerms:
        """Announce a worker under an id of its own choice, which it keeps across restarts."""
        reply = self._call("PUT", f"/workers/{segment(worker_id)}", body=registration, idempotent=True)
        return parse_reply(reply, schemas.WorkerTerms)

    def sync(self, worker_id: str, request: schemas.SyncRequest) -> schemas.SyncReply:
        """Renew leases and claim more; a long poll. A lost reply is made good: leases not held are delivered again."""
        timeout = self._timeout + request.wait_seconds
        reply = self._call("POST", f"/workers/{segment(worker_id)}/sync", body=request, timeout=timeout)
        return parse_reply(reply, schemas.SyncReply)

    def transition(self, attempt_id: str, request: schemas.TransitionRequest) -> schemas.Attempt:
        """Report a transition. Raises StaleEpoch when the lease is lost, Conflict when the transition is illegal."""
        reply = self._call("POST", f"/attempts/{segment(attempt_id)}/transitions", body=request, idempotent=True)
        return parse_reply(reply, schemas.Attempt)

    def report_unknown(self, attempt_id: str, *, epoch: int, reason: str | None) -> schemas.Run:
        """Say that an attempt was started, is gone and left no account; without a reason, that it has been found."""
        body = schemas.UnknownReport(epoch=epoch, reason=reason)
        path = f"/attempts/{segment(attempt_id)}/unknown"
        return parse_reply(self._call("POST", path, body=body, idempotent=True), schemas.Run)
