"""The feed-forward networks of the layers.

Shapes: B batch, T positions, D residual width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "silu": functional.silu}


class FeedForward(nn.Module):
    """Two linear layers around an activation; a gated one multiplies the activated half by a second, linear half.

    GELU: Hendrycks & Gimpel 2016. Gated with silu it is SwiGLU, with gelu GeGLU (Shazeer 2020).
    """

    def __init__(self, emb_dim: int, hidden_dim: int, *, activation: str = "gelu", gated: bool = False) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gated = gated
        self.expand = nn.Linear(emb_dim, 2 * hidden_dim if gated else hidden_dim, bias=False)
        self.contract = nn.Linear(hidden_dim, emb_dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position on its own: [B, T, D] to [B, T, D]."""
        h_BTF = self.expand(x_BTD)
        if self.gated:
            gate_BTF, linear_BTF = h_BTF.chunk(2, dim=-1)
            h_BTF = self.activation(gate_BTF) * linear_BTF
        else:
            h_BTF = self.activation(h_BTF)
        out_BTD: Tensor = self.contract(h_BTF)
        return out_BTD
