"""The elementwise linear recurrence h_t = a_t * h_{t-1} + b_t, for all t at once.

A loop over time is T small operations. The scan cuts time into chunks of 16 and handles position j of every chunk in
one operation: a first pass finds what each chunk does to the state that enters it, a scan over these (a sixteenth as
long) finds the states that enter, and a second pass computes every h_t from them. That is a chain of about
48 log16(T) operations, and twice the arithmetic of the loop (Blelloch 1990, with radix 16). Nothing is divided and no
logarithm is taken: gates of exactly 0 or 1 are as good as any.

Shapes: B batch, T positions, … any further dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_RADIX = 16


def scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t for t = 0 .. T-1, in float32 or wider: in bf16 a decay near one would be lost.

    Args:
        a: factors [B, T, ...].
        b: summands, of the same shape.
        initial: h_{-1}, shape [B, ...]; zeros when absent.
    """
    assert a.shape == b.shape, (a.shape, b.shape)
    assert a.shape[1] > 0, a.shape
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    start = torch.zeros_like(b[:, 0], dtype=wide) if initial is None else initial.to(wide)
    out: Tensor = torch.ops.nanollama.scan(a.to(wide), b.to(wide), start)
    return out


@torch.library.custom_op("nanollama::scan", mutates_args=(), schema="(Tensor a, Tensor b, Tensor initial) -> Tensor")
def _scan(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """An operator of its own, so that torch.compile takes it as it stands instead of unrolling its loops."""
    h = torch.empty_like(b)
    _solve(a, b, initial, h, range)
    return h


@torch.library.custom_op(
    "nanollama::scan_backward",
    mutates_args=(),
    schema="(Tensor a, Tensor h, Tensor initial, Tensor grad) -> (Tensor, Tensor, Tensor)",
)
def _scan_backward(a: Tensor, h: Tensor, initial: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and initial: g_t = grad_t + a_{t+1} * g_{t+1} runs backwards in time; da_t = g_t * h_{t-1}."""
    g = torch.empty_like(h)
    g[:, -1] = grad[:, -1]
    if h.shape[1] > 1:
        _solve(a[:, 1:], grad[:, :-1], grad[:, -1], g[:, :-1], _backwards)
    grad_a = torch.empty_like(h)
    torch.mul(g[:, 1:], h[:, :-1], out=grad_a[:, 1:])
    torch.mul(g[:, 0], initial, out=grad_a[:, 0])
    return grad_a, g, a[:, 0] * g[:, 0]


def _backwards(count: int) -> range:
    return range(count - 1, -1, -1)


def _solve(a: Tensor, b: Tensor, initial: Tensor, h: Tensor, order: Any) -> None:
    """Fill h [B, T, ...] with the recurrence along dimension 1, taken in the order `range` or `_backwards`."""
    length = a.shape[1]
    whole = length // _RADIX * _RADIX
    if whole > _RADIX:
        chunked = slice(0, whole) if order is range else slice(length - whole, length)
        rest = slice(whole, length) if order is range else slice(0, length - whole)
        a_BNC, b_BNC, h_BNC = (torch.unflatten(x[:, chunked], 1, (-1, _RADIX)) for x in (a, b, h))
        _solve_chunks(a_BNC, b_BNC, initial, h_BNC, order)
        initial = h[:, whole - 1] if order is range else h[:, length - whole]
        a, b, h = a[:, rest], b[:, rest], h[:, rest]
    for t in order(a.shape[1]):
        initial = torch.addcmul(b[:, t], a[:, t], initial, out=h[:, t])


def _solve_chunks(a_BNC: Tensor, b_BNC: Tensor, initial: Tensor, h_BNC: Tensor, order: Any) -> None:
    """The same for whole chunks: N of them, C positions each, every operation on one position of all chunks."""
    steps = order(_RADIX)
    decay_BN, end_BN = a_BNC[:, :, steps[0]].clone(), b_BNC[:, :, steps[0]].clone()
    for j in steps[1:]:
        decay_BN.mul_(a_BNC[:, :, j])
        end_BN.mul_(a_BNC[:, :, j]).add_(b_BNC[:, :, j])
    left_BN = torch.empty_like(end_BN)  # the state that leaves each chunk
    _solve(decay_BN, end_BN, initial, left_BN, order)
    first = initial[:, None]
    state_BN = torch.cat([first, left_BN[:, :-1]] if order is range else [left_BN[:, 1:], first], dim=1)
    for j in steps:
        state_BN = torch.addcmul(b_BNC[:, :, j], a_BNC[:, :, j], state_BN, out=h_BNC[:, :, j])


@_scan.register_fake
def _(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(b)


@_scan_backward.register_fake
def _(a: Tensor, h: Tensor, initial: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(h), torch.empty_like(h), a[:, 0] * h[:, 0]


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    a, _, initial = inputs
    ctx.save_for_backward(a, output, initial)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, h, initial = ctx.saved_tensors
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.nanollama.scan_backward(a, h, initial, grad)
    return gradients


_scan.register_autograd(_backward, setup_context=_setup)
