"""A pre-norm decoder-only transformer with rotary positions.

Shapes: B batch, T positions, D residual width, H heads, K = D / H channels of a head,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nanollama.spec.model import TransformerSpec


def rotary_table(num_positions: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, K/2] of the angles m * theta^(-2i/K) by which position m turns channel pair i.

    The angles are computed in float64: in float32 those of far positions would be off by whole per cents.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    positions = torch.arange(num_positions, dtype=torch.float64, device=device)
    angles = positions[:, None] * theta**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (2i, 2i + 1) of every position by its angles.

    The product of a rotated query and a rotated key then depends on their positions only through the difference.
    """
    even, odd = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, emb_dim: int, nb_heads: int) -> None:
        super().__init__()
        self.nb_heads = nb_heads
        self.qkv = nn.Linear(emb_dim, 3 * emb_dim, bias=False)
        self.out = nn.Linear(emb_dim, emb_dim, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix each position with those before it: [B, T, D] to [B, T, D]."""
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.nb_heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        q_BHTK, k_BHTK = rotate(q_BHTK, cos, sin), rotate(k_BHTK, cos, sin)
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        out_BTD: Tensor = self.out(mixed_BHTK.transpose(1, 2).flatten(-2))
        return out_BTD


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, emb_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.contract = nn.Linear(hidden_dim, emb_dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position on its own: [B, T, D] to [B, T, D]."""
        out_BTD: Tensor = self.contract(functional.gelu(self.expand(x_BTD)))
        return out_BTD


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream after a normalisation of its input."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.emb_dim, eps=spec.norm_eps)
        self.attention = Attention(spec.emb_dim, spec.block.nb_heads)
        self.feed_forward_norm = nn.RMSNorm(spec.emb_dim, eps=spec.norm_eps)
        self.feed_forward = FeedForward(spec.emb_dim, spec.block.hidden_dim or 4 * spec.emb_dim)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One step along the residual stream: [B, T, D] to [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos, sin)
        out_BTD: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return out_BTD


class Transformer(nn.Module):
    """Predicts each next token from those up to it."""

    def __init__(self, spec: TransformerSpec, vocab_size: int) -> None:
        super().__init__()
        self.head_dim = spec.emb_dim // spec.block.nb_heads
        self.rope_theta = spec.block.rope_theta
        self.embedding = nn.Embedding(vocab_size, spec.emb_dim)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.nb_layers))
        self.norm = nn.RMSNorm(spec.emb_dim, eps=spec.norm_eps)
        self.output = nn.Linear(spec.emb_dim, vocab_size, bias=False)
        if spec.weight_tying:
            self.output.weight = self.embedding.weight
        self._initialise(spec.init_std)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token that follows each of tokens_BT (integers in [0, V))."""
        cos, sin = rotary_table(tokens_BT.shape[1], self.head_dim, self.rope_theta, tokens_BT.device)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        logits_BTV: Tensor = self.output(self.norm(x_BTD))
        return logits_BTV

    @torch.no_grad()
    def _initialise(self, std: float | None) -> None:
        """Draw every matrix from a normal cut at three deviations, std or 1/sqrt(fan_in).

        The two layers of a block that write to the residual stream are scaled down by sqrt(2 * number of blocks), so
        that the stream's variance does not grow with depth. The embedding counts as a matrix of fan-in D, which is
        what it is when it is shared with the output layer.
        """
        depth_scale = (2 * len(self.blocks)) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue  # the gains of the norms start at one
            deviation = std if std is not None else weight.shape[1] ** -0.5
            if name.endswith(("attention.out.weight", "feed_forward.contract.weight")):
                deviation *= depth_scale
            nn.init.trunc_normal_(weight, std=deviation, a=-3 * deviation, b=3 * deviation)
