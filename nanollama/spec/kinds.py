"""Which kind of config a file holds, told by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanollama.spec.base import Spec
from nanollama.spec.data import DatasetSpec
from nanollama.spec.evaluation import DifficultySpec, EntropySpec
from nanollama.spec.experiment import ExperimentSpec

KINDS: dict[type[Spec], str] = {
    ExperimentSpec: "training config",
    DatasetSpec: "data generation config",
    EntropySpec: "entropy config",
    DifficultySpec: "difficulty config",
}
"""Roots of configs, and what each is called."""


def model_of(data: Mapping[str, Any]) -> type[Spec]:
    """The root that a config in today's shape is meant to be; a training config where nothing speaks against it."""
    if "sets" in data:
        return DatasetSpec
    if not data.keys().isdisjoint(("alpha_X", "alpha_Z", "seeds", "level")):
        return DifficultySpec
    if "data" in data and data.keys().isdisjoint(("model", "optim")):
        return EntropySpec
    return ExperimentSpec
