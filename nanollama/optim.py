"""Optimizer, learning rate schedule and gradient clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nanollama.spec.optim import OptimSpec


def build_optimizer(spec: OptimSpec, model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only: gains and biases have no reason to be small.

    The learning rate of the groups is set at every step by `set_learning_rate`.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.lr,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        fused=True,  # one pass over the weights, on the CPU as on CUDA
    )


def learning_rate(spec: OptimSpec, step: int) -> float:
    """Learning rate of step 1, 2, …, `spec.steps`: a pure function, so that a schedule has no state to restore.

    It climbs linearly to `lr` at step `warmup`; the cosine then falls to `lr * lr_min_ratio` at the last step.
    """
    if step < spec.warmup:
        return spec.lr * step / spec.warmup
    if spec.scheduler == "constant":
        return spec.lr
    progress = (step - spec.warmup) / max(spec.steps - spec.warmup, 1)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return spec.lr * (spec.lr_min_ratio + (1 - spec.lr_min_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradient(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` where its global norm exceeds it; returns the norm before, a scalar."""
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
