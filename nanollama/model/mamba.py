"""Mamba-2: a selective state space computed in chunks by matrix products (Dao & Gu 2024).

Shapes: B batch, T positions, D residual width, R = H * P channels of all heads, H heads, P channels of a head,
G groups of J = H / G heads, S states of a channel, N chunks, Q positions of a chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanollama.model.learner import Flops, Layer, LayerState, Learner
from nanollama.model.norm import RMSNorm, widen
from nanollama.model.recurrent import CausalConv
from nanollama.model.scan import scan
from nanollama.spec.model import MambaSpec

MIN_STEP, MAX_STEP = 1e-3, 1e-1
"""Step sizes of a new learner, spread evenly in their logarithm."""
MIN_RATE, MAX_RATE = 1.0, 16.0
"""Decay rates -A of a new learner, spread evenly."""
FUSED_CHUNK = 256
"""Chunk size of the fused kernel, as its package uses it."""


def state_space(
    x_BTHP: Tensor, log_a_BTH: Tensor, b_BTGS: Tensor, c_BTGS: Tensor, initial_BHPS: Tensor | None, *, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """y_t = h_t c_t of the states h_t = exp(log_a_t) h_{t-1} + x_t b_t' of every head, each [P, S].

    Within a chunk y is a product with the Q x Q matrix of c_i' b_j times the decay from j to i; what comes from before
    a chunk enters by way of the state, which a scan hands from chunk to chunk (the SSD algorithm, listing 1 of the
    paper, with a scan in place of its quadratic step).

    Args:
        x_BTHP: inputs, already times their step sizes.
        log_a_BTH: logarithms of the decays, at most 0.
        b_BTGS: input maps of each group of heads.
        c_BTGS: output maps.
        initial_BHPS: the state before the first position; zeros when absent.
        chunk_size: greatest Q; it changes no result beyond rounding.

    Returns:
        y [B, T, H, P] in x's dtype, and the last state [B, H, P, S].
    """
    length, groups = x_BTHP.shape[1], b_BTGS.shape[2]
    num_chunks = math.ceil(length / chunk_size)
    size = math.ceil(length / num_chunks)

    def chunked(t: Tensor) -> Tensor:
        """[B, T, ...] to [B, N, Q, ...]; added positions have x = 0 and log a = 0, which leave the state alone."""
        padded: Tensor = functional.pad(t, (0, 0) * (t.ndim - 2) + (0, num_chunks * size - length))
        return torch.unflatten(padded, 1, (num_chunks, size))

    x_BNGQJP = torch.unflatten(chunked(x_BTHP), 3, (groups, -1)).transpose(2, 3)
    b_BNGQS, c_BNGQS = (chunked(t).transpose(2, 3) for t in (b_BTGS, c_BTGS))
    cumulative_BNGJQ = torch.unflatten(chunked(log_a_BTH).cumsum(2), 3, (groups, -1)).permute(0, 1, 3, 4, 2)
    x_BNGJQP = x_BNGQJP.transpose(3, 4)

    # within the chunks
    later = torch.ones(size, size, dtype=torch.bool, device=x_BTHP.device).triu(1)
    fall_BNGJQQ = cumulative_BNGJQ[..., :, None] - cumulative_BNGJQ[..., None, :]
    decay_BNGJQQ = fall_BNGJQQ.masked_fill(later, -torch.inf).exp()
    scores_BNGQQ = c_BNGQS @ b_BNGQS.transpose(-1, -2)
    mixing_BNGJQQ = scores_BNGQQ[:, :, :, None] * decay_BNGJQQ.to(scores_BNGQQ.dtype)
    y_BNGJQP = mixing_BNGJQQ @ x_BNGJQP

    # from chunk to chunk
    last_BNGJ = cumulative_BNGJQ[..., -1]
    to_end_BNGJQ = (last_BNGJ[..., None] - cumulative_BNGJQ).exp().to(x_BTHP.dtype)
    weighted_BNGQJP = (x_BNGJQP * to_end_BNGJQ[..., None]).transpose(3, 4)
    added_BNGSR = b_BNGQS.transpose(-1, -2) @ weighted_BNGQJP.flatten(-2)
    added_BNGSJP = torch.unflatten(added_BNGSR, -1, x_BNGQJP.shape[-2:])
    initial = None
    if initial_BHPS is not None:
        initial = torch.unflatten(initial_BHPS, 1, (groups, -1)).permute(0, 1, 4, 2, 3)
    state_BNGSJP = scan(last_BNGJ.exp()[:, :, :, None, :, None].expand_as(added_BNGSJP), added_BNGSJP, initial)
    before = torch.zeros_like(state_BNGSJP[:, :1]) if initial is None else initial[:, None]
    entering_BNGSJP = torch.cat([before, state_BNGSJP[:, :-1]], dim=1).to(c_BNGQS.dtype)
    carried_BNGQR = c_BNGQS @ entering_BNGSJP.flatten(-2)
    from_start_BNGQJ = cumulative_BNGJQ.exp().transpose(-1, -2).to(carried_BNGQR.dtype)
    carried_BNGQJP = torch.unflatten(carried_BNGQR, -1, x_BNGQJP.shape[-2:]) * from_start_BNGQJ[..., None]

    y_BNGQJP = y_BNGJQP.transpose(3, 4) + carried_BNGQJP
    y_BTHP = y_BNGQJP.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :length]
    final_BHPS = state_BNGSJP[:, -1].permute(0, 1, 3, 4, 2).flatten(1, 2)
    return y_BTHP.to(x_BTHP.dtype), final_BHPS


@functools.cache
def fused_state_space() -> Callable[..., Any] | None:
    """mamba_ssm's kernel for CUDA, where that package is installed."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[import-not-found] # noqa: PLC0415
    except ImportError:
        return None
    kernel: Callable[..., Any] = mamba_chunk_scan_combined
    return kernel


class MambaLayer(Layer):
    """The state space of a convolved projection, gated and normalised, added to the residual stream.

    Rates and step sizes start as in the paper's code: -A uniform, the steps' biases such that softplus gives a step
    uniform in its logarithm, D at one.
    """

    def __init__(self, spec: MambaSpec) -> None:
        super().__init__()
        block = spec.block
        self.width, self.heads = spec.hidden_dim, block.nb_heads
        self.groups, self.states = block.nb_groups, block.state_dim
        self.chunk_size = block.ssm_chunk_size
        self.sizes = [self.width, self.width + 2 * self.groups * self.states, self.heads]
        self.norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.project = nn.Linear(spec.emb_dim, sum(self.sizes), bias=False)
        self.conv = CausalConv(self.sizes[1], block.conv_size) if block.conv_size else None
        step = torch.empty(self.heads).uniform_(math.log(MIN_STEP), math.log(MAX_STEP)).exp()
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus takes it back to the step
        self.log_rate = nn.Parameter(torch.empty(self.heads).uniform_(MIN_RATE, MAX_RATE).log_())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.gated_norm = RMSNorm(self.width, spec.norm_eps)
        self.out = nn.Linear(self.width, spec.emb_dim, bias=False)

    def forward(self, x_BTD: Tensor, state: LayerState | None) -> Tensor:
        """One step along the residual stream: [B, T, D] to [B, T, D]."""
        gate_BTR, mixed_BTC, step_BTH = self.project(self.norm(x_BTD)).split(self.sizes, dim=-1)
        if self.conv is not None:
            mixed_BTC = self.conv(mixed_BTC, state)
        maps = self.groups * self.states
        in_BTR, b_BTM, c_BTM = torch.split(functional.silu(mixed_BTC), [self.width, maps, maps], dim=-1)
        in_BTHP = torch.unflatten(in_BTR, -1, (self.heads, -1))
        b_BTGS, c_BTGS = (torch.unflatten(t, -1, (self.groups, -1)) for t in (b_BTM, c_BTM))
        step_BTH = functional.softplus(widen(step_BTH) + widen(self.step_bias))
        y_BTHP = self._state_space(in_BTHP, step_BTH, b_BTGS, c_BTGS, state)
        y_BTR = (y_BTHP + self.skip.to(y_BTHP.dtype)[:, None] * in_BTHP).flatten(-2)
        out_BTD: Tensor = x_BTD + self.out(self.gated_norm(y_BTR * functional.silu(gate_BTR)))
        return out_BTD

    def _state_space(
        self, in_BTHP: Tensor, step_BTH: Tensor, b_BTGS: Tensor, c_BTGS: Tensor, state: LayerState | None
    ) -> Tensor:
        rate_H = widen(self.log_rate).exp()
        if state is None and in_BTHP.is_cuda and (kernel := fused_state_space()) is not None:
            fused_BTHP: Tensor = kernel(in_BTHP, step_BTH, -rate_H, b_BTGS, c_BTGS, FUSED_CHUNK)
            return fused_BTHP
        x_BTHP = in_BTHP * step_BTH[..., None].to(in_BTHP.dtype)
        before_BHPS = state.get("hidden") if state is not None else None
        y_BTHP, last_BHPS = state_space(
            x_BTHP, -rate_H * step_BTH, b_BTGS, c_BTGS, before_BHPS, chunk_size=self.chunk_size
        )
        if state is not None:
            state["hidden"] = last_BHPS
        return y_BTHP

    def mixing_flops(self, seq_len: int) -> Flops:
        """Scores, their product with the inputs, and the way into the state and out of it, in whole chunks."""
        num_chunks = math.ceil(seq_len / self.chunk_size)
        size = math.ceil(seq_len / num_chunks)
        within = 2.0 * size * (self.groups * self.states + self.width)
        across = 4.0 * self.states * self.width
        return Flops.of_products((within + across) * num_chunks * size / seq_len)


class Mamba(Learner):
    """Layers of Mamba-2; the state is each head's, and the inputs that the convolution still needs."""

    def __init__(self, spec: MambaSpec, vocab_size: int) -> None:
        super().__init__(spec, vocab_size, lambda: MambaLayer(spec))
