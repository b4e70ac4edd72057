"""What people do with runs and workers: retry, clone, prioritise, pause, drain, and decide on what is lost."""

from __future__ import annotations

from typing import Any

import pytest

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.errors import Conflict
from tests.support.service import SPEC_YAML, Caller, checkpoint_line

SEEDS = "grid:\n  orchestration.utils.seed: [1, 2, 3]\n"


def sweep(caller: Caller, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = caller.post("/experiments", yaml=SPEC_YAML + SEEDS, **fields)
    return made


def kinds(caller: Caller, run_id: str) -> list[str]:
    return [event["kind"] for event in caller.get(f"/runs/{run_id}/events")]


# -- retry and budgets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_retry_opens_the_run_again_and_leaves_its_attempts_ended(caller: Caller, state: str) -> None:
    lease = caller.start()
    run_id = lease["run_id"]
    caller.http.post(f"/runs/{run_id}/cancel")
    caller.end(lease, state, reason="out of memory", exit_code=1)
    run = caller.post(f"/runs/{run_id}/retry")
    assert (run["state"], run["attempt"], run["cancel_requested"], run["finished_at"]) == ("QUEUED", 2, False, None)
    assert caller.report(lease, "RUNNING").status_code == 409  # the old attempt stays ended
    second = caller.claim()
    assert (second["run_id"], second["number"], second["cancel_requested"]) == (run_id, 2, False)
    caller.end(second, "SUCCEEDED")
    states = [attempt["state"] for attempt in caller.get(f"/runs/{run_id}/attempts")]
    assert states == [state, "SUCCEEDED"]
    assert "reopened" in kinds(caller, run_id)


def test_only_what_failed_or_was_cancelled_can_be_retried(caller: Caller) -> None:
    run_id = caller.submit()
    assert "cancel it first" in caller.http.post(f"/runs/{run_id}/retry").json()["detail"]
    caller.register("w")
    caller.end(caller.claim(), "SUCCEEDED")
    reply = caller.http.post(f"/runs/{run_id}/retry")
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert caller.http.post("/runs/r0/retry").status_code == 404


def test_a_run_fails_as_often_as_it_may(caller: Caller) -> None:
    run_id = caller.submit(retries=1)
    caller.register("w")
    first = caller.claim()
    caller.put(first, "events.jsonl", checkpoint_line(0, 10))
    caller.end(first, "FAILED", reason="boom", exit_code=1)
    assert (caller.run(run_id)["state"], caller.run(run_id)["attempt"]) == ("QUEUED", 2)
    second = caller.claim()
    caller.put(second, "events.jsonl", checkpoint_line(0, 20))
    caller.end(second, "FAILED", reason="boom", exit_code=1)
    run = caller.run(run_id)
    assert run["state"] == "FAILED"
    assert "its 1 retry has been used" in run["reason"]
    caller.post(f"/runs/{run_id}/retry")
    caller.end(caller.claim(), "FAILED", exit_code=1)
    assert caller.run(run_id)["state"] == "QUEUED"  # the budget counts anew


def test_bad_input_is_not_tried_again(caller: Caller) -> None:
    run_id = caller.submit(retries=5)
    caller.register("w")
    caller.end(caller.claim(), "FAILED", reason="no such file", exit_code=2)
    assert caller.run(run_id)["state"] == "FAILED"


def test_a_run_is_interrupted_as_often_as_it_may(caller: Caller) -> None:
    run_id = caller.submit(max_interruptions=1)
    caller.register("w")
    for step, state in ((10, "QUEUED"), (20, "FAILED")):
        lease = caller.claim()
        caller.put(lease, "events.jsonl", checkpoint_line(0, step))
        caller.end(lease, "INTERRUPTED")
        assert caller.run(run_id)["state"] == state
    assert "interrupted 2 times, and 1 are allowed" in caller.run(run_id)["reason"]


def test_an_attempt_goes_on_where_its_checkpoints_are(caller: Caller) -> None:
    lease = caller.start()
    caller.put(lease, "events.jsonl", checkpoint_line(0, 10))
    caller.end(lease, "INTERRUPTED")
    caller.register("elsewhere", pool="another")
    assert caller.sync("elsewhere", slots=1)["leases"] == []
    (entry,) = caller.get("/queue")["items"]
    assert entry["reason"] == "next"
    assert [found["number"] for found in caller.sync("w", slots=1)["leases"]] == [2]


def test_an_attempt_without_checkpoints_goes_anywhere(caller: Caller) -> None:
    lease = caller.start()
    caller.end(lease, "INTERRUPTED")
    caller.register("elsewhere", pool="another")
    assert len(caller.sync("elsewhere", slots=1)["leases"]) == 1


# -- clone, priority, many at once -------------------------------------------------------------------------------------


def test_a_clone_has_the_config_with_overrides(caller: Caller) -> None:
    run_id = caller.submit(name="first", tags=["a"], priority=2, retries=3)
    made = caller.post(
        f"/runs/{run_id}/clone", overrides={"optim.lr": 0.5, "optim.steps": 70, "optim.warmup": 7}, notes="again"
    )
    assert made["name"] == "first"
    (run,) = made["runs"]
    assert (run["tags"], run["priority"], run["retries"]) == (["a"], 2, 3)
    config = caller.run(run["id"])["config"]
    assert (config["optim"]["steps"], config["optim"]["lr"]) == (70, 0.5)
    swept = caller.post(f"/runs/{run_id}/clone", overrides={"grid": {"optim.lr": [0.1, 0.2]}}, name="lrs", priority=0)
    assert [run["name"] for run in swept["runs"]] == ["lr=0.1", "lr=0.2"]
    assert swept["name"] == "lrs"
    wrong = caller.http.post(f"/runs/{run_id}/clone", json={"overrides": {"optim.lrr": 0.5}})
    assert wrong.json()["problems"][0]["remedy"] == "did you mean 'lr'?"
    nowhere = caller.http.post(f"/runs/{run_id}/clone", json={"overrides": {"optim.lr.x": 0.5}})
    assert (nowhere.status_code, nowhere.json()["problems"][0]["path"]) == (422, "optim.lr.x")
    assert caller.http.post("/runs/r0/clone", json={}).status_code == 404


def test_priorities_change_the_order_while_runs_are_queued(caller: Caller) -> None:
    first, second = caller.submit(name="first"), caller.submit(name="second")
    reply = caller.http.patch(f"/runs/{second}", json={"priority": 5})
    assert (reply.status_code, reply.json()["priority"]) == (200, 5)
    assert "prioritised" in kinds(caller, second)
    caller.register("w")
    lease = caller.claim()
    assert lease["run_id"] == second
    caller.end(lease, "SUCCEEDED")
    assert caller.post("/runs:prioritise", ids=[first, second], priority=-1)["changed"] == [first]
    assert caller.http.patch("/runs/r0", json={"priority": 5}).status_code == 404


def test_many_runs_are_cancelled_and_retried_at_once(caller: Caller) -> None:
    made, other = sweep(caller), caller.submit()
    caller.register("w")
    lease = caller.claim()
    ids = [run["id"] for run in made["runs"]]
    assert lease["run_id"] == ids[0]
    assert sorted(caller.post("/runs:cancel", experiment=made["id"])["changed"]) == ids
    assert caller.post("/runs:cancel", experiment=made["id"])["changed"] == []
    assert [caller.run(run_id)["state"] for run_id in [*ids, other]] == ["LEASED", "CANCELLED", "CANCELLED", "QUEUED"]
    assert caller.post("/runs:retry", ids=[*ids, other, "r0"])["changed"] == ids[1:]
    assert caller.post("/runs:cancel", experiment=made["id"], filter="state:queued name:seed=3")["changed"] == ids[2:]
    for body in ({}, {"ids": []}, {"ids": ids, "filter": "x"}, {"filter": "state:nonsense"}):
        assert caller.http.post("/runs:cancel", json=body).status_code == 422


# -- pause and drain ---------------------------------------------------------------------------------------------------


def test_nothing_of_a_paused_experiment_is_leased(caller: Caller) -> None:
    made, other = sweep(caller, priority=5), caller.submit()
    since = caller.post(f"/experiments/{made['id']}/pause")["paused_since"]
    assert since is not None
    caller.register("w")
    assert [lease["run_id"] for lease in caller.sync("w", slots=4)["leases"]] == [other]
    assert {entry["reason"] for entry in caller.get("/queue")["items"]} == {"experiment_paused"}
    assert caller.post(f"/experiments/{made['id']}/resume")["paused_since"] is None
    assert len(caller.sync("w", slots=4, held=[])["leases"]) == 4
    assert caller.http.post("/experiments/e0/pause").status_code == 404


def test_nothing_is_leased_while_the_queue_is_paused(caller: Caller) -> None:
    caller.submit()
    assert caller.post("/queue/pause")["items"][0]["reason"] == "queue_paused"
    caller.post("/queue/pause")
    caller.register("w")
    assert caller.sync("w", slots=1, wait_seconds=0.2)["leases"] == []
    assert caller.post("/queue/resume")["paused_since"] is None
    assert len(caller.sync("w", slots=1)["leases"]) == 1


def test_a_drained_worker_keeps_what_it_holds_and_gets_nothing(caller: Caller) -> None:
    lease = caller.start()
    caller.submit()
    assert caller.post("/workers/w/drain")["draining"]
    reply = caller.sync("w", lease, slots=1)
    assert (reply["leases"], reply["lost"], reply["drain"]) == ([], [], True)
    caller.register("w")  # a restart does not end it
    assert caller.sync("w", lease, slots=1)["leases"] == []
    assert [entry["reason"] for entry in caller.get("/queue")["items"]] == ["draining"]
    assert not caller.post("/workers/w/resume")["draining"]
    assert len(caller.sync("w", lease, slots=1)["leases"]) == 1
    assert caller.http.post("/workers/nobody/drain").status_code == 404


# -- what jobs need ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "enough", "too_little", "why"),
    [
        ({"executor": "fake"}, {"executor": "fake"}, {"executor": "local"}, "its executor is local, not fake"),
        ({"accelerators": 2}, {"accelerators": 2}, {"accelerators": 1}, "it has 1 accelerators"),
        ({"cpus": 8}, {"cpus": 8}, {}, "it has not said how many CPUs it has"),
        ({"memory_gb": 1.5}, {"memory_gb": 1.5}, {"memory_gb": 1.0}, "it has 1 GB of memory"),
        ({"labels": ["a", "b"]}, {"labels": ["b", "c", "a"]}, {"labels": ["b"]}, "it lacks the label a"),
    ],
)
def test_a_job_waits_for_a_worker_that_has_what_it_needs(
    caller: Caller, needs: dict[str, Any], enough: dict[str, Any], too_little: dict[str, Any], why: str
) -> None:
    run_id = caller.submit(resources=needs)
    assert caller.get("/queue")["items"][0]["detail"] == "no worker is alive"
    caller.register("small", **too_little)
    assert caller.sync("small", slots=4)["leases"] == []
    (entry,) = caller.get("/queue")["items"]
    assert (entry["run_id"], entry["reason"]) == (run_id, "no_worker")
    assert why in entry["detail"]
    assert {key: entry["resources"][key] for key in needs} == needs
    caller.register("large", **enough)
    assert caller.get("/queue")["items"][0]["reason"] == "next"
    assert [lease["run_id"] for lease in caller.sync("large", slots=4)["leases"]] == [run_id]


def test_jobs_never_need_more_together_than_a_worker_has(caller: Caller) -> None:
    sweep(caller, resources={"accelerators": 2})
    caller.submit(name="large", resources={"accelerators": 4}, priority=1)
    light = caller.submit(name="light", priority=-1)
    caller.register("w", accelerators=5)
    leases = caller.sync("w", slots=4)["leases"]
    assert {lease["run_name"] for lease in leases} == {"large", "light"}
    assert {entry["reason"] for entry in caller.get("/queue")["items"]} == {"busy"}
    (large,) = [lease for lease in leases if lease["run_id"] != light]
    caller.end(large, "SUCCEEDED")
    rest = [lease for lease in leases if lease["run_id"] == light]
    assert [lease["run_name"] for lease in caller.sync("w", *rest, slots=3)["leases"]] == ["seed=1", "seed=2"]


def test_a_waiting_sync_does_not_stir_for_jobs_that_it_cannot_run(caller: Caller) -> None:
    caller.submit(resources={"labels": ["elsewhere"]})
    caller.register("w")
    assert caller.sync("w", slots=1, wait_seconds=0.3)["leases"] == []


def test_the_queue_lists_jobs_in_the_order_of_claims(caller: Caller) -> None:
    made = sweep(caller)
    urgent, other = caller.submit(name="urgent", priority=9), caller.submit(name="other")
    names = [entry["run_name"] for entry in caller.get("/queue")["items"]]
    assert names == ["urgent", "seed=1", "other", "seed=2", "seed=3"]
    page = caller.get("/queue", offset=2, limit=2)
    assert (page["waiting"], [(entry["position"], entry["run_name"]) for entry in page["items"]]) == (
        5,
        [(2, "other"), (3, "seed=2")],
    )
    caller.register("w")
    leases = caller.sync("w", slots=3)["leases"]
    assert {lease["run_id"] for lease in leases} == {urgent, other, made["runs"][0]["id"]}


# -- what is lost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "state"), [("INTERRUPTED", "QUEUED"), ("FAILED", "FAILED"), ("CANCELLED", "CANCELLED")])
def test_a_person_decides_on_a_run_that_is_lost(caller: Caller, to: str, state: str) -> None:
    lease = caller.start()
    caller.report(lease, "RUNNING")
    run_id, path = lease["run_id"], f"/attempts/{lease['attempt_id']}/unknown"
    assert caller.http.post(f"/runs/{run_id}/resolve", json={"to": to}).status_code == 409
    for _ in range(2):
        run = caller.post(path, epoch=1, reason="the job is gone, and left no exit.json")
        assert (run["state"], run["unknown_since"] is None) == ("RUNNING", False)
    assert kinds(caller, run_id).count("unknown") == 1
    run = caller.post(f"/runs/{run_id}/resolve", to=to, reason="the node burnt down")
    assert (run["state"], run["unknown_since"]) == (state, None)
    assert "the node burnt down" in run["reason"]
    assert caller.sync("w", lease)["lost"] == [lease["attempt_id"]]
    assert caller.http.post(path, json={"epoch": 1, "reason": "x"}).status_code == 409


def test_a_lost_run_may_be_found_again(caller: Caller) -> None:
    lease = caller.start()
    path = f"/attempts/{lease['attempt_id']}/unknown"
    caller.post(path, epoch=1, reason="gone")
    assert caller.post(path, epoch=1)["unknown_since"] is None
    caller.post(path, epoch=1, reason="gone")
    caller.end(lease, "SUCCEEDED")  # evidence after all
    assert caller.run(lease["run_id"])["unknown_since"] is None
    assert caller.http.post(path, json={"epoch": 0, "reason": "x"}).json()["code"] == "stale_epoch"


def test_the_client_speaks_all_of_it(caller: Caller) -> None:
    with Client(str(caller.http.base_url).removesuffix("/api/v1/")) as client:
        made = client.submit(yaml=SPEC_YAML + SEEDS, resources=schemas.Resources(cpus=1))
        first = made.runs[0].id
        assert client.pause(made.id).paused_since is not None
        assert client.queue().items[0].reason == "experiment_paused"
        assert client.resume(made.id).paused_since is None
        assert client.pause_queue().paused_since is not None
        assert client.resume_queue().paused_since is None
        assert client.prioritise(first, 4).priority == 4
        assert client.prioritise_runs(schemas.Prioritise(ids=[first], priority=3)).changed == [first]
        assert client.cancel_runs(schemas.RunSelection(experiment=made.id)).changed
        assert client.retry(first).attempt == 2
        assert len(client.retry_runs(schemas.RunSelection(experiment=made.id)).changed) == 2
        assert client.clone(first, schemas.Clone(overrides={"optim.lr": 0.5})).num_runs == 1
        assert client.runs(experiment=made.id, limit=2).next_cursor is not None
        caller.register("w", cpus=1)
        assert client.drain_worker("w").drain_requested
        assert not client.resume_worker("w").drain_requested
        lease = caller.claim()
        assert client.report_unknown(lease["attempt_id"], epoch=1, reason="gone").unknown_since is not None
        assert client.resolve(lease["run_id"], schemas.Resolve(to="FAILED")).reason == "lost, and given up by hand"
        with pytest.raises(Conflict, match="not lost"):
            client.resolve(lease["run_id"], schemas.Resolve(to="FAILED"))
