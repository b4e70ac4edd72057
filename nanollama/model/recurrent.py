"""Parts of the recurrent learners: a causal convolution, and a linear map of heads.

Shapes: B batch, T positions, C channels, W width of the convolution, H heads, I and O channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _Convolve(torch.autograd.Function):
    """W shifted products, with the backward pass written out: autograd's would add up W padded copies."""

    @staticmethod
    def forward(ctx: Any, padded_BTC: Tensor, weight_CW: Tensor, bias_C: Tensor) -> Tensor:
        ctx.save_for_backward(padded_BTC, weight_CW)
        width = weight_CW.shape[1]
        length = padded_BTC.shape[1] - width + 1
        out_BTC = bias_C
        for w in range(width):
            out_BTC = torch.addcmul(out_BTC, padded_BTC[:, w : w + length], weight_CW[:, w])
        return out_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the input is a convolution of grad with the weights in reverse."""
        padded_BTC, weight_CW = ctx.saved_tensors
        width, length = weight_CW.shape[1], grad_BTC.shape[1]
        wide_BTC = functional.pad(grad_BTC, (0, 0, width - 1, width - 1))
        total = padded_BTC.shape[1]
        grad_padded = wide_BTC[:, width - 1 : width - 1 + total] * weight_CW[:, 0]
        for w in range(1, width):
            grad_padded = torch.addcmul(grad_padded, wide_BTC[:, width - 1 - w :][:, :total], weight_CW[:, w])
        grad_weight = torch.stack([(grad_BTC * padded_BTC[:, w : w + length]).sum((0, 1)) for w in range(width)], dim=1)
        return grad_padded, grad_weight, grad_BTC.sum((0, 1))


class CausalConv(nn.Module):
    """Each channel a weighted sum of itself at this position and the W - 1 before it, and a bias."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BTC: Tensor, state: dict[str, Tensor] | None) -> Tensor:
        """Convolve [B, T, C], after the positions that the state keeps under "inputs", or after zeros."""
        past = self.weight.shape[1] - 1
        if state is not None and "inputs" in state:
            padded_BTC = torch.cat([state["inputs"], x_BTC], dim=1)
        else:
            padded_BTC = functional.pad(x_BTC, (0, 0, past, 0))
        if state is not None:
            state["inputs"] = padded_BTC[:, -past:]
        weight_CW, bias_C = self.weight.to(x_BTC.dtype), self.bias.to(x_BTC.dtype)
        out: Tensor = _Convolve.apply(padded_BTC, weight_CW, bias_C)  # type: ignore[no-untyped-call] # torch leaves it bare
        return out


class BlockLinear(nn.Module):
    """A linear map whose matrix is block-diagonal: head h of the output reads head h of the input."""

    def __init__(self, nb_heads: int, in_channels: int, out_channels: int) -> None:
        """Both widths are those of one head."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(nb_heads, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(nb_heads * out_channels))  # a vector: matrices are drawn, and decay

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Map [B, T, H * I] to [B, T, H, O]."""
        nb_heads, in_channels, _ = self.weight.shape
        x_HBI = x_BTC.reshape(-1, nb_heads, in_channels).transpose(0, 1)
        out_HBO = torch.baddbmm(self.bias.view(nb_heads, 1, -1), x_HBI, self.weight)
        return torch.unflatten(out_HBO.transpose(0, 1), 0, x_BTC.shape[:2])
