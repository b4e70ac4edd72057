"""Series: which lines survive, which points are sent, what the summary says."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.metrics.points import Points, Totals, summarise
from backend.metrics.reader import Curve
from backend.metrics.service import summary
from backend.metrics.thin import MIN_POINTS, thin
from nanollama.api import schemas
from tests.support.service import Caller, checkpoint_line, metric_line

METRICS = "metrics/rank0.jsonl"


def log(caller: Caller, lease: dict[str, Any], steps: list[int], loss: float) -> None:
    data = b"".join(metric_line(i, step, loss=loss + step / 1000) for i, step in enumerate(steps))
    assert caller.put(lease, METRICS, data).status_code == 200


def next_attempt(caller: Caller, lease: dict[str, Any], step: int) -> dict[str, Any]:
    caller.put(lease, "events.jsonl", checkpoint_line(0, step))
    caller.end(lease, "INTERRUPTED")
    return caller.claim()


def losses(caller: Caller, run_id: str, **params: Any) -> dict[int, float]:
    series = caller.get(f"/runs/{run_id}/metrics", **params)["series"].get("loss", {"step": [], "value": []})
    return dict(zip(series["step"], series["value"], strict=True))


def test_a_retry_supersedes_what_it_makes_anew(caller: Caller) -> None:
    first = caller.start()
    run_id = first["run_id"]
    log(caller, first, [1, 2, 3, 4, 5], 10)
    second = next_attempt(caller, first, 2)
    assert list(losses(caller, run_id)) == [1, 2, 3, 4, 5]  # nothing yet from the second
    log(caller, second, [3, 4], 20)
    # 5 of the first attempt is gone: the second has not come so far
    assert losses(caller, run_id) == {1: 10.001, 2: 10.002, 3: 20.003, 4: 20.004}
    third = next_attempt(caller, second, 3)
    log(caller, third, [2], 30)  # the checkpoint of 3 was broken: the third went on from 1
    assert losses(caller, run_id) == {1: 10.001, 2: 30.002}
    assert caller.run(run_id)["progress"]["step"] == 2


def test_a_retry_that_begins_with_an_evaluation_makes_nothing_else_of_its_step_anew(caller: Caller) -> None:
    first = caller.start()
    run_id = first["run_id"]
    lines = [
        *(metric_line(i, i + 1, loss=10 + (i + 1) / 1000) for i in range(4)),
        metric_line(4, 4, **{"eval/loss": 5.0}),
    ]
    caller.put(first, METRICS, b"".join(lines))
    second = next_attempt(caller, first, 3)
    evaluated = metric_line(0, 3, **{"eval/loss": 4.0, "probe/layer1/Z": 0.5})
    caller.put(second, METRICS, evaluated)
    assert losses(caller, run_id) == {1: 10.001, 2: 10.002, 3: 10.003}
    assert caller.run(run_id)["progress"]["loss"] == 10.003
    caller.put(second, METRICS, metric_line(1, 4, loss=20.0), offset=len(evaluated))
    assert losses(caller, run_id) == {1: 10.001, 2: 10.002, 3: 10.003, 4: 20.0}
    series = caller.get(f"/runs/{run_id}/metrics")["series"]
    assert (series["eval/loss"]["step"], series["eval/loss"]["value"]) == ([3], [4.0])
    third = next_attempt(caller, second, 3)  # killed before it had saved: the third evaluates once more
    caller.put(third, METRICS, metric_line(0, 3, **{"eval/loss": 3.0}))
    series = caller.get(f"/runs/{run_id}/metrics")["series"]
    assert (series["eval/loss"]["step"], series["eval/loss"]["value"]) == ([3], [3.0])
    assert series["probe/layer1/Z"]["value"] == [0.5]
    assert series["loss"]["step"] == [1, 2, 3]


def test_a_retry_that_starts_over_supersedes_everything(caller: Caller) -> None:
    first = caller.start()
    log(caller, first, [1, 2, 3], 10)
    second = next_attempt(caller, first, 3)
    log(caller, second, [1], 20)
    assert losses(caller, first["run_id"]) == {1: 20.001}


def test_of_a_step_logged_twice_the_later_line_counts_for_its_keys(caller: Caller) -> None:
    lease = caller.start()
    data = metric_line(0, 1, loss=3.0, lr=0.1) + metric_line(1, 1, loss=2.0) + metric_line(2, 1, evaluation=1.0)
    caller.put(lease, METRICS, data)
    reply = caller.get(f"/runs/{lease['run_id']}/metrics")
    assert reply["keys"] == ["evaluation", "loss", "lr"]
    assert {key: series["value"] for key, series in reply["series"].items()} == {
        "loss": [2.0],
        "lr": [0.1],
        "evaluation": [1.0],
    }


def test_keys_select_series_but_not_the_list(caller: Caller) -> None:
    lease = caller.start()
    caller.put(lease, METRICS, metric_line(0, 1, loss=3.0, lr=0.1, bound=1.0))
    reply = caller.get(f"/runs/{lease['run_id']}/metrics", key=["lr", "bound", "nothing"])
    assert list(reply["series"]) == ["lr", "bound"]
    assert reply["keys"] == ["bound", "loss", "lr"]


def test_non_finite_values_survive(caller: Caller) -> None:
    lease = caller.start()
    values = [math.nan, math.inf, -math.inf, 1.0]
    caller.put(lease, METRICS, b"".join(metric_line(i, i, loss=v) for i, v in enumerate(values)))
    reply = caller.get(f"/runs/{lease['run_id']}/metrics")["series"]["loss"]
    assert reply["value"] == ["NaN", "Infinity", "-Infinity", 1.0]
    assert reply["summary"]["mean"] == "NaN"
    assert (reply["summary"]["min"], reply["summary"]["max"]) == ("-Infinity", "Infinity")


def test_other_ranks_are_stored_but_not_mixed_in(caller: Caller) -> None:
    lease = caller.start()
    caller.put(lease, "metrics/rank1.jsonl", metric_line(0, 9, loss=9.0))
    assert caller.get(f"/runs/{lease['run_id']}/metrics")["keys"] == []
    assert caller.run(lease["run_id"])["progress"]["step"] == 0


def test_thinned_series_keep_the_summary_of_all(caller: Caller) -> None:
    lease = caller.start()
    values = [math.sin(i) for i in range(500)]
    caller.put(lease, METRICS, b"".join(metric_line(i, i, loss=v) for i, v in enumerate(values)))
    for spacing in ("linear", "log"):
        loss = caller.get(f"/runs/{lease['run_id']}/metrics", max_points=50, spacing=spacing)["series"]["loss"]
        columns = [loss[name] for name in ("step", "tokens", "time", "value")]
        assert len({len(column) for column in columns}) == 1
        assert len(loss["step"]) <= 50
        assert (loss["step"][0], loss["step"][-1]) == (0, 499)
        assert loss["summary"]["count"] == 500
        assert loss["summary"]["mean"] == pytest.approx(sum(values) / 500)
        assert (min(loss["value"]), max(loss["value"])) == (min(values), max(values))


@settings(deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=400),
    steps=st.data(),
    max_points=st.integers(MIN_POINTS, 60),
    spacing=st.sampled_from(["linear", "log"]),
)
def test_thinning(values: list[float], steps: st.DataObject, max_points: int, spacing: Any) -> None:
    gaps = steps.draw(st.lists(st.integers(1, 1000), min_size=len(values), max_size=len(values)))
    step = np.cumsum(gaps) - 1
    kept = thin(step.astype(float), np.array(values), max_points, spacing).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) <= max_points
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    if len(values) <= max_points:
        assert kept == list(range(len(values)))
    numbers = [v for v in values if not math.isnan(v)]
    shown = [values[i] for i in kept if not math.isnan(values[i])]
    if numbers:
        assert (min(shown), max(shown)) == (min(numbers), max(numbers))
    assert any(math.isnan(values[i]) for i in kept) == any(math.isnan(v) for v in values)


def test_log_spacing_spreads_points_over_decades() -> None:
    step = np.arange(1, 100_001)
    kept = step[thin(step.astype(float), np.sin(step), 1000, "log")].tolist()
    decades = [sum(10**d <= s < 10 ** (d + 1) for s in kept) for d in range(5)]
    assert decades[0] == 9  # each of the first steps has a bucket of its own
    assert min(decades[2:]) > 150


def totals(values: list[float], size: int = 400) -> schemas.Summary:
    steps = np.arange(len(values))
    points = Points(steps, steps, steps.astype(float), steps.astype(float), np.array(values, float))
    found = Totals()
    for start in range(0, len(values), 7):
        found.add(summarise(points.take(slice(start, start + 7)), size))
    return schemas.Summary.model_validate(summary(Curve("r", "k", points, found, points.time)))


@settings(deadline=None)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=50), size=st.integers(1, 9))
def test_summaries_exist_for_any_values(values: list[float], size: int) -> None:
    found = totals(values, size)
    assert found.count == len(values)
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) == len(values) and max(map(abs, values)) < 1e100:
        assert min(values) - 1e85 <= found.mean <= max(values) + 1e85
        assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-9 * max(map(abs, values)))
        assert found.stderr is None or found.stderr >= 0
    numbers = [v for v in values if not math.isnan(v)]
    if numbers:
        assert (found.min, found.max) == (min(numbers), max(numbers))
    found.model_dump_json()


def test_summary_by_hand() -> None:
    found = totals([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.min, found.max, found.last) == (2.5, 1.0, 4.0, 4.0)
    assert found.stderr == pytest.approx(math.sqrt(5 / 3 / 4))
    assert totals([1.0]).stderr is None
    long = [math.sin(i) + 1e3 for i in range(100)]
    assert totals(long, 3).stderr == pytest.approx(statistics.stdev(long) / 10)


def two_runs(caller: Caller) -> list[str]:
    leases = [caller.start()]
    caller.submit()
    leases.append(caller.claim("w", *leases))
    for lease, loss in zip(leases, (1.0, 2.0), strict=True):
        data = b"".join(metric_line(i, i, loss=loss + i, lr=0.1, flops=10.0 * i) for i in range(1, 5))
        caller.put(lease, METRICS, data + metric_line(5, 5, loss=math.nan))
    return [lease["run_id"] for lease in leases]


def test_several_runs_and_keys_in_one_call(caller: Caller) -> None:
    runs = two_runs(caller)
    reply = caller.get("/metrics", run=runs, key=["loss", "flops"], x_min=2, x_max=4)
    assert [run["run_id"] for run in reply["runs"]] == runs
    for run, loss in zip(reply["runs"], (1.0, 2.0), strict=True):
        assert run["keys"] == ["flops", "loss", "lr"]
        assert list(run["series"]) == ["loss", "flops"]
        assert run["series"]["loss"]["value"] == [loss + 2, loss + 3, loss + 4]
        assert run["series"]["loss"]["summary"]["count"] == 3
    query = {"runs": runs, "keys": ["loss", "flops"], "x_min": 2, "x_max": 4}
    assert caller.http.post("/metrics", json=query).json() == reply


@pytest.mark.parametrize(
    ("axis", "expected"), [("flops", [10.0, 20.0, 30.0, 40.0]), ("relative_time", [0.0, 1.0, 2.0, 3.0, 4.0])]
)
def test_axes_that_are_no_column_of_their_own_come_along(caller: Caller, axis: str, expected: list[float]) -> None:
    run_id, _ = two_runs(caller)
    series = caller.get(f"/runs/{run_id}/metrics", key="loss", x=axis)["series"]["loss"]
    assert series["x"] == expected
    assert "x" not in caller.get(f"/runs/{run_id}/metrics", key="loss", x="tokens")["series"]["loss"]


def test_arrow_holds_the_same_points(caller: Caller) -> None:
    runs = two_runs(caller)
    headers = {"Accept": "application/vnd.apache.arrow.stream"}
    reply = caller.http.post("/metrics", json={"runs": runs, "keys": ["loss"]}, headers=headers)
    assert reply.headers["content-type"] == headers["Accept"]
    table = pa.ipc.open_stream(reply.content).read_all()
    assert table.column_names == ["run", "key", "step", "tokens", "time", "value", "x"]
    assert table["run"].to_pylist() == [run for run in runs for _ in range(5)]
    assert table["value"].to_pylist()[:4] == [2.0, 3.0, 4.0, 5.0]
    assert math.isnan(table["value"].to_pylist()[4])
    assert json.loads(table.schema.metadata[b"n2n"])["summaries"][1]["summary"]["count"] == 5
    empty = caller.http.post("/metrics", json={"runs": runs, "keys": ["nothing"]}, headers=headers)
    assert pa.ipc.open_stream(empty.content).read_all().num_rows == 0


def test_newest_and_best_values_stand_beside_the_run(caller: Caller) -> None:
    (first, _) = two_runs(caller)
    (values,) = caller.get("/metrics/values", run=first)
    assert values["values"]["loss"] == {
        "last": "NaN", "last_step": 5, "min": 2.0, "min_step": 1, "max": 5.0, "max_step": 4
    }  # fmt: skip


def test_a_rank_is_read_on_demand(caller: Caller) -> None:
    lease = caller.start()
    caller.put(lease, "metrics/rank1.jsonl", metric_line(0, 9, loss=9.0))
    assert caller.get(f"/runs/{lease['run_id']}/metrics", rank=1)["series"]["loss"]["value"] == [9.0]


def test_what_is_too_much_or_unknown_is_refused(caller: Caller) -> None:
    runs = two_runs(caller)
    assert caller.http.get("/metrics", params={"run": [*runs, "nothing"]}).status_code == 404
    assert caller.http.get("/metrics").status_code == 422
    assert caller.http.get("/metrics", params={"run": runs, "kye": "loss"}).status_code == 422
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.metrics.service.MAX_VALUES", 1000)
        reply = caller.http.get("/metrics", params={"run": runs})
    assert (reply.status_code, reply.json()["problems"][0]["path"]) == (422, "max_points")
