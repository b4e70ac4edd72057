"""Power laws through points: recovered exactly, with intervals that cover, whatever is noisy."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.fits import BINS, Point, PowerLaw, binned, fit, joint, late, student


@given(
    exponent=st.floats(-2, 2),
    amplitude=st.floats(1e-3, 1e3),
    xs=st.lists(st.floats(1, 1e9), min_size=4, max_size=40, unique=True).filter(lambda xs: max(xs) > 1.5 * min(xs)),
    error=st.one_of(st.none(), st.floats(1e-4, 1e-2)),
)
def test_a_law_is_found_again(exponent: float, amplitude: float, xs: list[float], error: float | None) -> None:
    ys = [amplitude * x**-exponent for x in xs]
    law = fit([Point(x, y, None if error is None else error * y) for x, y in zip(xs, ys, strict=True)])
    assert law is not None
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.low - 1e-6 <= exponent <= law.high + 1e-6
    assert law.at(xs[0]) == pytest.approx(ys[0], rel=1e-6)
    assert (law.start, law.end, law.num_points, law.left_out) == (min(xs), max(xs), len(xs), 0)


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=20))
def test_no_points_break_it(points: list[tuple[float, float]]) -> None:
    given_points = [Point(x, y) for x, y in points]
    law = fit(given_points)
    assert law is None or law.num_points + law.left_out <= len(points)
    assert len(binned(given_points)) <= len(points)


def test_what_has_no_logarithm_is_counted_and_too_few_points_are_no_law() -> None:
    points = [Point(x, 1 / x) for x in (1.0, 2.0, 4.0, 8.0)]
    law = fit([*points, Point(16.0, -0.01), Point(0.0, 5.0), Point(math.nan, 1.0)])
    assert law is not None
    assert (law.num_points, law.left_out) == (4, 1)
    assert fit(points[:3]) is None
    assert fit([Point(2.0, y) for y in (1.0, 2.0, 3.0, 4.0)]) is None
    two = fit(points[:2], least=2)
    assert two is not None
    assert two.low == -math.inf


@pytest.mark.parametrize("error", [None, 0.1])
def test_the_interval_covers_nineteen_times_in_twenty(error: float | None) -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(600):
        points = []
        for i in range(10):
            y = 3 * (2.0**i) ** -0.4
            points.append(Point(2.0**i, y * math.exp(rng.gauss(0, 0.1)), None if error is None else error * y))
        law = fit(points)
        assert law is not None
        hits += law.low <= 0.4 <= law.high
    assert 0.92 <= hits / 600 <= 0.99


def test_a_precise_point_counts_more_than_a_vague_one() -> None:
    points = [Point(x, 1 / x, 0.001 / x) for x in (1.0, 2.0, 4.0, 8.0)]
    law = fit([*points, Point(16.0, 1.0, 10.0)])
    assert law is not None
    assert law.exponent == pytest.approx(1.0, abs=0.01)


def test_bins_keep_what_is_negative_so_that_a_noisy_end_is_not_bent_up() -> None:
    rng = random.Random(1)
    points = [Point(float(x), x**-0.5 + rng.gauss(0, 0.05)) for x in range(1, 5000)]
    means = binned(points)
    assert len(means) <= BINS
    fair, naive = fit(late(means)), fit(late(points))
    assert fair is not None
    assert naive is not None
    assert abs(fair.exponent - 0.5) < 0.05 < abs(naive.exponent - 0.5)
    assert fair.low <= 0.5 <= fair.high


def test_late_is_the_second_half_of_the_logarithm() -> None:
    assert [p.x for p in late([Point(10.0**i, 1.0) for i in range(-1, 6)])] == [100.0, 1e3, 1e4, 1e5]
    assert late([Point(0.0, 1.0)]) == []


def test_runs_that_differ_in_their_seed_give_the_interval_over_seeds() -> None:
    laws = [PowerLaw(a, a - 0.5, a + 0.5, 1.0, 1, 10, 5) for a in (0.4, 0.5, 0.6)]
    law = joint(laws)
    assert law is not None
    assert (law.num_runs, law.num_points) == (3, 15)
    assert law.exponent == pytest.approx(0.5)
    assert law.high - law.exponent == pytest.approx(student(2) * 0.1 / math.sqrt(3))
    pair = joint(laws[:2])
    assert pair is not None
    assert (pair.low, pair.high) == pytest.approx((-0.1, 1.0))
    assert joint(laws[:1]) is laws[0]
    assert joint([]) is None


def test_student_goes_over_into_the_normal() -> None:
    values = [student(n) for n in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert student(31) == pytest.approx(2.0395, abs=1e-4)
    assert student(10**6) == pytest.approx(1.96, abs=1e-3)
