"""minGRU and minLSTM: recurrences whose gates see the input alone, so that a scan computes them (Feng et al. 2024).

Shapes: B batch, T positions, D residual width, H heads, K channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nanollama.model.feed_forward import FeedForward
from nanollama.model.learner import Layer, LayerState, Learner
from nanollama.model.norm import RMSNorm, widen
from nanollama.model.recurrent import BlockLinear, CausalConv
from nanollama.model.scan import scan
from nanollama.spec.model import MinGRUSpec, MinLSTMSpec


class MinimalLayer(Layer):
    """A convolution and a feed-forward, where wanted, around the recurrence h_t = a_t * h_{t-1} + b_t.

    With one head the gates' maps are dense, as in the paper; with more, those of a head read their share of the
    stream's channels.
    """

    num_gates: int

    def __init__(self, spec: MinGRUSpec | MinLSTMSpec) -> None:
        super().__init__()
        heads, width, ffn_dim = spec.block.nb_heads, spec.hidden_dim, spec.block.ffn_dim
        self.norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.conv = CausalConv(spec.emb_dim, spec.block.conv_size) if spec.block.conv_size else None
        self.gates = BlockLinear(heads, spec.emb_dim // heads, self.num_gates * width // heads)
        self.out = nn.Linear(width, spec.emb_dim, bias=False)
        self.feed_forward_norm = RMSNorm(spec.emb_dim, spec.norm_eps) if ffn_dim else None
        self.feed_forward = FeedForward(spec.emb_dim, ffn_dim) if ffn_dim else None

    def forward(self, x_BTD: Tensor, state: LayerState | None) -> Tensor:
        """One step along the residual stream: [B, T, D] to [B, T, D]."""
        in_BTD = self.norm(x_BTD)
        if self.conv is not None:
            in_BTD = self.conv(in_BTD, state)
        a_BTHK, b_BTHK = self.coefficients(self.gates(in_BTD))
        h_BTHK = scan(a_BTHK, b_BTHK, state.get("hidden") if state is not None else None)
        if state is not None:
            state["hidden"] = h_BTHK[:, -1]
        x_BTD = x_BTD + self.out(h_BTHK.flatten(-2).to(in_BTD.dtype))
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x_BTD = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD

    def coefficients(self, gates_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence's a and b, each [B, T, H, K], from the gates before activation, [B, T, H, num_gates * K]."""
        raise NotImplementedError


class MinGRULayer(MinimalLayer):
    """h_t = (1 - z_t) * h_{t-1} + z_t * c_t with the update gate z = sigmoid(W_z x) and the candidate c = W_c x."""

    num_gates = 2

    def coefficients(self, gates_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The gates 1 - z and z * c."""
        update, candidate = widen(gates_BTHK).chunk(2, dim=-1)
        z = update.sigmoid()
        return 1 - z, z * candidate


class MinLSTMLayer(MinimalLayer):
    """h_t = f'_t * h_{t-1} + i'_t * c_t with c = W_c x and the gates f = sigmoid(W_f x), i = sigmoid(W_i x).

    Divided by their sum, f' = f / (f + i) and i' = 1 - f', they keep the state's scale whatever the length.
    """

    num_gates = 3

    def coefficients(self, gates_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The gates f' and i' * c; f' = sigmoid(log f - log i) cannot divide zero by zero."""
        forget, insert, candidate = widen(gates_BTHK).chunk(3, dim=-1)
        keep = (functional.softplus(-insert) - functional.softplus(-forget)).sigmoid()
        return keep, (1 - keep) * candidate


class MinGRU(Learner):
    """Layers of minGRU; the state is the last h and the inputs that the convolution still needs."""

    def __init__(self, spec: MinGRUSpec, vocab_size: int) -> None:
        super().__init__(spec, vocab_size, lambda: MinGRULayer(spec))


class MinLSTM(Learner):
    """Layers of minLSTM; the state is the last h and the inputs that the convolution still needs."""

    def __init__(self, spec: MinLSTMSpec, vocab_size: int) -> None:
        super().__init__(spec, vocab_size, lambda: MinLSTMLayer(spec))
