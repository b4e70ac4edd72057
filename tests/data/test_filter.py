from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.bounds import Estimate, Scorer, entropy
from nanollama.data.filter import Filter, ImpossibleSequence
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs


def chain(*, latents: int = 1, states: int = 4, symbols: int = 5, mode: str = "default", observed: str = "default"):
    names = [f"Z{i}" for i in range(latents)]
    nodes = [NodeSpec(name=n, state_dim=states, alpha=0.3, mode=mode) for n in names]
    nodes.append(NodeSpec(name="X", state_dim=symbols, alpha=0.3, parents=tuple(names), mode=observed, observed=True))
    return GSSMSpec(nodes=tuple(nodes))


def random_tokens(rng: np.random.Generator, batch: int, length: int, symbols: int) -> np.ndarray:
    tokens = rng.integers(0, symbols, (batch, length))
    tokens[:, 0] = 0
    return tokens


@settings(deadline=None, max_examples=150)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_log_likelihood_matches_the_enumeration_of_all_paths(spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len()
    tokens = random_tokens(np.random.default_rng(seed), 3, length, kernels.vocab_size)
    found = Filter(kernels).log_likelihood(torch.from_numpy(tokens))
    assert found.shape == (3, length - 1)
    assert found.dtype == torch.float64
    for row, sequence in enumerate(tokens):
        prefixes = [np.log(oracle.probability(tuple(sequence[:t]))) for t in range(1, length + 1)]
        np.testing.assert_allclose(found[row].numpy(), np.diff(prefixes), rtol=0, atol=1e-10)
        np.testing.assert_allclose(found[row].sum().item(), prefixes[-1], rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=50)
@given(spec=graphs(), seed=st.integers(0, 2**32))
def test_predictive_distributions_match_the_enumeration_of_all_paths(spec, seed):
    kernels = draw_kernels(spec, seed)
    oracle = Oracle(kernels)
    length = oracle.max_len(4)
    tokens = random_tokens(np.random.default_rng(seed), 2, length, kernels.vocab_size)
    model = Filter(kernels)
    found = model.predictive(torch.from_numpy(tokens))
    assert found.shape == (2, length - 1, kernels.vocab_size)
    np.testing.assert_allclose(found.sum(dim=-1).numpy(), 1, rtol=0, atol=1e-12)
    for row, sequence in enumerate(tokens):
        for t in range(1, length):
            expected = oracle.predictive(tuple(sequence), t)
            np.testing.assert_allclose(found[row, t - 1].numpy(), expected, rtol=0, atol=1e-10)
    picked = found.gather(2, torch.from_numpy(tokens)[:, 1:, None])[..., 0].log()
    np.testing.assert_allclose(picked.numpy(), model.log_likelihood(torch.from_numpy(tokens)).numpy(), atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(spec=graphs(max_latents=2), seed=st.integers(0, 2**32))
def test_probabilities_of_all_sequences_sum_to_one(spec, seed):
    kernels = draw_kernels(spec, seed)
    tokens = torch.tensor(Oracle(kernels).sequences(5))
    total = torch.exp(-Scorer(kernels).nll(tokens)).sum().item()
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_small_memory_budget_splits_the_batch_and_changes_nothing(feedback):
    spec = chain(latents=2)
    if feedback:
        spec = GSSMSpec(nodes=(spec.nodes[0].model_copy(update={"parents": ("X",)}), *spec.nodes[1:]))
    kernels = draw_kernels(spec, 3)
    tokens = torch.from_numpy(random_tokens(np.random.default_rng(0), 23, 9, 5))
    whole = Filter(kernels)
    split = Filter(kernels, memory_budget=8 * (16 * 5 * 3 + 4 * 4 * 6) + 4000)
    assert 1 < split._batch < 23 < whole._batch
    np.testing.assert_allclose(whole.log_likelihood(tokens), split.log_likelihood(tokens), rtol=0, atol=1e-12)
    np.testing.assert_allclose(whole.predictive(tokens), split.predictive(tokens), rtol=0, atol=1e-12)


def test_float32_agrees_within_its_precision():
    kernels = draw_kernels(chain(latents=3), 1)
    tokens = torch.from_numpy(random_tokens(np.random.default_rng(0), 8, 40, 5))
    double = Filter(kernels).log_likelihood(tokens)
    single = Filter(kernels, dtype=torch.float32).log_likelihood(tokens)
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def test_long_sequences_of_peaked_kernels_stay_finite():
    spec = GSSMSpec(
        nodes=(
            NodeSpec(name="Z", state_dim=16, alpha=1e-3, mode="slow"),
            NodeSpec(name="X", state_dim=8, alpha=1e-3, parents=("Z",), observed=True),
        )
    )
    tokens = torch.from_numpy(random_tokens(np.random.default_rng(0), 2, 2000, 8))
    nll = Scorer(draw_kernels(spec, 0)).nll(tokens)
    assert torch.isfinite(nll).all()
    assert (nll > 2000).all()


def test_zero_probability_names_sequence_and_position():
    spec = chain(states=2, symbols=3)
    stay, never_two = np.eye(2), np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    kernels = Kernels(spec=spec, seed=None, tables={"Z0": (stay,), "X": (never_two,)})
    tokens = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 2], [0, 2, 0, 0]])
    for budget in (2**30, 500):
        with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3") as caught:
            Filter(kernels, memory_budget=budget).log_likelihood(tokens)
        assert (caught.value.sequence, caught.value.position) == (1, 3)
        with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3"):
            Filter(kernels, memory_budget=budget).predictive(tokens)


def test_tokens_that_no_sequence_can_have_are_refused():
    model = Filter(draw_kernels(chain(), 0))
    with pytest.raises(ValueError, match=r"sequence 1 holds 5 at position 2; .* 0 to 4"):
        model.log_likelihood(torch.tensor([[0, 1, 1], [0, 1, 5]]))
    with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 0"):
        model.log_likelihood(torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="expected integer tokens"):
        model.log_likelihood(torch.zeros(2, 3))


def test_empty_batches_and_single_tokens_have_nothing_to_predict():
    model = Filter(draw_kernels(chain(), 0))
    assert model.log_likelihood(torch.zeros(0, 5, dtype=torch.long)).shape == (0, 4)
    assert model.log_likelihood(torch.zeros(3, 1, dtype=torch.long)).shape == (3, 0)
    assert model.predictive(torch.zeros(0, 5, dtype=torch.long)).shape == (0, 4, 5)


def test_graphs_beyond_a_budget_are_refused_with_cost_and_remedy():
    kernels = draw_kernels(chain(latents=4, states=8), 0)
    with pytest.raises(SpecError, match=r"8 x 8 x 8 x 8 = 4,096 joint states cost 131,072 .* over 1,000 - use fewer"):
        Filter(kernels, max_operations=1000)
    with pytest.raises(SpecError, match=r"4,096 joint states need [\d,]+ bytes .* over 10,000 - use fewer"):
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
    tokens = torch.from_numpy(random_tokens(np.random.default_rng(0), 4, 6, 5))
    expected = Filter(draw_kernels(plain, 0)).log_likelihood(tokens)
    assert torch.equal(Filter(kernels).log_likelihood(tokens), expected)


def test_entropy_agrees_with_the_exact_enumeration():
    kernels = draw_kernels(chain(latents=2, states=2, symbols=3), 5)
    oracle = Oracle(kernels)
    probabilities = np.array([oracle.probability(tokens) for tokens in oracle.sequences(5)])
    exact = -(probabilities * np.log(probabilities)).sum() / 4
    found = entropy(kernels, 5, 4000, seed=1, batch_size=999)
    assert found.num_sequences == 4000
    assert 0 < found.stderr < 0.02
    assert abs(found.mean - exact) < 4 * found.stderr


def test_entropy_does_not_depend_on_the_batch():
    kernels = draw_kernels(chain(), 5)
    a, b = entropy(kernels, 8, 50, batch_size=7), entropy(kernels, 8, 50)
    assert (a.mean, a.stderr) == pytest.approx((b.mean, b.stderr), rel=1e-12)


def test_an_estimate_needs_two_sequences():
    with pytest.raises(ValueError, match="at least 2 sequences, found 1"):
        Estimate.of(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    kernels = draw_kernels(chain(latents=3), 1)
    tokens = torch.from_numpy(random_tokens(np.random.default_rng(0), 8, 40, 5))
    found = Scorer(kernels, device="cuda").nll(tokens).cpu()
    np.testing.assert_allclose(found, Scorer(kernels).nll(tokens), rtol=1e-10)
