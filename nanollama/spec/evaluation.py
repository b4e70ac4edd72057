"""What a learner is measured on besides its training loss, and the other measures of a graph's difficulty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nanollama.spec.base import Problem, Problems, Spec
from nanollama.spec.cluster import ClusterSpec, LauncherSpec, SlurmSpec
from nanollama.spec.data import DataSpec
from nanollama.spec.gssm import GSSMSpec


class EvaluationData(Spec):
    """The sequences of an evaluation: of a file, or sampled from the graph of the training data."""

    path: str | None = Field(default=None, min_length=1, description="HDF5 file; sequences are sampled when absent")
    n_data: int | None = Field(default=None, ge=2, description="only the first n_data sequences of the file")
    batch_size: int | None = Field(
        default=None, ge=1, le=2**20, description="sequences at a time; as in a micro-batch of training when absent"
    )
    split: str = Field(
        default="test", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="split that keys the sampled sequences"
    )


class EvaluationSpec(Spec):
    """Loss, bound and exact KL on held-out sequences while the run trains."""

    period: int = Field(default=0, ge=0, description="steps between two evaluations, and one at the end; 0: none")
    asynchronous: bool = Field(
        default=False, description="leave evaluation to a job of its own, which follows the run's checkpoints"
    )
    num_sequences: int | None = Field(
        default=None, ge=2, le=2**32, description="held-out sequences that are sampled; 1,024 when absent"
    )
    probe: bool = Field(default=False, description="regress the residual stream on the exact belief state, per layer")
    data: EvaluationData = Field(default_factory=EvaluationData, description="the held-out sequences")
    slurm: SlurmSpec = Field(
        default_factory=SlurmSpec, description="resources of a job that evaluates; submitting it is up to you"
    )
    cluster: ClusterSpec = Field(default_factory=ClusterSpec, description="device of nanollama.apps.gssm.evaluate")

    @model_validator(mode="after")
    def _check_source(self) -> EvaluationSpec:
        problems = []
        if self.data.path is None and self.data.n_data is not None:
            message = "counts the sequences of a file, and no data.path is given"
            problems.append(Problem(path="data.n_data", message=message, remedy="use num_sequences for sampled ones"))
        if self.data.path is None and self.data.split == "train":
            message = "the learner is trained on the split 'train'"
            problems.append(Problem(path="data.split", message=message, remedy="use 'test'"))
        if self.data.path is not None and self.num_sequences is not None:
            message = "counts sampled sequences, and data.path names a file"
            problems.append(Problem(path="num_sequences", message=message, remedy="use data.n_data for a file"))
        if problems:
            raise Problems(problems)
        return self


class EntropySpec(Spec):
    """Root of a config that only asks for the entropy of its data."""

    app: Literal["gssm.entropy"] = Field(default="gssm.entropy", description="the application that is run")
    data: DataSpec = Field(description="the sequences, or the graph that they are sampled from")
    num_sequences: int | None = Field(default=None, ge=2, le=2**40, description="fresh sequences that are scored")
    max_seconds: float | None = Field(
        default=None, gt=0, description="score no more once so long has passed; no limit when absent"
    )
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)


class AlphaRange(Spec):
    """Concentrations that are tried, at equal ratios."""

    min: float = Field(gt=0, le=1e6, description="the smallest")
    max: float = Field(gt=0, le=1e6, description="the largest")
    num: int = Field(ge=1, le=1000, description="how many")

    @model_validator(mode="after")
    def _check_order(self) -> AlphaRange:
        if self.min > self.max:
            message = f"min {self.min:g} is above max {self.max:g}"
            raise Problems([Problem(path="min", message=message, remedy="exchange them")])
        return self


class DifficultySpec(Spec):
    """Root of a config that measures entropy and compressibility of a graph over concentrations and seeds."""

    batch_size: int = Field(default=256, ge=1, le=2**20, description="sequences per graph")
    seq_len: int = Field(default=2048, ge=2, le=2**20, description="tokens per sequence, the start token included")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, strict=False, description="seeds of the kernels")
    gssm: GSSMSpec = Field(description="the graph")
    alpha_X: AlphaRange | None = Field(default=None, description="concentrations of the observed node")  # noqa: N815 - as it is written
    alpha_Z: AlphaRange | None = Field(default=None, description="concentrations of all latents")  # noqa: N815
    path: str | None = Field(default=None, min_length=1, description="file of the results")
    level: int = Field(default=9, ge=0, le=9, description="effort of the zlib compressor")
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)
