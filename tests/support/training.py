"""Training runs of the tests: tiny configs, and what a run directory says afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanollama.apps.gssm.train import main
from nanollama.monitor.stopwatch import PHASES
from nanollama.spec.rundir import EVENTS, RESULT, EventLine, MetricLine, Result, metrics_file
from tests.support.examples import experiment

MEASURED = {"tokens_per_second", "memory", *(f"time_{phase}" for phase in PHASES)}
"""Metrics that are different in every execution."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """To be imported by tests: as the subprocesses have; sums over several threads would differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(config: Path, run_dir: Path, *overrides: str) -> int:
    """Run the training app by hand, in this process."""
    return main([f"config={config}", f"orchestration.log_dir={run_dir}", *overrides])


def write_config(path: Path, **overrides: Any) -> Path:
    """The example config as a file; `optim__steps=3` sets optim.steps."""
    data = experiment()
    data["cluster"] = {"device": "cpu"}
    data["orchestration"] = {"logging": {"period": 2}}
    for key, value in overrides.items():
        *sections, name = key.split("__")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    path.write_text(json.dumps(data))  # JSON is YAML
    return path


def metrics(attempt_dir: Path) -> list[MetricLine]:
    """The metric stream of an attempt."""
    return [MetricLine.model_validate_json(line) for line in metrics_file(attempt_dir, 0).read_bytes().splitlines()]


def reproducible(lines: list[MetricLine], after: int = 0) -> list[dict[str, Any]]:
    """What must be the same, to the last bit, in every execution: all of the lines but numbers, times and speeds."""
    return [line.model_dump(exclude={"seq", "time", *MEASURED}) for line in lines if line.step > after]


def events(attempt_dir: Path) -> list[EventLine]:
    """The events of an attempt."""
    return [EventLine.model_validate_json(line) for line in (attempt_dir / EVENTS).read_bytes().splitlines()]


def result(attempt_dir: Path) -> Result:
    """The result of an attempt."""
    return Result.model_validate_json((attempt_dir / RESULT).read_bytes())
