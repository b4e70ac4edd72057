from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.alias import Factors, weigh
from nanollama.data.gssm import floored, product_weights


def tables_of(factors: Factors, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    columns = factors.columns(threads=threads)
    starts = np.concatenate([[0], np.cumsum(columns)])
    entries = np.zeros((starts[-1], 2), dtype=np.uint64)
    factors.fill(starts, entries, threads=threads)
    return starts, entries


def numbers_below(threshold: int, column: int, columns: int) -> tuple[int, int]:
    """How many 64-bit numbers choose a column, and how many of these have a lower half below its threshold."""
    first = -(-(column << 64) // columns)
    last = -(-((column + 1) << 64) // columns)
    middle = -(-((column << 64) + threshold) // columns)
    return last - first, min(middle, last) - first


def realised(entries: np.ndarray, states: int) -> list[Fraction]:
    """The law that a row's table realises, counted over all 2^64 numbers."""
    counts = [0] * (states + 1)
    for column, (threshold, pair) in enumerate(entries.tolist()):
        total, below = numbers_below(threshold, column, len(entries))
        counts[pair >> 32] += below
        counts[pair & 0xFFFFFFFF] += total - below
    assert sum(counts) == 2**64
    return [Fraction(count, 2**64) + Fraction(counts[states], 2**64 * states) for count in counts[:states]]


def assert_realised(factors: Factors, joint: np.ndarray) -> None:
    starts, entries = tables_of(factors)
    assert len(starts) == len(joint) + 1
    for row, start, stop in zip(joint, starts, starts[1:], strict=False):
        assert stop - start <= factors.states
        weights = [Fraction(float(value)) for value in row]
        total = sum(weights)
        for found, weight in zip(realised(entries[start:stop], factors.states), weights, strict=True):
            assert abs(found - weight / total) <= 2.0**-52 + 2.0**-60 * factors.states


@settings(deadline=None, max_examples=60)
@given(
    states=st.integers(1, 70),
    sizes=st.lists(st.integers(1, 4), max_size=3),
    alpha=st.sampled_from([1e-3, 0.02, 0.3, 5.0]),
    seed=st.integers(0, 2**32),
)
def test_tables_realise_the_product_of_floored_rows(states, sizes, alpha, seed):
    rng = np.random.default_rng(seed)
    tables = [floored(rng.dirichlet(np.full(states, alpha), size=size)) for size in sizes]
    joint = np.ones((1, states))
    for table in tables:
        joint = (joint[:, None, :] * table[None, :, :]).reshape(-1, states)
    assert_realised(Factors.of(tables, states), joint)


def test_the_floor_is_drawn_to_the_accuracy_of_float64():
    table = floored(np.random.default_rng(0).dirichlet(np.full(4096, 1.7e-4), size=3))
    starts, entries = tables_of(Factors.of([table], 4096))
    assert len(entries) < 3 * 60, "a row takes no more than its entries above the floor"
    for row, start, stop in zip(table, starts, starts[1:], strict=False):
        law = realised(entries[start:stop], 4096)
        lowest = int(row.argmin())
        assert float(law[lowest] / Fraction(float(row[lowest]))) == pytest.approx(1, rel=1e-9)
        assert float(sum(law)) == 1


def test_the_limit_of_states_fits():
    row = np.random.default_rng(0).dirichlet(np.ones(2**16), size=1)
    assert_realised(Factors.of([row], 2**16), row)


@pytest.mark.parametrize("row", [[1.0], [1e-30, 1.0], [0.25] * 4, [1.0] + [1e-10] * 31, [0.5, 0.5] + [1e-10] * 30])
def test_rows_of_every_shape(row):
    assert_realised(Factors.of([np.array([row])], len(row)), np.array([row]))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_threads_make_the_same_tables(seed):
    rng = np.random.default_rng(seed)
    tables = [rng.dirichlet(np.ones(700), size=size) for size in (30, 40)]
    factors = Factors.of(tables, 700)
    for alone, shared in zip(tables_of(factors), tables_of(factors, threads=3), strict=True):
        assert np.array_equal(alone, shared)
    assert np.array_equal(factors.table(threads=1), factors.table(threads=3))


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_products_of_many_rows_keep_what_matters(count, seed):
    rng = np.random.default_rng(seed)
    rows = [floored(rng.dirichlet(np.full(5, 0.05))) for _ in range(count)]
    weights, exponents = np.empty(5), np.empty(5, dtype=np.int64)
    factors = Factors.of([row[None] for row in rows], 5)
    weigh(factors.flat, factors.bases, weights, exponents)
    expected = np.broadcast_to(product_weights(rows), 5)
    assert 0.5 <= weights.max() < 1
    assert weights / weights.sum() == pytest.approx(expected / expected.sum(), rel=1e-12, abs=1e-300)


def test_factors_that_favour_different_states_balance_each_other():
    ahead, behind = np.array([[1.0, 1e-10]]), np.array([[1e-10, 1.0]])
    factors = Factors.of([ahead] * 100 + [behind] * 100, 2)
    weights = factors.table(threads=1)[0]
    assert weights[0] == pytest.approx(weights[1], rel=1e-9)
