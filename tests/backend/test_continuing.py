"""Clones that go on from a checkpoint of the run that they were made of."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from nanollama.api import schemas
from nanollama.api.client import Client
from tests.support.service import Caller, checkpoint_line

STEPS = 100


@pytest.fixture
def past(caller: Caller) -> dict[str, Any]:
    """A lease of a run that has ended, with checkpoints at 40 and 100."""
    lease = caller.start()
    caller.put(lease, "events.jsonl", checkpoint_line(0, 40) + checkpoint_line(1, 100))
    caller.end(lease, "SUCCEEDED")
    return lease


def start_of(run: dict[str, Any]) -> tuple[Any, Any]:
    checkpoint = run["config"]["orchestration"]["checkpoint"]
    return checkpoint["start_from"], checkpoint["start_digest"]


def test_a_clone_goes_on_from_a_checkpoint_where_its_files_are(
    caller: Caller, past: dict[str, Any], served: tuple[FastAPI, str]
) -> None:
    run_id = past["run_id"]
    with Client(served[1]) as client:
        made = client.clone(run_id, schemas.Clone(from_checkpoint=40, overrides={"optim.lr": 1e-5}))
    assert made.notes == f"from step 40 of run {run_id} (two-nodes)"
    run = caller.run(made.runs[0].id)
    expected = (f"/root/{run_id}/checkpoints/0000000040", f"{40:064x}")
    assert start_of(run) == expected
    assert run["config"]["optim"]["lr"] == 1e-5
    caller.register("stranger", pool="other")
    assert caller.sync("stranger", slots=1)["leases"] == []
    (entry,) = caller.get("/queue")["items"]
    assert entry["reason"] == "next"
    lease = caller.claim("w")
    assert lease["config"]["orchestration"]["checkpoint"]["start_from"] == expected[0]
    caller.end(lease, "INTERRUPTED")  # before it had a checkpoint of its own
    assert caller.sync("stranger", slots=1)["leases"] == []
    caller.end(caller.claim("w"), "FAILED")
    again = caller.post(f"/runs/{run['id']}/clone", notes="once more")
    assert (again["notes"], start_of(caller.run(again["runs"][0]["id"]))) == ("once more", expected)
    assert caller.sync("stranger", slots=1)["leases"] == []
    fresh = caller.post(f"/runs/{run_id}/clone", name="fresh")
    assert start_of(caller.run(fresh["runs"][0]["id"])) == (None, None)
    assert len(caller.sync("stranger", slots=9)["leases"]) == 1


def test_it_is_another_run_than_one_from_the_first_step_or_another_checkpoint(
    caller: Caller, past: dict[str, Any]
) -> None:
    again = {"reuse": "ask", "overrides": {"optim.steps": 200}}
    made = caller.post(f"/runs/{past['run_id']}/clone", from_checkpoint=40, **again)
    lease = caller.claim()
    caller.end(lease, "SUCCEEDED")
    reply = caller.http.post(f"/runs/{past['run_id']}/clone", json=again | {"from_checkpoint": 40})
    assert reply.json()["code"] == "already_succeeded"
    assert made["runs"][0]["id"] in reply.text
    caller.post(f"/runs/{past['run_id']}/clone", from_checkpoint=100, **again)
    caller.post(f"/runs/{past['run_id']}/clone", **again)


def test_a_sweep_goes_on_from_one_checkpoint(caller: Caller, past: dict[str, Any]) -> None:
    overrides = {"grid": {"optim.lr": [1e-3, 1e-4], "optim.steps": [50, 60]}}
    made = caller.post(f"/runs/{past['run_id']}/clone", from_checkpoint=40, overrides=overrides)
    assert made["num_runs"] == 4
    assert len({start_of(caller.run(run["id"])) for run in made["runs"]}) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"from_checkpoint": 7}, "has no checkpoint at step 7 - use one of 40, 100"),
        ({"from_checkpoint": 100}, 'end after 100 - override "optim.steps" with more than 100'),
        ({"from_checkpoint": 40, "overrides": {"optim.steps": 30}}, "has done 40 steps"),
        ({"from_checkpoint": -1}, "from_checkpoint"),
        ({"from_checkpoint": 2**63}, "from_checkpoint"),
        ({"from_checkpoint": 40, "overrides": {"optim": 3}}, "should be a section"),
        ({"from_checkpoint": 40, "overrides": {"orchestration": "x"}}, "orchestration"),
    ],
)
def test_what_nobody_can_start_from_is_refused(
    caller: Caller, past: dict[str, Any], body: dict[str, Any], said: str
) -> None:
    reply = caller.http.post(f"/runs/{past['run_id']}/clone", json=body)
    assert reply.status_code == 422, reply.text
    assert said in " ".join(
        [reply.json()["detail"], *(f"{p['message']} - {p['remedy']}" for p in reply.json()["problems"])]
    )
    assert len(caller.get("/runs")["items"]) == 1


def test_a_checkpoint_that_goes_is_nothing_to_start_from(caller: Caller, past: dict[str, Any]) -> None:
    path = f"/runs/{past['run_id']}/checkpoints/40"
    (pending,) = [caller.http.delete(path).json()["pending"]]
    assert pending == "delete"
    reply = caller.http.post(f"/runs/{past['run_id']}/clone", json={"from_checkpoint": 40})
    assert "is about to be deleted" in reply.json()["detail"]
    (command,) = caller.sync("w")["commands"]
    caller.sync("w", done=[command])
    reply = caller.http.post(f"/runs/{past['run_id']}/clone", json={"from_checkpoint": 40})
    assert "has no checkpoint at step 40" in reply.json()["detail"]
