"""What a run computes on: device and ranks, and the resources asked of Slurm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanollama.spec.base import Spec

SLURM_WORD = (
    r"^[A-Za-z0-9_.,:@=|&*\[\]()+-]{1,256}$"  # what partitions, accounts and features are made of: never white space
)


class ClusterSpec(Spec):
    """Device and ranks of one run."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA when there is one")
    backend: Literal["auto", "gloo", "nccl"] = Field(default="auto", description="auto: nccl on CUDA, gloo on the CPU")
    nproc_per_node: int = Field(default=1, ge=1, le=64, description="ranks per node")
    compile_model: bool = Field(default=False, description="compile the learner with torch.compile")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the learner's arithmetic; weights are kept in float32"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="how several ranks share the work: whole learners, or one that is cut in shards"
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads per rank; torch's own choice when absent"
    )


class SlurmPlacement(Spec):
    """Where Slurm puts a job, whoever asks for it."""

    partition: str | None = Field(default=None, pattern=SLURM_WORD, description="partition, or several with commas")
    account: str | None = Field(default=None, pattern=SLURM_WORD, description="account that pays")
    qos: str | None = Field(default=None, pattern=SLURM_WORD, description="quality of service")
    constraint: str | None = Field(default=None, pattern=SLURM_WORD, description="features that the nodes must have")
    exclude: str | None = Field(default=None, pattern=SLURM_WORD, description="nodes that must not be used")
    mem: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$", description="memory per node, for example 32G")


class SlurmSpec(SlurmPlacement):
    """Resources of a Slurm job. A key that is absent is left to the cluster's defaults."""

    time: int | None = Field(default=None, ge=1, description="time limit in minutes")
    nodes: int = Field(default=1, ge=1, le=4096, description="number of nodes")
    nb_gpus: int = Field(default=0, ge=0, le=64, description="GPUs per node")
    nb_cpus: int = Field(default=1, ge=1, le=1024, description="CPUs per rank")
    signal_time: int = Field(
        default=120, ge=0, description="seconds before the time limit at which a run saves and stops"
    )


class LauncherSpec(Spec):
    """How nanollama.launcher starts a config without any server."""

    kind: Literal["local", "slurm"] = Field(default="local", description="processes of this machine, or a Slurm job")
    log_dir: str | None = Field(default=None, description="run directory; runs/<orchestration.name> when absent")
    script: str | None = Field(default=None, min_length=1, description="module to run where script= is not given")
    parallel: int | None = Field(
        default=None, ge=1, le=10_000, description="runs of a grid at a time; when absent 1 here, no limit on Slurm"
    )
    slurm: SlurmSpec = Field(default_factory=SlurmSpec)
