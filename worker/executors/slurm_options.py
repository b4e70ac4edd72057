"""The `slurm` section of a worker's config: everything that Slurm is asked for comes from here, never from a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from nanollama.spec.base import Problem, Problems
from nanollama.spec.cluster import SlurmPlacement, SlurmSpec

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

SetupLine = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]+$")]


class SlurmOptions(SlurmPlacement):
    """What each run gets from Slurm, and how Slurm is asked. A key that is absent is left to the cluster."""

    time: int | None = Field(default=None, ge=1, description="time limit in minutes; longer runs are chained")
    nodes: int = Field(default=1, ge=1, le=4096, description="nodes of a run; an app without ranks gets one")
    gpus_per_node: int = Field(default=0, ge=0, le=64, description="GPUs per node")
    cpus: int = Field(default=1, ge=1, le=1024, description="CPUs per node, for all ranks there together")
    signal_time: int = Field(
        default=120, ge=0, le=65535, description="seconds before the time limit at which a run saves and stops"
    )
    setup: tuple[SetupLine, ...] = Field(
        default=(),
        max_length=100,
        strict=False,
        description="lines of bash before the run, for example `module load cuda/12.4`",
    )
    max_jobs: int = Field(default=50, ge=1, le=10_000, description="jobs of this worker in Slurm's queue at a time")
    poll_seconds: float = Field(default=30.0, ge=1, le=600, description="between two looks at Slurm's queue")
    command_seconds: float = Field(
        default=30.0, ge=1, le=600, description="after which a command of Slurm that has not answered is given up"
    )

    @model_validator(mode="after")
    def _check_times(self) -> SlurmOptions:
        if self.time is not None and self.signal_time >= 60 * self.time:
            message = f"{self.signal_time} s before the end of {self.time} min a run would have to stop at once"
            raise Problems([Problem(path="signal_time", message=message, remedy="use less, or a longer `time`")])
        return self

    @property
    def memory_gb(self) -> float | None:
        """Memory of a node, in units of 1e9 bytes; None when it is left to the cluster."""
        if self.mem is None:
            return None
        unit = self.mem[-1]
        number = int(self.mem[:-1] if unit in _UNITS else self.mem)
        return number * _UNITS.get(unit, _UNITS["M"]) / 1e9

    def resources(self, *, nodes: int) -> SlurmSpec:
        """The resources of one job, as the library's functions take them. CPUs are those of a node's one task."""
        names = ("partition", "account", "qos", "constraint", "exclude", "mem", "time", "signal_time")
        values = {name: getattr(self, name) for name in names}
        return SlurmSpec(nodes=nodes, nb_gpus=self.gpus_per_node, nb_cpus=self.cpus, **values)
