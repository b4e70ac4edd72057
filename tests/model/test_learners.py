from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanollama.model.build import build_model, num_parameters
from nanollama.model.learner import TO_STREAM, Learner
from nanollama.spec.base import SpecError
from tests.model.learners import LEARNERS, OPTIONS, VOCAB, learner, next_token_loss, spec_of, tokens

every_option = pytest.mark.parametrize("name", OPTIONS)
every_learner = pytest.mark.parametrize("name", LEARNERS)


@every_option
def test_a_token_changes_no_logits_before_it_and_some_from_it_on(name: str) -> None:
    model = learner(name)
    original_BT = tokens()
    with torch.no_grad():
        before_BTV = model(original_BT)
        for position in (0, 1, 3, 4, 11, 18):
            changed_BT = original_BT.clone()
            changed_BT[:, position] = (changed_BT[:, position] + 1) % VOCAB
            after_BTV = model(changed_BT)
            torch.testing.assert_close(before_BTV[:, :position], after_BTV[:, :position], rtol=0, atol=2e-6)
            assert (before_BTV[:, position] - after_BTV[:, position]).abs().amax(dim=-1).min() > 1e-3
            if position < 18:
                assert (before_BTV[:, position + 1] - after_BTV[:, position + 1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", OPTIONS)
@settings(deadline=None, max_examples=15)
@given(length=st.integers(1, 40), cuts=st.sets(st.integers(1, 39)), seed=st.integers(0, 99))
def test_a_sequence_in_pieces_gives_the_logits_of_the_whole(name: str, length: int, cuts: set[int], seed: int) -> None:
    model = learner(name, seed)
    tokens_BT = tokens(seed, batch=2, length=length)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    state = model.initial_state()
    with torch.no_grad():
        pieces = [model(tokens_BT[:, a:b], state) for a, b in itertools.pairwise(edges)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens_BT), rtol=1e-4, atol=2e-5)


@every_option
@pytest.mark.parametrize("length", [1, 2, 7])
def test_greedy_tokens_are_the_likeliest_ones_of_the_full_forward(name: str, length: int) -> None:
    model = learner(name, seed=1, init_std=0.5)
    prompt_BT = tokens(2, batch=4, length=length)
    generated_BT = model.generate(prompt_BT, 12, temperature=0)
    assert generated_BT.shape == (4, length + 12)
    assert torch.equal(generated_BT[:, :length], prompt_BT)
    with torch.no_grad():
        likeliest_BT = model(generated_BT[:, :-1]).argmax(dim=-1)
    assert torch.equal(generated_BT[:, length:], likeliest_BT[:, length - 1 :])


@every_learner
def test_drawn_tokens_follow_the_predicted_law_at_the_temperature(name: str) -> None:
    model = learner(name, init_std=0.3)
    prompt_BT = tokens(3, batch=1, length=5).expand(20_000, -1)
    drawn = model.generate(prompt_BT, 1, temperature=0.5, generator=torch.Generator().manual_seed(0))[:, -1]
    with torch.no_grad():
        law = (model(prompt_BT[:1])[0, -1] / 0.5).softmax(dim=-1)
    frequency = torch.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert (frequency - law).abs().max() < 5 * 0.5 / math.sqrt(len(drawn))


def test_generation_is_repeatable_and_refuses_what_it_cannot_continue() -> None:
    model = learner("hawk")
    first, second = (model.generate(tokens(), 9, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(model.generate(tokens(), 0), tokens())
    with pytest.raises(ValueError, match=r"T >= 1, found \[3, 0\]"):
        model.generate(tokens(length=0), 1)
    with pytest.raises(ValueError, match="num_tokens -1"):
        model.generate(tokens(), -1)
    with pytest.raises(ValueError, match=r"temperature -0\.5"):
        model.generate(tokens(), 1, temperature=-0.5)


@every_learner
def test_a_batch_predicts_what_its_sequences_predict_alone(name: str) -> None:
    model = learner(name)
    with torch.no_grad():
        together_BTV = model(tokens())
        alone = [model(tokens()[[i]]) for i in range(3)]
    torch.testing.assert_close(together_BTV, torch.cat(alone), rtol=1e-4, atol=1e-5)


@every_option
def test_hidden_states_are_the_streams_that_lead_to_the_logits(name: str) -> None:
    model = learner(name)
    with torch.no_grad():
        streams = model.hidden_states(tokens())
        assert len(streams) == 3
        assert torch.equal(streams[0], model.embedding(tokens()))
        assert torch.equal(model.output(model.norm(streams[-1])), model(tokens()))


@every_option
@pytest.mark.parametrize("length", [1, 7, 19])
def test_flops_are_those_that_torch_counts(name: str, length: int) -> None:
    model = learner(name)
    with sdpa_kernel(SDPBackend.MATH):  # the counter cannot see into the CPU's fused attention
        with FlopCounterMode(display=False) as forward:
            logits_BTV = model(tokens(length=length))
        with FlopCounterMode(display=False) as backward:
            logits_BTV.sum().backward()
    flops = model.flops_per_token(length)
    assert forward.get_total_flops() / (3 * length) == pytest.approx(flops.forward, rel=0.02)
    assert backward.get_total_flops() / (3 * length) == pytest.approx(flops.backward, rel=0.02)
    assert flops.total == flops.forward + flops.backward


def _per_layer(name: str, dim: int) -> int:
    """Weights of a layer by the formulas of the papers, at the defaults of `block`."""
    wide, heads, states = 3 * dim, 4, 8
    return {
        "transformer": 4 * dim**2 + 2 * dim * 4 * dim + 2 * dim,
        "mingru": 2 * (dim * wide + wide) + wide * dim + dim,
        "minlstm": 3 * (dim * wide + wide) + wide * dim + dim,
        "hawk": (
            dim * 2 * 4 * dim  # branches
            + 4 * dim * (4 + 1)  # convolution
            + 2 * ((4 * dim) ** 2 // heads + 4 * dim)  # gates
            + 4 * dim  # decays
            + 4 * dim * dim  # out
            + 3 * dim * 4 * dim  # feed-forward
            + 2 * dim
        ),
        "mamba": (
            dim * (2 * wide + 2 * states + heads)
            + (wide + 2 * states) * (4 + 1)  # convolution
            + 3 * heads
            + wide  # gated norm
            + wide * dim
            + dim
        ),
    }[name]


@every_learner
@pytest.mark.parametrize("tying", [False, True])
def test_number_of_parameters(name: str, tying: bool) -> None:
    model = learner(name, emb_dim=12, nb_layers=3, weight_tying=tying)
    assert num_parameters(model) == 3 * _per_layer(name, 12) + 12 + (1 if tying else 2) * VOCAB * 12


@every_learner
def test_tied_weights_are_one_tensor_that_gets_both_gradients(name: str) -> None:
    model = learner(name, weight_tying=True)
    assert model.output.weight is model.embedding.weight
    unseen = VOCAB - 1
    model(tokens().clamp(max=unseen - 1)).sum().backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad[unseen].abs().sum() > 0  # only the output layer can have put it there
    assert "output.weight" in model.state_dict()


@every_option
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = learner(name)
    next_token_loss(model, tokens()).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key
        assert weight.grad.abs().sum() > 0, key


@every_option
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    model = learner(name, seed=2).double()
    sequences_BT = tokens(5)
    next_token_loss(model, sequences_BT).backward()
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in model.parameters()]
    slope = sum(float((w.grad * way).sum()) for w, way in zip(model.parameters(), ways, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            for weight, way in zip(moved.parameters(), ways, strict=True):
                weight.add_(way, alpha=step)
            values.append(float(next_token_loss(moved, sequences_BT)))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6)


@every_option
def test_bf16_predicts_almost_what_float32_predicts(name: str) -> None:
    model = learner(name)
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    expected_BTV = model(tokens())
    with torch.autocast("cpu", torch.bfloat16):
        mixed_BTV = model(tokens())
    for logits_BTV in (mixed_BTV, narrow(tokens())):
        assert logits_BTV.dtype == torch.bfloat16
        assert (logits_BTV.float() - expected_BTV).abs().max() < 0.15
    for trained, loss in ((model, mixed_BTV.float().mean()), (narrow, narrow(tokens()).float().mean())):
        loss.backward()
        assert all(w.grad is not None and w.grad.isfinite().all() for w in trained.parameters())


@every_learner
def test_bf16_generates_with_its_state(name: str) -> None:
    narrow = learner(name).to(torch.bfloat16)
    with torch.no_grad():
        state = narrow.initial_state()
        steps = [narrow(tokens()[:, t : t + 1], state) for t in range(19)]
        assert (torch.cat(steps, dim=1) - narrow(tokens())).abs().max() < 0.15
    assert narrow.generate(tokens(), 3).shape == (3, 22)


@every_learner
def test_same_seed_same_weights_same_gradients(name: str) -> None:
    first, second, other = learner(name, 3), learner(name, 3), learner(name, 4)
    for model in (first, second):
        next_token_loss(model, tokens(0, 8, 40)).backward()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@every_learner
def test_matrices_start_at_one_over_the_root_of_their_inputs(name: str) -> None:
    model = learner(name, emb_dim=64, nb_layers=4)
    writers = sum(key.endswith(TO_STREAM) for key, _ in model.named_parameters())
    for key, weight in model.named_parameters():
        if weight.ndim < 2 or weight.numel() < 1000:
            continue
        expected = weight.shape[1] ** -0.5 * (writers**-0.5 if key.endswith(TO_STREAM) else 1)
        assert weight.std().item() == pytest.approx(0.987 * expected, rel=0.1), key  # 0.987: cut at three deviations
        assert weight.abs().max() <= 3 * expected * 1.001, key


@every_option
def test_biases_are_vectors_so_that_they_are_neither_drawn_nor_decay(name: str) -> None:
    for key, weight in learner(name, init_std=0.5).named_parameters():
        if key.endswith(".bias"):
            assert weight.ndim == 1, key
            assert not weight.any(), key


@every_learner
def test_initial_predictions_are_near_uniform_and_depth_does_not_blow_up(name: str) -> None:
    for layers in (1, 16):
        model = learner(name, nb_layers=layers, emb_dim=64, init_std=0.02)
        with torch.no_grad():
            log_probabilities = model(tokens()).log_softmax(-1)
        assert (log_probabilities + math.log(VOCAB)).abs().max() < 1.0


@every_learner
def test_a_vocabulary_smaller_than_the_data_is_refused_and_a_larger_one_used(name: str) -> None:
    spec = spec_of(**{**OPTIONS[name], "vocab_size": 5})
    with pytest.raises(SpecError, match=r"model.vocab_size.*at least 6"):
        build_model(spec, 6)
    assert build_model(spec, 4)(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 5)


@every_learner
def test_all_that_a_learner_carries_is_in_its_state_dict(name: str) -> None:
    model, other = learner(name, 0), learner(name, 1)
    other.load_state_dict(model.state_dict())
    assert isinstance(other, Learner)
    assert torch.equal(other(tokens()), model(tokens()))


@every_learner
def test_a_learner_lives_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = build_model(spec_of(**OPTIONS[name]), VOCAB)
        assert model(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, VOCAB)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
@pytest.mark.parametrize("name", ["transformer", "hawk"])
def test_a_compiled_learner_predicts_and_learns_the_same(name: str) -> None:
    model, compiled = learner(name, nb_layers=1), learner(name, nb_layers=1)
    compiled.compile()
    losses = [next_token_loss(m, tokens()) for m in (model, compiled)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    prompt_BT = tokens(length=3)
    assert torch.equal(model.generate(prompt_BT, 5, temperature=0), compiled.generate(prompt_BT, 5, temperature=0))
