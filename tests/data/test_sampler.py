from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import sampler as module
from nanollama.data.gssm import draw_kernels, table_shapes
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs

ALL_MODES = ("default", "slow", "dead", "context")


@settings(deadline=None, max_examples=60)
@given(
    spec=graphs(modes=ALL_MODES),
    seed=st.integers(0, 2**63 - 1),
    indices=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=12),
    data=st.data(),
)
def test_a_sequence_is_the_same_in_any_batch(spec, seed, indices, data):
    sampler = Sampler(draw_kernels(spec, 0), seed, "train")
    whole = sampler.sample(indices, 9)
    assert whole.shape == (len(indices), 9)
    assert whole.dtype == np.int64
    order = data.draw(st.permutations(range(len(indices))))
    kept = order[: data.draw(st.integers(0, len(order)))]
    assert np.array_equal(sampler.sample([indices[i] for i in kept], 9), whole[kept])
    for row, index in enumerate(indices):
        assert np.array_equal(sampler.sample([index], 9)[0], whole[row])


@settings(deadline=None, max_examples=30)
@given(spec=graphs(modes=ALL_MODES), short=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_a_longer_sequence_begins_with_the_shorter_one(spec, short, seed):
    sampler = Sampler(draw_kernels(spec, 0), seed, "train")
    assert np.array_equal(sampler.sample([3, 5], 600)[:, :short], sampler.sample([3, 5], short))


@settings(deadline=None, max_examples=30)
@given(spec=graphs(modes=ALL_MODES), seed=st.integers(0, 2**32))
def test_states_of_all_nodes_go_with_the_tokens_and_begin_at_zero(spec, seed):
    sampler = Sampler(draw_kernels(spec, 0), seed, "train")
    states = sampler.sample_states(range(5), 12)
    assert list(states) == [node.name for node in spec.build_order()]
    assert np.array_equal(states[spec.observed.name], sampler.sample(range(5), 12))
    for name, values in states.items():
        assert (values[:, 0] == 0).all()
        assert values.min() >= 0
        assert values.max() < spec.node(name).state_dim


def test_seed_split_and_index_each_change_the_sequence():
    spec = GSSMSpec(nodes=(NodeSpec(name="X", state_dim=50, alpha=1.0, observed=True),))
    kernels = draw_kernels(spec, 0)
    drawn = [
        Sampler(kernels, seed, split).sample([index], 20).tobytes()
        for seed in (0, 1)
        for split in ("train", "test")
        for index in (0, 1, 2**32)
    ]
    assert len(set(drawn)) == len(drawn)


def test_golden_tokens():
    spec = GSSMSpec(
        nodes=(
            NodeSpec(name="Z", state_dim=4, alpha=1.0),
            NodeSpec(name="X", state_dim=10, alpha=1.0, parents=("Z",), observed=True),
        )
    )
    tokens = Sampler(draw_kernels(spec, 0), 0, "train").sample([0, 1], 12)
    assert tokens.tolist() == GOLDEN


GOLDEN = [[0, 2, 5, 5, 6, 0, 6, 6, 8, 0, 9, 2], [0, 3, 2, 9, 9, 7, 2, 3, 9, 7, 4, 3]]


@settings(deadline=None, max_examples=30)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_tables_too_large_to_keep_are_used_to_the_same_bit(spec, seed):
    kernels = draw_kernels(spec, 1)
    expected = Sampler(kernels, seed, "train").sample(range(6), 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_CACHED_ENTRIES", 0)
        patch.setattr(module, "_WORKING_BYTES", 1)
        assert np.array_equal(Sampler(kernels, seed, "train").sample(range(6), 20), expected)


def assert_distributed(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's statistic within five standard deviations; rare cells are pooled."""
    total = counts.sum()
    rare = probabilities * total < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probabilities[~rare], probabilities[rare].sum()) * total
    used = expected > 1e-9
    assert (counts[~used] == 0).all()
    degrees = max(1, used.sum() - 1)
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    assert statistic < degrees + 5 * np.sqrt(2 * degrees), (statistic, degrees)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_frequencies_of_token_sequences_follow_the_enumerated_law(spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = min(4, oracle.max_len(4))
    sequences = oracle.sequences(length)
    probabilities = np.array([oracle.probability(tokens) for tokens in sequences])
    assert probabilities.sum() == pytest.approx(1, abs=1e-10)
    tokens = Sampler(kernels, seed, "train").sample(range(6000), length)
    cells = np.ravel_multi_index(tokens.T, (kernels.vocab_size,) * length)
    assert_distributed(np.bincount(cells, minlength=len(sequences)), probabilities)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(spec=graphs(max_states=2), seed=st.integers(0, 2**32))
def test_frequencies_of_latent_paths_follow_the_enumerated_law(spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    law = sum(oracle.path_probabilities(tokens) for tokens in oracle.sequences(3))
    states = Sampler(kernels, seed, "train").sample_states(range(6000), 3)
    dims = [node.state_dim for node in oracle.latents]
    steps = [np.zeros(6000, dtype=int), np.zeros(6000, dtype=int)]
    for t in (1, 2):
        for node, dim in zip(oracle.latents, dims, strict=True):
            steps[t - 1] = steps[t - 1] * dim + states[node.name][:, t]
    cells = steps[0] * oracle.num_states + steps[1]
    assert_distributed(np.bincount(cells, minlength=oracle.num_states**2), law)


def test_context_kernels_are_drawn_for_every_sequence():
    """Tokens of one Dirichlet row are an urn: p(x_2 = x_1) = (alpha + 1) / (states * alpha + 1)."""
    node = NodeSpec(name="X", state_dim=4, alpha=0.5, mode="context", kernel_type="fullrank", observed=True)
    spec = GSSMSpec(nodes=(node,))
    sampler = Sampler(draw_kernels(spec, 0), 0, "train")
    tokens = sampler.sample(range(4000), 3)
    repeat = 1.5 / 3
    law = np.where(np.eye(4, dtype=bool), repeat / 4, (1 - repeat) / 12).ravel()
    assert_distributed(np.bincount(tokens[:, 1] * 4 + tokens[:, 2], minlength=16), law)


def test_context_kernels_of_a_sequence_are_its_own_and_govern_its_tokens():
    nodes = (
        NodeSpec(name="Z", state_dim=3, alpha=0.4),
        NodeSpec(name="X", state_dim=4, alpha=0.5, parents=("Z",), mode="context", observed=True),
    )
    spec = GSSMSpec(nodes=nodes)
    sampler = Sampler(draw_kernels(spec, 0), 0, "train")
    for index in (0, 1):
        (table,) = sampler.context_tables(index)["X"]
        assert (table.shape,) == table_shapes(spec, spec.observed)
        states = sampler.sample_states([index], 8000)
        for z in range(3):
            tokens = states["X"][0, 1:][states["Z"][0, 1:] == z]
            if len(tokens) > 50:
                assert_distributed(np.bincount(tokens, minlength=4), table[z])
    assert not np.array_equal(sampler.context_tables(0)["X"][0], sampler.context_tables(1)["X"][0])


def test_single_tokens_and_empty_batches():
    sampler = Sampler(
        draw_kernels(GSSMSpec(nodes=(NodeSpec(name="X", state_dim=4, alpha=1, observed=True),)), 0), 0, "a"
    )
    assert sampler.sample([1, 2], 1).tolist() == [[0], [0]]
    assert sampler.sample([], 7).shape == (0, 7)
