"""Optimizer and learning rate schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.spec.base import Spec


class OptimSpec(Spec):
    """AdamW with a linear warm-up, then a cosine, a constant rate, or a plateau that ends in a linear decay."""

    steps: int = Field(ge=1, le=2**40, description="optimizer steps of the whole run")
    grad_acc_steps: int = Field(default=1, ge=1, description="micro-batches per step; must divide the batch of a rank")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay, on matrices only")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the second moment")
    clip: float = Field(default=1.0, gt=0, description="largest global norm of the gradient")
    scheduler: Literal["cosine", "constant", "wsd"] = Field(
        default="cosine", description="what follows the warm-up; wsd: stable, then a decay over the last steps"
    )
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up; at most steps")
    lr_min_ratio: float = Field(default=0.1, ge=0, le=1, description="final over peak learning rate, of cosine and wsd")
    decay_ratio: float = Field(default=0.1, gt=0, le=1, description="share of the steps over which wsd decays")
