"""The worker's half of the service, in memory: leases with epochs, transitions, streams by offset; and its faults.

It answers the real client, in the process (`transport`) or over HTTP (`serve`).
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from nanollama.api.errors import (
    ApiError,
    Conflict,
    InvalidRequest,
    NotFound,
    OffsetMismatch,
    StaleEpoch,
    Unauthorized,
)
from nanollama.api.schemas import (
    Command,
    CommandDone,
    Lease,
    SyncReply,
    SyncRequest,
    TransitionRequest,
    UnknownReport,
)
from nanollama.api.status import ATTEMPT_TRANSITIONS, AttemptState
from nanollama.spec.base import Problem


@dataclass
class StoredAttempt:
    """An attempt as the service keeps it."""

    lease: Lease
    state: AttemptState = AttemptState.QUEUED
    epoch: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    unknown: str | None = None  # why nobody knows what has become of it
    transitions: list[TransitionRequest] = field(default_factory=list)
    streams: dict[str, bytearray] = field(default_factory=dict)

    @property
    def ended(self) -> TransitionRequest:
        """The terminal transition."""
        assert self.state.terminal, self.state
        return self.transitions[-1]


class LeaseService:
    """All of it behind one lock. `away` refuses connections, `lose_replies` acts and then hangs up.

    With `token` it asks for one; `older` are fields of a registration that it does not know, and without
    `takes_workers` it does not know workers either.

    Args:
        upload_seconds: what workers are asked for.
        patient: whether a sync with nothing to say waits as long as it was asked to.
    """

    def __init__(self, *, upload_seconds: float = 0.05, patient: bool = True) -> None:
        self._patient = patient
        self.attempts: dict[str, StoredAttempt] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.commands: dict[str, Command] = {}  # given until they are done
        self.done: list[CommandDone] = []
        self.away = False
        self.tries_while_away = 0
        self.token: str | None = None
        self.older: frozenset[str] = frozenset()
        self.takes_workers = True
        self.lose_replies = 0
        self.upload_seconds = upload_seconds
        self._changed = threading.Condition()

    # -- what a test does ----------------------------------------------------------------------------------------------

    def add(
        self, attempt_id: str, config: dict[str, Any], *, app: str = "gssm.train", run_id: str = ""
    ) -> StoredAttempt:
        """Queue the first attempt of a run."""
        run_id = run_id or f"r-{attempt_id}"
        lease = Lease(
            attempt_id=attempt_id,
            run_id=run_id,
            run_name="run",
            number=1,
            epoch=0,
            state=AttemptState.LEASED,
            app=app,
            config=config,
        )
        with self._changed:
            self.attempts[attempt_id] = stored = StoredAttempt(lease)
            self._changed.notify_all()
        return stored

    def cancel(self, attempt_id: str) -> None:
        """Ask for the end of an attempt."""
        with self._changed:
            self.attempts[attempt_id].cancel_requested = True
            self._changed.notify_all()

    def give_to(self, attempt_id: str, worker: str | None) -> None:
        """Take the lease from its worker, as when it has expired and another adopts; None: whoever asks next."""
        with self._changed:
            attempt = self.attempts[attempt_id]
            attempt.epoch += 1
            attempt.worker = worker
            self._changed.notify_all()

    # -- what a worker calls -------------------------------------------------------------------------------------------

    def handle(self, method: str, url: str, body: bytes, authorization: str | None = None) -> tuple[int, bytes]:
        """Answer a request."""
        parts = urlsplit(url)
        path, query = parts.path.removeprefix("/api/v1/"), dict(parse_qsl(parts.query))
        with self._changed:
            self.calls.append((method, path))
            try:
                if self.token is not None and authorization != f"Bearer {self.token}":
                    raise Unauthorized("this token has expired")
                return 200, json.dumps(self._route(path, query, body)).encode()
            except ApiError as error:
                problem = {"title": "no", "status": error.status, "detail": error.detail, "code": error.code}
                problem["problems"] = [problem.model_dump() for problem in error.problems]
                return error.status, json.dumps(problem | {"expected_offset": error.expected_offset}).encode()

    def _route(self, path: str, query: dict[str, str], body: bytes) -> Any:
        kind, target, *rest = path.split("/")
        if kind == "workers" and not self.takes_workers:
            raise NotFound("Not Found")
        if kind == "workers" and not rest:
            if unknown := sorted(self.older & json.loads(body).keys()):
                problems = [Problem(path=name, message="unknown key") for name in unknown]
                raise InvalidRequest("the request is invalid", problems)
            self.workers[target] = json.loads(body)
            terms = {"lease_seconds": 90, "heartbeat_seconds": 20, "upload_seconds": self.upload_seconds}
            return {"worker_id": target, **terms}
        if kind == "workers":
            return self._sync(target, SyncRequest.model_validate_json(body)).model_dump(mode="json")
        if target not in self.attempts:
            raise NotFound(f"no attempt {target}")
        if rest[0] == "transitions":
            return self._transition(self.attempts[target], TransitionRequest.model_validate_json(body))
        if rest[0] == "unknown":
            return self._unknown(self.attempts[target], UnknownReport.model_validate_json(body))
        epoch, offset = int(query["epoch"]), int(query["offset"])
        return self._append(self.attempts[target], "/".join(rest[1:]), epoch, offset, body)

    def _sync(self, worker: str, request: SyncRequest) -> SyncReply:
        if worker not in self.workers:
            raise NotFound(f"no worker {worker}")
        deadline = time.monotonic() + request.wait_seconds * self._patient
        self.done += request.done
        for done in request.done:
            self.commands.pop(done.id, None)
        while True:
            reply = self._answer(worker, request)
            news = reply.leases or reply.lost or reply.cancel or reply.commands
            if news or not self._changed.wait(deadline - time.monotonic()):
                return reply

    def _answer(self, worker: str, request: SyncRequest) -> SyncReply:
        held = {item.attempt_id: item.epoch for item in request.held}
        reply = SyncReply(upload_seconds=self.upload_seconds, commands=list(self.commands.values()))
        free = request.free_slots
        for attempt_id, attempt in self.attempts.items():
            live = not attempt.state.terminal
            if attempt_id in held:
                if not live or attempt.worker != worker or attempt.epoch != held[attempt_id]:
                    reply.lost.append(attempt_id)
                elif attempt.cancel_requested:
                    reply.cancel.append(attempt_id)
            elif live and attempt.worker == worker:
                reply.leases.append(self._lease(attempt, worker))
            elif live and attempt.worker is None and free > 0:
                free -= 1
                reply.leases.append(self._lease(attempt, worker))
        reply.lost += [attempt_id for attempt_id in held if attempt_id not in self.attempts]
        return reply

    def _lease(self, attempt: StoredAttempt, worker: str) -> Lease:
        attempt.worker = worker
        attempt.epoch += 1
        if attempt.state is AttemptState.QUEUED:
            attempt.state = AttemptState.LEASED
        update = {"epoch": attempt.epoch, "state": attempt.state, "cancel_requested": attempt.cancel_requested}
        return attempt.lease.model_copy(update=update)

    def _transition(self, attempt: StoredAttempt, request: TransitionRequest) -> dict[str, Any]:
        if request.transition_id not in [known.transition_id for known in attempt.transitions]:
            if request.epoch != attempt.epoch:
                raise StaleEpoch(f"epoch {request.epoch} is not {attempt.epoch}")
            if request.to not in ATTEMPT_TRANSITIONS[attempt.state]:
                raise Conflict(f"{attempt.state} -> {request.to}")
            attempt.state = request.to
            attempt.transitions.append(request)
        about = {"id": attempt.lease.attempt_id, "run_id": attempt.lease.run_id, "number": 1, "state": attempt.state}
        return about | {"epoch": attempt.epoch, "created_at": "2026-01-01T00:00:00Z"}

    def _unknown(self, attempt: StoredAttempt, report: UnknownReport) -> dict[str, Any]:
        if report.epoch != attempt.epoch:
            raise StaleEpoch(f"epoch {report.epoch} is not {attempt.epoch}")
        if attempt.state.terminal:
            raise Conflict("the attempt has ended")
        attempt.unknown = report.reason
        about = {"id": attempt.lease.run_id, "experiment_id": "e", "name": attempt.lease.run_name, "tags": []}
        where = {"state": "RUNNING", "cancel_requested": False, "attempt": 1, "progress": {"total_steps": 1}}
        return about | where | {"priority": 0, "config_hash": "0", "created_at": "2026-01-01T00:00:00Z"}

    def _append(self, attempt: StoredAttempt, name: str, epoch: int, offset: int, data: bytes) -> dict[str, Any]:
        if epoch != attempt.epoch:
            raise StaleEpoch(f"epoch {epoch} is not {attempt.epoch}")
        if attempt.state.terminal:
            raise Conflict("the attempt has ended")
        stream = attempt.streams.setdefault(name, bytearray())
        if offset > len(stream):
            raise OffsetMismatch("beyond the end", expected_offset=len(stream))
        assert stream[offset : offset + len(data)] == data[: len(stream) - offset], "an overlap that differs"
        stream += data[len(stream) - offset :]
        return {"attempt_id": attempt.lease.attempt_id, "name": name, "length": len(stream)}

    # -- how it is reached ---------------------------------------------------------------------------------------------

    @property
    def transport(self) -> httpx.BaseTransport:
        """For a client in this process."""

        def respond(request: httpx.Request) -> httpx.Response:
            if self.away:
                self.tries_while_away += 1
                raise httpx.ConnectError("refused", request=request)
            token = request.headers.get("Authorization")
            status, body = self.handle(request.method, str(request.url), request.content, token)
            if self._reply_is_lost():
                raise httpx.ReadTimeout("lost", request=request)
            return httpx.Response(status, content=body, request=request)

        return httpx.MockTransport(respond)

    def _reply_is_lost(self) -> bool:
        if self.lose_replies == 0:
            return False
        self.lose_replies -= 1
        return True


@contextlib.contextmanager
def serve(service: LeaseService) -> Iterator[str]:
    """Answer over HTTP on loopback while the context lasts; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if service.away:
                self.close_connection = True
                return
            status, reply = service.handle(self.command, self.path, body, self.headers.get("Authorization"))
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

        do_GET = do_PUT = do_POST = answer  # noqa: N815 - the names that the base class looks for

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
