"""The loop: register, renew leases, take new ones, follow each in a job, and leave without losing any."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from nanollama import __version__
from nanollama.api.client import Client
from nanollama.api.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound, Unauthorized, Unavailable
from nanollama.api.schemas import (
    DatasetReport,
    Lease,
    SyncReply,
    SyncRequest,
    TransitionRequest,
    WorkerRegistration,
    WorkerTerms,
)
from nanollama.api.status import AttemptState
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EXIT_BAD_INPUT
from worker.commands import Commands
from worker.crew import Crew
from worker.datasets import Datasets
from worker.executors.base import Executor, Refused, attempt_directory
from worker.job import Job
from worker.journal import Journal, Record
from worker.outcome import Ending
from worker.pace import Backoff, Pace
from worker.root import RunRoot
from worker.settings import Settings, read_token
from worker.signals import Signals
from worker.watch import FindStrays, Watch, no_strays

log = logging.getLogger(__name__)

BUSY_WAIT_SECONDS = 2.0
"""Long poll while every slot is taken: after a job's end the next one is asked for at most this much later."""

COMMAND_WAIT_SECONDS = 0.5
"""Likewise while something is done to checkpoints: what became of it is told at most this much later."""

SECOND_SIGNAL_SECONDS = 1.0
REPORT_SECONDS = 5.0
"""How long jobs that have been stopped get to tell the service; the journal keeps what is left."""

_MAX_WAIT_SECONDS = 30.0
_NEWER = frozenset({"accelerators", "cpus", "memory_gb", "labels", "problems"})
"""Fields of a registration without which services of older versions take it too."""


class NotAccepted(Exception):
    """The service refuses the registration, and nothing depends on this worker: to try again would change nothing."""


class Daemon:
    """One worker.

    Args:
        settings: what it was told.
        journal: what it remembers.
        client: connection to the service.
        executor: executes attempts.
        find_strays: finds what executes below the run root, by attempt; see Watch.
        follow: sets a job going; when absent, threads of the daemon's own follow it.
        clock: tells the jobs the time in seconds, from any origin.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        client: Client,
        executor: Executor,
        find_strays: FindStrays = no_strays,
        follow: Callable[[Job], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._client = client
        self._executor = executor
        self._crew = Crew()
        self._start_job = follow or self._crew.add
        self._clock = clock
        self._pace = Pace()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()  # guards the jobs
        self._draining = threading.Event()
        self._closed = threading.Event()
        self._introduced = False  # whether the service knows what is held: only then is more asked for
        self._terms: WorkerTerms | None = None
        self._signals = Signals()
        self._failure: str | None = None
        self._commands = Commands(settings.run_root, self._holds, wake=self._crew.wake)
        self._root = RunRoot(settings.run_root, journal)
        self._watch = Watch(settings.run_root, find_strays, self._held_ids, check=self._root.check)
        self._reported_problems: list[str] = []
        self._accepted = False  # whether the service has ever taken this worker
        self._said_full = False  # that the end of runs cannot be noted
        self._withheld: frozenset[str] = frozenset()  # fields of the registration that the service does not know

    def run(self) -> int:
        """Work until a signal comes; returns the exit code. To be called from the main thread."""
        with self._signals:
            self.resume()
            self._crew.add(self._watch)
            self._crew.add(self._commands)
            if self._settings.data_roots:
                self._crew.add(Datasets(self._settings.data_roots, self._report_datasets))
            threading.Thread(target=self._sync_forever, name="sync", daemon=True).start()
            self._signals.wait()
            return self._leave()

    def resume(self) -> None:
        """Take up again what an earlier life of this worker held."""
        for record in self._journal.held():
            self._follow(record)

    def sync(self) -> None:
        """Talk to the service once: renew, take, lose, cancel.

        Raises:
            ApiError: the service is away, or refuses.
        """
        try:
            if self._terms is None or self._watch.problems != self._reported_problems:
                self._register()
            request = self._request()
            reply = self._client.sync(self._journal.worker_id, request)
            self._commands.told(request.done)
            self._apply(reply)
        except NotFound:
            self._terms = None  # the service has forgotten this worker
            raise

    # -- talking to the service --------------------------------------------------------------------------------------

    def _sync_forever(self) -> None:
        backoff, said = Backoff(), ""
        while not self._closed.is_set():
            try:
                self.sync()
            except NotAccepted as error:
                self._failure = str(error)
                self._signals.wake()
                return
            except (ApiError, OSError, sqlite3.Error) as error:
                if isinstance(error, Unauthorized):
                    self._renew_token()
                if isinstance(error, Unavailable | Unauthorized):
                    self._pace.unreachable(self._clock())
                if said != type(error).__name__:  # each kind of trouble once
                    said = type(error).__name__
                    log.warning("%s; jobs go on, trying again", self._in_words(error))
                self._closed.wait(backoff.next())
            except Exception:
                if self._closed.is_set():
                    return  # the connection was closed under a poll that nobody waits for
                log.exception("a bug in the worker; trying again")
                self._closed.wait(backoff.next())
            else:
                if backoff.failing:
                    log.info("the service answers again")
                    said = ""
                backoff.reset()
                self._pace.reached()

    def _in_words(self, error: Exception) -> str:
        """What went wrong while talking to the service, and what to do about it."""
        if isinstance(error, Unauthorized):
            file = self._settings.token_file
            where = f"put another into {file}" if file else "name a file with --token-file, or set $N2N_TOKEN"
            return f"the service does not accept this worker's token ({error}) - {where}"
        if isinstance(error, sqlite3.Error | OSError):
            return self._journal.in_words(error)
        return str(error)

    def _renew_token(self) -> None:
        """Use what the token file holds now: somebody may have put another token into it."""
        if self._settings.token_file is not None:
            with contextlib.suppress(SpecError):
                self._client.use_token(read_token(self._settings.token_file))

    def _register(self) -> None:
        problems = self._watch.problems
        registration = self._registration(problems)
        try:
            known = {name for name in WorkerRegistration.model_fields if name not in self._withheld}
            sent = WorkerRegistration.model_validate(registration.model_dump(include=known))
            terms = self._client.register(self._journal.worker_id, sent)
        except InvalidRequest as error:
            unknown = {p.path.rpartition(".")[2] for p in error.problems if p.message == "unknown key"} & _NEWER
            if unknown <= self._withheld:
                raise self._refused(error) from error
            self._withheld |= unknown
            log.warning("the service is of an older version and does not know: %s", ", ".join(sorted(unknown)))
            self._register()
            return
        except NotFound as error:
            message = f"{self._client.url} takes no workers: it is of an older version, or another service ({error})"
            raise Unavailable(message) from error
        except (Unauthorized, Forbidden, Conflict) as error:
            raise self._refused(error) from error
        if self._terms is None:
            log.info("registered with %s as %s (%s)", self._client.url, self._settings.name, self._journal.worker_id)
            self._introduced = False
        self._terms, self._reported_problems, self._accepted = terms, problems, True
        self._pace.upload_seconds = terms.upload_seconds

    def _report_datasets(self, found: list[DatasetReport]) -> None:
        self._client.report_datasets(self._journal.worker_id, found)

    def _refused(self, error: ApiError) -> Exception:
        """The end of the worker when it has just been set up; with runs in its hands it stays, and goes on trying."""
        if self._accepted or self._all_jobs():
            return error
        return NotAccepted(f"the service does not accept this worker: {self._in_words(error)}")

    def _registration(self, problems: list[str]) -> WorkerRegistration:
        settings = self._settings
        return WorkerRegistration(
            name=settings.name,
            pool=settings.pool,
            executor=self._executor.kind,
            host=settings.host,
            user=settings.user,
            run_root=str(settings.run_root),
            slots=settings.slots,
            version=__version__,
            accelerators=settings.accelerators,
            cpus=settings.cpus,
            memory_gb=settings.memory_gb,
            labels=list(settings.labels),
            problems=problems,
        )

    def _request(self) -> SyncRequest:
        assert self._terms is not None
        draining = self._draining.is_set()
        with self._lock:
            held = [job.held for job in self._jobs.values()]
        idle = draining or not self._introduced or self._watch.unusable is not None
        free = 0 if idle else max(0, self._settings.slots - len(held))
        wait = min(self._terms.heartbeat_seconds, _MAX_WAIT_SECONDS) if free else BUSY_WAIT_SECONDS
        wait = COMMAND_WAIT_SECONDS if self._commands.under_way else wait
        wait = wait if self._introduced else 0.0
        request = SyncRequest(held=held, free_slots=free, wait_seconds=wait, draining=draining)
        done = self._commands.done  # an older service knows no such key
        return request.model_copy(update={"done": done}) if done else request

    def _apply(self, reply: SyncReply) -> None:
        self._pace.upload_seconds = reply.upload_seconds
        self._introduced = True
        for attempt_id in reply.lost:
            job = self._take_out(attempt_id)
            if job is not None:
                job.lose()
        for lease in reply.leases:
            self._accept(lease)
        for attempt_id in reply.cancel:
            with self._lock:
                job = self._jobs.get(attempt_id)
            if job is not None:
                job.end("cancel")
        self._commands.take(reply.commands)

    def _accept(self, lease: Lease) -> None:
        """Take a lease, new or delivered again."""
        if self._draining.is_set():
            return  # it is delivered again to the next life
        with self._lock:
            known = self._jobs.get(lease.attempt_id)
        if known is not None and known.held.epoch >= lease.epoch:
            return
        earlier = self._take_out(lease.attempt_id)
        if earlier is not None:
            earlier.lose()
        try:
            directory = attempt_directory(self._settings.run_root, lease.run_id, lease.number)
        except Refused as refusal:
            log.error("%s: %s", lease.run_name, refusal)
            transition_id = f"refused-{lease.attempt_id}"[:64]
            request = TransitionRequest(
                transition_id=transition_id, epoch=lease.epoch, to=AttemptState.FAILED, reason=str(refusal)
            )
            self._client.transition(lease.attempt_id, request)
            return
        record = Record(lease, directory, lease.state, "cancel" if lease.cancel_requested else None)
        self._journal.hold(record)
        self._follow(record, untouched=lease.epoch == 1)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def _follow(self, record: Record, *, untouched: bool = False) -> None:
        job = Job(
            record,
            executor=self._executor,
            client=self._client,
            journal=self._journal,
            pace=self._pace,
            grace=self._settings.grace,
            on_over=self._on_over,
            wake=self._crew.wake,
            allowed=self._settings.allowed,
            root=self._root,
            is_deleting=self._commands.is_deleting,
            untouched=untouched,
            clock=self._clock,
        )
        with self._lock:
            self._jobs[job.attempt.id] = job
        self._start_job(job)

    def _on_over(self, job: Job) -> None:
        with self._lock:
            if self._jobs.get(job.attempt.id) is job:
                del self._jobs[job.attempt.id]

    def _take_out(self, attempt_id: str) -> Job | None:
        with self._lock:
            return self._jobs.pop(attempt_id, None)

    def _held_ids(self) -> set[str]:
        with self._lock:
            return set(self._jobs)

    def _holds(self, run_id: str) -> bool:
        """Whether an attempt of a run is held."""
        return any(job.attempt.directory.parent.name == run_id for job in self._all_jobs())

    def _all_jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    # -- leaving -----------------------------------------------------------------------------------------------------

    def _leave(self) -> int:
        if self._failure is not None:
            log.error("%s", self._failure)
        self._draining.set()
        if self._settings.stop_jobs_on_exit:
            self._end_jobs("interrupt")
        self._say_goodbye()
        if self._settings.stop_jobs_on_exit:
            self._await_jobs("interrupt")
        elif self._all_jobs() and self._signals.wait(SECOND_SIGNAL_SECONDS):
            self._await_jobs("cancel", hurry=True)
        left = self._all_jobs()
        for job in left:
            job.detach()
        self._crew.close(SECOND_SIGNAL_SECONDS)
        self._closed.set()
        log.info("ended; runs left to the next worker of this pool: %d", len(left))
        return 0 if self._failure is None else EXIT_BAD_INPUT

    def _say_goodbye(self) -> None:
        """Tell the service that this worker takes nothing more; without it, its silence says so a little later."""
        if self._terms is not None:
            with contextlib.suppress(ApiError):
                self._client.sync(self._journal.worker_id, self._request().model_copy(update={"wait_seconds": 0.0}))

    def _end_jobs(self, ending: Ending, *, hurry: bool = False) -> None:
        for job in self._all_jobs():
            try:
                job.end(ending, hurry=hurry)
            except (sqlite3.Error, OSError) as error:
                if not self._said_full:
                    log.error("%s; the runs are ended all the same", self._journal.in_words(error))
                self._said_full = True

    def _await_jobs(self, ending: Ending, *, hurry: bool = False) -> None:
        """End every job and wait until they are reported; what cannot be reported in time stays in the journal."""
        deadline: float | None = None
        while jobs := self._all_jobs():
            self._end_jobs(ending, hurry=hurry)
            hurry = self._signals.wait(0.1) or hurry
            now = time.monotonic()
            if not all(job.ended or job.out_of_sight for job in jobs):
                deadline = None
            elif deadline is None:
                deadline = now + REPORT_SECONDS
            elif now >= deadline:
                log.warning("not all can be reported now; the next start of this worker reports how the runs ended")
                return
