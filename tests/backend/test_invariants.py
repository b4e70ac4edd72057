"""Random histories of people, workers, lost replies and time: what must hold after each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from backend.database import Database
from backend.experiments.service import ExperimentService
from backend.queue.service import QueueService
from backend.queue.sync import SyncService
from backend.queue.transitions import TransitionService
from backend.settings import Settings
from backend.specs.service import read_sweep
from backend.streams.service import StreamService
from backend.tables import Attempt, Base, Event, Run
from backend.workers.service import WorkerService
from nanollama.api import schemas
from nanollama.api.errors import ApiError
from nanollama.api.status import AttemptState, RunState
from tests.support.service import SPEC_YAML, ManualClock, checkpoint_line

GIVEN = schemas.ExperimentCreate(yaml=SPEC_YAML)
SWEEP = read_sweep(GIVEN)
SETTINGS = Settings()
WORKERS = ("a", "b", "stranger")
ENDED = (AttemptState.INTERRUPTED, AttemptState.VOID)

small = st.integers(0, 7)
operations = st.one_of(
    st.tuples(st.just("submit")),
    st.tuples(st.just("cancel"), small),
    st.tuples(st.just("sync"), st.sampled_from(WORKERS), st.integers(0, 2), st.booleans(), st.booleans()),
    st.tuples(st.just("sync"), st.sampled_from(WORKERS), st.just(2), st.just(True), st.just(False)),
    st.tuples(st.just("report"), small, st.sampled_from(list(AttemptState)), st.booleans()),
    st.tuples(st.just("report"), small, st.sampled_from(ENDED), st.just(True)),
    st.tuples(st.just("save"), small, st.integers(1, 9)),
    st.tuples(st.just("advance"), st.sampled_from([10, 100])),
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
            )
            self.write(lambda s, w=worker, r=registration: WorkerService(s, clock_now(self), SETTINGS).register(w, r))

    def write(self, act: Callable[[Any], Any]) -> Any:
        with self.database.write() as session:
            return act(session)

    def submit(self) -> None:
        self.write(lambda s: ExperimentService(s, clock_now(self)).submit(GIVEN, SWEEP, None))

    def cancel(self, index: int) -> None:
        with self.database.read() as session:
            runs = list(session.scalars(select(Run.id).order_by(Run.id)))
        if runs:
            self.write(lambda s: QueueService(s, clock_now(self)).cancel(runs[index % len(runs)]))

    def sync(self, worker: str, slots: int, lists_all: bool, reply_arrives: bool) -> None:
        mine = self.held[worker] if lists_all else {}
        held = [schemas.Held(attempt_id=lease.attempt_id, epoch=lease.epoch) for lease in mine.values()]
        request = schemas.SyncRequest(held=held, free_slots=slots)
        reply = self.write(lambda s: SyncService(s, clock_now(self), SETTINGS).sync(worker, request)).reply
        self.known += reply.leases
        if not reply_arrives:
            return
        if not lists_all:
            self.held[worker] = {}
        for attempt_id in reply.lost:
            self.held[worker].pop(attempt_id, None)
        self.held[worker] |= {lease.attempt_id: lease for lease in reply.leases}

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


def replay(events: list[Event]) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, int], tuple[str, int]]]:
    """State and newest attempt of each run, state and epoch of each attempt, from nothing but the log."""
    runs: dict[str, dict[str, Any]] = {}
    attempts: dict[tuple[str, int], tuple[str, int]] = {}
    for event in events:
        run = runs.setdefault(event.run_id, {"state": None, "attempt": 0, "cancel_requested": False})
        if event.kind == "cancel_requested":
            run["cancel_requested"] = True
        elif event.kind in ("adopted", "redelivered"):
            assert event.attempt is not None
            assert event.epoch is not None
            state, epoch = attempts[event.run_id, event.attempt]
            assert event.epoch == epoch + 1
            attempts[event.run_id, event.attempt] = (state, event.epoch)
        elif event.kind == "transition":
            if event.attempt is not None:
                assert event.epoch is not None
                assert event.to_state is not None
                before = attempts.get((event.run_id, event.attempt))
                assert event.from_state == (None if before is None else before[0])
                attempts[event.run_id, event.attempt] = (event.to_state, event.epoch)
                run["attempt"] = max(run["attempt"], event.attempt)
            if event.to_state not in ("INTERRUPTED", "VOID"):
                run["state"] = event.to_state
    return runs, attempts


def check(world: World, before: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    rows = world.rows()
    by_run: dict[str, list[dict[str, Any]]] = {}
    for attempt in rows["attempts"].values():
        by_run.setdefault(attempt["run_id"], []).append(attempt)
    for run_id, run in rows["runs"].items():
        attempts = sorted(by_run[run_id], key=lambda a: a["number"])
        assert [a["number"] for a in attempts] == list(range(1, run["attempt"] + 1))
        newest, older = attempts[-1], attempts[:-1]
        # attempt n+1 implies that attempt n ended without ending the run: never two that could execute
        assert all(a["state"] in ENDED for a in older)
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
            if terminal(row["state"]).terminal:
                assert rows[table][key] == row, "terminal is absorbing"
            elif table == "attempts":
                assert rows[table][key]["epoch"] >= row["epoch"]
    replayed_runs, replayed_attempts = replay(world.events())
    assert replayed_runs == {
        key: {"state": row["state"].value, "attempt": row["attempt"], "cancel_requested": row["cancel_requested"]}
        for key, row in rows["runs"].items()
    }
    assert replayed_attempts == {
        (row["run_id"], row["number"]): (row["state"].value, row["epoch"]) for row in rows["attempts"].values()
    }
    return rows


@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(operations, min_size=10, max_size=40))
def test_invariants_hold_in_random_histories(database: Database, steps: list[tuple[Any, ...]]) -> None:
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    world = World(database, ManualClock())
    world.submit()
    rows = check(world, {"runs": {}, "attempts": {}})
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
        rows = check(world, rows)
    # once everybody is well again, each run that a worker holds can be brought to its end
    for _ in range(30):
        for worker in ("a", "b"):
            world.sync(worker, 2, True, True)
            for lease in list(world.held[worker].values()):
                world.known.append(lease)
                world.report(0, AttemptState.SUCCEEDED, evidence=True)
        world.advance(100)
        if all(run["state"].terminal for run in world.rows()["runs"].values()):
            break
        world.sync("stranger", 0, True, True)
        for lease in list(world.held["stranger"].values()):
            world.known.append(lease)
            world.report(0, AttemptState.FAILED, evidence=False)
    rows = check(world, rows)
    assert all(run["state"].terminal for run in rows["runs"].values())
