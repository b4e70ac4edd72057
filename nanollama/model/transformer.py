"""A pre-norm decoder-only transformer with rotary positions.

Shapes: B batch, T positions, D residual width, H query heads, G heads of keys and values, K = D / H channels of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanollama.model.feed_forward import FeedForward
from nanollama.model.learner import Flops, Layer, LayerState, Learner
from nanollama.model.norm import RMSNorm, widen
from nanollama.spec.model import TransformerSpec


def rotary_table(first: int, num_positions: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Cosine and sine [T, K/2, 2] of the angle m * theta^(-2i/K) of position m and channel pair i.

    The angles are computed in float64: in float32 those of far positions would be off by whole per cents.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    positions = torch.arange(first, first + num_positions, dtype=torch.float64, device=device)
    angles = positions[:, None] * theta**-exponents
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def rotate(x_BTHK: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i + 1) of every position by its angles (Su et al. 2021).

    The product of a rotated query and a rotated key then depends on their positions only through the difference.
    """
    wide_BTHK = widen(x_BTHK)
    if torch.compiler.is_compiling():  # it fuses these, and generates no code for complex numbers
        even, odd = wide_BTHK[..., 0::2], wide_BTHK[..., 1::2]
        cos, sin = table[:, None].unbind(dim=-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # five times as fast
        pairs = torch.view_as_complex(torch.unflatten(wide_BTHK, -1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.view_as_complex(table)[:, None])
    return turned.flatten(-2).to(x_BTHK.dtype)


class Attention(nn.Module):
    """Causal self-attention; groups of H / G query heads share a head of keys and values (Ainslie et al. 2023)."""

    def __init__(self, emb_dim: int, nb_heads: int, nb_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = emb_dim // nb_heads
        self.nb_heads, self.nb_kv_heads = nb_heads, nb_kv_heads
        self.qkv = nn.Linear(emb_dim, emb_dim + 2 * nb_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(emb_dim, emb_dim, bias=False)

    def forward(self, x_BTD: Tensor, state: LayerState | None, table: Tensor) -> Tensor:
        """Mix each position with those before it: [B, T, D] to [B, T, D]."""
        heads_BTHK = self.qkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        turned_BTHK = rotate(heads_BTHK[:, :, : -self.nb_kv_heads], table)
        q_BHTK = turned_BTHK[:, :, : self.nb_heads].transpose(1, 2)
        k_BGTK = turned_BTHK[:, :, self.nb_heads :].transpose(1, 2)
        v_BGTK = heads_BTHK[:, :, -self.nb_kv_heads :].transpose(1, 2)
        mask = None
        if state is not None:
            if state:
                k_BGTK = torch.cat([state["keys"], k_BGTK], dim=2)
                v_BGTK = torch.cat([state["values"], v_BGTK], dim=2)
                mask = _mask(q_BHTK.shape[2], k_BGTK.shape[2], x_BTD.device)
            state["keys"], state["values"] = k_BGTK, v_BGTK
        grouped = self.nb_kv_heads < self.nb_heads
        mixed_BHTK = functional.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        out_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(-2))
        return out_BTD


def _mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """True where the last num_queries of num_keys positions may look: at themselves and back."""
    square = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return square.tril(num_keys - num_queries)


class TransformerLayer(Layer):
    """Attention and feed-forward, each added to the residual stream after a normalisation of its input."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.emb_dim = spec.emb_dim
        swiglu = spec.block.feed_forward == "swiglu"
        self.attention_norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.attention = Attention(spec.emb_dim, spec.block.nb_heads, spec.nb_kv_heads)
        self.feed_forward_norm = RMSNorm(spec.emb_dim, spec.norm_eps)
        self.feed_forward = FeedForward(
            spec.emb_dim, spec.hidden_dim, activation="silu" if swiglu else "gelu", gated=swiglu
        )

    def forward(self, x_BTD: Tensor, state: LayerState | None, table: Tensor) -> Tensor:
        """One step along the residual stream: [B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), state, table)
        out_BTD: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return out_BTD

    def mixing_flops(self, seq_len: int) -> Flops:
        """Queries with keys, and scores with values: 2TK each for each of H heads."""
        return Flops.of_products(4.0 * seq_len * self.emb_dim)


class Transformer(Learner):
    """Attends to all tokens before; its state is their keys and values. Weights as Learner draws them."""

    def __init__(self, spec: TransformerSpec, vocab_size: int) -> None:
        super().__init__(spec, vocab_size, lambda: TransformerLayer(spec))
        self.head_dim = spec.emb_dim // spec.block.nb_heads
        self.rope_theta = spec.block.rope_theta

    def shared(self, x_BTD: Tensor, state: Sequence[LayerState] | None) -> tuple[Tensor]:
        """The rotations of the positions of x_BTD."""
        first = state[0]["keys"].shape[2] if state and state[0] else 0
        return (rotary_table(first, x_BTD.shape[1], self.head_dim, self.rope_theta, x_BTD.device),)
