"""Heartbeat, recovery, adoption and claim of a worker, in one transaction; and the long poll around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from backend.checkpoints.commands import CheckpointCommands
from backend.deps import Context
from backend.queue.needs import NeedRepository
from backend.queue.pauses import PauseRepository
from backend.queue.repository import AttemptRepository, Holding
from backend.runs.repository import EventRepository, RunRepository
from backend.settings import Settings
from backend.tables import Attempt, Run, Worker
from backend.workers.repository import WorkerRepository
from backend.workers.service import no_worker
from nanollama.api import schemas
from nanollama.api.status import AttemptState, RunState


@dataclass(frozen=True)
class Synced:
    """The answer, whether it says anything new, and the number of this sync."""

    reply: schemas.SyncReply
    news: bool
    serial: int


class SyncService:
    """A worker's sync, as of one moment."""

    def __init__(self, session: Session, now: datetime, settings: Settings) -> None:
        self._now = now
        self._settings = settings
        self._attempts = AttemptRepository(session)
        self._workers = WorkerRepository(session)
        self._needs = NeedRepository(session)
        self._pauses = PauseRepository(session)
        self._runs = RunRepository(session)
        self._events = EventRepository(session)
        self._commands = CheckpointCommands(session, now)

    def sync(self, worker_id: str, request: schemas.SyncRequest, serial: int | None = None) -> Synced:
        """Renew, re-deliver, adopt, claim and list cancels, in this order.

        Args:
            worker_id: who asks.
            request: what it holds and wants.
            serial: number of this sync when it has waited; it gets nothing if a newer one of the worker came.

        Raises:
            NotFound: the worker is not registered.
        """
        worker = self._workers.lock(worker_id)
        if worker is None:
            raise no_worker(worker_id)
        if serial is not None and serial != worker.syncs:
            return Synced(self._reply(), news=True, serial=worker.syncs)
        if serial is None:
            worker.syncs += 1
        worker.last_seen_at, worker.draining = self._now, request.draining
        expires = self._now + timedelta(seconds=self._settings.terms(worker.executor).lease_seconds)

        holdings = self._attempts.held_by(worker_id)
        listed = {held.attempt_id: held.epoch for held in request.held}
        renewed = [h for h in holdings if listed.get(h.attempt_id) == h.epoch]
        self._attempts.renew([h.attempt_id for h in renewed], expires)
        unknown = [h.attempt_id for h in holdings if h.attempt_id not in listed]
        redelivered = self._attempts.redeliver(worker, unknown, expires)
        draining = request.draining or worker.drain_requested
        adopted = [] if draining else self._attempts.adopt(worker, self._now, expires, self._longest)
        free = 0 if draining else request.free_slots - len(redelivered) - len(adopted)
        claimed = self._claim(worker, free, expires) if free > 0 else []

        leases = self._deliver(worker, redelivered, adopted, claimed)
        cancels, untold = self._cancels(renewed, leases)
        lost = sorted(listed.keys() - {h.attempt_id for h in renewed})
        self._commands.report(worker, request.done)
        commands = [] if request.draining else self._commands.pending(worker)
        reply = self._reply(leases=leases, lost=lost, cancel=cancels, commands=commands, drain=worker.drain_requested)
        # a worker of an older version passes over commands: answered at once, it would ask again and again
        told = bool(commands) and (serial is not None or bool(request.done))
        return Synced(reply, news=bool(leases or lost or untold or told), serial=worker.syncs)

    def has_news(self, worker_id: str, request: schemas.SyncRequest, serial: int) -> bool:
        """Whether another look would find something for a sync that waits. Changes and locks nothing."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.syncs != serial or self._attempts.any_untold_cancel(worker_id):
            return True
        if request.draining:
            return False
        if self._commands.any_pending(worker):
            return True
        if self._attempts.count_held(worker_id) < len(request.held):
            return True  # one has ended or is lost: there is room for another, which a new request asks for
        if worker.drain_requested:
            return False
        if self._attempts.any_adoptable(worker, self._now, self._longest):
            return True
        if request.free_slots == 0 or self._pauses.queue() is not None:
            return False
        offer, waiting = self._needs.offer(worker), self._needs.of_waiting()
        return self._attempts.any_claimable(worker, [i for i, need in waiting.items() if offer.fits(need)])

    @property
    def _longest(self) -> timedelta:
        """For how long a lease is given, whoever gets it: others of a pool may have other terms."""
        settings = self._settings
        return timedelta(seconds=max(settings.local_terms.lease_seconds, settings.slurm_terms.lease_seconds))

    def _claim(self, worker: Worker, free: int, expires: datetime) -> list[str]:
        """Lease up to `free` attempts whose needs the worker can meet, all of them together; their ids.

        They are claimed in rounds, each so small that whatever it brings fits. What does not fit waits, and later ones
        that do may overtake it.
        """
        if self._pauses.queue() is not None:
            return []
        offer, waiting = self._needs.offer(worker), self._needs.of_waiting()
        claimed: list[str] = []
        while len(claimed) < free:
            fitting = {i: need for i, need in waiting.items() if offer.fits(need)}
            size = min([free - len(claimed), *(offer.times(need, free) for need in fitting.values())])
            got = self._attempts.claim(worker, size, expires, fitting)
            claimed += [attempt_id for attempt_id, _ in got]
            for _, need_id in got:
                if need_id is not None:
                    offer.take(waiting[need_id])
            if len(got) < size:
                break
        return claimed

    def _deliver(
        self, worker: Worker, redelivered: list[str], adopted: list[str], claimed: list[str]
    ) -> list[schemas.Lease]:
        pairs = self._attempts.leased([*redelivered, *adopted, *claimed])
        kinds = dict.fromkeys(redelivered, "redelivered") | dict.fromkeys(adopted, "adopted")
        self._runs.set_many([run.id for _, run in pairs], worker=worker.name)
        self._runs.set_many([a.run_id for a, _ in pairs if a.id not in kinds], state=RunState.LEASED, reason=None)
        for attempt, run in pairs:
            kind = kinds.get(attempt.id, "transition")
            claim = kind == "transition"
            self._events.add(
                run.id,
                kind,
                self._now,
                attempt=attempt.number,
                from_state=AttemptState.QUEUED.value if claim else None,
                to_state=AttemptState.LEASED.value if claim else None,
                epoch=attempt.epoch,
                message=f"{'leased' if claim else kind} to worker {worker.name}",
            )
        return [_lease_view(attempt, run) for attempt, run in pairs]

    def _cancels(self, renewed: list[Holding], leases: list[schemas.Lease]) -> tuple[list[str], bool]:
        """The held attempts to cancel, and whether the worker has not heard of one of them yet."""
        wanted = [h for h in renewed if h.cancel_requested]
        untold = [h.attempt_id for h in wanted if not h.cancel_told]
        self._attempts.told_to_cancel([*untold, *(lease.attempt_id for lease in leases if lease.cancel_requested)])
        return [h.attempt_id for h in wanted], bool(untold)

    def _reply(
        self,
        leases: Sequence[schemas.Lease] = (),
        lost: Sequence[str] = (),
        cancel: Sequence[str] = (),
        commands: Sequence[schemas.Command] = (),
        *,
        drain: bool = False,
    ) -> schemas.SyncReply:
        pause = max(self._settings.upload_seconds, self._attempts.count_active() / self._settings.uploads_per_second)
        return schemas.SyncReply(
            leases=list(leases),
            lost=list(lost),
            cancel=list(cancel),
            commands=list(commands),
            drain=drain,
            upload_seconds=pause,
        )


async def sync_or_wait(
    context: Context,
    worker_id: str,
    request: schemas.SyncRequest,
    disconnected: Callable[[], Awaitable[bool]],
) -> schemas.SyncReply:
    """Answer at once when there is something to say, otherwise when there is, or after `wait_seconds`.

    While it waits, it only reads: woken by what this process does, and now and then for what others do.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + request.wait_seconds
    seen = context.notifier.version

    def sync(serial: int | None) -> Synced:
        with context.database.write() as session:
            return SyncService(session, context.clock(), context.settings).sync(worker_id, request, serial)

    def has_news(serial: int) -> bool:
        with context.database.read() as session:
            return SyncService(session, context.clock(), context.settings).has_news(worker_id, request, serial)

    done = await run_in_threadpool(sync, None)
    while not done.news and not context.notifier.closed:
        left = deadline - loop.time()
        if left <= 0 or await disconnected():
            break
        await context.notifier.wait(seen, min(left, context.settings.poll_seconds))
        seen = context.notifier.version
        if await run_in_threadpool(has_news, done.serial):
            if await disconnected():
                break  # nobody would learn of what we claim for it
            done = await run_in_threadpool(sync, done.serial)
    return done.reply


def extend_leases(session: Session, now: datetime, settings: Settings) -> None:
    """Give every worker a full lease from now on: nobody could renew while the service was down."""
    attempts = AttemptRepository(session)
    for executor in ("local", "slurm", "fake"):
        attempts.extend_all(executor, now + timedelta(seconds=settings.terms(executor).lease_seconds))


def _lease_view(attempt: Attempt, run: Run) -> schemas.Lease:
    return schemas.Lease(
        attempt_id=attempt.id,
        run_id=run.id,
        run_name=run.name,
        number=attempt.number,
        epoch=attempt.epoch,
        state=attempt.state,
        app=run.app,
        config=run.config,
        cancel_requested=run.cancel_requested,
        experiment_id=run.experiment_id,
    )
