"""Epochs, lost replies, dead workers: what a lease is worth."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from backend.app import create_app
from backend.settings import Settings
from tests.support.service import Caller, ManualClock, serve


def error(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def test_a_sync_renews_what_is_held(caller: Caller, clock: ManualClock) -> None:
    lease = caller.start()
    caller.register("other")
    for _ in range(5):
        clock.advance(60)
        reply = caller.sync("w", lease)
        assert (reply["leases"], reply["lost"]) == ([], [])
        assert caller.sync("other", slots=9)["leases"] == []


def test_a_lost_reply_is_made_good_under_a_new_epoch(caller: Caller) -> None:
    lost = caller.start()  # the reply never arrived: the worker does not list it
    (again,) = caller.sync("w")["leases"]
    assert (again["attempt_id"], again["epoch"], again["number"]) == (lost["attempt_id"], 2, 1)
    assert error(caller.report(lost, "RUNNING")) == (409, "stale_epoch")
    assert caller.report(again, "RUNNING").status_code == 200
    # a restarted worker gets it back with the state that the earlier life had reached
    (third,) = caller.sync("w")["leases"]
    assert (third["epoch"], third["state"]) == (3, "RUNNING")


def test_redelivery_uses_up_free_slots(caller: Caller) -> None:
    caller.start()
    caller.submit()
    reply = caller.sync("w", slots=1)
    assert [lease["epoch"] for lease in reply["leases"]] == [2]


def test_a_stale_epoch_changes_nothing(caller: Caller) -> None:
    stale = caller.start()
    caller.sync("w")
    before = caller.run(stale["run_id"]), caller.get(f"/runs/{stale['run_id']}/events")
    assert error(caller.report(stale, "RUNNING")) == (409, "stale_epoch")
    assert error(caller.report(stale, "SUCCEEDED", exit_code=0, result={})) == (409, "stale_epoch")
    assert error(caller.put(stale, "stdout.log", b"x")) == (409, "stale_epoch")
    assert (caller.run(stale["run_id"]), caller.get(f"/runs/{stale['run_id']}/events")) == before
    assert caller.sync("w", stale)["lost"] == [stale["attempt_id"]]


def test_a_future_epoch_is_stale_too(caller: Caller) -> None:
    lease = caller.start()
    assert error(caller.report(lease | {"epoch": 7}, "RUNNING")) == (409, "stale_epoch")


def test_expiry_reruns_nothing_and_lets_the_pool_adopt(caller: Caller, clock: ManualClock) -> None:
    lease = caller.start()
    assert caller.report(lease, "RUNNING", attempt_dir="/root/r/1").status_code == 200
    caller.register("stranger", pool="elsewhere")
    caller.register("heir")
    assert caller.sync("heir", slots=5)["leases"] == []  # not expired yet
    clock.advance(91)
    run = caller.run(lease["run_id"])
    assert (run["state"], run["attempt"]) == ("RUNNING", 1)
    assert caller.sync("stranger", slots=5)["leases"] == []
    assert caller.sync("heir", draining=True)["leases"] == []
    (adopted,) = caller.sync("heir")["leases"]  # even without a free slot: the job runs on this host
    assert (adopted["attempt_id"], adopted["epoch"], adopted["state"]) == (lease["attempt_id"], 2, "RUNNING")
    assert caller.run(lease["run_id"])["worker"] == "heir"
    # the first owner comes back: fenced off
    assert caller.sync("w", lease)["lost"] == [lease["attempt_id"]]
    assert error(caller.put(lease, "stdout.log", b"late")) == (409, "stale_epoch")
    caller.end(adopted, "SUCCEEDED")
    kinds = [event["kind"] for event in caller.get(f"/runs/{lease['run_id']}/events")]
    assert kinds == ["transition", "transition", "transition", "adopted", "transition"]


def test_an_expired_lease_that_nobody_adopted_is_still_its_holders(caller: Caller, clock: ManualClock) -> None:
    lease = caller.start()
    clock.advance(10_000)
    assert caller.put(lease, "stdout.log", b"x").status_code == 200
    assert caller.sync("w", lease)["lost"] == []
    assert caller.report(lease, "RUNNING").status_code == 200


def test_a_clock_that_is_put_back_keeps_no_lease_for_ever(caller: Caller, clock: ManualClock) -> None:
    lease = caller.start()
    caller.register("heir")
    clock.advance(-60)
    assert caller.sync("heir")["leases"] == []
    clock.advance(-3600)
    assert caller.sync("w", lease)["lost"] == []  # who is there renews it first
    assert caller.sync("heir")["leases"] == []
    clock.advance(-3600)
    (adopted,) = caller.sync("heir")["leases"]
    assert (adopted["attempt_id"], adopted["epoch"]) == (lease["attempt_id"], 2)


def test_a_lease_is_not_too_long_by_the_terms_of_another_executor(caller: Caller, clock: ManualClock) -> None:
    caller.submit()
    caller.register("s", executor="slurm")
    lease = caller.claim("s")
    caller.register("local")
    assert caller.sync("local")["leases"] == []
    clock.advance(-60)
    assert caller.sync("local")["leases"] == []
    assert caller.sync("s", lease)["lost"] == []


def test_slurm_workers_have_longer_leases(caller: Caller, clock: ManualClock) -> None:
    caller.submit()
    caller.register("s1", executor="slurm")
    caller.register("s2", executor="slurm")
    caller.claim("s1")
    clock.advance(299)
    assert caller.sync("s2")["leases"] == []
    clock.advance(2)
    assert len(caller.sync("s2")["leases"]) == 1


def test_a_server_that_starts_extends_all_leases_first(database_url: str, clock: ManualClock) -> None:
    def connected(url: str) -> Caller:
        return Caller(httpx.Client(base_url=f"{url}/api/v1", timeout=60, trust_env=False))

    settings = Settings(database_url=database_url)
    with serve(create_app(settings, clock=clock)) as url:
        caller = connected(url)
        lease = caller.start()
        caller.register("heir")
        caller.http.close()
    clock.advance(3600)  # the service was down for an hour, in which nobody could renew
    with serve(create_app(settings, clock=clock)) as url:
        caller = connected(url)
        assert caller.sync("heir", slots=1)["leases"] == []
        assert caller.sync("w", lease)["lost"] == []
        caller.http.close()


def test_lost_lists_what_was_never_the_workers(caller: Caller) -> None:
    lease = caller.start()
    caller.register("other")
    made_up = {"attempt_id": "a0", "epoch": 1}
    assert caller.sync("other", lease, made_up)["lost"] == sorted(["a0", lease["attempt_id"]])


def test_an_ended_attempt_is_lost_to_a_worker_that_still_lists_it(caller: Caller) -> None:
    lease = caller.start()
    caller.end(lease, "FAILED", exit_code=1, reason="boom")
    assert caller.sync("w", lease)["lost"] == [lease["attempt_id"]]
    assert caller.sync("w")["leases"] == []


def test_unregistered_workers_are_told_to_register(caller: Caller) -> None:
    reply = caller.http.post("/workers/nobody/sync", json={})
    assert error(reply) == (404, "not_found")
    assert "register" in reply.json()["detail"]


def test_workers_are_listed_with_what_they_hold(caller: Caller, clock: ManualClock) -> None:
    caller.register("quiet")
    clock.advance(100)
    caller.start()
    workers: list[dict[str, Any]] = caller.get("/workers")
    assert [(w["id"], w["alive"], w["busy"]) for w in workers] == [("w", True, 1), ("quiet", False, 0)]


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_terms(caller: Caller, executor: str) -> None:
    body: dict[str, Any] = {"name": "n", "pool": "p", "executor": executor, "host": "h", "user": "u"}
    body |= {"run_root": "/r", "slots": 1, "version": "1"}
    terms = caller.http.put("/workers/w", json=body).json()
    assert terms["heartbeat_seconds"] * 3 < terms["lease_seconds"]
