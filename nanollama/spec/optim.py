"""Optimizer and learning rate schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.spec.base import Spec


class OptimSpec(Spec):
    """AdamW with warm-up and a cosine or constant schedule."""

    steps: int = Field(ge=1, le=2**40, description="optimizer steps of the whole run")
    grad_acc_steps: int = Field(default=1, ge=1, description="micro-batches per step; must divide the batch of a rank")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay, on matrices only")
    epsilon: float = Field(default=1e-8, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0, description="largest global norm of the gradient")
    scheduler: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up; at most steps")
    lr_min_ratio: float = Field(default=0.1, ge=0, le=1, description="final over peak learning rate of the cosine")
