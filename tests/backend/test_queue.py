"""Who gets which attempt, and when."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
from sqlalchemy import select, update

from backend.app import create_app
from backend.database import Database
from backend.deps import Context
from backend.notifier import Notifier
from backend.queue.repository import AttemptRepository
from backend.settings import Settings
from backend.tables import Attempt, Run
from backend.workers.repository import WorkerRepository
from tests.support.service import Caller, ManualClock, serve
from tests.support.waiting import eventually


def names(reply: dict[str, Any]) -> list[str]:
    return [lease["run_name"] for lease in reply["leases"]]


def test_claims_of_concurrent_workers_are_disjoint(database_url: str, caller: Caller) -> None:
    """Each thread has its own engine, as a server process of its own would: no lock of ours is shared."""
    runs = {caller.submit() for _ in range(24)}
    workers = [f"w{i}" for i in range(4)]
    for worker in workers:
        caller.register(worker)
    barrier = threading.Barrier(len(workers))

    def claim_all(worker_id: str) -> list[str]:
        database = Database(database_url)
        claimed: list[str] = []
        barrier.wait()
        for _ in range(24):
            with database.write() as session:
                worker = WorkerRepository(session).lock(worker_id)
                assert worker is not None
                expires = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=90)
                claimed += [attempt_id for attempt_id, _ in AttemptRepository(session).claim(worker, 2, expires)]
        database.dispose()
        return claimed

    with ThreadPoolExecutor(len(workers)) as pool:
        claims = list(pool.map(claim_all, workers))
    counts = Counter(attempt for claimed in claims for attempt in claimed)
    assert len(counts) == len(runs)
    assert set(counts.values()) == {1}


def test_concurrent_syncs_over_http_lease_each_attempt_once(caller: Caller) -> None:
    runs = {caller.submit() for _ in range(20)}
    workers = [f"w{i}" for i in range(5)]
    for worker in workers:
        caller.register(worker)
    held: dict[str, list[dict[str, Any]]] = {worker: [] for worker in workers}

    def work(worker: str) -> None:
        for _ in range(6):
            held[worker] += caller.sync(worker, *held[worker], slots=1)["leases"]

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    leases = [lease for leases in held.values() for lease in leases]
    assert len(leases) == len(runs)
    assert {lease["run_id"] for lease in leases} == runs
    assert {lease["epoch"] for lease in leases} == {1}


def test_order_is_priority_then_fair_share_then_age(database: Database, caller: Caller) -> None:
    caller.register("w")
    experiment = {}
    for name in ("a1", "a2", "a3", "b1", "b2"):
        experiment[name] = caller.submit(name=name)
    caller.submit(name="urgent", priority=5)
    # one experiment of several runs, which submission does not make yet
    _same_experiment(database, experiment["a1"], experiment["a2"], experiment["a3"])
    _same_experiment(database, experiment["b1"], experiment["b2"])
    order: list[str] = []
    held: list[dict[str, Any]] = []
    for _ in range(6):
        held.append(caller.claim("w", *held))
        order.append(held[-1]["run_name"])
    assert order == ["urgent", "a1", "b1", "a2", "b2", "a3"]


def test_one_claim_of_many_is_as_fair_as_many_of_one(database: Database, caller: Caller) -> None:
    caller.register("w")
    runs = {name: caller.submit(name=name) for name in ("a1", "a2", "a3", "a4", "b1", "b2")}
    _same_experiment(database, *(runs[n] for n in ("a1", "a2", "a3", "a4")))
    _same_experiment(database, runs["b1"], runs["b2"])
    assert sorted(names(caller.sync("w", slots=4))) == ["a1", "a2", "b1", "b2"]


def test_draining_and_full_workers_get_nothing(caller: Caller) -> None:
    caller.submit()
    caller.register("w")
    assert caller.sync("w")["leases"] == []
    assert caller.sync("w", slots=3, draining=True)["leases"] == []
    assert len(caller.sync("w", slots=3)["leases"]) == 1


def test_a_waiting_sync_is_woken_by_a_submission(caller: Caller) -> None:
    caller.register("w")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(caller.sync, "w", slots=1, wait_seconds=30)
        run_id = caller.submit()
        assert [lease["run_id"] for lease in waiting.result(20)["leases"]] == [run_id]


def test_a_waiting_sync_is_woken_by_a_cancel_and_told_once(caller: Caller) -> None:
    lease = caller.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(caller.sync, "w", lease, wait_seconds=30)
        caller.http.post(f"/runs/{lease['run_id']}/cancel")
        assert waiting.result(20)["cancel"] == [lease["attempt_id"]]
    # until the worker has evidence each reply repeats the request, but none returns early for it
    assert caller.sync("w", lease)["cancel"] == [lease["attempt_id"]]


def test_a_waiting_sync_sees_what_another_process_did(database_url: str, clock: ManualClock) -> None:
    settings = Settings(database_url=database_url, poll_seconds=0.05)
    with serve(create_app(settings, clock=clock)) as one, serve(create_app(settings, clock=clock)) as two:
        base = {"timeout": 60, "trust_env": False}
        with (
            httpx.Client(base_url=f"{one}/api/v1", **base) as first,
            httpx.Client(base_url=f"{two}/api/v1", **base) as second,
            ThreadPoolExecutor(1) as pool,
        ):
            Caller(first).register("w")
            waiting = pool.submit(Caller(first).sync, "w", slots=1, wait_seconds=30)
            run_id = Caller(second).submit()
            assert [lease["run_id"] for lease in waiting.result(20)["leases"]] == [run_id]


def test_a_newer_sync_ends_an_older_one_that_waits(caller: Caller, context: Context) -> None:
    """The older one's caller has given up: what it claimed would only have to be delivered again."""
    caller.register("w")
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(caller.sync, "w", slots=1, wait_seconds=30)
        _until_waiting(context.notifier)
        assert caller.sync("w", slots=1)["leases"] == []
        caller.submit()
        assert older.result(20)["leases"] == []
    assert caller.claim("w")["epoch"] == 1


def test_a_sync_of_a_busy_worker_ends_when_a_run_of_it_does(caller: Caller, context: Context) -> None:
    """So that the next run is asked for at once: until then the poll may well have no room for one."""
    first = caller.start()
    caller.submit()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(caller.sync, "w", first, slots=0, wait_seconds=30)
        _until_waiting(context.notifier)
        assert caller.report(first, "RUNNING").is_success
        _until_waiting(context.notifier)
        assert not waiting.done()
        caller.end(first, "SUCCEEDED")
        reply = waiting.result(20)
    assert (reply["lost"], reply["leases"]) == ([first["attempt_id"]], [])
    assert caller.claim("w")["number"] == 1


def test_shutdown_does_not_wait_for_polls(database_url: str, clock: ManualClock) -> None:
    app = create_app(Settings(database_url=database_url), clock=clock)
    with ThreadPoolExecutor(1) as pool:
        with serve(app) as url:
            http = httpx.Client(base_url=f"{url}/api/v1", timeout=60, trust_env=False)
            caller = Caller(http)
            caller.register("w")
            waiting = pool.submit(caller.sync, "w", slots=1, wait_seconds=30)
            _until_waiting(app.state.context.notifier)
        # serve() has returned: the server is down, and the poll was answered rather than cut
        assert waiting.done()
        assert waiting.result()["leases"] == []
        http.close()


def _until_waiting(notifier: Notifier) -> None:
    eventually(lambda: notifier.waiting, what="a waiting request")


def _same_experiment(database: Database, first: str, *others: str) -> None:
    with database.write() as session:
        experiment_id = session.scalar(select(Run.experiment_id).where(Run.id == first))
        for table, key in ((Run, Run.id), (Attempt, Attempt.run_id)):
            session.execute(
                update(table)
                .where(key.in_(others))
                .values(experiment_id=experiment_id)
                .execution_options(synchronize_session=False)
            )
