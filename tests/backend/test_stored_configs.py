"""Runs whose configs another version has stored: they are shown and exported as they are, and nothing pretends more."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from backend.database import Database
from backend.tables import GSSM, Experiment, Run
from tests.support.service import Caller

NEWER = {"optim": {"nesterov": True}}
"""A key that no version has yet."""


@pytest.fixture
def foreign(caller: Caller, database: Database) -> str:
    """A cancelled run with a config, needs and a graph of another version; its id."""
    run_id = caller.submit(resources={"cpus": 2})
    caller.post(f"/runs/{run_id}/cancel")
    with database.write() as session:
        config: dict[str, Any] = session.scalars(select(Run.config).where(Run.id == run_id)).one()
        optim = {key: value for key, value in config["optim"].items() if key != "steps"} | NEWER["optim"]
        session.execute(update(Run).values(config=config | {"optim": optim}))
        session.execute(update(Experiment).values(resources={"cpus": 2, "tpus": 8}))
        graph = session.scalars(select(GSSM.graph)).one()
        session.execute(update(GSSM).values(graph=graph | {"temperature": 2}))
    return run_id


def test_it_is_listed_shown_and_exported_as_it_is(caller: Caller, foreign: str) -> None:
    assert [run["id"] for run in caller.get("/runs")["items"]] == [foreign]
    shown = caller.run(foreign)
    assert (shown["config"]["optim"]["nesterov"], "steps" in shown["config"]["optim"]) == (True, False)
    (experiment,) = caller.get("/experiments")["items"]
    assert experiment["resources"]["cpus"] == 2
    assert caller.get(f"/experiments/{experiment['id']}")["runs"][0]["id"] == foreign
    (model,) = caller.get("/gssms")["items"]
    assert (model["nodes"], model["num_latents"], model["joint_states"], model["vocab"]) == (["z", "x"], 1, 4, 8)
    assert caller.get(f"/gssms/{model['hash']}")["runs"][0]["id"] == foreign
    for path in ("attempts", "events", "checkpoints", "evaluations", "metrics"):
        caller.get(f"/runs/{foreign}/{path}")
    assert caller.http.get(f"/runs/{foreign}/export").status_code == 200


def test_what_needs_the_graph_says_that_it_does_not_load(caller: Caller, foreign: str) -> None:
    (model,) = caller.get("/gssms")["items"]
    for reply in (
        caller.http.get(f"/gssms/{model['hash']}/graph.svg"),
        caller.http.post(f"/gssms/{model['hash']}/bound"),
    ):
        assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
        assert "does not load in this version" in reply.json()["detail"]
        assert [problem["path"] for problem in reply.json()["problems"]] == ["temperature"]
    assert caller.run(foreign)["state"] == "CANCELLED"


def test_clone_and_retry_say_what_does_not_load(caller: Caller, foreign: str) -> None:
    reply = caller.http.post(f"/runs/{foreign}/retry")
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "was stored by another version, and does not load in this one" in reply.json()["detail"]
    assert {problem["path"] for problem in reply.json()["problems"]} == {"optim.nesterov", "optim.steps"}
    assert caller.run(foreign)["state"] == "CANCELLED"
    reply = caller.http.post(f"/runs/{foreign}/clone", json={})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid")
    assert "was stored by another version, and does not load in this one" in reply.json()["detail"]
    assert {problem["path"] for problem in reply.json()["problems"]} == {"optim.nesterov", "optim.steps"}
    assert caller.get("/runs")["counts"] == {"CANCELLED": 1}


def test_an_override_that_is_wrong_is_not_blamed_on_a_version(caller: Caller) -> None:
    reply = caller.http.post(f"/runs/{caller.submit()}/clone", json={"overrides": {"optim.stepz": 1}})
    assert reply.status_code == 422
    assert "version" not in reply.json()["detail"]
