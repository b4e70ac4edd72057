"""What a run writes down while it trains, and how often."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nanollama.spec.base import Problem, Problems, Spec


class LoggingSpec(Spec):
    """Metrics and console log."""

    period: int = Field(default=10, ge=1, description="steps between two metric lines")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least severe message of the log"
    )


class CheckpointSpec(Spec):
    """Checkpoints; one is always written at the last step.

    One that no rule keeps is removed after the next save. The newest whole one and pinned ones always stay.
    """

    period: int = Field(default=0, ge=0, description="steps between two checkpoints; 0: only at the end")
    keep_last: int = Field(default=0, ge=0, description="number of newest checkpoints kept; 0 keeps all")
    keep_best: int = Field(default=0, ge=0, description="number of best checkpoints kept besides, by evaluation")
    keep_every: int = Field(default=0, ge=0, description="checkpoints of multiples of this many steps are kept besides")
    asynchronous: bool = Field(default=True, description="write to the disk while training goes on")
    start_from: str | None = Field(
        default=None, min_length=1, description="checkpoint of another run, RUN/checkpoints/<step>, to start from"
    )
    start_digest: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of its manifest.json: another one is refused, and it counts in the place of the path",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_keep_only(cls, data: Any) -> Any:
        """`keep_only` is the old name of `keep_last`."""
        if not isinstance(data, dict) or "keep_only" not in data:
            return data
        if "keep_last" in data:
            message = "keep_only is the old name of keep_last, which is given too"
            raise Problems([Problem(path="keep_only", message=message, remedy="remove keep_only")])
        return {"keep_last" if key == "keep_only" else key: value for key, value in data.items()}

    @model_validator(mode="after")
    def _check_rules(self) -> CheckpointSpec:
        problems = [
            Problem(
                path=key,
                message=f"{key} {getattr(self, key)} has no effect: keep_last 0 keeps every checkpoint",
                remedy="set keep_last to at least 1",
            )
            for key in ("keep_best", "keep_every")
            if getattr(self, key) and not self.keep_last
        ]
        if self.start_digest is not None and self.start_from is None:
            message = "is the digest of a checkpoint, and start_from names none"
            problems.append(Problem(path="start_digest", message=message, remedy="give both, or start_from alone"))
        if self.keep_every and self.period and self.keep_every % self.period:
            message = f"keep_every {self.keep_every} is no multiple of period {self.period}"
            remedy = f"use {max(1, round(self.keep_every / self.period)) * self.period}"
            problems.append(Problem(path="keep_every", message=message, remedy=remedy))
        if problems:
            raise Problems(problems)
        return self


class ProfilerSpec(Spec):
    """Speed, time split and memory of single steps in profile/rank<k>.jsonl, or a trace in profile/rank<k>.json.gz."""

    active: bool = Field(default=False, description="profile a window of steps")
    wait: int = Field(default=1, ge=0, description="steps of an attempt before the first one that is profiled")
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

    active: bool = Field(default=False, description="mirror the metrics; needs the package wandb")
    entity: str | None = Field(default=None, min_length=1, description="account or team; your default when absent")
    project: str = Field(default="nodes-to-narratives", min_length=1, description="project that the runs belong to")


class TensorboardSpec(Spec):
    """A mirror of the metrics for TensorBoard, in the attempt's directory."""

    active: bool = Field(default=False, description="mirror the metrics; needs the package tensorboard")


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
