from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.model.build import build_model, num_parameters
from nanollama.model.norm import RMSNorm
from nanollama.model.transformer import Transformer, rotary_table, rotate
from nanollama.spec.model import TransformerSpec

VOCAB = 11


def transformer(seed: int = 0, **keys: object) -> Transformer:
    spec = TransformerSpec.model_validate({"emb_dim": 16, "nb_layers": 2, "block": {"nb_heads": 2}, **keys})
    torch.manual_seed(seed)
    model = build_model(spec, VOCAB)
    assert isinstance(model, Transformer)
    return model


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
    table = rotary_table(0, 401, 2 * half, 10_000.0, torch.device("cpu"))

    def score(m: int, n: int) -> float:
        q, k = rotate(query, table[[m]]), rotate(key, table[[n]])
        return float((q * k).sum())

    scale = float(query.norm() * key.norm())
    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=1e-5 * scale)


@pytest.mark.parametrize("head_dim", [2, 4, 6])
@pytest.mark.parametrize("first", [0, 11])
def test_rotation_is_that_of_the_definition(head_dim: int, first: int) -> None:
    length, theta = 7, 100.0
    x_BTHK = torch.randn(2, length, 3, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned_BTHK = rotate(x_BTHK, rotary_table(first, length, head_dim, theta, torch.device("cpu")))
    for t in range(length):
        for i in range(head_dim // 2):
            pair = torch.view_as_complex(x_BTHK[:, t, :, 2 * i : 2 * i + 2].contiguous())
            angle = torch.tensor((first + t) * theta ** (-2 * i / head_dim), dtype=torch.float64)
            expected = torch.view_as_real(pair * torch.polar(torch.ones_like(angle), angle))
            torch.testing.assert_close(turned_BTHK[:, t, :, 2 * i : 2 * i + 2], expected, rtol=0, atol=1e-6)


def test_the_compiled_rotation_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x_BTHK = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    table = rotary_table(0, 5, 4, 10_000.0, torch.device("cpu"))
    eager_BTHK = rotate(x_BTHK, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x_BTHK, table), eager_BTHK)


def test_far_positions_keep_exact_angles() -> None:
    table = rotary_table(100_000, 1, 2, 10_000.0, torch.device("cpu"))
    assert float(table[0, 0, 0]) == pytest.approx(math.cos(100_000), abs=1e-6)


def test_head_dimension_two_works_and_sees_positions() -> None:
    model = transformer(emb_dim=8, block={"nb_heads": 4})
    swapped_BT = torch.tensor([[1, 2, 3], [2, 1, 3]])
    with torch.no_grad():
        logits_BTV = model(swapped_BT)
    assert logits_BTV.shape == (2, 3, VOCAB)
    assert (logits_BTV[0, -1] - logits_BTV[1, -1]).abs().max() > 1e-5


def test_attention_is_that_of_the_definition() -> None:
    model = transformer(block={"nb_heads": 4, "nb_kv_heads": 2}).double()
    attention = model.layers[0].attention
    x_BTD = torch.randn(2, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = rotary_table(0, 6, 4, 10_000.0, torch.device("cpu"))
    projected = attention.qkv(x_BTD).unflatten(-1, (8, 4))
    mixed = torch.zeros(2, 6, 4, 4, dtype=torch.float64)
    for head in range(4):
        group = head // 2  # heads 0 and 1 share keys and values, and so do 2 and 3
        query = rotate(projected[:, :, [head]], table)[:, :, 0]
        key = rotate(projected[:, :, [4 + group]], table)[:, :, 0]
        value = projected[:, :, 6 + group]
        for t in range(6):
            scores = (query[:, [t]] * key[:, : t + 1]).sum(-1) / 2  # the root of the 4 channels
            mixed[:, t, head] = (scores.softmax(-1)[..., None] * value[:, : t + 1]).sum(1)
    torch.testing.assert_close(attention(x_BTD, None, table), attention.out(mixed.flatten(-2)))


def test_feed_forwards_are_those_of_the_definition() -> None:
    x_BTD = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    gelu = transformer().layers[0].feed_forward
    expected = torch.nn.functional.gelu(x_BTD @ gelu.expand.weight.T) @ gelu.contract.weight.T
    torch.testing.assert_close(gelu(x_BTD), expected)
    swiglu = transformer(block={"feed_forward": "swiglu"}).layers[0].feed_forward
    gate, linear = swiglu.expand.weight[:64], swiglu.expand.weight[64:]
    gated = torch.nn.functional.silu(x_BTD @ gate.T) * (x_BTD @ linear.T)
    torch.testing.assert_close(swiglu(x_BTD), gated @ swiglu.contract.weight.T)


@pytest.mark.parametrize(
    ("options", "per_layer"),
    [
        ({"hidden_dim": 40}, 4 * 16**2 + 2 * 16 * 40),
        ({"hidden_dim": 40, "feed_forward": "swiglu"}, 4 * 16**2 + 3 * 16 * 40),
        ({"nb_heads": 4, "nb_kv_heads": 1}, 2 * 16**2 + 2 * 16 * 4 + 2 * 16 * 64),
    ],
)
def test_number_of_parameters_with_options(options: dict[str, object], per_layer: int) -> None:
    model = transformer(nb_layers=3, block={"nb_heads": 2, **options})
    assert num_parameters(model) == 3 * (per_layer + 2 * 16) + 16 + 2 * VOCAB * 16


def test_norm_is_that_of_torch_and_its_gradients_are_slopes() -> None:
    norm = RMSNorm(5, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (5,), norm.weight, 1e-3))

    def normalise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(normalise, (x, norm.weight))
