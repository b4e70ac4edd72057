"""What training says of evaluations, kept beside the checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.spec.rundir import encode_line
from tests.support.service import Caller, checkpoint_line

CURVES = {"positions": [1.0, 2.0], "loss": [2.5, None], "loss_stderr": [0.1, 0.1], "kl": [1e-9, 0.25]}


def evaluation_line(step: int, loss: float | None, *, kind: str = "evaluated", **fields: Any) -> bytes:
    values = {"eval/loss": loss, "eval/loss_stderr": 0.01, "eval/excess": 0.125, "probe/layer1/Z": 0.5, "other": 1.0}
    line = {"seq": 0, "kind": kind, "step": step, "time": 1000.0 + step, "values": values, "by_position": CURVES}
    return encode_line(line | fields)


@pytest.fixture
def client(served: tuple[FastAPI, str]) -> Any:
    with Client(served[1]) as opened:
        yield opened


def test_an_evaluation_is_listed_and_stands_beside_its_checkpoint(caller: Caller, client: Client) -> None:
    lease = caller.start()
    assert client.evaluations(lease["run_id"]) == []
    events = checkpoint_line(0, 5) + checkpoint_line(1, 10) + evaluation_line(10, 1.75)
    assert caller.put(lease, "events.jsonl", events).status_code == 200
    (found,) = client.evaluations(lease["run_id"])
    assert (found.step, found.attempt, found.loss, found.loss_stderr) == (10, 1, 1.75, 0.01)
    assert (found.excess, found.bound, found.kl) == (0.125, None, None)
    assert found.at.timestamp() == 1010
    assert found.probes == {"layer1/Z": 0.5}
    expected = schemas.ByPosition(positions=[1, 2], loss=[2.5, None], loss_stderr=[0.1, 0.1], kl=[1e-9, 0.25])
    assert found.by_position == expected
    saved = {checkpoint.step: checkpoint for checkpoint in client.checkpoints(lease["run_id"])}
    assert (saved[5].evaluation_loss, saved[5].evaluation_excess) == (None, None)
    assert (saved[10].evaluation_loss, saved[10].evaluation_excess) == (1.75, 0.125)


def test_the_newest_word_counts_and_an_attempt_undoes_what_lies_behind_its_start(
    caller: Caller, client: Client
) -> None:
    lease = caller.start()
    run_id = lease["run_id"]
    events = b"".join(evaluation_line(step, float(step)) for step in (10, 20, 30)) + evaluation_line(10, 9.5)
    caller.put(lease, "events.jsonl", events)
    assert [(e.step, e.loss) for e in client.evaluations(run_id)] == [(10, 9.5), (20, 20.0), (30, 30.0)]
    caller.end(lease, "INTERRUPTED")
    second = caller.claim()
    caller.put(second, "events.jsonl", evaluation_line(20, None, kind="resumed", values=None, by_position=None))
    assert [(e.step, e.attempt) for e in client.evaluations(run_id)] == [(10, 1), (20, 1)]
    resumed = evaluation_line(20, None, kind="resumed", values=None, by_position=None)
    caller.put(second, "events.jsonl", evaluation_line(30, 3.5), offset=len(resumed))
    assert [(e.step, e.attempt, e.loss) for e in client.evaluations(run_id)][-1] == (30, 2, 3.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"by_position": {"positions": [1.5], "loss": [1.0]}},
        {"by_position": {"positions": [0.0], "loss": [1.0]}},
        {"by_position": {"positions": [1e300], "loss": [1.0]}},
        {"by_position": {"positions": [None], "loss": [1.0]}},
        {"by_position": {"positions": [1.0, 2.0], "loss": [1.0]}},
        {"by_position": {"loss": [1.0]}},
        {"values": {"eval/loss": "2.0"}},
        {"values": [1.0]},
    ],
)
def test_a_line_that_is_no_evaluation_is_a_warning(caller: Caller, client: Client, fields: dict[str, Any]) -> None:
    lease = caller.start()
    data = evaluation_line(10, 1.0, **fields) + evaluation_line(20, 2.0)
    assert caller.put(lease, "events.jsonl", data).status_code == 200
    assert [found.step for found in client.evaluations(lease["run_id"])] == [20]
    assert "a line of events.jsonl could not be read" in str(client.events(lease["run_id"])[-1].message)


def test_numbers_that_are_none_and_lines_of_older_versions(caller: Caller, client: Client) -> None:
    lease = caller.start()
    old = evaluation_line(10, 1.0, values=None)
    odd = evaluation_line(20, 1.0).replace(b'"eval/loss":1.0', b'"eval/loss":NaN').replace(b"2.5", b"Infinity")
    assert b"NaN" in odd
    caller.put(lease, "events.jsonl", old + odd)
    first, second = client.evaluations(lease["run_id"])
    assert (first.loss, first.probes) == (None, None)
    assert first.by_position is not None
    assert second.loss is None
    assert second.by_position is not None
    assert second.by_position.loss == [None, None]
