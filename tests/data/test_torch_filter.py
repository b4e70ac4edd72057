from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.filter import Filter, ImpossibleSequence
from nanollama.data.gssm import Kernels, draw_kernels
from nanollama.data.plan import METHODS
from nanollama.data.torch_filter import TorchFilter
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import graphs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def random_tokens(seed: int, batch: int, length: int, symbols: int) -> torch.Tensor:
    tokens = np.random.default_rng(seed).integers(0, symbols, (batch, length))
    tokens[:, 0] = 0
    return torch.from_numpy(tokens)


def agrees(kernels: Kernels, tokens: torch.Tensor, found: TorchFilter, *, atol: float) -> None:
    expected = Filter(kernels)
    np.testing.assert_allclose(found.log_likelihood(tokens).cpu(), expected.log_likelihood(tokens), atol=atol)
    np.testing.assert_allclose(found.predictive(tokens).cpu(), expected.predictive(tokens), rtol=0, atol=atol)
    for smoothed in (False, True):
        ours, theirs = (model.posterior(tokens, smoothed=smoothed) for model in (found, expected))
        assert ours.keys() == theirs.keys()
        for name, marginal in ours.items():
            np.testing.assert_allclose(marginal.cpu(), theirs[name], rtol=0, atol=atol)


@settings(deadline=None, max_examples=60)
@given(spec=graphs(), seed=st.integers(0, 2**32), method=st.sampled_from(METHODS))
def test_it_agrees_with_the_compiled_loops_for_every_method(spec, seed, method):
    kernels = draw_kernels(spec, seed)
    tokens = random_tokens(seed, 5, 7, kernels.vocab_size)
    agrees(kernels, tokens, TorchFilter(kernels, device="cpu", method=method), atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_large_graphs_with_parents_and_feedback_agree(method, device):
    nodes = (
        NodeSpec(name="A", state_dim=16, alpha=0.02, parents=("X",)),
        NodeSpec(name="B", state_dim=12, alpha=0.02, parents=("A",)),
        NodeSpec(name="C", state_dim=6, alpha=0.1, parents=("A",), kernel_type="fullrank"),
        NodeSpec(name="X", state_dim=20, alpha=0.05, parents=("C", "B"), observed=True),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 1)
    found = TorchFilter(kernels, device=device, method=method, memory_budget=2**24)
    assert found._batch > 1
    agrees(kernels, random_tokens(0, 9, 12, 20), found, atol=1e-10)


def test_factors_of_a_table_that_is_too_large_agree_with_it():
    names = ("A", "B", "C")
    nodes = [NodeSpec(name=n, state_dim=8, alpha=0.1) for n in names]
    nodes.append(NodeSpec(name="X", state_dim=200, alpha=0.1, parents=("C", "A", "B"), observed=True))
    kernels = draw_kernels(GSSMSpec(nodes=tuple(nodes)), 1)
    found = TorchFilter(kernels, device="cpu", memory_budget=2**19)
    assert found.plan.observation.factored
    agrees(kernels, random_tokens(0, 4, 9, 200), found, atol=1e-10)


def test_float32_agrees_within_its_precision():
    nodes = [NodeSpec(name=f"Z{i}", state_dim=4, alpha=0.3) for i in range(3)]
    nodes.append(NodeSpec(name="X", state_dim=5, alpha=0.3, parents=("Z0", "Z1", "Z2"), observed=True))
    kernels = draw_kernels(GSSMSpec(nodes=tuple(nodes)), 1)
    found = TorchFilter(kernels, device="cpu", dtype=torch.float32)
    assert found.log_likelihood(random_tokens(0, 8, 40, 5)).dtype == torch.float64
    agrees(kernels, random_tokens(0, 8, 40, 5), found, atol=1e-5)


def test_a_small_memory_budget_splits_the_batch_and_changes_nothing():
    nodes = [NodeSpec(name=f"Z{i}", state_dim=4, alpha=0.3) for i in range(2)]
    nodes.append(NodeSpec(name="X", state_dim=5, alpha=0.3, parents=("Z0", "Z1"), observed=True))
    kernels = draw_kernels(GSSMSpec(nodes=tuple(nodes)), 1)
    found = TorchFilter(kernels, device="cpu", memory_budget=10_000)
    assert 1 < found._batch < 23
    agrees(kernels, random_tokens(0, 23, 9, 5), found, atol=1e-12)


def test_impossible_and_foreign_sequences_are_refused_as_by_the_filter():
    nodes = (
        NodeSpec(name="Z", state_dim=2, alpha=1.0),
        NodeSpec(name="X", state_dim=3, alpha=1.0, parents=("Z",), observed=True),
    )
    stay, never_two = np.eye(2), np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    kernels = Kernels(spec=GSSMSpec(nodes=nodes), seed=None, tables={"Z": (stay,), "X": (never_two,)})
    model = TorchFilter(kernels, device="cpu")
    tokens = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 2], [0, 2, 0, 0]])
    for ask in (model.log_likelihood, model.predictive, model.posterior):
        with pytest.raises(ImpossibleSequence, match="sequence 1 has probability zero at position 3"):
            ask(tokens)
    with pytest.raises(ValueError, match="sequence 0 holds 3 at position 1"):
        model.log_likelihood(torch.tensor([[0, 3]]))
    with pytest.raises(SpecError, match=r"2 = 2 joint states need .* bytes"):
        TorchFilter(kernels, device="cpu", memory_budget=50)
    with pytest.raises(ValueError, match=r"not torch.int64"):
        TorchFilter(kernels, device="cpu", dtype=torch.int64)
    with pytest.raises(ValueError, match="there is no method 'best'"):
        TorchFilter(kernels, device="cpu", method="best")
