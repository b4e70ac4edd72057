from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanollama.model.mamba import FUSED_CHUNK, fused_state_space, state_space
from nanollama.model.recurrent import BlockLinear, CausalConv
from nanollama.model.scan import scan

LENGTHS = st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 272, 288, 600]))


def sequential(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    states = []
    for t in range(a.shape[1]):
        initial = a[:, t] * initial + b[:, t]
        states.append(initial)
    return torch.stack(states, dim=1)


def gates(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Some in between, some shut, some wide open, some within rounding of either, some negative."""
    kinds = torch.tensor([0.0, 1.0, 1 - 1e-12, 1e-30, -1.0], dtype=torch.float64)
    extreme = kinds[torch.randint(len(kinds), shape, generator=generator)]
    between = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, extreme, between)


@settings(deadline=None, max_examples=60)
@given(length=LENGTHS, shape=st.sampled_from([(), (1,), (3,), (2, 2)]), start=st.booleans(), seed=st.integers(0, 9999))
def test_scan_is_the_sequential_loop(length: int, shape: tuple[int, ...], start: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = gates(generator, (2, length, *shape))
    b = torch.randn((2, length, *shape), generator=generator, dtype=torch.float64)
    initial = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    expected = sequential(a, b, initial if start else torch.zeros_like(initial))
    torch.testing.assert_close(scan(a, b, initial if start else None), expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(length=LENGTHS, seed=st.integers(0, 9999))
def test_gradients_of_the_scan_are_those_of_the_sequential_loop(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        gates(generator, (2, length, 3)),
        torch.randn((2, length, 3), generator=generator, dtype=torch.float64),
        torch.randn((2, 3), generator=generator, dtype=torch.float64),
    ]
    ways = torch.randn((2, length, 3), generator=generator, dtype=torch.float64)
    for leaf in leaves:
        leaf.requires_grad_()
    found = torch.autograd.grad((scan(*leaves) * ways).sum(), leaves)
    expected = torch.autograd.grad((sequential(*leaves) * ways).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 5, 35])
def test_gradients_of_the_scan_are_slopes(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    a = torch.rand((1, length, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn((1, length, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    initial = torch.randn((1, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scan, (a, b, initial))


def test_the_scan_is_a_sound_operator_for_the_compiler() -> None:
    a, b, initial = torch.rand(2, 35, 3), torch.randn(2, 35, 3), torch.randn(2, 3)
    inputs = tuple(x.requires_grad_() for x in (a, b, initial))
    torch.library.opcheck(
        torch.ops.nanollama.scan.default,
        inputs,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_the_scan_takes_views_that_are_not_contiguous() -> None:
    a, b = torch.rand(2, 3, 40, dtype=torch.float64), torch.randn(2, 3, 40, dtype=torch.float64)
    wide = torch.rand(2, 1, 1, dtype=torch.float64).expand(2, 40, 3)
    for factors in (a.transpose(1, 2), wide):
        expected = sequential(factors, b.transpose(1, 2), torch.zeros(2, 3))
        torch.testing.assert_close(scan(factors, b.transpose(1, 2)), expected)


def test_narrow_numbers_are_scanned_in_float32() -> None:
    a = torch.full((1, 2000, 1), 1.0, dtype=torch.bfloat16)
    h = scan(a, torch.ones_like(a))
    assert h.dtype == torch.float32
    assert h[0, -1, 0] == 2000  # in bf16 the sum would stay at 256


@settings(deadline=None, max_examples=30)
@given(
    length=st.integers(1, 30),
    chunk=st.integers(1, 33),
    groups=st.integers(1, 2),
    per_group=st.integers(1, 3),
    start=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_state_space_in_chunks_is_the_sequential_recurrence(
    length: int, chunk: int, groups: int, per_group: int, start: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, channels, states = groups * per_group, 3, 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x_BTHP, log_a_BTH = normal(2, length, heads, channels), normal(2, length, heads)
    b_BTGS, c_BTGS = normal(2, length, groups, states), normal(2, length, groups, states)
    initial_BHPS = normal(2, heads, channels, states)
    strength = torch.tensor([0.0, 0.01, 1.0, 500.0], dtype=torch.float64)
    fall_BTH = log_a_BTH.abs().neg() * strength[torch.randint(4, log_a_BTH.shape, generator=generator)]

    h_BHPS = initial_BHPS if start else torch.zeros_like(initial_BHPS)
    outputs = []
    for t in range(length):
        b_BHS, c_BHS = (m[:, t].repeat_interleave(per_group, dim=1) for m in (b_BTGS, c_BTGS))
        h_BHPS = fall_BTH[:, t].exp()[..., None, None] * h_BHPS + x_BTHP[:, t, :, :, None] * b_BHS[:, :, None]
        outputs.append((h_BHPS * c_BHS[:, :, None]).sum(-1))
    expected = torch.stack(outputs, dim=1)

    y_BTHP, last_BHPS = state_space(x_BTHP, fall_BTH, b_BTGS, c_BTGS, initial_BHPS if start else None, chunk_size=chunk)
    torch.testing.assert_close(y_BTHP, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last_BHPS, h_BHPS, rtol=1e-10, atol=1e-10)
    leaves = [x_BTHP, log_a_BTH, b_BTGS, c_BTGS, *([initial_BHPS] if start else [])]
    ways = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((y_BTHP * ways).sum() + last_BHPS.sum(), leaves, retain_graph=True)
    wanted = torch.autograd.grad((expected * ways).sum() + h_BHPS.sum(), leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(
    not torch.cuda.is_available() or fused_state_space() is None, reason="needs CUDA and the package mamba_ssm"
)
def test_the_fused_kernel_computes_the_same_state_space() -> None:
    kernel = fused_state_space()
    assert kernel is not None
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    x_BTHP, b_BTGS, c_BTGS = normal(2, 300, 4, 64), normal(2, 300, 1, 128), normal(2, 300, 1, 128)
    step_BTH, rate_H = normal(2, 300, 4).abs() / 10, normal(4).abs()
    ours, _ = state_space(x_BTHP * step_BTH[..., None], -rate_H * step_BTH, b_BTGS, c_BTGS, None, chunk_size=64)
    fused_BTHP = kernel(x_BTHP, step_BTH, -rate_H, b_BTGS, c_BTGS, FUSED_CHUNK)
    torch.testing.assert_close(fused_BTHP, ours, rtol=2e-2, atol=2e-2)  # the kernel multiplies in TF32


@pytest.mark.parametrize("width", [2, 3, 4])
def test_convolution_is_that_of_torch_and_its_gradients_are_slopes(width: int) -> None:
    conv = CausalConv(3, width).double()
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    x_BTC = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    padded_BCT = torch.nn.functional.pad(x_BTC.transpose(1, 2), (width - 1, 0))
    expected = torch.nn.functional.conv1d(padded_BCT, conv.weight[:, None], conv.bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(conv(x_BTC, None), expected)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(conv, parameters, (x, None))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(convolve, (x_BTC, conv.weight, conv.bias))


def test_a_block_linear_map_keeps_heads_apart() -> None:
    linear = BlockLinear(2, 3, 5)
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    x_BTC, bias_HO = torch.randn(4, 7, 6), linear.bias.unflatten(0, (2, 5))
    out_BTHO = linear(x_BTC)
    assert out_BTHO.shape == (4, 7, 2, 5)
    for h in range(2):
        expected = x_BTC[..., 3 * h : 3 * h + 3] @ linear.weight[h] + bias_HO[h]
        torch.testing.assert_close(out_BTHO[:, :, h], expected)
