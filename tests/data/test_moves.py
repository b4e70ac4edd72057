from __future__ import annotations

import math

import numpy as np
import pytest

from nanollama.data.collapsed import COUNTS, KIND, PRODUCT, plan
from nanollama.data.gssm import draw_kernels, floored
from nanollama.data.moves import draw_weights, move_weights
from nanollama.data.particles import _resample
from nanollama.data.variates import floor_row, log_dirichlet, log_gamma_variate, stream, unfloored, uniform
from tests.data.urns import PRODUCTS


def test_resampling_around_a_retained_particle_has_the_law_of_free_resampling():
    # with one of the copies marked at random, the marked particle's number of copies has the size-biased law
    mass, parent = np.array([0.1, 2.3, 0.0, 0.6, 1.5, 0.5]), np.empty(6, dtype=np.int64)
    state, rng, repeats = stream(6), np.random.default_rng(0), 50_000
    share = mass / mass.sum()
    copies, squares, retained, own = (np.zeros(6) for _ in range(4))
    for kept in rng.choice(6, size=repeats, p=share):
        assert _resample(state, mass, mass.sum(), -1, parent) == -1
        free = np.bincount(parent, minlength=6)
        copies += free
        squares += free**2
        place = _resample(state, mass, mass.sum(), int(kept), parent)
        assert parent[place] == kept
        around = np.bincount(parent, minlength=6)
        retained += around
        own[kept] += around[kept]
    for found in (copies, retained):
        np.testing.assert_allclose(found / repeats, 6 * share, atol=5 * 0.5 / math.sqrt(repeats))
    some = share > 0
    np.testing.assert_allclose(own[some] / (repeats * share[some]), squares[some] / copies[some], rtol=0.06)
    np.testing.assert_allclose(own.sum() / repeats, squares.sum() / repeats / 6, atol=0.01)


@pytest.mark.parametrize("direction", [1, -1])
def test_moves_leave_rows_and_what_they_produced_invariant(direction):
    # rows from the prior and symbols drawn from them: after the moves both must have the same joint law
    model = plan(draw_kernels(PRODUCTS["product observed"], 1))
    size, draws, inputs = 3, 20, 4
    state, rng = stream(5), np.random.default_rng(0)
    logs, weights, room = np.empty(model.num_weights), np.empty(model.num_weights), np.empty((6, size))
    (counts_at,) = model.nodes[model.nodes[:, KIND] == PRODUCT, COUNTS]
    differences = []
    for _ in range(3000):
        draw_weights(model.arrays, state, logs, weights)
        laws = _laws(weights, size)
        counts = np.zeros(model.num_counts, dtype=np.uint16)
        produced = np.stack([rng.multinomial(draws, law) for law in laws])
        counts[counts_at : counts_at + inputs * size] = produced.reshape(-1)
        for _ in range(3):
            move_weights(model.arrays, state, counts, logs, weights, room, np.int64(direction))
        moved = _laws(weights, size)
        share = produced / draws
        differences.append([(moved * share - laws * share).sum(), (moved**2 - laws**2).sum(), (moved - laws)[0, 0]])
    differences = np.array(differences)
    errors = differences.std(axis=0, ddof=1) / math.sqrt(len(differences))
    assert (np.abs(differences.mean(axis=0)) < 4.5 * errors).all(), (differences.mean(axis=0), errors)
    assert (errors < 0.02).all()


def _laws(weights: np.ndarray, size: int) -> np.ndarray:
    first, second = weights.reshape(2, 2, size)
    products = (first[:, None] * second[None]).reshape(4, size)
    return products / products.sum(axis=1, keepdims=True)


def test_uniform_and_gamma_variates_have_their_laws():
    state = stream(1, 2)
    drawn = np.array([uniform(state) for _ in range(20_000)])
    assert drawn.min() > 0
    assert drawn.max() < 1
    np.testing.assert_allclose(np.bincount((drawn * 20).astype(int)), 1000, atol=5 * math.sqrt(1000))
    for shape in (0.3, 1.0, 4.5):
        logs = np.array([log_gamma_variate(state, shape) for _ in range(20_000)])
        assert np.exp(logs).mean() == pytest.approx(shape, abs=5 * math.sqrt(shape / 20_000))
        assert (np.exp(logs) ** 2).mean() == pytest.approx(shape * (shape + 1), rel=0.15)
    row = np.empty(3)
    log_dirichlet(state, np.full(3, 1e-3), row)
    assert np.exp(row).sum() == pytest.approx(1)


def test_rows_come_back_from_under_the_floor():
    rng = np.random.default_rng(0)
    table = floored(rng.dirichlet(np.full(5, 0.02), size=4000))
    logs = unfloored(table, 0.02, rng)
    again = np.empty_like(table)
    for row, out in zip(logs, again, strict=True):
        floor_row(row, out)
    np.testing.assert_allclose(again, table, rtol=1e-8)
    below = logs[table <= 1e-10]
    assert len(below) > 1000
    # log q is exponential of rate alpha below the floor
    assert (math.log(1e-10) - below).mean() * 0.02 == pytest.approx(1, abs=5 / math.sqrt(len(below)))
