from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.model.build import build_model, num_parameters
from nanollama.model.transformer import Transformer, rotary_table, rotate
from nanollama.spec.base import SpecError
from nanollama.spec.model import TransformerBlock, TransformerSpec

VOCAB = 11


def transformer(seed: int = 0, **keys: object) -> Transformer:
    spec = TransformerSpec.model_validate({"emb_dim": 16, "nb_layers": 2, "block": {"nb_heads": 2}, **keys})
    torch.manual_seed(seed)
    model = build_model(spec, VOCAB)
    assert isinstance(model, Transformer)
    return model


def tokens(seed: int, batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), position=st.integers(0, 8), heads=st.sampled_from([1, 2, 4, 8]))
def test_a_token_changes_no_logits_before_it_and_some_from_it_on(seed: int, position: int, heads: int) -> None:
    model = transformer(seed, block={"nb_heads": heads})
    original_BT = tokens(seed)
    changed_BT = original_BT.clone()
    changed_BT[:, position] = (changed_BT[:, position] + 1) % VOCAB
    with torch.no_grad():
        before_BTV, after_BTV = model(original_BT), model(changed_BT)
    torch.testing.assert_close(before_BTV[:, :position], after_BTV[:, :position], rtol=0, atol=1e-6)
    assert (before_BTV[:, position:] - after_BTV[:, position:]).abs().amax(dim=-1).min() > 1e-5


@settings(deadline=None, max_examples=50)
@given(
    half=st.integers(1, 16),
    first=st.integers(0, 200),
    second=st.integers(0, 200),
    shift=st.integers(0, 200),
    seed=st.integers(0, 999),
)
def test_scores_of_rotated_vectors_depend_on_relative_positions_only(
    half: int, first: int, second: int, shift: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 1, 2 * half, generator=generator, dtype=torch.float64)
    cos, sin = rotary_table(401, 2 * half, 10_000.0, torch.device("cpu"))

    def score(m: int, n: int) -> float:
        q, k = rotate(query, cos[[m]], sin[[m]]), rotate(key, cos[[n]], sin[[n]])
        return float((q * k).sum())

    scale = float(query.norm() * key.norm())
    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-5 * scale)


def test_rotation_is_that_of_the_definition() -> None:
    length, head_dim, theta = 7, 6, 100.0
    x = torch.randn(2, 3, length, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *rotary_table(length, head_dim, theta, torch.device("cpu")))
    for m in range(length):
        for i in range(head_dim // 2):
            pair = torch.view_as_complex(x[:, :, m, 2 * i : 2 * i + 2].contiguous())
            angle = torch.tensor(m * theta ** (-2 * i / head_dim), dtype=torch.float64)
            expected = torch.view_as_real(pair * torch.polar(torch.ones_like(angle), angle))
            torch.testing.assert_close(turned[:, :, m, 2 * i : 2 * i + 2], expected, rtol=0, atol=1e-6)


def test_far_positions_keep_exact_angles() -> None:
    cos, _ = rotary_table(100_001, 2, 10_000.0, torch.device("cpu"))
    assert float(cos[100_000, 0]) == pytest.approx(math.cos(100_000), abs=1e-6)


def test_head_dimension_two_works_and_sees_positions() -> None:
    model = transformer(emb_dim=8, block={"nb_heads": 4})
    swapped_BT = torch.tensor([[1, 2, 3], [2, 1, 3]])
    with torch.no_grad():
        logits_BTV = model(swapped_BT)
    assert logits_BTV.shape == (2, 3, VOCAB)
    assert (logits_BTV[0, -1] - logits_BTV[1, -1]).abs().max() > 1e-5


def test_tied_weights_are_one_tensor_that_gets_both_gradients() -> None:
    model = transformer(weight_tying=True)
    assert model.output.weight is model.embedding.weight
    unseen = VOCAB - 1
    model(tokens(0).clamp(max=unseen - 1)).sum().backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad[unseen].abs().sum() > 0  # only the output layer can have put it there
    assert "output.weight" in model.state_dict()


@pytest.mark.parametrize("tying", [False, True])
def test_number_of_parameters(tying: bool) -> None:
    block = TransformerBlock(nb_heads=2, hidden_dim=40)
    model = build_model(TransformerSpec(emb_dim=16, nb_layers=3, weight_tying=tying, block=block), VOCAB)
    per_block = 4 * 16 * 16 + 2 * 16 * 40 + 2 * 16
    assert num_parameters(model) == 3 * per_block + 16 + (1 if tying else 2) * VOCAB * 16


def test_initial_predictions_are_near_uniform_and_depth_does_not_blow_up() -> None:
    for layers in (1, 16):
        model = transformer(nb_layers=layers, emb_dim=64, block={"nb_heads": 4}, init_std=0.02)
        with torch.no_grad():
            log_probabilities = model(tokens(1)).log_softmax(-1)
        assert (log_probabilities + math.log(VOCAB)).abs().max() < 1.0


def test_same_seed_same_weights() -> None:
    first, second, other = transformer(3).state_dict(), transformer(3).state_dict(), transformer(4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_a_vocabulary_smaller_than_the_data_is_refused_and_a_larger_one_used() -> None:
    spec = TransformerSpec(emb_dim=8, nb_layers=1, vocab_size=5)
    with pytest.raises(SpecError, match=r"model.vocab_size.*at least 6"):
        build_model(spec, 6)
    assert build_model(spec, 4)(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 5)
