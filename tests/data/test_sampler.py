from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import draws, sampler
from nanollama.data.gssm import Kernels, draw_kernels, joint_table, table_shapes
from nanollama.data.sampler import Sampler, symbol_dtype
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs

ALL_MODES = ("default", "slow", "dead", "context")


@settings(deadline=None, max_examples=60)
@given(
    spec=graphs(modes=ALL_MODES),
    seed=st.integers(0, 2**63 - 1),
    indices=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=40),
    data=st.data(),
)
def test_a_sequence_is_the_same_in_any_batch(spec, seed, indices, data):
    sampler = Sampler(draw_kernels(spec, 0), seed, "train")
    whole = sampler.sample(indices, 9)
    assert whole.shape == (len(indices), 9)
    assert whole.dtype == np.uint8
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


GOLDEN = [[0, 7, 7, 1, 5, 1, 6, 4, 2, 2, 8, 4], [0, 5, 6, 3, 1, 7, 9, 4, 8, 6, 5, 5]]


@settings(deadline=None, max_examples=30)
@given(spec=graphs(modes=ALL_MODES), seed=st.integers(0, 2**32), threads=st.integers(2, 3))
def test_threads_and_the_size_of_parts_change_nothing(spec, seed, threads):
    kernels = draw_kernels(spec, 1)
    expected = Sampler(kernels, seed, "train", threads=1).sample_states(range(100), 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_GRAIN_NUMBERS", 1)
        patch.setattr(sampler, "_WORKING_BYTES", 30 * 8)
        drawn = Sampler(kernels, seed, "train", threads=threads).sample_states(range(100), 20)
    for name, states in expected.items():
        assert np.array_equal(drawn[name], states)


SMALL_BUDGETS = [
    {"JOINED_ENTRIES": 0},
    {"JOINED_ENTRIES": 0, "JOINT_WORK": 0},
    {"JOINED_ENTRIES": 12, "JOINT_ENTRIES": 4, "FACTOR_ENTRIES": 12},
    {"JOINED_ENTRIES": 2**20},
]
"""Budgets under which small graphs are drawn as large ones are, or at once."""


def pearson(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; rare cells are pooled, with the next one if they are few."""
    total = counts.sum()
    order = np.argsort(probabilities)
    counts, expected = counts[order], probabilities[order] * total
    assert (counts[expected < 1e-9] == 0).all()
    pooled = max(1, int((np.cumsum(expected) < 5).sum()) + 1)
    counts = np.append(counts[pooled:], counts[:pooled].sum())
    expected = np.append(expected[pooled:], expected[:pooled].sum())
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def assert_chi_square(statistic: float, degrees: int) -> None:
    """A bound that chance exceeds once in 20,000 times: Laurent and Massart, Annals of Statistics 28 (2000)."""
    assert statistic <= degrees + 2 * np.sqrt(degrees * 10) + 20, (statistic, degrees)


def assert_distributed(counts: np.ndarray, probabilities: np.ndarray) -> None:
    assert_chi_square(*pearson(counts, probabilities))


@pytest.mark.parametrize("budgets", [{}, *SMALL_BUDGETS])
@settings(deadline=None, max_examples=15, derandomize=True)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_frequencies_of_token_sequences_follow_the_enumerated_law(budgets, spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = min(4, oracle.max_len(4))
    sequences = oracle.sequences(length)
    probabilities = np.array([oracle.probability(tokens) for tokens in sequences])
    assert probabilities.sum() == pytest.approx(1, abs=1e-10)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in budgets.items():
            patch.setattr(draws, name, value)
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
            steps[t - 1] = steps[t - 1] * dim + states[node.name][:, t].astype(int)
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


def graph(*nodes: tuple[str, int, float, str], **observed) -> GSSMSpec:
    """Nodes (name, states, alpha, parents); the last one is observed."""
    listed = [NodeSpec(name=n, state_dim=s, alpha=a, parents=tuple(p.split())) for n, s, a, p in nodes]
    return GSSMSpec(nodes=(*listed[:-1], listed[-1].model_copy(update={"observed": True, **observed})))


LARGER = {
    "4096 states": graph(("Z", 4096, 1.7e-4, ""), ("X", 32, 0.05, "Z")),
    "one table of two large inputs": graph(("Z1", 64, 6e-3, ""), ("Z2", 64, 6e-3, ""), ("X", 32, 0.1, "Z1 Z2")),
    "small latents drawn together": graph(*((f"Z{i}", 8, 0.1, "") for i in range(4)), ("X", 32, 0.3, "Z0 Z1 Z2 Z3")),
    "a tree with feedback": graph(
        ("A", 16, 0.3, "X"), ("B", 12, 0.3, "A"), ("C", 20, 0.3, "A X"), ("X", 40, 0.3, "B C")
    ),
    "a chain from the observed node": graph(("A", 3, 1.0, ""), ("B", 4, 1.0, "A"), ("X", 5, 1.0, "B")),
    "symbols of two bytes": graph(("Z", 3, 1.0, ""), ("X", 300, 0.1, "Z")),
    "dense parents": graph(("A", 5, 0.4, ""), ("B", 6, 0.4, "A"), ("C", 7, 0.4, "A B"), ("X", 30, 0.2, "A B C")),
}


def assert_transitions(kernels: Kernels, states: dict[str, np.ndarray], rows: int = 25) -> None:
    """Each node's states, given each of its most frequent inputs, are distributed as its joint table says."""
    spec = kernels.spec
    for node in spec.build_order():
        before = (node.name, spec.observed.name)
        names = spec.inputs(node)
        inputs = [states[n][:, :-1] if n in before else states[n][:, 1:] for n in names]
        sizes = [spec.node(n).state_dim for n in names]
        given = np.zeros(states[node.name][:, 1:].shape, dtype=np.int64)
        for values, size in zip(inputs, sizes, strict=True):
            given = given * size + values
        law = joint_table(kernels, node.name).reshape(-1, node.state_dim)
        law = law / law.sum(axis=1, keepdims=True)
        drawn = states[node.name][:, 1:]
        found = [(0.0, 0)]
        for row in np.argsort(np.bincount(given.reshape(-1)))[::-1][:rows]:
            counts = np.bincount(drawn[given == row], minlength=node.state_dim)
            if counts.sum() > 100:
                found.append(pearson(counts, law[row]))
        assert_chi_square(*map(sum, zip(*found, strict=True)))


@pytest.mark.parametrize("name", LARGER)
def test_transitions_and_emissions_of_larger_graphs_follow_the_joint_tables(name):
    kernels = draw_kernels(LARGER[name], 1)
    assert_transitions(kernels, Sampler(kernels, 0, "train").sample_states(range(1000), 200))


STREAM = {
    "4096 states": "20210f734580f907",
    "a tree with feedback": "455214cf3694ad29",
    "dense parents": "a3a91fbe9fcae452",
}


@pytest.mark.parametrize("name", STREAM)
def test_the_stream_is_the_documented_one_of_its_version(name, monkeypatch):
    """Whoever changes what is drawn from which numbers changes `draws.VERSION`, and these sums."""
    if name == "dense parents":
        monkeypatch.setattr(draws, "JOINT_WORK", 0)
    states = Sampler(draw_kernels(LARGER[name], 1), 0, "train").sample_states([0, 7, 2**64 - 1], 300)
    digest = hashlib.sha256()
    for values in states.values():
        digest.update(values.astype("<u2").tobytes())
    assert (draws.VERSION, digest.hexdigest()[:16]) == (2, STREAM[name])


def test_products_that_are_multiplied_out_follow_the_joint_tables(monkeypatch):
    monkeypatch.setattr(draws, "JOINT_WORK", 0)
    monkeypatch.setattr(draws, "FACTOR_ENTRIES", 2**10)
    kernels = draw_kernels(LARGER["dense parents"], 1)
    sampler = Sampler(kernels, 0, "train")
    kind, _, first, last = sampler.main_program.draws[-1]
    assert (kind, last - first) == (draws.PRODUCT, 2), "three inputs are merged into two tables"
    assert_transitions(kernels, sampler.sample_states(range(500), 100))


def test_background_states_come_as_often_as_they_should():
    """Rows that are floored all over: the 255 states below the largest one have a mass of 255e-3."""
    law = np.full((1, 256), 1e-3)
    law[0, 7] = 1 - 255e-3
    spec = graph(("X", 256, 1.0, ""), kernel_type="fullrank")
    sampler = Sampler(Kernels(spec=spec, seed=None, tables={"X": (law,)}), 0, "train")
    assert len(sampler.main_program.entries) == 2
    tokens = sampler.sample(range(500), 401)[:, 1:]
    assert_distributed(np.bincount(tokens.reshape(-1), minlength=256), law[0])


def test_latents_that_no_token_depends_on_cost_sample_nothing():
    spec = graph(("Z", 4, 0.3, ""), ("W", 200, 0.3, "Z X"), ("V", 300, 0.3, "W"), ("X", 6, 0.3, "Z"))
    sampler = Sampler(draw_kernels(spec, 0), 0, "train")
    assert [node.name for draw in sampler.main_program.plan for node in draw.nodes] == ["Z", "X"]
    alone = graph(("Z", 4, 0.3, ""), ("X", 6, 0.3, "Z"))
    kernels = Kernels(spec=alone, seed=None, tables={n: sampler.kernels.tables[n] for n in ("Z", "X")})
    assert np.array_equal(sampler.sample(range(9), 50), Sampler(kernels, 0, "train").sample(range(9), 50))
    states = sampler.sample_states(range(300), 200)
    assert {name: values.dtype.itemsize for name, values in states.items()} == {"Z": 1, "W": 1, "V": 2, "X": 1}
    assert_transitions(sampler.kernels, states)


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ((8, 8, 8, 8), [["Z0", "Z1"], ["Z2", "Z3"], ["X"]]),
        ((64, 64), [["Z0"], ["Z1"], ["X"]]),
        ((8,), [["Z0", "X"]]),
        ((8, 1, 64, 8), [["Z0", "Z3"], ["Z2"], ["X"]]),
    ],
)
def test_small_latents_are_drawn_together(sizes, joined):
    latents = [(f"Z{i}", size, 0.3, "") for i, size in enumerate(sizes)]
    spec = graph(*latents, ("X", 32, 0.3, " ".join(name for name, *_ in latents)))
    main, aside = draws.plan(spec)
    assert [[node.name for node in draw.nodes] for draw in main] == joined
    assert aside == []


@pytest.mark.parametrize("kernel_type", ["product", "fullrank"])
def test_kernels_of_a_sequence_govern_latents_with_parents(kernel_type):
    spec = GSSMSpec(
        nodes=(
            NodeSpec(name="A", state_dim=3, alpha=1.0, parents=("X",)),
            NodeSpec(name="B", state_dim=4, alpha=1.0, parents=("A", "X"), mode="context", kernel_type=kernel_type),
            NodeSpec(name="X", state_dim=3, alpha=1.0, parents=("B",), observed=True),
        )
    )
    kernels = draw_kernels(spec, 0)
    sampler = Sampler(kernels, 0, "train")
    plain = GSSMSpec(nodes=tuple(node.model_copy(update={"mode": "default"}) for node in spec.nodes))
    own = Kernels(spec=plain, seed=None, tables={**kernels.tables, **sampler.context_tables(2**64 - 1)})
    assert_transitions(own, sampler.sample_states([2**64 - 1], 30_000), rows=9)


def test_a_graph_with_a_single_symbol_and_states_that_never_change():
    spec = graph(("A", 1, 1.0, "X"), ("B", 3, 1.0, "A"), ("X", 1, 1.0, "A B"))
    sampler = Sampler(draw_kernels(spec, 0), 0, "train")
    assert sampler.sample(range(3), 9).tolist() == [[0] * 9] * 3
    assert_transitions(sampler.kernels, sampler.sample_states(range(20), 200))


def test_many_parents_are_no_limit():
    latents = [(f"Z{i}", 1 + i % 2, 0.5, "") for i in range(140)]
    spec = graph(*latents, ("X", 3, 0.5, " ".join(name for name, *_ in latents)))
    sampler = Sampler(draw_kernels(spec, 0), 0, "train")
    assert draws.PRODUCT in sampler.main_program.draws[:, 0]
    tokens = sampler.sample(range(50), 20)
    assert np.array_equal(tokens[7], sampler.sample([7], 20)[0])


def test_the_largest_alphabet():
    tokens = Sampler(draw_kernels(graph(("X", 2**16, 1.0, "")), 0), 0, "train").sample(range(50), 400)
    assert tokens.dtype == np.uint16
    assert tokens.max() > 65_000


@pytest.mark.parametrize(("symbols", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16")])
def test_symbols_take_the_smallest_type(symbols, dtype):
    assert symbol_dtype(symbols) == np.dtype(dtype)


@pytest.mark.parametrize(
    ("indices", "seq_len", "message"),
    [
        ([3, -1], 5, "index -1 is negative"),
        ([2**64 - 1, -2], 5, "index -2 is not within"),
        ([2**64], 5, "index 18446744073709551616 is not within"),
        ([1.5], 5, "index 1.5 is not an integer"),
        (["a"], 5, "index 'a' is not an integer"),
        ([0], 0, "seq_len is 0"),
        ([0], -3, "seq_len is -3"),
    ],
)
def test_requests_that_make_no_sense_are_refused(indices, seq_len, message):
    sampler = Sampler(draw_kernels(graph(("X", 4, 1.0, "")), 0), 0, "train")
    with pytest.raises(ValueError, match=message):
        sampler.sample(indices, seq_len)
    with pytest.raises(ValueError, match=message):
        sampler.sample_states(indices, seq_len)


@pytest.mark.parametrize("indices", [range(3), [0, 1, 2], np.arange(3, dtype=np.uint8), (np.int64(0), 1, 2)])
def test_indices_may_be_of_any_integer_type(indices):
    sampler = Sampler(draw_kernels(graph(("X", 4, 1.0, "")), 0), 0, "train")
    assert np.array_equal(sampler.sample(indices, 9), sampler.sample([0, 1, 2], 9))
    assert np.array_equal(sampler.sample([2**64 - 1, 0], 9)[1], sampler.sample([0], 9)[0])
