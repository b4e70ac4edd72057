from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.filter import Filter, ImpossibleSequence
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.plan import METHODS, Plan
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs


def chain(*, latents: int = 1, states: int = 4, symbols: int = 5, mode: str = "default", observed: str = "default"):
    names = [f"Z{i}" for i in range(latents)]
    nodes = [NodeSpec(name=n, state_dim=states, alpha=0.3, mode=mode) for n in names]
    nodes.append(NodeSpec(name="X", state_dim=symbols, alpha=0.3, parents=tuple(names), mode=observed, observed=True))
    return GSSMSpec(nodes=tuple(nodes))


def independent(sizes: list[int], symbols: int, *, alpha: float, observed: float = 1e-2) -> GSSMSpec:
    nodes = [NodeSpec(name=f"Z{i}", state_dim=size, alpha=alpha) for i, size in enumerate(sizes)]
    parents = tuple(node.name for node in nodes)
    nodes.append(NodeSpec(name="X", state_dim=symbols, alpha=observed, parents=parents, observed=True))
    return GSSMSpec(nodes=tuple(nodes))


def with_feedback(spec: GSSMSpec) -> GSSMSpec:
    return GSSMSpec(nodes=(spec.nodes[0].model_copy(update={"parents": ("X",)}), *spec.nodes[1:]))


def random_tokens(rng: np.random.Generator, batch: int, length: int, symbols: int) -> np.ndarray:
    tokens = rng.integers(0, symbols, (batch, length))
    tokens[:, 0] = 0
    return tokens


@settings(deadline=None, max_examples=200)
@given(spec=graphs(), seed=st.integers(0, 2**32), method=st.sampled_from(METHODS))
def test_log_likelihood_matches_the_enumeration_of_all_paths_by_every_method(spec, seed, method):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len()
    tokens = random_tokens(np.random.default_rng(seed), 3, length, kernels.vocab_size)
    found = Filter(kernels, method=method).log_likelihood(tokens)
    assert found.shape == (3, length - 1)
    assert found.dtype == np.float64
    for row, sequence in enumerate(tokens):
        prefixes = [np.log(oracle.probability(tuple(sequence[:t]))) for t in range(1, length + 1)]
        np.testing.assert_allclose(found[row], np.diff(prefixes), rtol=0, atol=1e-10)
        np.testing.assert_allclose(found[row].sum(), prefixes[-1], rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(spec=graphs(), seed=st.integers(0, 2**32), method=st.sampled_from(METHODS))
def test_predictive_distributions_match_the_enumeration_of_all_paths(spec, seed, method):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len(4)
    tokens = random_tokens(np.random.default_rng(seed), 2, length, kernels.vocab_size)
    model = Filter(kernels, method=method)
    found = model.predictive(tokens)
    assert found.shape == (2, length - 1, kernels.vocab_size)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=0, atol=1e-12)
    for row, sequence in enumerate(tokens):
        for t in range(1, length):
            expected = oracle.predictive(tuple(sequence), t)
            np.testing.assert_allclose(found[row, t - 1], expected, rtol=0, atol=1e-10)
    picked = np.log(np.take_along_axis(found, tokens[:, 1:, None], axis=2)[..., 0])
    np.testing.assert_allclose(picked, model.log_likelihood(tokens), atol=1e-10)


@settings(deadline=None, max_examples=100)
@given(spec=graphs(), seed=st.integers(0, 2**32), method=st.sampled_from(METHODS), segments=st.booleans())
def test_posteriors_match_the_probabilities_of_all_paths(spec, seed, method, segments):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len(5)
    tokens = random_tokens(np.random.default_rng(seed), 2, length, kernels.vocab_size)
    model = Filter(kernels, method=method)
    if segments:
        model._budget = 0  # smoothing goes sequence by sequence, from checkpoint to checkpoint
    filtered, smoothed = model.posterior(tokens), model.posterior(tokens, smoothed=True)
    names = [node.name for node in oracle.latents]
    assert filtered.keys() == smoothed.keys() <= set(names)
    for row, sequence in enumerate(tokens):
        whole = oracle.path_probabilities(tuple(sequence))
        for t in range(length):
            begun = oracle.path_probabilities(tuple(sequence[: t + 1]))
            for name, marginal in smoothed.items():
                column, states = names.index(name), marginal.shape[2]
                for given_to, weights, found in ((length, whole, smoothed), (t + 1, begun, filtered)):
                    states_t = oracle.paths(given_to - 1)[:, t, column]
                    expected = np.bincount(states_t, weights=weights, minlength=states) / weights.sum()
                    np.testing.assert_allclose(found[name][row, t], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("kernel_type", ["product", "fullrank"])
def test_all_methods_agree_on_a_graph_too_large_to_enumerate(kernel_type, feedback):
    nodes = (
        NodeSpec(name="A", state_dim=16, alpha=0.02, parents=("X",) if feedback else (), kernel_type=kernel_type),
        NodeSpec(name="B", state_dim=12, alpha=0.02, parents=("A",), mode="slow", kernel_type=kernel_type),
        NodeSpec(name="C", state_dim=6, alpha=0.1, parents=("A",), mode="dead", kernel_type=kernel_type),
        NodeSpec(name="D", state_dim=5, alpha=0.1, parents=("C", "B"), kernel_type=kernel_type),
        NodeSpec(name="X", state_dim=20, alpha=0.05, parents=("D", "C", "B"), observed=True, kernel_type=kernel_type),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 1)
    tokens = random_tokens(np.random.default_rng(0), 7, 20, 20)
    models = {method: Filter(kernels, method=method) for method in METHODS}
    assert any(step.option.method == "sparse" for step in models["sparse"].plan.steps)
    assert any(step.factored for step in models["factored sparse"].plan.steps) == (kernel_type == "product")
    expected = models["dense"].log_likelihood(tokens)
    smoothed = models["dense"].posterior(tokens, smoothed=True)
    for method, model in models.items():
        np.testing.assert_allclose(model.log_likelihood(tokens), expected, rtol=0, atol=1e-9)
        for name, marginal in model.posterior(tokens, smoothed=True).items():
            np.testing.assert_allclose(marginal, smoothed[name], rtol=0, atol=1e-9)
        single = Filter(kernels, method=method, dtype=np.float32).log_likelihood(tokens)
        np.testing.assert_allclose(single.mean(axis=1), expected.mean(axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [[600], [40, 30], [2] * 9, [3, 2, 50], [16] * 3])
def test_sparse_fused_and_dense_steps_agree_on_peaked_kernels(sizes):
    kernels = draw_kernels(independent(sizes, 32, alpha=3e-3), 0)
    tokens = Sampler(kernels, 0, "test").sample(range(37), 30)
    expected = Filter(kernels, method="dense").log_likelihood(tokens)
    for method in METHODS:
        found = Filter(kernels, method=method).log_likelihood(tokens)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_a_token_that_only_the_floor_reaches_has_its_exact_probability():
    floor = 1e-10
    stay = np.full((300, 300), floor)
    np.fill_diagonal(stay, 1 - 299 * floor)
    shown = np.full((300, 2), floor)
    shown[:, 0] = 1 - floor
    shown[299] = 0.5
    nodes = (
        NodeSpec(name="Z", state_dim=300, alpha=1.0),
        NodeSpec(name="X", state_dim=2, alpha=1.0, parents=("Z",), observed=True),
    )
    kernels = Kernels(spec=GSSMSpec(nodes=nodes), seed=None, tables={"Z": (stay,), "X": (shown,)})
    for method in ("sparse", "dense"):
        found = Filter(kernels, method=method).log_likelihood([[0, 1]])
        expected = floor * 0.5 + (1 - floor) * floor
        np.testing.assert_allclose(found, [[np.log(expected)]], rtol=0, atol=1e-12)


def test_a_joint_distribution_beyond_the_cache_is_treated_in_tiles():
    kernels = draw_kernels(independent([16, 16, 16, 32], 8, alpha=0.1), 0)
    tokens = Sampler(kernels, 0, "test").sample(range(3), 6)
    whole, tiled = Filter(kernels), Filter(kernels)
    assert whole._split(1) == (1, 16)
    whole._split = lambda _: (0, 1)
    np.testing.assert_allclose(whole.log_likelihood(tokens), tiled.log_likelihood(tokens), rtol=0, atol=1e-12)
    ours, theirs = (model.posterior(tokens, smoothed=True) for model in (whole, tiled))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("feedback", [False, True])
def test_factors_of_an_emission_that_is_too_large_for_a_table_agree_with_it(feedback):
    spec = independent([8, 9, 7], 200, alpha=0.1, observed=0.1)
    nodes = list(spec.nodes)
    nodes[2] = nodes[2].model_copy(update={"parents": ("Z1",)})
    nodes[3] = nodes[3].model_copy(update={"parents": ("Z2", "Z0")})
    spec = GSSMSpec(nodes=tuple(nodes))
    kernels = draw_kernels(with_feedback(spec) if feedback else spec, 0)
    tokens = random_tokens(np.random.default_rng(0), 9, 12, 200)
    table, factors = Filter(kernels), Filter(kernels, memory_budget=2**17)
    assert factors.plan.observation.factored
    assert not table.plan.observation.factored
    np.testing.assert_allclose(factors.log_likelihood(tokens), table.log_likelihood(tokens), rtol=0, atol=1e-11)
    np.testing.assert_allclose(factors.predictive(tokens), table.predictive(tokens), rtol=0, atol=1e-12)
    ours, theirs = (model.posterior(tokens, smoothed=True) for model in (factors, table))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_small_memory_budget_splits_the_batch_and_changes_nothing(feedback):
    spec = chain(latents=2)
    kernels = draw_kernels(with_feedback(spec) if feedback else spec, 3)
    tokens = random_tokens(np.random.default_rng(0), 23, 9, 5)
    whole, split = Filter(kernels), Filter(kernels, memory_budget=7000 if feedback else 20_000)
    assert 1 < split._batch < 23 < whole._batch
    np.testing.assert_allclose(whole.log_likelihood(tokens), split.log_likelihood(tokens), rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole.predictive(tokens), split.predictive(tokens), rtol=0, atol=1e-12)
    for smoothed in (False, True):
        ours, theirs = (model.posterior(tokens, smoothed=smoothed) for model in (whole, split))
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-12)


def test_threads_change_nothing():
    kernels = draw_kernels(independent([24, 16], 12, alpha=0.05), 3)
    tokens = Sampler(kernels, 0, "test").sample(range(50), 400)
    one, two = Filter(kernels, threads=1), Filter(kernels, threads=2)
    np.testing.assert_allclose(one.log_likelihood(tokens), two.log_likelihood(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_tokens_may_have_any_integer_type(dtype):
    model = Filter(draw_kernels(chain(), 0))
    tokens = random_tokens(np.random.default_rng(0), 4, 6, 5)
    np.testing.assert_array_equal(model.log_likelihood(tokens.astype(dtype)), model.log_likelihood(tokens))
    np.testing.assert_array_equal(model.log_likelihood(torch.from_numpy(tokens)), model.log_likelihood(tokens))


def test_what_cannot_be_asked_for_is_refused():
    kernels = draw_kernels(chain(), 0)
    with pytest.raises(ValueError, match="there is no method 'best'; use one of auto, dense"):
        Filter(kernels, method="best")
    with pytest.raises(ValueError, match="float64 or float32, not int64"):
        Filter(kernels, dtype=np.int64)


def test_the_choice_is_explained():
    kernels = draw_kernels(independent([256, 8], 32, alpha=1e-3), 0)
    text = Filter(kernels).explain()
    assert text.startswith("256 x 8 = 2,048 joint states, method auto")
    lines = text.splitlines()
    assert lines[1] == "Z0: 256 states"
    assert [line[5:].split(":")[0] for line in lines[2:4]] == ["dense", "sparse"]
    assert "-> sparse" in lines[3]
    assert "multiplications" in lines[3]
    assert "X: a table for 2,048 states of parents" in lines
    assert "bytes at work" in lines[-1]


def test_plans_choose_sparse_steps_for_peaked_kernels_and_fuse_tiny_latents():
    def methods(spec: GSSMSpec) -> list[str]:
        return [step.option.method for step in Plan(draw_kernels(spec, 0)).steps]

    assert methods(independent([2048], 32, alpha=3e-4)) == ["sparse"]
    assert methods(independent([256], 32, alpha=1.0)) == ["dense"]
    assert len(methods(independent([2] * 8, 32, alpha=1.0))) < 8
    assert methods(independent([16] * 3, 32, alpha=1.0)) == ["dense"] * 3
    parents = NodeSpec(name="Z", state_dim=1000, alpha=1e-3, parents=("A",))
    spec = GSSMSpec(nodes=(NodeSpec(name="A", state_dim=20, alpha=1.0), parents, *chain().nodes))
    spec = GSSMSpec(nodes=(*spec.nodes[:-1], spec.nodes[-1].model_copy(update={"parents": ("Z",)})))
    assert methods(spec)[-1] == "factored sparse"


@pytest.mark.slow
def test_a_million_joint_states_are_within_the_default_limits():
    kernels = draw_kernels(independent([16] * 5, 32, alpha=0.1), 0)
    tokens = Sampler(kernels, 0, "test").sample(range(2), 6)
    found = Filter(kernels).log_likelihood(tokens)
    factors = Filter(kernels, memory_budget=2**28)
    assert factors.plan.observation.factored
    np.testing.assert_allclose(factors.log_likelihood(tokens), found, rtol=0, atol=1e-11)


@pytest.mark.parametrize("states", [1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_one_sparse_latent_costs_a_few_entries_a_state(states):
    model = Filter(draw_kernels(independent([states], 32, alpha=0.7 / states), 0))
    assert model.plan.multiplications < states * 40


def test_float32_agrees_within_its_precision():
    kernels = draw_kernels(chain(latents=3), 1)
    tokens = random_tokens(np.random.default_rng(0), 8, 40, 5)
    double = Filter(kernels).log_likelihood(tokens)
    single = Filter(kernels, dtype=np.float32).log_likelihood(tokens)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-5)


def test_long_sequences_of_peaked_kernels_stay_finite():
    spec = GSSMSpec(
        nodes=(
            NodeSpec(name="Z", state_dim=16, alpha=1e-3, mode="slow"),
            NodeSpec(name="X", state_dim=8, alpha=1e-3, parents=("Z",), observed=True),
        )
    )
    tokens = random_tokens(np.random.default_rng(0), 2, 2000, 8)
    for dtype in (np.float64, np.float32):
        nll = -Filter(draw_kernels(spec, 0), dtype=dtype).log_likelihood(tokens).sum(axis=1)
        assert np.isfinite(nll).all()
        assert (nll > 2000).all()


def test_zero_probability_names_sequence_and_position():
    spec = chain(states=2, symbols=3)
    stay, never_two = np.eye(2), np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    kernels = Kernels(spec=spec, seed=None, tables={"Z0": (stay,), "X": (never_two,)})
    tokens = np.array([[0, 1, 0, 1], [0, 1, 0, 2], [0, 2, 0, 0]])
    for budget in (2**30, 500):
        with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3") as caught:
            Filter(kernels, memory_budget=budget).log_likelihood(tokens)
        assert (caught.value.sequence, caught.value.position) == (1, 3)
        for ask in (Filter.predictive, Filter.posterior):
            with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3"):
                ask(Filter(kernels, memory_budget=budget), tokens)
        with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3"):
            Filter(kernels, memory_budget=budget).posterior(tokens, smoothed=True)


def test_tokens_that_no_sequence_can_have_are_refused():
    model = Filter(draw_kernels(chain(), 0))
    with pytest.raises(ValueError, match=r"sequence 1 holds 5 at position 2; .* 0 to 4"):
        model.log_likelihood(np.array([[0, 1, 1], [0, 1, 5]]))
    with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 0"):
        model.log_likelihood(np.array([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="expected integer tokens"):
        model.log_likelihood(np.zeros((2, 3)))


def test_empty_batches_and_single_tokens_have_nothing_to_predict():
    model = Filter(draw_kernels(chain(), 0))
    assert model.log_likelihood(np.zeros((0, 5), dtype=np.int64)).shape == (0, 4)
    assert model.log_likelihood(np.zeros((3, 1), dtype=np.int64)).shape == (3, 0)
    assert model.predictive(np.zeros((0, 5), dtype=np.int64)).shape == (0, 4, 5)
    for smoothed in (False, True):
        assert model.posterior(np.zeros((0, 5), dtype=np.int64), smoothed=smoothed)["Z0"].shape == (0, 5, 4)
        start = model.posterior(np.zeros((3, 1), dtype=np.int64), smoothed=smoothed)["Z0"]
        np.testing.assert_array_equal(start, np.eye(4)[[[0]] * 3])


def test_graphs_beyond_a_budget_are_refused_with_cost_and_remedy():
    kernels = draw_kernels(chain(latents=4, states=8), 0)
    with pytest.raises(
        SpecError,
        match=r"8 x 8 x 8 x 8 = 4,096 joint states cost 135,168 multiplications a token, over 50,000 - use fewer",
    ):
        Filter(kernels, max_operations=50_000)
    with pytest.raises(SpecError, match=r"cost at least 36,864 multiplications a token, over 1,000 - use fewer"):
        Filter(kernels, max_operations=1000)
    with pytest.raises(SpecError, match=r"4,096 joint states need [\d,]+ bytes for a single sequence, over 100,000"):
        Filter(kernels, memory_budget=100_000)
    with pytest.raises(SpecError, match=r"4,096 joint states need at least [\d,]+ bytes .* over 10,000 - use fewer"):
        Filter(kernels, memory_budget=10_000)
    huge = draw_kernels(chain(latents=9, states=8), 0)
    with pytest.raises(SpecError, match="134,217,728 joint states"):
        Filter(huge)


def test_context_mode_is_refused_only_where_tokens_depend_on_it():
    for spec in (chain(mode="context"), chain(observed="context")):
        with pytest.raises(SpecError, match=r"context mode .* integral"):
            Filter(draw_kernels(spec, 0))
    aside = NodeSpec(name="A", state_dim=3, alpha=0.1, mode="context")
    Filter(draw_kernels(GSSMSpec(nodes=(aside, *chain().nodes)), 0))


def test_latents_that_do_not_reach_the_tokens_cost_nothing():
    aside = [NodeSpec(name=f"A{i}", state_dim=64, alpha=0.1, parents=("Z0",)) for i in range(8)]
    plain, crowded = chain(), GSSMSpec(nodes=(*chain().nodes[:1], *aside, *chain().nodes[1:]))
    tables = draw_kernels(plain, 0).tables
    kernels = Kernels(spec=crowded, seed=None, tables={**draw_kernels(crowded, 0).tables, **tables})
    tokens = random_tokens(np.random.default_rng(0), 4, 6, 5)
    expected = Filter(draw_kernels(plain, 0)).log_likelihood(tokens)
    np.testing.assert_array_equal(Filter(kernels).log_likelihood(tokens), expected)


def test_a_dense_table_that_is_too_large_is_neither_chosen_nor_forced(monkeypatch):
    nodes = (
        NodeSpec(name="A", state_dim=20, alpha=0.5),
        NodeSpec(name="B", state_dim=30, alpha=0.5, parents=("A",)),
        NodeSpec(name="X", state_dim=5, alpha=0.5, parents=("A", "B"), observed=True),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 0)
    tokens = Sampler(kernels, 0, "train").sample(range(5), 9)
    expected = Filter(kernels, method="dense").log_likelihood(tokens)
    monkeypatch.setattr("nanollama.data.plan.MAX_JOINT_ENTRIES", 20 * 30 * 30 - 1)
    plan = Plan(kernels)
    assert [option.method for option in plan.steps[1].options] == ["factored", "factored sparse"]
    np.testing.assert_allclose(Filter(kernels).log_likelihood(tokens), expected, rtol=1e-12)
    message = r"the dense step of 'B' needs a table of 30 x 30 x 20 entries, over 17,999; use method 'auto'"
    with pytest.raises(ValueError, match=message):
        Filter(kernels, method="dense")


def test_no_probability_exceeds_one():
    kernels = draw_kernels(independent([50], 20, alpha=1e-6, observed=1e-6), 0)
    tokens = Sampler(kernels, 0, "train").sample(range(4), 40)
    for dtype in (np.float64, np.float32):
        scores = Filter(kernels, dtype=dtype).log_likelihood(tokens)
        assert scores.max() <= 0
        np.testing.assert_allclose(scores, 0, atol=1e-5)


def test_very_many_latents_are_counted_rather_than_listed():
    with pytest.raises(SpecError) as caught:
        Filter(draw_kernels(chain(latents=200, states=2), 0))
    assert "out of reach: 200 latents = about 10^60 joint states cost at least" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kernel_type", ["product", "fullrank"])
@pytest.mark.parametrize("method", METHODS)
def test_several_parents_of_different_sizes_keep_their_order(method, kernel_type):
    nodes = (
        NodeSpec(name="A", state_dim=2, alpha=0.5),
        NodeSpec(name="B", state_dim=3, alpha=0.5),
        NodeSpec(name="C", state_dim=2, alpha=0.5, parents=("B", "A"), kernel_type=kernel_type),
        NodeSpec(name="X", state_dim=4, alpha=0.5, parents=("C", "B"), kernel_type=kernel_type, observed=True),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 0)
    tokens = random_tokens(np.random.default_rng(0), 4, 4, 4)
    expected = [math.log(Oracle(kernels).probability(tuple(row))) for row in tokens]
    found = Filter(kernels, method=method).log_likelihood(tokens).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
