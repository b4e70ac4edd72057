"""Clients that keep at it while what they talk to is killed, and remember what they were told is stored."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nanollama.api.client import Client
from nanollama.api.errors import OffsetMismatch, Unavailable
from nanollama.api.schemas import Lease, SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState
from tests.support.service import SPEC_YAML, metric_line

T = TypeVar("T")

STREAM = "metrics/rank0.jsonl"
LINES, PER_UPLOAD, BACKLOG = 60, 7, 12
SECONDS = 120.0
DATA = [metric_line(i, i, loss=0.5 * i) for i in range(LINES)]


class ServerProcess:
    """`python -m backend serve` on one port through all its lives."""

    def __init__(self, database_url: str, folder: Path, port: int) -> None:
        self._command = [sys.executable, "-m", "backend", "serve", "--port", str(port), "--database-url", database_url]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Return once it answers."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("N2N_")}
        environment = kept | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with open(self._folder / "server.log", "a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # the port is open from here on: connections wait
        assert re.match("serving ", line), (self._folder / "server.log").read_text()[-2000:]
        with Client(self.url, timeout=SECONDS) as client:
            client.health()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate(timeout=SECONDS)

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.kill()
        self.start()


class Storm:
    """Workers and somebody who submits, until they are told to finish; then every promise is checked."""

    def __init__(self, url: str, workers: int) -> None:
        self._url = url
        self._changed = threading.Condition()
        self._life = 0  # of what is killed
        self._finishing = False
        self.acknowledged = 0
        self._unfinished = 0
        self.submitted: dict[str, str] = {}  # experiment by idempotency key
        self.lengths: dict[str, int] = {}  # of streams, by attempt
        self.finished: Counter[str] = Counter()  # attempts
        self.leases: dict[tuple[str, int], str] = {}  # worker by attempt and epoch
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guarded, args=(self._submit,))]
        self._threads += [threading.Thread(target=self._guarded, args=(self._work, f"w{i}")) for i in range(workers)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """They work while the context lasts, and finish what is queued at its end."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._finishing = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join(SECONDS)
        if self._errors:
            raise self._errors[0]
        assert not any(thread.is_alive() for thread in self._threads), "somebody waits for ever"

    def await_progress(self, count: int) -> None:
        """Until so many requests more have been acknowledged."""
        with self._changed:
            goal = self.acknowledged + count
            assert self._changed.wait_for(lambda: self._errors or self.acknowledged >= goal, SECONDS), "no progress"
            assert not self._errors, self._errors

    def lives_again(self) -> None:
        """What was killed is back."""
        with self._changed:
            self._life += 1
            self._changed.notify_all()

    def check(self) -> None:
        """Nothing that was acknowledged is lost, and nothing is there twice."""
        whole = len(b"".join(DATA))
        with Client(self._url, timeout=SECONDS) as client:
            experiments = list(_pages(lambda cursor: client.experiments(limit=500, cursor=cursor)))
            assert Counter(e.id for e in experiments) == Counter(self.submitted.values())
            runs = list(_pages(lambda cursor: client.runs(limit=500, cursor=cursor)))
            assert len(runs) == len(experiments)
            for run in runs:
                (attempt,) = client.attempts(run.id)
                assert (run.state, attempt.state) == ("SUCCEEDED", "SUCCEEDED")
                assert self.finished[attempt.id] == 1
                assert self.lengths[attempt.id] == whole
                ends = [event.to_state for event in client.events(run.id) if event.kind == "transition"]
                assert ends == ["QUEUED", "LEASED", "RUNNING", "SUCCEEDED"], ends
                series = client.metrics(run.id).series["loss"]
                assert list(series.step) == list(range(LINES))
                assert list(series.value) == [0.5 * i for i in range(LINES)]

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the test waits
            with self._changed:
                self._errors.append(error)
                self._finishing = True
                self._changed.notify_all()

    def _submit(self) -> None:
        connection = _Connection(self._url, self._wait_for_life)
        number = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._finishing or self._unfinished < BACKLOG, SECONDS)
                if self._finishing:
                    break
                self._unfinished += 1
            key, number = f"key-{number}", number + 1
            experiment = connection.persist(lambda client, key=key: client.submit(yaml=SPEC_YAML, idempotency_key=key))
            with self._changed:
                self.submitted[key] = experiment.id
                self._acknowledge()
        connection.close()

    def _work(self, name: str) -> None:
        connection = _Connection(self._url, self._wait_for_life)
        registration = WorkerRegistration(
            name=name, pool=name, executor="fake", host="h", user="u", run_root="/r", slots=2, version="1"
        )
        connection.persist(lambda client: client.register(name, registration))
        while True:
            request = SyncRequest(free_slots=2, wait_seconds=0.2)
            leases = connection.persist(lambda client, request=request: client.sync(name, request)).leases
            with self._changed:
                for lease in leases:
                    owner = self.leases.setdefault((lease.attempt_id, lease.epoch), name)
                    assert owner == name, f"{lease.attempt_id} was given to {owner} and to {name}"
                self._acknowledge()
                if not leases and self._finishing and self._unfinished == 0:
                    break
            for lease in leases:
                self._execute(connection, lease)
        connection.close()

    def _execute(self, connection: _Connection, lease: Lease) -> None:
        attempt = lease.attempt_id
        if lease.state is AttemptState.LEASED:
            self._report(connection, lease, AttemptState.RUNNING)
        offset = self.lengths.get(attempt, 0)
        done = len(b"".join(DATA))
        everything = b"".join(DATA)
        ends = [len(b"".join(DATA[: n + PER_UPLOAD])) for n in range(0, LINES, PER_UPLOAD)]
        while offset < done:
            end = next(end for end in ends if end > offset)
            piece = everything[offset:end]
            try:
                info = connection.persist(
                    lambda client, offset=offset, piece=piece: client.put_stream(
                        attempt, STREAM, epoch=lease.epoch, offset=offset, data=piece
                    )
                )
            except OffsetMismatch as error:
                raise AssertionError(f"{attempt}: {offset} bytes were acknowledged, and are lost: {error}") from error
            assert info.length >= end
            with self._changed:
                offset = self.lengths[attempt] = info.length
                self._acknowledge()
        self._report(connection, lease, AttemptState.SUCCEEDED, exit_code=0, result={"step": LINES})
        with self._changed:
            self.finished[attempt] += 1
            self._unfinished -= 1
            self._acknowledge()

    def _report(self, connection: _Connection, lease: Lease, to: AttemptState, **fields: Any) -> None:
        request = TransitionRequest(transition_id=f"{lease.attempt_id}-{to}", epoch=lease.epoch, to=to, **fields)
        connection.persist(lambda client: client.transition(lease.attempt_id, request))
        with self._changed:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self.acknowledged += 1
        self._changed.notify_all()

    def _wait_for_life(self, seen: int | None) -> int:
        """The life that runs; with `seen`, once another has begun."""
        with self._changed:
            if seen is not None:
                assert self._changed.wait_for(lambda: self._life != seen or self._errors, SECONDS), "nothing came back"
                assert not self._errors, "another has failed"
            return self._life


class _Connection:
    """Repeats a call until it is answered: once at once, for a connection may be a dead one's, then in each new life.

    Args:
        url: the service.
        life: tells which life of the service runs, and waits for the one after.
    """

    def __init__(self, url: str, life: Callable[[int | None], int]) -> None:
        self._url, self._life = url, life
        self._client = Client(url, timeout=SECONDS, retries=0)

    def close(self) -> None:
        self._client.close()

    def persist(self, call: Callable[[Client], T]) -> T:
        """The answer."""
        while True:
            life = self._life(None)
            for _ in range(2):
                try:
                    return call(self._client)
                except Unavailable:
                    self._client.close()
                    self._client = Client(self._url, timeout=SECONDS, retries=0)
            self._life(life)


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    cursor = None
    while True:
        page = ask(cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return
