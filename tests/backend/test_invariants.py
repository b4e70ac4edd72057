"""Random histories of people, workers, lost replies and time: what must hold after each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from backend.database import Database
from backend.experiments.service import ExperimentService
from backend.queue.pauses import PauseRepository
from backend.queue.service import QueueService
from backend.queue.sync import SyncService
from backend.queue.transitions import TransitionService
from backend.settings import Settings
from backend.specs.service import read_sweep
from backend.streams.service import StreamService
from backend.tables import ACTIVE, Attempt, Base, Event, Experiment, Need, Run
from backend.workers.repository import WorkerRepository
from backend.workers.service import WorkerService
from nanollama.api import schemas
from nanollama.api.errors import ApiError
from nanollama.api.status import AttemptState, RunState
from tests.support.invariants import replay
from tests.support.service import SPEC_YAML, ManualClock, checkpoint_line

GIVEN = schemas.ExperimentCreate(yaml=SPEC_YAML)
SWEEP = read_sweep(GIVEN)
SETTINGS = Settings()
EXAMPLES = 10
WORKERS = ("a", "b", "stranger")
ENDED = (AttemptState.INTERRUPTED, AttemptState.VOID)
NEEDS = {
    "nothing": schemas.Resources(),
    "one of two": schemas.Resources(accelerators=1),
    "both": schemas.Resources(accelerators=2),
    "a label": schemas.Resources(labels=["fast"]),
}
HAS = {"a": (2, ["fast"]), "b": (2, []), "stranger": (0, ["fast"])}
"""Accelerators and labels of the workers."""

small = st.integers(0, 7)
operations = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(list(NEEDS)), st.integers(0, 2), st.sampled_from([None, 0, 1])),
    st.tuples(st.just("cancel"), small),
    st.tuples(st.just("retry"), small),
    st.tuples(st.just("retry"), small),
    st.tuples(st.just("pause"), small, st.booleans()),
    st.tuples(st.just("pause_queue"), st.booleans()),
    st.tuples(st.just("drain"), st.sampled_from(WORKERS), st.booleans()),
    st.tuples(st.just("lose"), small, st.booleans()),
    st.tuples(st.just("resolve"), small, st.sampled_from(["INTERRUPTED", "FAILED", "CANCELLED"])),
    st.tuples(st.just("sync"), st.sampled_from(WORKERS), st.integers(0, 2), st.booleans(), st.booleans()),
    st.tuples(st.just("sync"), st.sampled_from(WORKERS), st.just(2), st.just(True), st.just(False)),
    st.tuples(st.just("report"), small, st.sampled_from(list(AttemptState)), st.booleans()),
    st.tuples(st.just("report"), small, st.sampled_from(ENDED), st.just(True)),
    st.tuples(st.just("save"), small, st.integers(1, 9)),
    st.tuples(st.just("advance"), st.sampled_from([10, 100, -50])),
)


@dataclass
class World:
    """A service without HTTP, and workers that remember or forget what they hold."""

    database: Database
    clock: ManualClock

    def __post_init__(self) -> None:
        self.held: dict[str, dict[str, schemas.Lease]] = {worker: {} for worker in WORKERS}
        self.known: list[schemas.Lease] = []
        self.reports = 0
        self.reopened: set[str] = set()
        for worker in WORKERS:
            registration = schemas.WorkerRegistration(
                name=worker,
                pool="other" if worker == "stranger" else "pool",
                executor="local",
                host="h",
                user="u",
                run_root="/root",
                slots=2,
                version="1",
                accelerators=HAS[worker][0],
                labels=HAS[worker][1],
            )
            self.write(lambda s, w=worker, r=registration: WorkerService(s, clock_now(self), SETTINGS).register(w, r))

    def write(self, act: Callable[[Any], Any]) -> Any:
        with self.database.write() as session:
            return act(session)

    def submit(self, needs: str = "nothing", retries: int = 0, interruptions: int | None = None) -> None:
        budgets = {"retries": retries, "max_interruptions": interruptions}
        given = GIVEN.model_copy(update={"resources": NEEDS[needs], **budgets})
        self.write(lambda s: ExperimentService(s, clock_now(self)).submit(given, SWEEP, None))

    def cancel(self, index: int) -> None:
        self.on_run(index, lambda queue, run_id: queue.cancel(run_id))

    def retry(self, index: int) -> None:
        def act(queue: QueueService, run_id: str) -> None:
            queue.retry(run_id)
            self.reopened.add(run_id)

        self.on_run(index, act)

    def resolve(self, index: int, to: str) -> None:
        self.on_run(index, lambda queue, run_id: queue.resolve(run_id, AttemptState(to), None))

    def on_run(self, index: int, act: Callable[[QueueService, str], Any]) -> None:
        with self.database.read() as session:
            runs = list(session.scalars(select(Run.id).order_by(Run.id)))
        before = self.rows()
        try:
            self.write(lambda s: act(QueueService(s, clock_now(self)), runs[index % len(runs)]))
        except ApiError:
            assert self.rows() == before, "what was refused changed something"

    def pause(self, index: int, on: bool) -> None:
        with self.database.read() as session:
            experiments = list(session.scalars(select(Experiment.id).order_by(Experiment.id)))
        chosen, since = experiments[index % len(experiments)], clock_now(self) if on else None
        self.write(lambda s: ExperimentService(s, clock_now(self)).set_paused(chosen, since))

    def pause_queue(self, on: bool) -> None:
        self.write(
            lambda s: PauseRepository(s).pause_queue(clock_now(self)) if on else PauseRepository(s).resume_queue()
        )

    def drain(self, worker: str, on: bool) -> None:
        self.write(lambda s: WorkerService(s, clock_now(self), SETTINGS).set_drain(worker, on))

    def lose(self, index: int, gone: bool) -> None:
        if not self.known:
            return
        lease = self.known[-1 - index % len(self.known)]
        report = schemas.UnknownReport(epoch=lease.epoch, reason="gone" if gone else None)
        with contextlib.suppress(ApiError):
            self.write(lambda s: TransitionService(s, clock_now(self)).unknown(lease.attempt_id, report))

    def sync(self, worker: str, slots: int, lists_all: bool, reply_arrives: bool) -> None:
        mine = self.held[worker] if lists_all else {}
        held = [schemas.Held(attempt_id=lease.attempt_id, epoch=lease.epoch) for lease in mine.values()]
        request = schemas.SyncRequest(held=held, free_slots=slots)
        before = self.rows()["attempts"]
        reply = self.write(lambda s: SyncService(s, clock_now(self), SETTINGS).sync(worker, request)).reply
        self.known += reply.leases
        new = [lease for lease in reply.leases if before[lease.attempt_id]["state"] is AttemptState.QUEUED]
        self.check_claims(worker, [lease.attempt_id for lease in new])
        if not reply_arrives:
            return
        if not lists_all:
            self.held[worker] = {}
        for attempt_id in reply.lost:
            self.held[worker].pop(attempt_id, None)
        self.held[worker] |= {lease.attempt_id: lease for lease in reply.leases}

    def check_claims(self, worker: str, claimed: list[str]) -> None:
        """What was claimed may be, and what the worker now holds needs no more than it has, claimed as it was."""
        with self.database.read() as session:
            if claimed:
                assert PauseRepository(session).queue() is None
                assert not WorkerRepository(session).get(worker).drain_requested  # type: ignore[union-attr]
            needs = {need.id: need.content for need in session.scalars(select(Need))}
            rows = session.execute(select(Attempt, Experiment).join(Experiment)).all()
            for attempt, experiment in rows:
                if attempt.id in claimed:
                    assert experiment.paused_since is None
                    assert set(needs.get(attempt.needs, {}).get("labels", ())) <= set(HAS[worker][1])
            held = [needs.get(a.needs, {}) for a, _ in rows if a.worker_id == worker and a.state in ACTIVE]
            adopted = any(a.worker_id == worker and a.epoch > 1 for a, _ in rows)
        if claimed and not adopted:
            assert sum(need.get("accelerators", 0) for need in held) <= HAS[worker][0]

    def report(self, index: int, to: AttemptState, evidence: bool) -> None:
        if not self.known:
            return
        lease = self.known[-1 - index % len(self.known)]
        self.reports += 1
        request = schemas.TransitionRequest(
            transition_id=f"report-{self.reports:08}",
            epoch=lease.epoch,
            to=to,
            exit_code=0 if evidence else None,
            result={} if evidence else None,
        )
        before = self.rows()
        try:
            self.write(lambda s: TransitionService(s, clock_now(self)).report(lease.attempt_id, request))
        except ApiError:
            assert self.rows() == before, "a refused report changed something"
            return
        assert before["attempts"][lease.attempt_id]["epoch"] == lease.epoch
        after = self.rows()
        self.write(lambda s: TransitionService(s, clock_now(self)).report(lease.attempt_id, request))
        assert self.rows() == after, "a repeated report changed something"

    def save(self, index: int, step: int) -> None:
        if not self.known:
            return
        lease = self.known[-1 - index % len(self.known)]
        with self.database.write() as session:
            streams = StreamService(session, clock_now(self), 1 << 20)
            try:
                length = streams.put(lease.attempt_id, "events.jsonl", epoch=lease.epoch, offset=0, data=b"").length
                streams.put(
                    lease.attempt_id,
                    "events.jsonl",
                    epoch=lease.epoch,
                    offset=length,
                    data=checkpoint_line(0, step),
                )
            except ApiError:
                pass

    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    def rows(self) -> dict[str, dict[str, dict[str, Any]]]:
        with self.database.read() as session:
            return {
                table.__tablename__: {row.id: _plain(row) for row in session.scalars(select(table))}
                for table in (Run, Attempt)
            }

    def events(self) -> list[Event]:
        with self.database.read() as session:
            return list(session.scalars(select(Event).order_by(Event.id)))


def clock_now(world: World) -> Any:
    return world.clock()


def _plain(row: Run | Attempt) -> dict[str, Any]:
    left_out = {"config", "result", "lease_expires_at", "cancel_told_epoch"}
    return {
        column.key: getattr(row, column.key) for column in type(row).__table__.columns if column.key not in left_out
    }


def check(world: World, before: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    rows = world.rows()
    by_run: dict[str, list[dict[str, Any]]] = {}
    for attempt in rows["attempts"].values():
        by_run.setdefault(attempt["run_id"], []).append(attempt)
    for run_id, run in rows["runs"].items():
        attempts = sorted(by_run[run_id], key=lambda a: a["number"])
        assert [a["number"] for a in attempts] == list(range(1, run["attempt"] + 1))
        newest, older = attempts[-1], attempts[:-1]
        # attempt n+1 implies that attempt n has ended, by evidence or a person's word: never two that could execute
        assert all(a["state"].terminal and a["state"] is not AttemptState.SUCCEEDED for a in older)
        if not run["retries"] and run["counted_from"] == 1:
            assert all(a["state"] in ENDED for a in older)
        counted = [a["state"] for a in attempts if a["number"] >= run["counted_from"]]
        assert counted.count(AttemptState.FAILED) <= run["retries"] + 1
        if run["max_interruptions"] is not None:
            assert counted.count(AttemptState.INTERRUPTED) <= run["max_interruptions"] + 1
        assert run["state"].terminal == newest["state"].terminal
        if newest["state"] in ENDED:
            assert run["state"] in (RunState.FAILED, RunState.CANCELLED)
            assert run["reason"]
        else:
            assert run["state"].value == newest["state"].value
        assert (run["finished_at"] is not None) == run["state"].terminal
        if newest["state"] is AttemptState.SUCCEEDED:
            assert newest["exit_code"] == 0
    for table, terminal in (("runs", RunState), ("attempts", AttemptState)):
        for key, row in before[table].items():
            if terminal(row["state"]).terminal and key not in world.reopened:
                assert rows[table][key] == row, "terminal is absorbing"
            elif table == "attempts":
                assert rows[table][key]["epoch"] >= row["epoch"]
    replayed_runs, replayed_attempts = replay(world.events())
    assert replayed_runs == {
        key: {
            "state": row["state"].value,
            "attempt": row["attempt"],
            "cancel_requested": row["cancel_requested"],
            "unknown": row["unknown_since"] is not None,
        }
        for key, row in rows["runs"].items()
    }
    assert replayed_attempts == {
        (row["run_id"], row["number"]): (row["state"].value, row["epoch"]) for row in rows["attempts"].values()
    }
    return rows


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(operations, min_size=10, max_size=40))
def test_invariants_hold_in_random_histories(database: Database, steps: list[tuple[Any, ...]]) -> None:
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    world = World(database, ManualClock())
    world.submit()
    rows = check(world, {"runs": {}, "attempts": {}})
    for name, *arguments in steps:
        world.reopened.clear()
        getattr(world, name)(*arguments)
        rows = check(world, rows)
    # once everybody is well again, and nothing is paused, each run can be brought to its end
    world.pause_queue(False)
    for index in range(len(rows["runs"])):
        world.pause(index, False)
    for worker in WORKERS:
        world.drain(worker, False)
    for _ in range(30):
        for worker in ("a", "b"):
            world.sync(worker, 2, True, True)
            for lease in list(world.held[worker].values()):
                world.known.append(lease)
                world.report(0, AttemptState.SUCCEEDED, evidence=True)
        world.advance(100)
        if all(run["state"].terminal for run in world.rows()["runs"].values()):
            break
        world.sync("stranger", 1, True, True)
        for lease in list(world.held["stranger"].values()):
            world.known.append(lease)
            world.report(0, AttemptState.FAILED, evidence=False)
    rows = check(world, rows)
    assert all(run["state"].terminal for run in rows["runs"].values())
