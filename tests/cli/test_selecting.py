"""Commands that change runs: those that are named, and those that a filter describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanollama.api.client import Client
from nanollama.api.status import AttemptState, RunState
from tests.cli.conftest import N2n
from tests.support.acting_worker import ActingWorker


@pytest.fixture
def three(n2n_there: N2n, url: str, config: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Ids of three queued runs of an experiment; no others are left in the queue."""
    with Client(url) as client:
        for run in client.runs(filter="state:queued", limit=500).items:
            client.cancel(run.id)
    assert n2n_there("submit", config, "grid.optim.lr=[1e-3, 2e-3, 3e-3]", "--json") == 0
    return [run["id"] for run in json.loads(capsys.readouterr().out)["runs"]]


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


def changed(capsys: pytest.CaptureFixture[str]) -> set[str]:
    return set(json.loads(capsys.readouterr().out)["changed"])


def test_many_are_counted_and_asked_for(
    n2n_there: N2n, client: Client, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = client.run(three[0]).experiment_id
    wanted = ("cancel", "--experiment", experiment, "--filter", "optim.lr>1.5e-3")
    assert n2n_there(*wanted) == 2
    assert "cancel 2 runs? There is no terminal to answer at - give --yes" in capsys.readouterr().err
    assert {client.run(run).state for run in three} == {RunState.QUEUED}
    assert n2n_there(*wanted, "--yes", "--json") == 0
    assert changed(capsys) == set(three[1:])
    assert [client.run(run).state.value for run in three] == ["QUEUED", "CANCELLED", "CANCELLED"]
    assert n2n_there(*wanted, "--yes") == 0
    assert capsys.readouterr().out == "0 runs cancelled, or asked to stop\n"


def test_retry_takes_what_has_ended_badly(
    n2n_there: N2n, client: Client, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    client.cancel(three[0])
    assert n2n_there("retry", three[0]) == 0
    assert capsys.readouterr().out == f"{three[0]}  QUEUED: retried after attempt 1\n"
    client.cancel(three[1])
    assert n2n_there("retry", three[1], three[2]) == 1  # one can be, the other waits
    printed = capsys.readouterr()
    assert printed.out == f"{three[1]}  QUEUED: retried after attempt 1\n"
    assert "error: " in printed.err
    experiment = client.run(three[0]).experiment_id
    client.cancel(three[2])
    assert n2n_there("retry", "--experiment", experiment, "-y", "--json") == 0
    assert changed(capsys) == {three[2]}


def test_an_unknown_run_among_others_changes_nothing(
    n2n_there: N2n, client: Client, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert n2n_there("cancel", three[0], "r-none", three[1]) == 1
    assert "r-none" in capsys.readouterr().err
    assert {client.run(run).state for run in three} == {RunState.QUEUED}
    assert n2n_there("cancel", "--experiment", "e-none", "--yes") == 1
    assert n2n_there("cancel", "--filter", "optim.lr>>3", "--yes") == 2
    assert "at character" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("cancel",), ("retry",), ("tag", "--add", "x"), ("archive",), ("pull",)])
def test_either_names_or_a_filter(n2n_there: N2n, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert n2n_there(*command) == 2
    assert "no run is given - name runs by their ids, or give --filter" in capsys.readouterr().err
    assert n2n_there(*command, "r1", "--filter", "state:failed") == 2
    assert "both runs and a filter are given" in capsys.readouterr().err


def test_tags_and_archive(n2n_there: N2n, client: Client, three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert n2n_there("tag", *three[:2], "--add", "look", "--add", "two words") == 0
    capsys.readouterr()
    assert n2n_there("tag", three[0], "--remove", "look", "--json") == 0
    assert changed(capsys) == {three[0]}
    assert [client.run(run).tags for run in three] == [["two words"], ["look", "two words"], []]
    assert n2n_there("tag", three[0]) == 2
    assert n2n_there("tag", three[0], "--add", "") == 2
    assert n2n_there("archive", "--filter", "tag:look", "--yes") == 0
    capsys.readouterr()
    for options, shown in (((), {three[0], three[2]}), (("--archived",), {three[1]})):
        experiment = client.run(three[0]).experiment_id
        assert n2n_there("runs", "--experiment", experiment, "--json", *options) == 0
        assert {run["id"] for run in json.loads(capsys.readouterr().out)["items"]} == shown
    assert n2n_there("archive", "--undo", "--filter", "tag:look", "--yes", "--json") == 0
    assert changed(capsys) == {three[1]}
    assert not client.run(three[1]).archived


def test_the_queue(n2n_there: N2n, client: Client, three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert n2n_there("queue", "priority", three[2], "--to", "-7") == 0
    assert n2n_there("queue", "priority", three[1], "--to", "9") == 0
    capsys.readouterr()
    assert n2n_there("queue", "--json") == 0
    queue = json.loads(capsys.readouterr().out)
    assert [entry["run_id"] for entry in queue["items"]] == [three[1], three[0], three[2]]
    assert n2n_there("queue", "pause") == 0
    assert n2n_there("queue", "list", "--limit", "1") == 0
    printed = capsys.readouterr()
    assert "`n2n queue resume` ends it" in printed.out
    assert queue["items"][0]["run_name"] in printed.out
    assert "3 wait; --limit shows more" in printed.err
    assert n2n_there("queue", "resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["paused_since"] is None
    assert n2n_there("queue", "priority", three[0], "--to", "101") == 2
    assert n2n_there("queue", "priority", three[0]) == 2


def test_clones_and_what_is_reused(
    n2n_there: N2n, client: Client, three: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert n2n_there("clone", three[0], "optim.steps=44", "--tag", "again", "--name", "copy", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert client.run(made["runs"][0]["id"]).config["optim"]["steps"] == 44
    assert client.run(made["runs"][0]["id"]).config["optim"]["lr"] == 1e-3
    assert (made["name"], made["tags"]) == ("copy", ["again"])
    assert n2n_there("clone", three[0], "grid.optim.lr=[1e-2, 1e-1]") == 0
    assert "2 runs" in capsys.readouterr().out
    for wrong in ("optim.stepz=4", "optim", "optim.steps=0"):
        assert n2n_there("clone", three[0], wrong) == 2
    assert n2n_there("clone", three[0], "--from-checkpoint", "5") == 2
    assert "checkpoint" in capsys.readouterr().err
    for run in client.runs(filter="state:queued", limit=500).items:
        client.cancel(run.id)
    options = ("--executor", "local", "--cpus", "2", "--label", "a,b", "--retries", "3")
    assert n2n_there("submit", config, "optim.steps=12", *options, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["resources"] | {"memory_gb": 0} == {
        "executor": "local", "accelerators": 0, "cpus": 2, "memory_gb": 0, "labels": ["a", "b"]
    }  # fmt: skip
    assert made["runs"][0]["retries"] == 3
    client.cancel(made["runs"][0]["id"])
    assert n2n_there("submit", config, "optim.steps=12", "--json") == 0
    again = json.loads(capsys.readouterr().out)["runs"][0]["id"]
    worker = ActingWorker(client)
    held = worker.start()
    assert held.lease.run_id == again
    held.train(12, period=4)
    held.report(AttemptState.SUCCEEDED, result=True)
    assert n2n_there("submit", config, "optim.steps=12", "--reuse", "ask") == 1
    assert again in capsys.readouterr().err
    assert n2n_there("submit", config, "optim.steps=12", "--reuse", "always", "--watch", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["id"] == again
    assert "succeeded" in printed.err
