"""The `slurm` section of a worker's config: everything that Slurm is asked for comes from here, never from a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nanollama.spec.base import Spec
from nanollama.spec.cluster import SLURM_WORD, SlurmSpec

SetupLine = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]+$")]


class SlurmOptions(Spec):
    """What each run gets from Slurm, and how Slurm is asked. A key that is absent is left to the cluster."""

    partition: str | None = Field(default=None, pattern=SLURM_WORD, description="partition, or several with commas")
    account: str | None = Field(default=None, pattern=SLURM_WORD, description="account that pays")
    qos: str | None = Field(default=None, pattern=SLURM_WORD, description="quality of service")
    constraint: str | None = Field(default=None, pattern=SLURM_WORD, description="features that the nodes must have")
    exclude: str | None = Field(default=None, pattern=SLURM_WORD, description="nodes that must not be used")
    mem: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$", description="memory per node, for example 32G")
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

    def resources(self, *, nodes: int) -> SlurmSpec:
        """The resources of one job, as the library's functions take them. CPUs are those of a node's one task."""
        names = ("partition", "account", "qos", "constraint", "exclude", "mem", "time", "signal_time")
        values = {name: getattr(self, name) for name in names}
        return SlurmSpec(nodes=nodes, nb_gpus=self.gpus_per_node, nb_cpus=self.cpus, **values)
