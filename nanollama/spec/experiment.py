"""Root of a training config, and the checks that look across its sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from nanollama.spec.base import Problem, Problems, Spec
from nanollama.spec.cluster import ClusterSpec, LauncherSpec
from nanollama.spec.data import DataSpec, FileData, OnlineData
from nanollama.spec.evaluation import EntropySpec, EvaluationSpec
from nanollama.spec.model import ModelSpec
from nanollama.spec.monitor import OrchestrationSpec
from nanollama.spec.optim import OptimSpec


class ExperimentSpec(Spec):
    """Everything that a training run needs; with it alone the run can be repeated."""

    app: Literal["gssm.train"] = Field(default="gssm.train", description="the application that is run")
    data: DataSpec = Field(description="where the tokens come from")
    model: ModelSpec = Field(description="the learner")
    optim: OptimSpec
    cluster: ClusterSpec = Field(default_factory=ClusterSpec)
    orchestration: OrchestrationSpec = Field(default_factory=OrchestrationSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    launcher: LauncherSpec = Field(default_factory=LauncherSpec)

    @model_validator(mode="after")
    def _check_sections(self) -> ExperimentSpec:
        problems = self._vocabulary_problems() + self._batch_problems() + self._schedule_problems()
        if self.cluster.device == "cpu" and self.cluster.backend == "nccl":
            message = "nccl needs CUDA, but device is cpu"
            problems.append(Problem(path="cluster.backend", message=message, remedy="use gloo or auto"))
        if problems:
            raise Problems(problems)
        return self

    def _vocabulary_problems(self) -> list[Problem]:
        if not isinstance(self.data, OnlineData):
            return []
        states, vocab = self.data.gssm.observed.state_dim, self.model.vocab_size
        if states < 2:
            message = "the observed node has a single state: there is nothing to predict"
            return [Problem(path="data.gssm.nodes", message=message, remedy="give it a state_dim of at least 2")]
        if vocab is not None and vocab < states:
            message = f"vocab_size {vocab} is below the {states} states of the observed node"
            return [Problem(path="model.vocab_size", message=message, remedy=f"remove it or use at least {states}")]
        return []

    def _batch_problems(self) -> list[Problem]:
        batch, ranks, acc = self.data.batch_size, self.cluster.nproc_per_node, self.optim.grad_acc_steps
        present = self.data.n_data if isinstance(self.data, FileData) else None
        if present is not None and batch > present:
            message = f"batch_size {batch:,} is more than the {present:,} sequences that are used"
            return [
                Problem(path="data.batch_size", message=message, remedy=f"use at most {present}, or a larger n_data")
            ]
        nodes = self.launcher.slurm.nodes if self.launcher.kind == "slurm" else 1
        parts = ranks * nodes * acc
        if batch % parts == 0:
            return []
        message = f"batch_size {batch} is not divisible by {ranks * nodes} ranks x {acc} accumulation steps"
        remedy = f"use a multiple of {parts}"
        return [Problem(path="data.batch_size", message=message, remedy=remedy)]

    def _schedule_problems(self) -> list[Problem]:
        optim = self.optim
        if optim.warmup > optim.steps:
            message = f"warmup {optim.warmup} is longer than the run's {optim.steps} steps"
            return [Problem(path="optim.warmup", message=message, remedy=f"use at most {optim.steps}")]
        decay = round(optim.decay_ratio * optim.steps)
        if optim.scheduler == "wsd" and optim.warmup + decay > optim.steps:
            message = f"the decay takes {decay} of {optim.steps} steps, and the warm-up {optim.warmup}"
            remedy = f"use at most {(optim.steps - optim.warmup) / optim.steps:.3g}, or a shorter warm-up"
            return [Problem(path="optim.decay_ratio", message=message, remedy=remedy)]
        return []


@dataclass(frozen=True)
class App:
    """An application that a config may name.

    Attributes:
        module: what Python runs; it is told `config=FILE attempt_dir=PATH`.
        spec: root of its configs, which has a key `app`.
        torchrun: whether it runs as ranks under torchrun, or else as one plain process.
    """

    module: str
    spec: type[Spec]
    torchrun: bool


APPS: Mapping[str, App] = {
    "gssm.train": App("nanollama.apps.gssm.train", ExperimentSpec, torchrun=True),
    "gssm.entropy": App("nanollama.apps.gssm.entropy", EntropySpec, torchrun=False),
}
"""Applications by the name that a config gives as `app`."""

TRAINING_MODULES = tuple(app.module for app in APPS.values() if issubclass(app.spec, ExperimentSpec))
"""Modules of the applications that train a learner."""
