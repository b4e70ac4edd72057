from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.data.bounds import Estimate, Scorer, entropy
from nanollama.data.filter import Filter
from nanollama.data.gssm import draw_kernels
from nanollama.data.sampler import Sampler
from nanollama.spec.base import SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec
from tests.support.gssm import Oracle, graphs


def chain(*, latents: int = 1, states: int = 4, symbols: int = 5, mode: str = "default"):
    names = [f"Z{i}" for i in range(latents)]
    nodes = [NodeSpec(name=n, state_dim=states, alpha=0.3, mode=mode) for n in names]
    nodes.append(NodeSpec(name="X", state_dim=symbols, alpha=0.3, parents=tuple(names), observed=True))
    return GSSMSpec(nodes=tuple(nodes))


def drawn(kernels, count: int, length: int) -> torch.Tensor:
    return torch.from_numpy(Sampler(kernels, 1, "test").sample(range(count), length).astype(np.int64))


@settings(deadline=None, max_examples=20)
@given(spec=graphs(max_latents=2), seed=st.integers(0, 2**32))
def test_probabilities_of_all_sequences_sum_to_one(spec, seed):
    kernels = draw_kernels(spec, seed)
    tokens = torch.tensor(Oracle(kernels).sequences(5))
    total = torch.exp(-Scorer(kernels).nll(tokens)).sum().item()
    assert total == pytest.approx(1, abs=1e-10)


def test_entropy_agrees_with_the_exact_enumeration_in_all_and_by_position():
    kernels = draw_kernels(chain(latents=2, states=2, symbols=3), 5)
    oracle = Oracle(kernels)
    blocks = []  # entropy of x_1 .. x_t
    for length in range(1, 6):
        probabilities = np.array([oracle.probability(tokens) for tokens in oracle.sequences(length)])
        blocks.append(-(probabilities * np.log(probabilities)).sum())
    found = entropy(kernels, 5, 4000, seed=1, batch_size=999)
    assert found.num_sequences == 4000
    assert 0 < found.stderr < 0.02
    assert abs(found.mean - blocks[-1] / 4) < 4 * found.stderr
    assert found.by_position.mean.shape == found.by_position.stderr.shape == (4,)
    assert (np.abs(found.by_position.mean - np.diff(blocks)) < 4 * found.by_position.stderr).all()
    assert found.by_position.mean.mean() == pytest.approx(found.mean, rel=1e-12)
    assert found.method == "forward filter"
    assert found.seconds > 0
    assert str(found) == str(found.estimate)


def test_entropy_does_not_depend_on_the_batch():
    kernels = draw_kernels(chain(), 5)
    a, b = entropy(kernels, 8, 50, batch_size=7), entropy(kernels, 8, 50)
    assert (a.mean, a.stderr) == pytest.approx((b.mean, b.stderr), rel=1e-12)
    np.testing.assert_allclose(a.by_position.mean, b.by_position.mean, rtol=1e-12)
    np.testing.assert_allclose(a.by_position.stderr, b.by_position.stderr, rtol=1e-9)


def test_entropy_can_be_followed_and_ended_between_two_batches():
    kernels = draw_kernels(chain(), 5)
    told = []

    def enough(estimate: Estimate) -> bool:
        told.append(estimate.num_sequences)
        return estimate.num_sequences >= 20

    found = entropy(kernels, 8, 50, batch_size=7, after_batch=enough)
    assert told == [7, 14, 21]
    whole = entropy(kernels, 8, 21)
    assert found.num_sequences == 21
    assert (found.mean, found.stderr) == pytest.approx((whole.mean, whole.stderr), rel=1e-12)
    np.testing.assert_allclose(found.by_position.mean, whole.by_position.mean, rtol=1e-12)
    np.testing.assert_allclose(found.by_position.stderr, whole.by_position.stderr, rtol=1e-9)


def test_errors_by_position_are_those_of_the_scores():
    kernels = draw_kernels(chain(), 5)
    scores = Scorer(kernels).nll_by_position(torch.from_numpy(Sampler(kernels, 0, "entropy").sample(range(40), 9)))
    found = entropy(kernels, 9, 40, batch_size=13)
    np.testing.assert_allclose(found.by_position.mean, scores.mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(found.by_position.stderr, scores.std(dim=0) / 40**0.5, rtol=1e-9)
    assert (found.mean, found.stderr) == pytest.approx(
        (scores.mean().item(), scores.mean(dim=1).std().item() / 40**0.5), rel=1e-12
    )


def test_an_estimate_needs_two_sequences():
    with pytest.raises(ValueError, match="at least 2 sequences, found 1"):
        Estimate.of(torch.ones(1))
    with pytest.raises(ValueError, match="at least 2 sequences, found 1"):
        entropy(draw_kernels(chain(), 0), 4, 1)


def test_a_scorer_gives_what_the_filter_gives_as_tensors():
    kernels = draw_kernels(chain(latents=2), 3)
    tokens = drawn(kernels, 5, 9)
    scorer, model = Scorer(kernels), Filter(kernels)
    assert scorer.device == torch.device("cpu")
    np.testing.assert_array_equal(scorer.nll_by_position(tokens), -model.log_likelihood(tokens))
    torch.testing.assert_close(scorer.nll(tokens), scorer.nll_by_position(tokens).sum(dim=1))
    np.testing.assert_array_equal(scorer.predictive(tokens), model.predictive(tokens))
    for smoothed in (False, True):
        found, expected = (m.posterior(tokens, smoothed=smoothed) for m in (scorer, model))
        assert found.keys() == {"Z0", "Z1"}
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
    assert scorer.explain() == model.explain()
    assert Scorer(kernels, dtype=torch.float32).predictive(tokens).dtype == torch.float32
    with pytest.raises(ValueError, match=r"float64 or float32, not torch.int64"):
        Scorer(kernels, dtype=torch.int64)
    with pytest.raises(SpecError, match=r"context mode .* integral"):
        Scorer(draw_kernels(chain(mode="context"), 0))


@settings(deadline=None, max_examples=30)
@given(spec=graphs(), seed=st.integers(0, 2**32), extra=st.integers(0, 3))
def test_kl_is_the_divergence_of_the_learner_from_the_enumerated_truth(spec, seed, extra):
    kernels = draw_kernels(spec, seed)
    oracle, rng = Oracle(kernels), np.random.default_rng(seed)
    length = oracle.max_len(4)
    tokens = rng.integers(0, kernels.vocab_size, (2, length))
    tokens[:, 0] = 0
    logits = rng.normal(size=(2, length - 1, kernels.vocab_size + extra)) * 5
    found = Scorer(kernels).kl(torch.from_numpy(tokens), torch.from_numpy(logits).float())
    q = np.exp(logits.astype(np.float32).astype(np.float64))
    q /= q.sum(axis=2, keepdims=True)
    for row in range(2):
        for t in range(1, length):
            p = oracle.predictive(tuple(tokens[row]), t)
            expected = (p * np.log(p / q[row, t - 1, : len(p)])).sum()
            assert found[row, t - 1].item() == pytest.approx(expected, abs=1e-9)
    assert found.dtype == torch.float64
    assert (found >= 0).all()


def test_kl_of_the_truth_itself_is_zero_and_never_below():
    kernels = draw_kernels(chain(latents=2, symbols=40), 3)
    tokens = drawn(kernels, 20, 30)
    scorer = Scorer(kernels)
    found = scorer.kl(tokens, scorer.predictive(tokens).log())
    assert (found >= 0).all()
    assert found.max() < 1e-13


def test_kl_needs_a_finite_logit_for_each_symbol():
    kernels = draw_kernels(chain(), 3)
    scorer, tokens = Scorer(kernels), drawn(kernels, 3, 6)
    for shape in ((3, 6, 5), (2, 5, 5), (3, 5, 4), (15, 5)):
        with pytest.raises(
            ValueError, match=r"expected logits of shape \[3, 5, 5 or more\] for tokens \[3, 6\], found"
        ):
            scorer.kl(tokens, torch.zeros(shape))
    for bad in (float("nan"), float("inf"), -float("inf")):
        logits = torch.zeros(3, 5, 7)
        logits[2, 4, 6] = bad
        with pytest.raises(ValueError, match="logits of sequence 2 at position 4 are not finite"):
            scorer.kl(tokens, logits)


def test_kl_takes_no_gradient():
    kernels = draw_kernels(chain(), 3)
    tokens = drawn(kernels, 3, 6)
    assert not Scorer(kernels).kl(tokens, torch.zeros(3, 5, 5, requires_grad=True)).requires_grad


def test_a_formula_scores_sequences_whose_kernels_are_their_own_where_there_is_one():
    alone = NodeSpec(name="X", state_dim=3, alpha=0.5, mode="context", kernel_type="fullrank", observed=True)
    kernels = draw_kernels(GSSMSpec(nodes=(alone,)), 0)
    scorer, tokens = Scorer(kernels), torch.tensor([[0, 2, 2, 1]])
    predicted = [[[1 / 3] * 3, [0.2, 0.2, 0.6], [0.5 / 3.5, 0.5 / 3.5, 2.5 / 3.5]]]
    np.testing.assert_allclose(scorer.predictive(tokens), predicted, rtol=1e-8)
    np.testing.assert_allclose(scorer.nll(tokens), [-np.log(0.6 * 0.5 / 3.5 / 3)], rtol=1e-8)
    np.testing.assert_allclose(scorer.kl(tokens, torch.tensor(predicted).log()), 0, atol=1e-9)
    assert scorer.explain().startswith("closed form")
    assert entropy(kernels, 4, 10).method == "closed form"
    with pytest.raises(SpecError, match=r"context mode \('X'\)"):
        scorer.posterior(tokens)


def test_a_figure_needs_no_torch():
    program = (
        "import sys; from nanollama.data.bounds import entropy; from nanollama.data.gssm import draw_kernels; "
        "from nanollama.spec.gssm import GSSMSpec, NodeSpec; "
        "spec = GSSMSpec(nodes=(NodeSpec(name='X', state_dim=3, alpha=1.0, observed=True),)); "
        "print(entropy(draw_kernels(spec, 0), 4, 8)); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "nats/token over 8 sequences" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    kernels = draw_kernels(chain(latents=3), 1)
    tokens = drawn(kernels, 8, 40)
    here, there = Scorer(kernels), Scorer(kernels, device="cuda")
    np.testing.assert_allclose(there.nll(tokens).cpu(), here.nll(tokens), rtol=1e-10)
    logits = torch.randn(8, 39, 5)
    np.testing.assert_allclose(there.kl(tokens, logits.cuda()).cpu(), here.kl(tokens, logits), atol=1e-10)
