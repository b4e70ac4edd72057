from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.monitor.summary import FinalWindow, describe, in_final_window

pairs = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=2, max_size=30)


@given(points=pairs, cut=st.integers(0, 30))
def test_means_and_error_are_those_of_the_points_even_across_a_restart(
    points: list[tuple[float, float]], cut: int
) -> None:
    window = FinalWindow()
    for i, (loss, bound) in enumerate(points):
        if i == cut:
            window = FinalWindow(**window.state())  # type: ignore[arg-type] # as it comes back from a checkpoint
        window.add(loss, bound)
    result = window.result(step=9, tokens=90, seconds=1.0)
    excesses = [loss - bound for loss, bound in points]
    assert result.num_points == len(points)
    assert result.loss == pytest.approx(statistics.fmean(loss for loss, _ in points))
    assert result.bound == pytest.approx(statistics.fmean(bound for _, bound in points))
    assert result.excess == pytest.approx(statistics.fmean(excesses), abs=1e-9)
    assert result.excess_stderr == pytest.approx(statistics.stdev(excesses) / len(points) ** 0.5, abs=1e-7)


def test_without_a_bound_there_is_a_loss_only() -> None:
    window = FinalWindow()
    window.add(2.0, None)
    window.add(4.0, None)
    result = window.result(step=2, tokens=20, seconds=1.0)
    assert (result.loss, result.bound, result.excess, result.excess_stderr) == (3.0, None, None, None)
    assert describe(result) == "step 2, loss 3.0000 nats/token (no bound for this graph)"


def test_one_point_has_no_error() -> None:
    window = FinalWindow()
    window.add(2.0, 1.5)
    result = window.result(step=1, tokens=10, seconds=1.0)
    assert (result.excess, result.excess_stderr) == (0.5, None)
    assert describe(result) == "step 1, loss 2.0000, bound 1.5000, excess 0.5000 nats/token"


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (9, 9), (10, 10), (20, 19), (100, 91), (301, 272)])
def test_the_window_is_the_last_tenth_but_never_empty(steps: int, first: int) -> None:
    assert [step for step in range(1, steps + 1) if in_final_window(step, steps)] == list(range(first, steps + 1))
