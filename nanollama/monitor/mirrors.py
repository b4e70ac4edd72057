"""Copies of the metrics for TensorBoard and Weights & Biases. The run's own files stay what counts."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nanollama.spec.base import Problem, SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.identity import training_hash
from nanollama.spec.rundir import TENSORBOARD, WANDB

log = logging.getLogger(__name__)


class Mirror(Protocol):
    """Takes the metrics of rank 0. Whatever it raises ends the mirror, and never the run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a step."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorboardMirror:
    """Event files in the attempt's directory."""

    def __init__(self, attempt_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra, and slow

        self._writer: Any = SummaryWriter(str(attempt_dir / TENSORBOARD))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


class WandbMirror:
    """A run of Weights & Biases that all attempts share.

    WANDB_MODE=offline keeps it in the attempt's directory, for `wandb sync` later.
    """

    def __init__(self, spec: ExperimentSpec, attempt_dir: Path) -> None:
        import wandb  # noqa: PLC0415 - an extra, and slow

        keys = spec.orchestration.wandb
        (attempt_dir / WANDB).mkdir(exist_ok=True)  # it takes a folder that is not there for an unwritable one
        self._run: Any = wandb.init(
            project=keys.project,
            entity=keys.entity,
            name=spec.orchestration.name,
            id=f"{training_hash(spec)[:16]}-{_place(attempt_dir.parent)}",
            resume="allow",
            dir=str(attempt_dir / WANDB),
            config=spec.model_dump(mode="json"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all has been sent."""
        self._run.finish()


class Mirrors:
    """The mirrors of a run that are switched on. One that fails is given up with a warning.

    Args:
        spec: the config.
        attempt_dir: directory of the attempt.
        warn: is told of a mirror that has failed.
    """

    def __init__(self, spec: ExperimentSpec, attempt_dir: Path, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._mirrors: dict[str, Mirror] = {}
        if spec.orchestration.tensorboard.active:
            self._open("tensorboard", lambda: TensorboardMirror(attempt_dir))
        if spec.orchestration.wandb.active:
            self._open("wandb", lambda: WandbMirror(spec, attempt_dir))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Copy the metrics of a step."""
        for name, mirror in list(self._mirrors.items()):
            try:
                mirror.write(step, values)
            except Exception as error:  # noqa: BLE001 - whatever a mirror does, the run goes on
                del self._mirrors[name]
                self._failed(name, error)

    def close(self) -> None:
        """Nothing more will come."""
        for name, mirror in self._mirrors.items():
            try:
                mirror.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(name, error)
        self._mirrors = {}

    def _open(self, name: str, mirror: Callable[[], Mirror]) -> None:
        try:
            self._mirrors[name] = mirror()
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self._warn(f"the mirror orchestration.{name} has failed and is given up: {type(error).__name__}: {error}")


def check_mirrors(spec: ExperimentSpec) -> None:
    """Make sure that the packages of the mirrors are there.

    Raises:
        SpecError: one is not.
    """
    active = {"tensorboard": spec.orchestration.tensorboard.active, "wandb": spec.orchestration.wandb.active}
    problems = [
        Problem(
            path=f"orchestration.{name}.active",
            message=f"the package {name} is not installed",
            remedy="pip install 'nodes-to-narratives[mirrors]', or set it to false",
        )
        for name, wanted in active.items()
        if wanted and importlib.util.find_spec(name) is None
    ]
    if problems:
        raise SpecError(problems)


def _place(run_dir: Path) -> str:
    """The directory's name in the letters that an id may have."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in run_dir.absolute().name)[:64]
