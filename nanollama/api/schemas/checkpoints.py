"""Checkpoints of runs, and what they are worth."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from nanollama.api.schemas.base import Response

CommandKind = Literal["pin", "unpin", "delete"]


class Checkpoint(Response):
    """A checkpoint that training reported."""

    step: int
    attempt: int
    path: str = Field(description="absolute, on the worker's file system")
    size_bytes: int
    digest: str
    created_at: datetime
    removed: bool = False
    pinned: bool | None = Field(default=None, description="unknown where nobody that reaches the files has said")
    pending: CommandKind | None = Field(
        default=None, description="asked for, and not done yet: a worker of the run's pool does it at its next sync"
    )
    evaluation_loss: float | None = Field(default=None, description="nats per token, where the step was evaluated")
    evaluation_excess: float | None = None


class CheckpointFile(Response):
    """A file of a checkpoint."""

    name: str
    size_bytes: int


class ByPosition(Response):
    """Means at positions of the sequence, from 1, and their standard errors; nats, null where not finite."""

    positions: list[int]
    loss: list[float | None] = []
    loss_stderr: list[float | None] = []
    bound: list[float | None] = []
    bound_stderr: list[float | None] = []
    excess: list[float | None] = []
    excess_stderr: list[float | None] = []
    kl: list[float | None] = []
    kl_stderr: list[float | None] = []


class Evaluation(Response):
    """A learner on held-out sequences: means in nats per token, and their standard errors over sequences."""

    step: int
    attempt: int
    at: datetime
    loss: float | None = None
    loss_stderr: float | None = None
    bound: float | None = Field(default=None, description="absent, like what follows, where the truth has no score")
    bound_stderr: float | None = None
    excess: float | None = Field(default=None, description="loss - bound of the same tokens")
    excess_stderr: float | None = None
    kl: float | None = Field(default=None, description="of the true predictive distribution to the learner's")
    kl_stderr: float | None = None
    by_position: ByPosition | None = None
    probes: dict[str, float | None] | None = Field(
        default=None, description="R^2 of the exact belief state, by layer and latent", examples=[{"layer2/Z": 0.98}]
    )
