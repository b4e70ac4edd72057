"""What reports do to attempts and runs."""

from __future__ import annotations

from typing import Any

import pytest

from nanollama.api.status import ATTEMPT_TRANSITIONS, AttemptState
from tests.support.service import Caller, checkpoint_line

STATES = list(AttemptState)
ACTIVE = ("LEASED", "SUBMITTED", "RUNNING")
ENDS = ("SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED", "VOID")


def bring(caller: Caller, state: str) -> dict[str, Any]:
    """A lease whose attempt is in a state."""
    lease = caller.start()
    if state in ("SUBMITTED", "RUNNING"):
        assert caller.report(lease, state).status_code == 200
    elif state in ENDS:
        caller.end(lease, state)
    return lease


def attempts(caller: Caller, lease: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = caller.get(f"/runs/{lease['run_id']}/attempts")
    return found


@pytest.mark.parametrize("state", [*ACTIVE, *ENDS])
def test_legal_transitions_are_carried_out_and_no_other(caller: Caller, state: str) -> None:
    for to in STATES:
        lease = bring(caller, state)
        evidence = {"exit_code": 0, "result": {}} if to is AttemptState.SUCCEEDED else {}
        before = attempts(caller, lease)
        reply = caller.report(lease, to.value, **evidence)
        if to in ATTEMPT_TRANSITIONS[AttemptState(state)]:
            assert reply.status_code == 200, (state, to)
            assert reply.json()["state"] == to.value
        else:
            assert (reply.status_code, reply.json()["code"]) == (409, "conflict"), (state, to)
            assert attempts(caller, lease) == before
        if not AttemptState(attempts(caller, lease)[0]["state"]).terminal:
            caller.end(lease, "CANCELLED")
        for later in caller.sync("w", slots=9)["leases"]:
            caller.end(later, "CANCELLED")


def test_queued_attempts_are_nobodys(caller: Caller) -> None:
    run_id = caller.submit()
    (attempt,) = caller.get(f"/runs/{run_id}/attempts")
    for to in ("LEASED", "CANCELLED", "RUNNING"):
        reply = caller.report({"attempt_id": attempt["id"], "epoch": 0}, to)
        assert (reply.status_code, reply.json()["code"]) == (409, "conflict")


def test_success_needs_evidence(caller: Caller) -> None:
    lease = bring(caller, "RUNNING")
    for fields, paths in (
        ({}, ["exit_code", "result"]),
        ({"exit_code": 1, "result": {}}, ["exit_code"]),
        ({"exit_code": 0}, ["result"]),
    ):
        reply = caller.report(lease, "SUCCEEDED", **fields)
        assert reply.status_code == 422
        assert [problem["path"] for problem in reply.json()["problems"]] == paths
    assert caller.run(lease["run_id"])["state"] == "RUNNING"


def test_a_repeated_report_changes_nothing_and_answers_the_same(caller: Caller) -> None:
    lease = bring(caller, "LEASED")
    body = {"transition_id": "the-same-report", "epoch": 1, "to": "RUNNING", "attempt_dir": "/root/r/1"}
    path = f"/attempts/{lease['attempt_id']}/transitions"
    first = caller.http.post(path, json=body)
    caller.end(lease, "FAILED", exit_code=3, reason="boom")
    events = caller.get(f"/runs/{lease['run_id']}/events")
    again = caller.http.post(path, json=body)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.json()["state"] == "RUNNING"
    assert caller.get(f"/runs/{lease['run_id']}/events") == events
    other = caller.http.post(path, json=body | {"to": "FAILED"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


def test_a_repeated_report_of_a_later_lease_still_answers(caller: Caller) -> None:
    """The report was carried out; then the worker restarted and got a new epoch before it saw the answer."""
    lease = bring(caller, "LEASED")
    body = {"transition_id": "reported-before", "epoch": 1, "to": "RUNNING"}
    path = f"/attempts/{lease['attempt_id']}/transitions"
    first = caller.http.post(path, json=body)
    caller.sync("w")
    assert caller.http.post(path, json=body).json() == first.json()


@pytest.mark.parametrize("state", ACTIVE)
def test_cancel_of_a_leased_run_is_a_request(caller: Caller, state: str) -> None:
    lease = bring(caller, state)
    for _ in range(2):
        run = caller.http.post(f"/runs/{lease['run_id']}/cancel").json()
        assert (run["state"], run["cancel_requested"]) == (state, True)
    events = caller.get(f"/runs/{lease['run_id']}/events")
    assert [event["kind"] for event in events].count("cancel_requested") == 1
    caller.end(lease, "CANCELLED", exit_code=-15)
    run = caller.run(lease["run_id"])
    assert (run["state"], run["cancel_requested"]) == ("CANCELLED", True)
    assert run["finished_at"] is not None


def test_cancel_of_a_queued_run_is_immediate(caller: Caller) -> None:
    run_id = caller.submit()
    for _ in range(2):
        run = caller.http.post(f"/runs/{run_id}/cancel").json()
        assert (run["state"], run["cancel_requested"]) == ("CANCELLED", True)
    caller.register("w")
    assert caller.sync("w", slots=1)["leases"] == []
    events = [(event["kind"], event["to_state"]) for event in caller.get(f"/runs/{run_id}/events")]
    assert events == [("transition", "QUEUED"), ("cancel_requested", None), ("transition", "CANCELLED")]


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_cancel_of_an_ended_run_changes_nothing(caller: Caller, state: str) -> None:
    lease = bring(caller, state)
    before = caller.run(lease["run_id"])
    assert caller.http.post(f"/runs/{lease['run_id']}/cancel").status_code == 200
    assert caller.run(lease["run_id"]) == before


def test_a_run_that_ended_before_the_cancel_reached_it_has_succeeded(caller: Caller) -> None:
    lease = bring(caller, "RUNNING")
    caller.http.post(f"/runs/{lease['run_id']}/cancel")
    caller.end(lease, "SUCCEEDED")
    assert caller.run(lease["run_id"])["state"] == "SUCCEEDED"


@pytest.mark.parametrize("to", ["INTERRUPTED", "VOID"])
def test_an_interrupted_attempt_opens_the_next(caller: Caller, to: str) -> None:
    lease = bring(caller, "RUNNING")
    started = caller.run(lease["run_id"])["started_at"]
    caller.put(lease, "events.jsonl", checkpoint_line(0, 10))
    caller.end(lease, to, reason="the host restarted", exit_code=75)
    run = caller.run(lease["run_id"])
    assert (run["state"], run["attempt"], run["worker"], run["finished_at"]) == ("QUEUED", 2, None, None)
    assert run["started_at"] == started
    assert "attempt 1" in run["reason"]
    assert "the host restarted" in run["reason"]
    second = caller.claim("w")
    assert (second["run_id"], second["number"], second["epoch"]) == (lease["run_id"], 2, 1)
    assert caller.run(lease["run_id"])["reason"] is None
    assert [a["state"] for a in attempts(caller, lease)] == [to, "LEASED"]
    # the first attempt is closed for good
    assert caller.report(lease, "RUNNING").status_code == 409
    assert caller.put(lease, "stdout.log", b"late").json()["code"] == "conflict"


def test_an_interrupted_attempt_of_a_cancelled_run_ends_it(caller: Caller) -> None:
    lease = bring(caller, "RUNNING")
    caller.http.post(f"/runs/{lease['run_id']}/cancel")
    caller.end(lease, "INTERRUPTED")
    assert caller.run(lease["run_id"])["state"] == "CANCELLED"
    assert len(attempts(caller, lease)) == 1


def test_two_attempts_in_a_row_without_a_new_checkpoint_fail_the_run(caller: Caller) -> None:
    lease = bring(caller, "RUNNING")
    run_id = lease["run_id"]
    caller.put(lease, "events.jsonl", checkpoint_line(0, 10))
    caller.end(lease, "INTERRUPTED")
    second = caller.claim("w")
    # the same step again is no progress
    caller.put(second, "events.jsonl", checkpoint_line(0, 10))
    caller.end(second, "INTERRUPTED")
    assert caller.run(run_id)["state"] == "QUEUED"
    third = caller.claim("w")
    caller.put(third, "events.jsonl", checkpoint_line(0, 20))
    caller.end(third, "INTERRUPTED")
    for _ in range(2):
        assert caller.run(run_id)["state"] == "QUEUED"
        caller.end(caller.claim("w"), "INTERRUPTED", reason="node failure")
    run = caller.run(run_id)
    assert (run["state"], run["attempt"]) == ("FAILED", 5)
    assert "attempts 4 and 5 both saved no new checkpoint" in run["reason"]
    assert "node failure" in run["reason"]
    caller.register("other")
    assert caller.sync("other", slots=1)["leases"] == []


def test_an_external_end_is_reported_as_it_was(caller: Caller) -> None:
    lease = bring(caller, "RUNNING")
    caller.end(lease, "CANCELLED", reason="CANCELLED by 0")
    run = caller.run(lease["run_id"])
    assert (run["state"], run["reason"], run["cancel_requested"]) == ("CANCELLED", "CANCELLED by 0", False)


def test_where_an_attempt_runs_is_kept_with_it(caller: Caller) -> None:
    lease = bring(caller, "LEASED")
    provenance = {"version": "1", "host": "h", "git_sha": "abc", "packages": {"torch": "2"}}
    assert caller.report(lease, "RUNNING", provenance=provenance).status_code == 200
    caller.end(lease, "INTERRUPTED")
    assert [attempt["provenance"] for attempt in attempts(caller, lease)] == [provenance, None]
