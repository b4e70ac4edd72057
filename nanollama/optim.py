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

    It climbs linearly to `lr` at step `warmup`. The cosine then falls to `lr * lr_min_ratio` at the last step; wsd
    (warm-up, stable, decay; Hu et al. 2024) stays there and falls linearly to the same over the last steps.
    """
    if step < spec.warmup:
        return spec.lr * step / spec.warmup
    if spec.scheduler == "constant":
        return spec.lr
    if spec.scheduler == "wsd":
        decay = round(spec.decay_ratio * spec.steps)
        progress = max(step - (spec.steps - decay), 0) / max(decay, 1)
        return spec.lr * (1 - (1 - spec.lr_min_ratio) * progress)
    progress = (step - spec.warmup) / max(spec.steps - spec.warmup, 1)
    fall = 0.5 * (1 + math.cos(math.pi * progress))
    return spec.lr * (spec.lr_min_ratio + (1 - spec.lr_min_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradient(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` where its global norm exceeds it; returns the norm before, a scalar."""
    norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    if hasattr(norm, "full_tensor"):  # a DTensor, as the weights are cut in shards
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def update(optimizer: torch.optim.AdamW, lr: float, lost: Tensor) -> None:
    """Take a step with this learning rate and clear the gradient; with `lost` 1 instead of 0 only clear it.

    The scalar `lost`, float32 on the device, is read there: the loop does not wait for it. Weights, moments and the
    optimizer's count of steps are then as they were.
    """
    set_learning_rate(optimizer, lr)
    # how torch.amp.GradScaler tells a fused optimizer that a gradient has overflown
    optimizer.grad_scale, optimizer.found_inf = None, lost  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
