"""Typed synchronous client of the REST API: timeouts, retries where a repetition is harmless, typed errors."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from nanollama.api import schemas
from nanollama.api.errors import ERRORS, ApiError, InvalidRequest, NotFound, Unavailable
from nanollama.api.following import Message, read_messages
from nanollama.spec.base import Problem, SpecError, parse

DEFAULT_URL = "http://127.0.0.1:8420"
SWEEP_SECONDS = 120.0
"""How long a call may take in which the service checks, and perhaps stores, each run of a sweep."""
FOLLOW_SECONDS = 60.0
"""Silence after which a stream is taken for dead; its heartbeats come more often."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def server_url() -> str:
    """The server to talk to: $N2N_URL, or the default on loopback."""
    return os.environ.get("N2N_URL") or DEFAULT_URL


class Client:
    """A connection to the service. Safe to share between threads.

    Args:
        url: root of the service, for example http://127.0.0.1:8420; $N2N_URL when absent.
        token: access token, where the service asks for one; $N2N_TOKEN when absent.
        timeout: seconds for one try, long polls excepted.
        retries: how often an idempotent call is repeated after a failed connection or a 502, 503, 504.
        transport: replaces the network, for tests.

    Raises:
        SpecError: a URL that is none, or a token that cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url or server_url())
        self._retries = retries
        self._timeout = timeout
        # trust_env off: a proxy of the environment must not swallow what is meant for loopback
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout, transport=transport, trust_env=False, headers=_authorization(token)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- people and scripts ------------------------------------------------------------------------------------------

    def health(self) -> schemas.Health:
        """Whether the service answers."""
        return self._get("/health", schemas.Health)

    def templates(self) -> list[schemas.Template]:
        """Configs that ship with the project."""
        reply = self._call("GET", "/templates")
        return _parse_list(reply, schemas.Template)

    def validate(self, *, yaml: str | None = None, config: dict[str, Any] | None = None) -> schemas.Validation:
        """Every problem of a spec, at once; nothing is stored."""
        body = schemas.SpecInput(yaml=yaml, config=config)
        timeout = max(self._timeout, SWEEP_SECONDS)
        reply = self._call("POST", "/specs/validate", body=body, timeout=timeout, idempotent=True)
        return _parse(reply, schemas.Validation)

    def submit(
        self,
        *,
        yaml: str | None = None,
        config: dict[str, Any] | None = None,
        name: str | None = None,
        notes: str = "",
        tags: list[str] | None = None,
        priority: int = 0,
        resources: schemas.Resources | None = None,
        reuse: str = "never",
        retries: int = 0,
        max_interruptions: int | None = None,
        idempotency_key: str | None = None,
    ) -> schemas.Experiment:
        """Create an experiment and queue its runs. Without a key of your own, retries of this call share a fresh one.

        Args:
            yaml: a config, perhaps with a `grid`; or else
            config: the same as plain data.
            name: of the experiment; `orchestration.name` when absent.
            notes: free text.
            tags: of the experiment and its runs.
            priority: higher runs first.
            resources: what each run needs.
            reuse: what becomes of runs that would learn what an earlier one has learnt: never, ask, always.
            retries: attempts that may fail without ending a run.
            max_interruptions: attempts that may be interrupted; any number when absent.
            idempotency_key: repetitions with the same key create nothing and get the same answer.

        Raises:
            InvalidRequest: with every problem of the spec.
            AlreadySucceeded: with reuse="ask", the earlier runs; nothing was created.
        """
        given = {
            "yaml": yaml,
            "config": config,
            "name": name,
            "notes": notes,
            "tags": tags or [],
            "priority": priority,
            "resources": {} if resources is None else resources.model_dump(),
            "reuse": reuse,
            "retries": retries,
            "max_interruptions": max_interruptions,
        }
        try:
            body = parse(schemas.ExperimentCreate, given)
        except SpecError as error:
            raise InvalidRequest("the submission is invalid", error.problems) from None
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        timeout = max(self._timeout, SWEEP_SECONDS)
        reply = self._call("POST", "/experiments", body=body, headers=headers, timeout=timeout, idempotent=True)
        return _parse(reply, schemas.Experiment)

    def experiments(self, *, limit: int = 50, cursor: str | None = None) -> schemas.ExperimentPage:
        """Experiments, newest first."""
        return self._get("/experiments", schemas.ExperimentPage, limit=limit, cursor=cursor)

    def experiment(self, experiment_id: str) -> schemas.ExperimentDetail:
        """One experiment with what was submitted and its first runs; `runs(experiment=…)` pages all."""
        return self._get(f"/experiments/{_segment(experiment_id)}", schemas.ExperimentDetail)

    def runs(
        self,
        *,
        state: list[str] | None = None,
        search: str | None = None,
        experiment: str | None = None,
        filter: str | None = None,  # noqa: A002 - the name on the wire
        sort: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> schemas.RunPage:
        """Runs, newest first; of some states only, with `search` in the name, the id or a tag, of one experiment.

        Args:
            state: only runs in one of these states.
            search: part of the name, the id or a tag.
            experiment: only runs of this experiment, and those that it reuses.
            filter: see nanollama.api.filters, for example "optim.lr>1e-3 excess<0.02".
            sort: a field or a metric, with `-` in front for the largest first.
            limit: how many, at most 500.
            cursor: `next_cursor` of the page before.

        Raises:
            InvalidRequest: with the place in the filter.
        """
        return self._get(
            "/runs",
            schemas.RunPage,
            state=state,
            search=search,
            experiment=experiment,
            filter=filter,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )

    def run(self, run_id: str) -> schemas.RunDetail:
        """One run."""
        return self._get(f"/runs/{_segment(run_id)}", schemas.RunDetail)

    def cancel(self, run_id: str) -> schemas.Run:
        """Ask for a run to stop. At once when it is queued, otherwise when its worker has evidence."""
        return _parse(self._call("POST", f"/runs/{_segment(run_id)}/cancel", idempotent=True), schemas.Run)

    def retry(self, run_id: str) -> schemas.Run:
        """Open a run again that failed or was cancelled; it goes on from its checkpoints. Raises Conflict."""
        return _parse(self._call("POST", f"/runs/{_segment(run_id)}/retry"), schemas.Run)

    def clone(
        self, run_id: str, clone: schemas.Clone | None = None, *, idempotency_key: str | None = None
    ) -> schemas.Experiment:
        """Make a new experiment from a run's config, with overrides."""
        return _parse(
            self._call(
                "POST",
                f"/runs/{_segment(run_id)}/clone",
                body=clone or schemas.Clone(),
                headers={"Idempotency-Key": idempotency_key or secrets.token_hex(16)},
                timeout=max(self._timeout, SWEEP_SECONDS),
                idempotent=True,
            ),
            schemas.Experiment,
        )

    def resolve(self, run_id: str, resolve: schemas.Resolve) -> schemas.Run:
        """Say how a run ended of which nobody knows. Raises Conflict when it is not lost."""
        return _parse(self._call("POST", f"/runs/{_segment(run_id)}/resolve", body=resolve), schemas.Run)

    def prioritise(self, run_id: str, priority: int) -> schemas.Run:
        """Change the priority of a run that has not ended."""
        body = schemas.RunPatch(priority=priority)
        return _parse(self._call("PATCH", f"/runs/{_segment(run_id)}", body=body, idempotent=True), schemas.Run)

    def cancel_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        """Ask several runs to stop; those that have ended are passed over."""
        return _parse(self._call("POST", "/runs:cancel", body=selection, idempotent=True), schemas.RunsChanged)

    def retry_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        """Retry several runs; those that can't be are passed over."""
        return _parse(self._call("POST", "/runs:retry", body=selection), schemas.RunsChanged)

    def prioritise_runs(self, selection: schemas.Prioritise) -> schemas.RunsChanged:
        """Change the priority of several runs; those that have ended are passed over."""
        return _parse(self._call("POST", "/runs:prioritise", body=selection, idempotent=True), schemas.RunsChanged)

    def pause(self, experiment_id: str) -> schemas.Experiment:
        """Lease none of an experiment's runs until it is resumed."""
        path = f"/experiments/{_segment(experiment_id)}/pause"
        return _parse(self._call("POST", path, idempotent=True), schemas.Experiment)

    def resume(self, experiment_id: str) -> schemas.Experiment:
        """Let the runs of a paused experiment be leased again."""
        path = f"/experiments/{_segment(experiment_id)}/resume"
        return _parse(self._call("POST", path, idempotent=True), schemas.Experiment)

    def queue(self, *, limit: int = 100, offset: int = 0) -> schemas.Queue:
        """Jobs that wait, in the order of claims, each with the reason."""
        return self._get("/queue", schemas.Queue, limit=limit, offset=offset)

    def pause_queue(self) -> schemas.Queue:
        """Lease nothing until the queue is resumed."""
        return _parse(self._call("POST", "/queue/pause", idempotent=True), schemas.Queue)

    def resume_queue(self) -> schemas.Queue:
        """Let jobs be leased again."""
        return _parse(self._call("POST", "/queue/resume", idempotent=True), schemas.Queue)

    def attempts(self, run_id: str) -> list[schemas.Attempt]:
        """The attempts of a run, oldest first."""
        reply = self._call("GET", f"/runs/{_segment(run_id)}/attempts")
        return _parse_list(reply, schemas.Attempt)

    def events(self, run_id: str) -> list[schemas.Event]:
        """What happened to a run, oldest first."""
        reply = self._call("GET", f"/runs/{_segment(run_id)}/events")
        return _parse_list(reply, schemas.Event)

    def checkpoints(self, run_id: str) -> list[schemas.Checkpoint]:
        """The checkpoints of a run, by step; removed ones too."""
        reply = self._call("GET", f"/runs/{_segment(run_id)}/checkpoints")
        return _parse_list(reply, schemas.Checkpoint)

    def pin_checkpoint(self, run_id: str, step: int, *, pinned: bool = True) -> schemas.Checkpoint:
        """Forbid, or allow again, that training removes a checkpoint. Raises Conflict if it is out of reach."""
        path = f"/runs/{_segment(run_id)}/checkpoints/{step}/pin"
        return _parse(self._call("PUT" if pinned else "DELETE", path, idempotent=True), schemas.Checkpoint)

    def delete_checkpoint(self, run_id: str, step: int) -> schemas.Checkpoint:
        """Remove a checkpoint of a run that has ended. Raises Conflict if it is pinned or out of reach."""
        return _parse(self._call("DELETE", f"/runs/{_segment(run_id)}/checkpoints/{step}"), schemas.Checkpoint)

    def checkpoint_files(self, run_id: str, step: int) -> list[schemas.CheckpointFile]:
        """The files of a checkpoint."""
        return _parse_list(
            self._call("GET", f"/runs/{_segment(run_id)}/checkpoints/{step}/files"), schemas.CheckpointFile
        )

    def download_checkpoint_file(self, run_id: str, step: int, name: str) -> Iterator[bytes]:
        """The bytes of a file of a checkpoint, piece by piece."""
        path = f"/api/v1/runs/{_segment(run_id)}/checkpoints/{step}/files/{_segment(name)}"
        with self._http.stream("GET", path, timeout=FOLLOW_SECONDS) as reply:
            if not reply.is_success:
                reply.read()
                raise _error(reply)
            yield from reply.iter_bytes()

    def metrics(
        self,
        run_id: str,
        keys: list[str] | None = None,
        *,
        max_points: int = 1000,
        log_x: bool = False,
        x: str = "step",
        x_min: float | None = None,
        x_max: float | None = None,
        rank: int = 0,
    ) -> schemas.Metrics:
        """Series of a run: those of `keys`, or all; of the points from `x_min` to `x_max`, buckets even in x or log x.

        Args:
            run_id: which run.
            keys: which metrics; all when absent.
            max_points: of each series; every spike is kept.
            log_x: buckets are even in log x.
            x: step, tokens, flops, time, or relative_time: seconds since the run's first line.
            x_min: first x; the run's when absent.
            x_max: last x; the run's when absent.
            rank: whose lines.
        """
        return self._get(
            f"/runs/{_segment(run_id)}/metrics",
            schemas.Metrics,
            key=keys,
            max_points=max_points,
            spacing="log" if log_x else "linear",
            x=x,
            x_min=x_min,
            x_max=x_max,
            rank=rank,
        )

    def curves(self, query: schemas.MetricsQuery) -> schemas.MetricsReply:
        """Series of several runs in one call."""
        return _parse(self._call("POST", "/metrics", body=query, idempotent=True), schemas.MetricsReply)

    def curves_arrow(self, query: schemas.MetricsQuery) -> bytes:
        """The same for `pyarrow.ipc.open_stream`, with columns run, key, step, tokens, time, value and x."""
        headers = {"Accept": "application/vnd.apache.arrow.stream"}
        return self._call("POST", "/metrics", body=query, headers=headers, idempotent=True).content

    def values(self, run_ids: list[str]) -> list[schemas.RunValues]:
        """Newest, smallest and largest value of each metric of runs."""
        return _parse_list(self._call("GET", "/metrics/values", params={"run": run_ids}), schemas.RunValues)

    def logs(
        self, run_id: str, *, attempt: int | None = None, stream: str | None = None, tail_bytes: int = 65536
    ) -> schemas.LogTail:
        """The end of a log: of the newest attempt, and of rank 0 or standard output, unless told otherwise."""
        return self._get(
            f"/runs/{_segment(run_id)}/logs", schemas.LogTail, attempt=attempt, stream=stream, tail_bytes=tail_bytes
        )

    def follow_events(self, run_ids: list[str] | None = None, *, after: str | None = None) -> Iterator[Message]:
        """What happens to runs, as it happens, without end; after a broken connection it goes on where it was.

        Args:
            run_ids: only these; all when absent.
            after: `id` of the last message that was seen; from now on when absent.

        Raises:
            Unavailable: the service stays away.
        """
        return self._follow("/events/stream", {"run": run_ids or []}, after)

    def follow_log(
        self, run_id: str, *, attempt: int | None = None, stream: str | None = None, tail_bytes: int = 65536
    ) -> Iterator[Message]:
        """A log as it grows, up to the message `end` once its attempt has ended."""
        params = {"attempt": attempt, "stream": stream, "tail_bytes": tail_bytes}
        given = {key: value for key, value in params.items() if value is not None}
        return self._follow(f"/runs/{_segment(run_id)}/logs/stream", given, None)

    def workers(self) -> list[schemas.Worker]:
        """Every worker that has registered, those alive first."""
        return _parse_list(self._call("GET", "/workers"), schemas.Worker)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def create_token(self, name: str, scopes: list[str], *, expires_in_days: float | None = None) -> schemas.NewToken:
        """Make a token; the answer holds the secret, which is shown this once. Raises InvalidRequest."""
        given = {"name": name, "scopes": scopes, "expires_in_days": expires_in_days}
        try:
            body = parse(schemas.TokenCreate, given)
        except SpecError as error:
            raise InvalidRequest("the token is invalid", error.problems) from None
        return _parse(self._call("POST", "/tokens", body=body), schemas.NewToken)

    def tokens(self) -> list[schemas.Token]:
        """Every token, newest first, without secrets."""
        return _parse_list(self._call("GET", "/tokens"), schemas.Token)

    def revoke_token(self, token_id: str) -> schemas.Token:
        """Let a token be good for nothing from now on."""
        reply = self._call("DELETE", f"/tokens/{_segment(token_id)}", idempotent=True)
        return _parse(reply, schemas.Token)

    def drain_worker(self, worker_id: str) -> schemas.Worker:
        """Let a worker finish what it holds and take nothing more."""
        path = f"/workers/{_segment(worker_id)}/drain"
        return _parse(self._call("POST", path, idempotent=True), schemas.Worker)

    def resume_worker(self, worker_id: str) -> schemas.Worker:
        """Let a worker that was drained take jobs again."""
        path = f"/workers/{_segment(worker_id)}/resume"
        return _parse(self._call("POST", path, idempotent=True), schemas.Worker)

    # -- workers -----------------------------------------------------------------------------------------------------

    def register(self, worker_id: str, registration: schemas.WorkerRegistration) -> schemas.WorkerTerms:
        """Announce a worker under an id of its own choice, which it keeps across restarts."""
        reply = self._call("PUT", f"/workers/{_segment(worker_id)}", body=registration, idempotent=True)
        return _parse(reply, schemas.WorkerTerms)

    def sync(self, worker_id: str, request: schemas.SyncRequest) -> schemas.SyncReply:
        """Renew leases and claim more; a long poll. A lost reply is made good: leases not held are delivered again."""
        timeout = self._timeout + request.wait_seconds
        reply = self._call("POST", f"/workers/{_segment(worker_id)}/sync", body=request, timeout=timeout)
        return _parse(reply, schemas.SyncReply)

    def transition(self, attempt_id: str, request: schemas.TransitionRequest) -> schemas.Attempt:
        """Report a transition. Raises StaleEpoch when the lease is lost, Conflict when the transition is illegal."""
        reply = self._call("POST", f"/attempts/{_segment(attempt_id)}/transitions", body=request, idempotent=True)
        return _parse(reply, schemas.Attempt)

    def report_unknown(self, attempt_id: str, *, epoch: int, reason: str | None) -> schemas.Run:
        """Say that an attempt was started, is gone and left no account; without a reason, that it has been found."""
        body = schemas.UnknownReport(epoch=epoch, reason=reason)
        path = f"/attempts/{_segment(attempt_id)}/unknown"
        return _parse(self._call("POST", path, body=body, idempotent=True), schemas.Run)

    def put_stream(self, attempt_id: str, name: str, *, epoch: int, offset: int, data: bytes) -> schemas.StreamInfo:
        """Append bytes to a stream at an offset; what the server already has is ignored.

        Raises:
            OffsetMismatch: the server has less than `offset` bytes; `expected_offset` says how many.
            StaleEpoch: the lease is lost.
        """
        params = {"epoch": epoch, "offset": offset}
        path = f"/attempts/{_segment(attempt_id)}/streams/{name}"
        reply = self._call("PUT", path, content=data, params=params, idempotent=True)
        return _parse(reply, schemas.StreamInfo)

    # -- transport ---------------------------------------------------------------------------------------------------

    def _get(self, path: str, model: type[ModelT], **params: Any) -> ModelT:
        given = {key: value for key, value in params.items() if value is not None}
        return _parse(self._call("GET", path, params=given), model)

    def _follow(self, path: str, params: dict[str, Any], last: str | None) -> Iterator[Message]:
        failures = 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
            try:
                with self._http.stream(
                    "GET", f"/api/v1{path}", params=params, headers=headers, timeout=FOLLOW_SECONDS
                ) as reply:
                    if not reply.is_success:
                        reply.read()
                        raise _error(reply)
                    for message in read_messages(reply.iter_lines()):
                        failures, last = 0, message.id or last
                        yield message
                        if message.kind == "end":
                            return
            except httpx.HTTPError as error:
                failures += 1
                if failures > self._retries:
                    raise Unavailable(f"no answer from {self.url} ({error}); is the service up?") from error
            time.sleep(0.2 * 2**failures)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        content: bytes | None = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> httpx.Response:
        headers = dict(headers or {})
        if body is not None:
            content = body.model_dump_json(exclude_unset=True).encode()
            headers["Content-Type"] = "application/json"
        elif content is not None:
            headers["Content-Type"] = "application/octet-stream"
        tries = 1 + (self._retries if idempotent or method == "GET" else 0)
        for attempt in range(tries):
            last = attempt == tries - 1
            try:
                reply = self._http.request(
                    method,
                    f"/api/v1{path}",
                    content=content,
                    params=params,
                    headers=headers,
                    timeout=timeout or self._timeout,
                )
            except httpx.HTTPError as error:
                if last:
                    raise Unavailable(
                        f"no answer from {self.url} ({error}); is the service up? `n2n up` starts it"
                    ) from error
            else:
                if reply.is_success:
                    return reply
                if last or reply.status_code not in (502, 503, 504):
                    raise _error(reply)
            time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


def _parse(reply: httpx.Response, model: type[ModelT]) -> ModelT:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise _foreign(reply) from error


def _parse_list(reply: httpx.Response, model: type[ModelT]) -> list[ModelT]:
    try:
        return TypeAdapter(list[model]).validate_json(reply.content)  # type: ignore[valid-type] # mypy wants a literal
    except ValidationError as error:
        raise _foreign(reply) from error


def _foreign(reply: httpx.Response) -> Unavailable:
    text = " ".join(reply.text[:200].split())
    return Unavailable(f"{reply.request.url} answered {reply.status_code}, but not as this service does: {text}")


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        message = f"'{text}' is not the URL of a service"
        raise SpecError([Problem(path="url", message=message, remedy=f"write one like {DEFAULT_URL}")])
    return text.rstrip("/")


def _authorization(token: str | None) -> dict[str, str]:
    token = (token or os.environ.get("N2N_TOKEN") or "").strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        message = "this is not a token: it holds characters that no token has"
        raise SpecError([Problem(path="token", message=message, remedy="set $N2N_TOKEN to what `n2n token` showed")])
    return {"Authorization": f"Bearer {token}"}


def _segment(identifier: str) -> str:
    """An id as one segment of a path, whatever it holds."""
    if identifier in ("", ".", ".."):
        raise NotFound(f"there is nothing with the id '{identifier}'")
    return quote(identifier, safe="")


def _error(reply: httpx.Response) -> ApiError:
    try:
        body = _parse(reply, schemas.ErrorBody)
    except Unavailable as error:
        return error
    kind = ERRORS.get(body.code, ApiError)
    problems: list[Problem] = body.problems
    return kind(body.detail, problems, expected_offset=body.expected_offset)
