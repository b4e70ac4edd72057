from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data import device_sampler as module
from nanollama.data import draws
from nanollama.data.device_sampler import DeviceSampler
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import graphs

ALL_MODES = ("default", "slow", "dead", "context")
WORD = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]))
INDICES = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=9)


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def assert_same(kernels, seed: int, indices, seq_len: int) -> None:
    tokens = DeviceSampler(kernels, seed, "train", device="cpu").sample(indices, seq_len)
    assert tokens.dtype == torch.int64
    assert np.array_equal(tokens.numpy(), Sampler(kernels, seed, "train").sample(indices, seq_len))


@settings(deadline=None, max_examples=200)
@given(a=WORD, b=WORD)
def test_both_halves_of_a_product(a, b):
    high, low = module._multiply(torch.tensor(signed(a)), torch.tensor(signed(b)))
    assert high.item() % 2**64 << 64 | low.item() % 2**64 == a * b


@settings(deadline=None, max_examples=30)
@given(spec=graphs(modes=ALL_MODES), seed=st.integers(0, 2**63 - 1), indices=INDICES, seq_len=st.integers(1, 11))
def test_tokens_are_those_of_the_compiled_sampler(spec, seed, indices, seq_len):
    assert_same(draw_kernels(spec, 0), seed, indices, seq_len)


@settings(deadline=None, max_examples=20)
@given(spec=graphs(modes=ALL_MODES), seed=st.integers(0, 2**32), factors=st.sampled_from([0, 12, 2**20]))
def test_rows_that_are_multiplied_out_give_the_same_tokens(spec, seed, factors):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "JOINED_ENTRIES", 0)
        patch.setattr(draws, "JOINT_WORK", 0)
        patch.setattr(draws, "FACTOR_ENTRIES", factors)
        patch.setattr(module, "_WORKING_ENTRIES", 200)
        assert_same(draw_kernels(spec, 0), seed, range(20), 10)


def test_sparse_rows_with_a_background_give_the_same_tokens():
    nodes = (
        NodeSpec(name="Z", state_dim=300, alpha=2e-3),
        NodeSpec(name="X", state_dim=70, alpha=5e-3, parents=("Z",), observed=True),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 0)
    assert all(DeviceSampler(kernels, 0, "train", device="cpu")._background)
    assert_same(kernels, 0, range(50), 60)


def test_a_background_that_comes_often_gives_the_same_tokens(monkeypatch):
    monkeypatch.setattr("nanollama.data.gssm.FLOOR", 1e-3)
    nodes = (
        NodeSpec(name="Z", state_dim=64, alpha=1e-2),
        NodeSpec(name="X", state_dim=40, alpha=1e-2, parents=("Z",), observed=True),
    )
    assert_same(draw_kernels(GSSMSpec(nodes=nodes), 0), 0, range(50), 60)


def test_many_parents_give_the_same_tokens():
    names = [f"Z{i}" for i in range(40)]
    latents = [NodeSpec(name=name, state_dim=2, alpha=0.3) for name in names]
    observed = NodeSpec(name="X", state_dim=9, alpha=0.3, parents=tuple(names), observed=True)
    assert_same(draw_kernels(GSSMSpec(nodes=(*latents, observed)), 0), 0, range(9), 9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_tokens():
    nodes = (
        NodeSpec(name="Z", state_dim=300, alpha=2e-3, parents=("X",)),
        NodeSpec(name="Y", state_dim=5, alpha=0.5, mode="context"),
        NodeSpec(name="X", state_dim=70, alpha=5e-3, parents=("Z", "Y"), observed=True),
    )
    kernels = draw_kernels(GSSMSpec(nodes=nodes), 0)
    tokens = DeviceSampler(kernels, 0, "train", device="cuda").sample(range(50), 60)
    assert np.array_equal(tokens.cpu().numpy(), Sampler(kernels, 0, "train").sample(range(50), 60))
