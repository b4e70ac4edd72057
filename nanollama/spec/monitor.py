"""What a run writes down while it trains, and how often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.spec.base import Spec


class LoggingSpec(Spec):
    """Metrics and console log."""

    period: int = Field(default=10, ge=1, description="steps between two metric lines")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class CheckpointSpec(Spec):
    """Checkpoints; one is always written at the last step."""

    period: int = Field(default=0, ge=0, description="steps between two checkpoints; 0: only at the end")
    keep_only: int = Field(default=0, ge=0, description="number of newest checkpoints kept; 0 keeps all")


class UtilsSpec(Spec):
    """Odds and ends of a run."""

    seed: int = Field(default=42, ge=0, lt=2**63, description="seed of the learner's initial weights")


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
    utils: UtilsSpec = Field(default_factory=UtilsSpec)
