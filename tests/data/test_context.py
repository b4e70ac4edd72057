from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import context, polya
from nanollama.data.collapsed import plan
from nanollama.data.context import entropy, true_draws, two_sided
from nanollama.data.filter import ImpossibleSequence
from nanollama.data.gssm import Kernels, draw_kernels, floored
from nanollama.data.particles import bytes_needed
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from tests.data.urns import GRAPHS, LENGTH, PRODUCTS, URNS, graph, length_of, probabilities, urn_probability
from tests.support.gssm import graphs


def assert_mean_is_one(ratios: np.ndarray, slack: float = 0.0) -> None:
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 4.5 * error + slack, (ratios.mean(), error)
    assert error < 0.08, error


@pytest.mark.parametrize("name", GRAPHS)
def test_the_lower_side_is_the_logarithm_of_an_unbiased_estimate(name):
    kernels = draw_kernels(GRAPHS[name], 1)
    expected = probabilities(name, length_of(name))
    sequences = list(expected)
    for tokens in sequences[:: max(1, len(sequences) // 3)]:
        found = two_sided(kernels, np.array([tokens] * 1500), None, particles=3, seed=2)
        assert found.upper is None
        assert_mean_is_one(np.exp(found.lower) / expected[tokens], slack=0.03 if name in PRODUCTS else 1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_upper_side_is_unbiased_for_the_inverse(name):
    kernels = draw_kernels(GRAPHS[name], 1)
    expected = probabilities(name, length_of(name))
    sampler = Sampler(kernels, 3, "test")
    indices = range(3000)
    tokens, truths = sampler.sample(indices, length_of(name)), true_draws(sampler, indices, length_of(name))
    found = two_sided(kernels, tokens, truths, particles=3, seed=4)
    p = np.array([expected[tuple(int(v) for v in row)] for row in tokens])
    assert_mean_is_one(p / np.exp(found.upper), slack=0.02 if name in PRODUCTS else 1e-6)


def test_resampling_around_a_retained_particle_keeps_the_upper_side_unbiased():
    nodes = ("Z", 2, (), "context", "product"), ("X", 2, ("Z",), "context", "product")
    kernels = draw_kernels(graph(*nodes, alpha=0.1), 1)
    length, indices = 7, range(8000)
    sampler = Sampler(kernels, 3, "test")
    tokens, truths = sampler.sample(indices, length), true_draws(sampler, indices, length)
    found = two_sided(kernels, tokens, truths, particles=6, seed=4)
    exact = {row: urn_probability(kernels, row) for row in {tuple(int(v) for v in x) for x in tokens}}
    p = np.array([exact[tuple(int(v) for v in row)] for row in tokens])
    assert_mean_is_one(p / np.exp(found.upper), slack=1e-6)
    assert_mean_is_one(np.exp(found.lower) / p, slack=1e-6)


def test_moved_rows_keep_both_sides_unbiased_over_many_steps():
    nodes = [("A", 1, (), "default", "product"), ("B", 1, (), "default", "product")]
    kernels = draw_kernels(graph(*nodes, ("X", 2, ("A", "B"), "context", "product")), 1)
    length, indices = 14, range(4000)
    rows = [floored(np.random.default_rng(i).dirichlet([0.5, 0.5], size=400_000)) for i in range(2)]
    odds = rows[0] * rows[1]
    odds /= odds.sum(axis=1, keepdims=True)
    exact = np.array([np.mean(odds[:, 1] ** n * odds[:, 0] ** (length - 1 - n)) for n in range(length)])
    sampler = Sampler(kernels, 3, "test")
    tokens, truths = sampler.sample(indices, length), true_draws(sampler, indices, length)
    found = two_sided(kernels, tokens, truths, particles=4, seed=4)
    p = exact[tokens.sum(axis=1)]
    assert_mean_is_one(p / np.exp(found.upper), slack=0.01)
    assert_mean_is_one(np.exp(found.lower) / p, slack=0.01)


@pytest.mark.parametrize("name", ["both", "feedback", "fullrank chain"])
def test_many_particles_give_the_probability(name):
    kernels = draw_kernels(GRAPHS[name], 1)
    expected = probabilities(name, length_of(name))
    sampler = Sampler(kernels, 5, "test")
    tokens, truths = sampler.sample(range(8), length_of(name)), true_draws(sampler, range(8), length_of(name))
    found = two_sided(kernels, tokens, truths, particles=40_000)
    exact = np.log([expected[tuple(int(v) for v in row)] for row in tokens])
    np.testing.assert_allclose(found.lower, exact, atol=0.03)
    np.testing.assert_allclose(found.upper, exact, atol=0.03)


@settings(deadline=None, max_examples=40)
@given(spec=graphs(max_latents=2, modes=("default", "context")), seed=st.integers(0, 2**32))
def test_the_weights_of_all_next_symbols_are_a_distribution(spec, seed):
    kernels = draw_kernels(spec, seed)
    if not polya.context_nodes(spec):
        with pytest.raises(SpecError, match="no node in context mode reaches the tokens"):
            plan(kernels)
        return
    # with two tokens the estimate is the mean over particles of p(x_1 | kernels or urns)
    tokens = np.array([(0, v) for v in range(kernels.vocab_size)])
    same = [0] * len(tokens)
    assert np.exp(two_sided(kernels, tokens, None, particles=7, indices=same).lower).sum() == pytest.approx(1, abs=1e-6)


def hmm(alpha: float, states: int = 3, symbols: int = 4) -> Kernels:
    spec = graph(("Z", states, (), "context", "product"), ("X", symbols, ("Z",), "context", "product"), alpha=alpha)
    return draw_kernels(spec, 0)


def gaps(kernels: Kernels, length: int, count: int, particles: int) -> np.ndarray:
    sampler = Sampler(kernels, 0, "gap")
    tokens, truths = sampler.sample(range(count), length), true_draws(sampler, range(count), length)
    found = two_sided(kernels, tokens, truths, particles=particles)
    return found.upper - found.lower


def test_the_bounds_close_as_particles_are_added():
    few, many = (gaps(hmm(0.3), 65, 24, particles) for particles in (5, 2000))
    assert few.mean() > 1
    assert abs(many.mean()) < 0.3
    assert many.mean() > -3 * many.std() / math.sqrt(len(many))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_four_states_and_eight_symbols_are_bounded_within_a_fifth_of_a_nat(alpha):
    found = gaps(hmm(alpha, 4, 8), 129, 48, 40_000)
    assert abs(found.mean()) < 0.2 + 2 * found.std() / math.sqrt(len(found))


@pytest.mark.slow
def test_the_bounds_of_product_kernels_close_as_particles_are_added():
    kernels = draw_kernels(PRODUCTS["product observed"], 1)
    few, many = (gaps(kernels, 33, 16, particles) for particles in (5, 2000))
    assert few.mean() > 2 * abs(many.mean())
    assert abs(many.mean()) < 0.3


def test_batch_and_threads_change_nothing():
    kernels = draw_kernels(PRODUCTS["product feedback"], 1)
    sampler = Sampler(kernels, 0, "test")
    tokens, truths = sampler.sample(range(6), 9), true_draws(sampler, range(6), 9)
    whole = two_sided(kernels, tokens, truths, particles=5, threads=3)
    part = two_sided(kernels, tokens[2:5], truths[2:5], particles=5, indices=[2, 3, 4], threads=1)
    np.testing.assert_array_equal(whole.lower[2:5], part.lower)
    np.testing.assert_array_equal(whole.upper[2:5], part.upper)
    other = two_sided(kernels, tokens, truths, particles=5, seed=1)
    assert (other.lower != whole.lower).all()
    assert (other.upper != whole.upper).all()


def test_what_cannot_be_estimated_is_refused():
    kernels = hmm(0.5)
    sampler = Sampler(kernels, 0, "test")
    tokens, truths = sampler.sample(range(2), 5), true_draws(sampler, range(2), 5)
    with pytest.raises(ValueError, match="particles must be at least 2, found 1"):
        two_sided(kernels, tokens, truths, particles=1)
    with pytest.raises(ValueError, match="expected 2 truths, one for each sequence, found 1"):
        two_sided(kernels, tokens, truths[:1])
    with pytest.raises(ValueError, match="expected 2 indices"):
        two_sided(kernels, tokens, truths, indices=[0])
    with pytest.raises(ValueError, match=r"sequence 1: the true path of 'Z' is no path of 5 states in 0 \.\. 2"):
        two_sided(kernels, tokens, [truths[0], context.Truth({}, {"Z": np.array([0, 1, 2, 3, 0])})])
    with pytest.raises(ValueError, match=r"sequence 0 holds 4 at position 1; the model's symbols go from 0 to 3"):
        two_sided(kernels, [[0, 4]], None)
    with pytest.raises(ValueError, match="expected integer tokens"):
        two_sided(kernels, [[0.0, 1.0]], None)
    with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 0"):
        two_sided(kernels, [[0, 1], [1, 1]], None)
    with pytest.raises(ValueError, match="65,537 tokens are too long"):
        two_sided(kernels, np.zeros((1, 2**16 + 1), dtype=int), None)
    with pytest.raises(SpecError, match=r"10,000 particles take [\d,]+ bytes, over 1,000 - use fewer"):
        two_sided(kernels, tokens, truths, memory_budget=1000)
    nodes = [("A", 300, (), "context", "product"), ("B", 300, (), "default", "product")]
    large = draw_kernels(graph(*nodes, ("X", 2, ("A", "B"), "default", "fullrank")), 0)
    with pytest.raises(SpecError, match=r"300 x 300 = 90,000 joint states cost [\d,]+ multiplications"):
        plan(large)
    products = draw_kernels(PRODUCTS["product feedback"], 0)
    (truth,) = true_draws(Sampler(products, 0, "test"), [0], 5)
    with pytest.raises(ValueError, match=r"sequence 0: the true kernels of 'Z' lack the shapes \[\(2, 2\), \(2, 2\)\]"):
        two_sided(products, np.zeros((1, 5), dtype=int), [context.Truth({}, truth.states)])


def test_impossible_tokens_and_paths_are_named():
    spec = URNS["latent"]
    never_one = np.array([[1.0, 0.0]] * 2 + [[0.5, 0.5]])
    kernels = Kernels(spec=spec, seed=None, tables={"X": (never_one,)})
    with pytest.raises(ValueError, match="sequence 0: its true path has probability zero at position 2"):
        two_sided(kernels, [[0, 0, 1]], [context.Truth({}, {"Z": np.array([0, 1, 1])})], particles=50)
    none = Kernels(spec=spec, seed=None, tables={"X": (np.array([[1.0, 0.0]] * 3),)})
    with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 2"):
        two_sided(none, [[0, 0, 0], [0, 0, 1]], None, particles=50)


def test_empty_batches_and_single_tokens_cost_nothing():
    for name in ("both", "product feedback"):
        kernels = draw_kernels(GRAPHS[name], 0)
        truths = true_draws(Sampler(kernels, 0, "test"), [0, 1], 1)
        found = two_sided(kernels, np.zeros((2, 1), dtype=int), truths, particles=3)
        np.testing.assert_allclose([*found.lower, *found.upper], 0, atol=1e-12)
    assert two_sided(kernels, np.zeros((0, 4), dtype=int), []).lower.shape == (0,)


def test_entropy_lies_between_its_bounds():
    kernels = draw_kernels(URNS["both"], 1)
    exact = -sum(p * math.log(p) for p in probabilities("both").values()) / (LENGTH - 1)
    found = entropy(kernels, LENGTH, 400, particles=200)
    assert found.num_sequences == 400
    assert found.lower - 4 * found.lower_stderr < exact < found.upper + 4 * found.upper_stderr
    assert abs(found.upper - exact) < 4 * found.upper_stderr
    assert found.gap == pytest.approx((found.upper - found.lower) * (LENGTH - 1))
    assert "bidirectional" in found.method
    assert "nats a sequence" in str(found)


def test_bounds_can_be_followed_and_ended_between_two_batches():
    kernels = hmm(0.5)
    told = []

    def enough(bounds: context.ContextEntropy) -> bool:
        told.append(bounds.num_sequences)
        return bounds.num_sequences >= 7

    found = entropy(kernels, LENGTH, 30, particles=50, threads=1, after_batch=enough)
    whole = entropy(kernels, LENGTH, 8, particles=50)
    assert told == [4, 8]
    assert (found.lower, found.upper, found.gap_stderr) == (whole.lower, whole.upper, whole.gap_stderr)


def test_effort_grows_until_the_gap_is_small_or_the_time_is_up():
    kernels = hmm(0.3)
    loose, close = (entropy(kernels, 65, 8, gap=gap, max_seconds=5.0) for gap in (100.0, 0.3))
    assert loose.particles < close.particles
    assert abs(close.gap) < 1
    hasty = entropy(kernels, 65, 8, gap=0.0001, max_seconds=1e-6)
    assert hasty.particles == loose.particles
    budget = bytes_needed(300, 3, plan(kernels).num_counts, 0)
    assert entropy(kernels, 65, 8, gap=0.0001, memory_budget=budget).particles <= 300
    with pytest.raises(ValueError, match="at least 2, found 1 and 8"):
        entropy(kernels, 1, 8)
