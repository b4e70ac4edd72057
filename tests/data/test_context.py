from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import context, polya
from nanollama.data.collapsed import COUNTS, KIND, PRODUCT, plan
from nanollama.data.context import ClosedForm, closed_form_applies, entropy, true_draws, two_sided
from nanollama.data.filter import ImpossibleSequence
from nanollama.data.gssm import Kernels, draw_kernels, draw_tables, floored
from nanollama.data.moves import draw_weights, move_weights
from nanollama.data.particles import _resample, bytes_needed
from nanollama.data.sampler import Sampler
from nanollama.data.variates import floor_row, log_dirichlet, log_gamma_variate, stream, unfloored, uniform
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs

LENGTH = 5


def graph(*nodes: tuple, alpha: float = 0.5) -> GSSMSpec:
    """Nodes as (name, states, parents, mode, kernel type); the one that is called X is observed."""
    return GSSMSpec(
        nodes=tuple(
            NodeSpec(name=n, state_dim=s, alpha=alpha, parents=p, mode=m, kernel_type=k, observed=n == "X")
            for n, s, p, m, k in nodes
        )
    )


URNS = {
    "latent": graph(("Z", 3, (), "context", "product"), ("X", 2, ("Z",), "default", "product")),
    "observed": graph(("Z", 3, (), "slow", "product"), ("X", 2, ("Z",), "context", "product")),
    "both": graph(("Z", 2, (), "context", "product"), ("X", 3, ("Z",), "context", "product")),
    "fullrank chain": graph(
        ("Z0", 2, (), "context", "product"),
        ("Z1", 2, ("Z0",), "context", "fullrank"),
        ("X", 2, ("Z0", "Z1"), "context", "fullrank"),
    ),
    "feedback": graph(("Z", 2, ("X",), "context", "fullrank"), ("X", 2, ("Z",), "context", "product")),
    "a latent no token depends on": graph(
        ("A", 2, (), "context", "product"), ("Z", 2, (), "default", "product"), ("X", 2, ("Z",), "context", "product")
    ),
}
PRODUCTS = {
    "product of a parent": graph(
        ("Z0", 2, (), "default", "product"),
        ("Z1", 2, ("Z0",), "context", "product"),
        ("X", 2, ("Z1",), "default", "product"),
    ),
    "product feedback": graph(("Z", 2, ("X",), "context", "product"), ("X", 2, ("Z",), "context", "product")),
    "product observed": graph(
        ("Z0", 2, (), "default", "product"),
        ("Z1", 2, (), "context", "product"),
        ("X", 3, ("Z0", "Z1"), "context", "product"),
    ),
}
GRAPHS = URNS | PRODUCTS


def urn_probability(kernels: Kernels, tokens: tuple[int, ...]) -> float:
    """p(x) as a sum over all paths, each the product of the urns' Dirichlet integrals; without the floor."""
    spec = kernels.spec
    nodes = spec.build_order()
    latents = [node for node in nodes if not node.observed]
    total = 0.0
    steps = len(tokens) - 1
    states = list(itertools.product(*(range(node.state_dim) for node in latents)))
    for path in itertools.product(states, repeat=steps):
        log_p = 0.0
        urns: dict[tuple, np.ndarray] = {}
        for t in range(1, steps + 1):
            now = dict(zip((n.name for n in latents), path[t - 1], strict=True))
            before = dict(zip((n.name for n in latents), path[t - 2] if t > 1 else (0,) * len(latents), strict=True))
            for node in nodes:
                inputs = [] if node.observed else [before[node.name]]
                inputs += [tokens[t - 1] if parent == "X" else now[parent] for parent in node.parents]
                value = tokens[t] if node.observed else now[node.name]
                if node.mode == "context":
                    counts = urns.setdefault((node.name, *inputs), np.zeros(node.state_dim))
                    log_p += math.log((node.alpha + counts[value]) / (node.alpha * node.state_dim + counts.sum()))
                    counts[value] += 1
                else:
                    law = Oracle(kernels).conditional(node, [np.array([i]) for i in inputs], 1)
                    log_p += math.log(law[0, value])
        total += math.exp(log_p)
    return total


def prior_probabilities(kernels: Kernels, length: int, draws: int) -> dict[tuple[int, ...], float]:
    """p(x) of all sequences as means over kernels that are drawn from the prior, with the floor."""
    spec, rng = kernels.spec, np.random.default_rng(0)
    nodes = spec.build_order()
    latents = [node for node in nodes if not node.observed]
    tables = {name: tuple(table[None] for table in own) for name, own in kernels.tables.items()}
    for node in nodes:
        if node.mode == "context":
            drawn = [draw_tables(spec, node, rng) for _ in range(draws)]
            tables[node.name] = tuple(np.stack(own) for own in zip(*drawn, strict=True))

    @cache
    def law(name: str, inputs: tuple[int, ...]) -> np.ndarray:
        node, own = spec.node(name), tables[name]
        assert node.kernel_type == "product"
        weights = math.prod(table[:, i] for table, i in zip(own, inputs, strict=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def probability(tokens: tuple[int, ...]) -> float:
        total = np.zeros(draws)
        states = list(itertools.product(*(range(node.state_dim) for node in latents)))
        for path in itertools.product(states, repeat=length - 1):
            p = np.ones(draws)
            joint = [dict(zip((n.name for n in latents), z, strict=True)) for z in ((0,) * len(latents), *path)]
            for t in range(1, length):
                for node in nodes:
                    inputs = [] if node.observed else [joint[t - 1][node.name]]
                    inputs += [tokens[t - 1] if parent == "X" else joint[t][parent] for parent in node.parents]
                    p *= law(node.name, tuple(inputs))[:, tokens[t] if node.observed else joint[t][node.name]]
            total += p
        return float(total.mean())

    return {tokens: probability(tokens) for tokens in Oracle(kernels).sequences(length)}


@cache
def probabilities(name: str, length: int = LENGTH) -> dict[tuple[int, ...], float]:
    kernels = draw_kernels(GRAPHS[name], 1)
    if name in PRODUCTS:
        return prior_probabilities(kernels, length, 4000)
    return {tokens: urn_probability(kernels, tokens) for tokens in Oracle(kernels).sequences(length)}


def length_of(name: str) -> int:
    return 4 if name in PRODUCTS or name == "fullrank chain" else LENGTH


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


def test_the_closed_form_applies_where_all_symbols_come_from_one_known_row():
    applies = {
        "no parents": (graph(("X", 3, (), "context", "fullrank")), True),
        "a product without inputs is uniform": (graph(("X", 3, (), "context", "product")), True),
        "one state": (graph(("Z", 1, (), "context", "product"), ("X", 3, ("Z",), "context", "product")), True),
        "two rows": (
            graph(
                ("A", 1, (), "default", "product"),
                ("B", 1, (), "slow", "product"),
                ("X", 3, ("A", "B"), "context", "fullrank"),
            ),
            True,
        ),
        "product of rows": (
            graph(
                ("A", 1, (), "default", "product"),
                ("B", 1, (), "slow", "product"),
                ("X", 3, ("A", "B"), "context", "product"),
            ),
            False,
        ),
        "one symbol": (graph(("Z", 2, (), "context", "product"), ("X", 1, ("Z",), "default", "product")), True),
        "fixed kernels": (graph(("X", 3, (), "default", "product")), False),
        "feedback is no copy": (
            graph(("Z", 2, ("X",), "default", "product"), ("X", 2, ("Z",), "context", "product")),
            False,
        ),
    }
    for spec, expected in applies.values():
        assert closed_form_applies(spec) is expected
        kernels = draw_kernels(spec, 0)
        if not expected:
            with pytest.raises(SpecError, match="no closed form"):
                ClosedForm(kernels)
            continue
        tokens = np.array(list(itertools.product([0], *[range(kernels.vocab_size)] * 3)))
        closed = ClosedForm(kernels)
        logs, predictive = closed.log_likelihood(tokens), closed.predictive(tokens)
        assert predictive.shape == (len(tokens), 3, kernels.vocab_size)
        np.testing.assert_allclose(predictive.sum(axis=-1), 1, atol=1e-12)
        np.testing.assert_allclose(np.take_along_axis(predictive, tokens[:, 1:, None], 2)[..., 0], np.exp(logs))
        # each particle sees the same single urn, so that the estimate is exact
        particles = two_sided(kernels, tokens, None, particles=2)
        np.testing.assert_allclose(particles.lower, logs.sum(axis=1), atol=1e-6)
        expected_p = [urn_probability(kernels, tuple(row)) for row in tokens] if spec.observed.parents else None
        if expected_p and kernels.vocab_size > 1:
            np.testing.assert_allclose(np.exp(logs.sum(axis=1)), expected_p)


def test_the_closed_form_refuses_what_the_exact_filter_refuses():
    closed = ClosedForm(draw_kernels(graph(("X", 3, (), "context", "fullrank")), 0))
    with pytest.raises(ValueError, match="sequence 0 holds 3 at position 1"):
        closed.log_likelihood([[0, 3]])
    with pytest.raises(ImpossibleSequence, match="position 0"):
        closed.predictive([[1, 0]])
    assert closed.log_likelihood(np.zeros((0, 4), dtype=int)).shape == (0, 3)
    assert closed.predictive(np.zeros((2, 1), dtype=int)).shape == (2, 0, 3)
    tiny = ClosedForm(draw_kernels(graph(("X", 3, (), "context", "fullrank"), alpha=1e-6), 0))
    with pytest.raises(ValueError, match=r"sequence 1: the floor .* alpha = 1e-06 is too small"):
        tiny.log_likelihood([[0, 1, 1, 1] + [1] * 100, [0, 1, 2, 1] + [1] * 100])


def test_closed_form_entropy_has_no_gap():
    found = entropy(draw_kernels(graph(("X", 2, (), "context", "fullrank")), 0), 9, 500)
    assert found.lower == found.upper
    assert found.gap == found.gap_stderr == found.particles == 0
    assert "closed form" in found.method


@pytest.mark.parametrize(
    ("alpha", "counts"), [(0.2, (1, 5)), (0.2, (2, 4)), (1.5, (1, 1)), (0.05, (1, 7)), (0.1, (0, 3))]
)
def test_the_floor_moves_the_probability_no_further_than_stated(alpha, counts, monkeypatch):
    monkeypatch.setattr(polya, "FLOOR", 1e-4)
    spec = graph(("X", 2, (), "context", "fullrank"), alpha=alpha)
    tokens = [0] + [0] * counts[0] + [1] * counts[1]
    # q = u^(1 / alpha) / 2 turns the pole of the Beta density at 0 into a uniform one
    q = 0.5 * ((np.arange(2_000_000) + 0.5) / 2_000_000) ** (1 / alpha)
    logs = {}
    for floor in (0.0, 1e-4):
        low = np.maximum(q, floor)
        total = low + (1 - q)
        first, second = low / total, (1 - q) / total
        values = first ** counts[0] * second ** counts[1] + second ** counts[0] * first ** counts[1]
        logs[floor] = math.log(np.mean(values * (1 - q) ** (alpha - 1)))
    difference = logs[1e-4] - logs[0.0]
    below, above = polya.floor_gap(spec, sum(counts))
    assert -below <= difference <= above
    assert abs(difference) <= ClosedForm(draw_kernels(spec, 0)).floor_error([tokens])[0] + 1e-9


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
