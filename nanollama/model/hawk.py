"""Hawk: real-gated linear recurrent units behind a temporal convolution, and gated feed-forwards (De et al. 2024).

Shapes: B batch, T positions, D residual width, R recurrence width, H heads, K = R / H channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanollama.model.feed_forward import FeedForward
from nanollama.model.learner import Layer, LayerState, Learner
from nanollama.model.norm import RMSNorm, widen
from nanollama.model.recurrent import BlockLinear, CausalConv
from nanollama.model.scan import scan
from nanollama.spec.model import HawkSpec

SHARPNESS = 8.0
"""c of the paper: an open recurrence gate raises the decay to this power."""
SLOWEST, FASTEST = 0.999, 0.9
"""The decays a^c of a new learner are spread evenly over this range."""
MIN_RENEWAL = 1e-6
"""Least 1 - a^2: below it the gradient of its root would have no bound."""


class RGLRU(nn.Module):
    """h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t, so that the variance of h does not depend on the decay.

    The decay a_t = a^(c r_t) of each channel moves between 1 and a^c with the recurrence gate r = sigmoid(W_r x); the
    input gate is i = sigmoid(W_i x). a = sigmoid(decay) is learned.
    """

    def __init__(self, width: int, nb_heads: int) -> None:
        super().__init__()
        self.gates = BlockLinear(nb_heads, width // nb_heads, 2 * width // nb_heads)
        self.decay = nn.Parameter(torch.empty(width).uniform_(FASTEST, SLOWEST).pow_(1 / SHARPNESS).logit_())

    def forward(self, x_BTR: Tensor, state: LayerState | None) -> Tensor:
        """The states h [B, T, R] in x_BTR's dtype."""
        nb_heads = self.gates.weight.shape[0]
        r_BTHK, i_BTHK = widen(self.gates(x_BTR)).sigmoid().chunk(2, dim=-1)
        log_a_HK = -SHARPNESS * torch.unflatten(functional.softplus(-widen(self.decay)), 0, (nb_heads, -1))
        log_a_BTHK = log_a_HK * r_BTHK
        renewal_BTHK = -torch.expm1(2 * log_a_BTHK)
        in_BTHK = i_BTHK * torch.unflatten(widen(x_BTR), -1, (nb_heads, -1))
        b_BTHK = renewal_BTHK.clamp_min(MIN_RENEWAL).sqrt() * in_BTHK
        h_BTHK = scan(log_a_BTHK.exp(), b_BTHK, state.get("hidden") if state is not None else None)
        if state is not None:
            state["hidden"] = h_BTHK[:, -1]
        return h_BTHK.flatten(-2).to(x_BTR.dtype)


class HawkLayer(Layer):
    """The recurrent block, then the feed-forward, each added to the stream after a normalisation of its input."""

    def __init__(self, spec: HawkSpec) -> None:
        super().__init__()
        width = spec.hidden_dim
        self.recurrent_norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.branches = nn.Linear(spec.emb_dim, 2 * width, bias=False)
        self.conv = CausalConv(width, spec.block.conv_size) if spec.block.conv_size else None
        self.recurrence = RGLRU(width, spec.block.nb_heads)
        self.out = nn.Linear(width, spec.emb_dim, bias=False)
        self.feed_forward_norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.feed_forward = FeedForward(spec.emb_dim, spec.ffn_dim, activation="gelu", gated=True)

    def forward(self, x_BTD: Tensor, state: LayerState | None) -> Tensor:
        """One step along the residual stream: [B, T, D] to [B, T, D]."""
        gate_BTR, in_BTR = self.branches(self.recurrent_norm(x_BTD)).chunk(2, dim=-1)
        if self.conv is not None:
            in_BTR = self.conv(in_BTR, state)
        h_BTR = self.recurrence(in_BTR, state)
        x_BTD = x_BTD + self.out(functional.gelu(gate_BTR) * h_BTR)
        out_BTD: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return out_BTD


class Hawk(Learner):
    """Layers of Hawk; the state is the last h and the inputs that the convolution still needs."""

    def __init__(self, spec: HawkSpec, vocab_size: int) -> None:
        super().__init__(spec, vocab_size, lambda: HawkLayer(spec))
