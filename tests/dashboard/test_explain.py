from __future__ import annotations

from typing import Any

import pytest

from dashboard.explain import (
    final_result,
    graph,
    outcome,
    remaining_seconds,
    repeat_commands,
    summary,
    why_idle,
    why_waiting,
)
from nanollama.api.schemas import RunDetail
from nanollama.api.status import RunState
from tests.support.fake_client import FakeClient, config, worker

URL = "http://127.0.0.1:1"


def run(state: RunState, **fields: Any) -> RunDetail:
    client = FakeClient()
    client.add("r1", state, **fields)
    return client.run("r1")


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([], "No worker is alive"),
        ([worker(alive=False)], "No worker is alive"),
        ([worker().model_copy(update={"draining": True})], "draining"),
        ([worker(busy=1)], "The only slot of the workers is busy"),
        ([worker(slots=2, busy=2), worker("b", busy=1)], "All 3 slots of the workers are busy"),
        ([worker(slots=2, busy=1)], "1 slot free"),
    ],
)
def test_a_queued_run_says_why_it_waits(workers: list[Any], said: str) -> None:
    advice = why_waiting(run(RunState.QUEUED), workers, URL)
    assert said in advice.text
    assert bool(advice.code) is said.startswith("No worker")
    if advice.code:
        assert f"--url {URL}" in advice.code


@pytest.mark.parametrize(
    ("queued", "workers", "said"),
    [
        (0, [], None),
        (2, [], "2 runs wait, but no worker is alive"),
        (1, [worker(alive=False)], "1 run waits, but no worker is alive"),
        (1, [worker().model_copy(update={"draining": True})], "draining"),
        (9, [worker(busy=1)], None),
    ],
)
def test_a_list_says_when_nobody_takes_what_waits(queued: int, workers: list[Any], said: str | None) -> None:
    advice = why_idle({RunState.QUEUED: queued}, workers, URL)
    assert (advice is None) is (said is None)
    if advice is not None and said is not None:
        assert said in advice.text
        assert bool(advice.code) is ("alive" in said and "draining" not in said)


def test_a_taken_run_names_its_worker_or_the_scheduler() -> None:
    assert "The worker w7 has taken it" in why_waiting(run(RunState.LEASED, worker="w7"), [], URL).text
    assert "scheduler" in why_waiting(run(RunState.SUBMITTED), [], URL).text


def test_an_end_is_told_in_the_words_that_were_recorded() -> None:
    end = outcome(run(RunState.FAILED, reason="exit code 1"))
    assert end is not None
    assert end.text == "exit code 1"
    assert outcome(run(RunState.RUNNING)) is None
    assert outcome(run(RunState.SUCCEEDED)) is None


def test_a_result_is_told_with_its_error() -> None:
    result = {"loss": 1.95, "bound": 1.9, "excess": 0.05, "excess_stderr": 0.001, "num_points": 20}
    text = final_result(run(RunState.SUCCEEDED, result=result))
    assert text == "mean of the last 20 metric lines: loss 1.9500, bound 1.9000, excess 0.0500 ± 0.0010 nats/token"
    no_bound = final_result(run(RunState.SUCCEEDED, result={"loss": "NaN", "bound": None, "num_points": 1}))
    assert no_bound == "mean of the last 1 metric line: loss NaN nats/token"
    assert final_result(run(RunState.SUCCEEDED, result=None)) == ""


def test_the_time_left_follows_from_the_speed() -> None:
    running = run(RunState.RUNNING, step=500)
    speed = running.progress.tokens_per_second
    assert speed is not None
    assert remaining_seconds(running) == pytest.approx(500 * 4032 / speed)
    assert remaining_seconds(run(RunState.RUNNING)) is None
    assert remaining_seconds(run(RunState.SUCCEEDED, step=500)) is None


def test_a_plan_counts_sequences_and_predicted_tokens() -> None:
    facts = dict(summary(config()))
    assert facts["steps"] == "1,000"
    assert facts["sequences"] == "64k (64 a step)"
    assert facts["tokens"] == "4.03M (63 predicted in each sequence)"
    assert [node["name"] for node in graph(config())] == ["Z", "X"]


def test_a_plan_over_a_file_names_it() -> None:
    spec = {"data": {"path": "train.h5", "batch_size": 8}, "optim": {"steps": 10}}
    assert dict(summary(spec)) == {"steps": "10", "sequences": "80 (8 a step)", "data": "train.h5"}
    assert graph(spec) == []
    assert summary({}) == []


def test_repeating_names_the_module_of_the_app() -> None:
    assert "python -m nanollama.apps.gssm.train config=c.yaml" in repeat_commands({"app": "gssm.train"}, "c.yaml")
