"""What a run writes down while it trains, and how often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.spec.base import Spec


class LoggingSpec(Spec):
    """Metrics and console log."""

    period: int = Field(default=10, ge=1, description="steps between two metric lines")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least severe message of the log"
    )


class CheckpointSpec(Spec):
    """Checkpoints; one is always written at the last step."""

    period: int = Field(default=0, ge=0, description="steps between two checkpoints; 0: only at the end")
    keep_only: int = Field(default=0, ge=0, description="number of newest checkpoints kept; 0 keeps all")


class ProfilerSpec(Spec):
    """Where the time of a step goes, and the memory."""

    active: bool = Field(default=False, description="profile the run")
    wait: int = Field(default=1, ge=0, description="steps before the first one that is profiled")
    steps: int = Field(default=1, ge=-1, description="steps that are profiled; -1: all from there on")
    heavy: bool = Field(default=False, description="trace every operation, to be opened in Perfetto; slow")


class UtilsSpec(Spec):
    """Odds and ends of a run."""

    seed: int = Field(default=42, ge=0, lt=2**63, description="seed of the learner's initial weights")
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what to do when loss or gradient is not a number: stop the run, or skip the step"
    )


class WandbSpec(Spec):
    """A mirror of the metrics in Weights & Biases."""

    active: bool = Field(default=False, description="mirror the metrics")
    entity: str | None = Field(default=None, min_length=1, description="account or team; your default when absent")
    project: str = Field(default="nodes-to-narratives", min_length=1, description="project that the runs belong to")


class TensorboardSpec(Spec):
    """A mirror of the metrics for TensorBoard, in the attempt's directory."""

    active: bool = Field(default=False, description="mirror the metrics")


class OrchestrationSpec(Spec):
    """Name, place and monitors of a run."""

    name: str = Field(
        default="run",
        pattern=r"^[^\x00-\x1f/\\]{1,200}$",
        description="name of the run: 1 to 200 characters, no slashes",
    )
    log_dir: str | None = Field(default=None, description="run directory; runs/<name> when absent")
    logging: LoggingSpec = Field(default_factory=LoggingSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    profiler: ProfilerSpec = Field(default_factory=ProfilerSpec)
    utils: UtilsSpec = Field(default_factory=UtilsSpec)
    wandb: WandbSpec = Field(default_factory=WandbSpec)
    tensorboard: TensorboardSpec = Field(default_factory=TensorboardSpec)
