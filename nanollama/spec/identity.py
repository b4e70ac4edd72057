"""What makes two runs the same: the hash of what they learn, whatever they are called and wherever they run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from nanollama.spec.base import hash_data
from nanollama.spec.experiment import ExperimentSpec

LEARNT = ("app", "data", "model", "optim")
"""Sections of a config that determine what a run learns; so does the seed among the others, and where it starts."""
START = "start_from"


def training_hash(spec: ExperimentSpec) -> str:
    """Hash of what determines the outcome of training. A checkpoint may be continued by any config of equal hash."""
    return hash_data(essence(spec.model_dump(mode="json")))


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """A full resolved config, as plain data, without what may change between two attempts: where and how it runs."""
    kept = {name: config[name] if name in LEARNT else value for name, value in _defaults().items()}
    seed = config["orchestration"]["utils"]["seed"]
    kept["orchestration"] = {**kept["orchestration"], "utils": {**kept["orchestration"]["utils"], "seed": seed}}
    checked = {"kernels_hash"}  # what is only compared, and when a batch is drawn, change nothing in it
    data = {key: value for key, value in config["data"].items() if key not in checked}
    origin = start(config)
    if origin is not None:
        orchestration = kept["orchestration"]
        kept["orchestration"] = {**orchestration, "checkpoint": {**orchestration["checkpoint"], START: origin}}
    return {**kept, "data": {**data, "prefetch": 0}}


def start(config: Mapping[str, Any]) -> str | None:
    """What a run starts from instead of fresh weights: the digest of a checkpoint, or its path where none is given."""
    section: Any = config
    for key in ("orchestration", "checkpoint"):
        section = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        return None  # of another version
    found: str | None = section.get("start_digest") or section.get(START)
    return found


@cache
def _defaults() -> dict[str, Any]:
    """What stands in the place of each section that does not matter; where it starts is absent."""
    values: dict[str, Any] = {}
    for name, field in ExperimentSpec.model_fields.items():
        default = None if name in LEARNT else field.get_default(call_default_factory=True)
        values[name] = None if default is None else default.model_dump(mode="json")
    for key in (START, "start_digest"):  # so that the hashes of older versions stay what they were
        del values["orchestration"]["checkpoint"][key]
    return values


def gssm_hash(graph: Mapping[str, Any], seed: int) -> str:
    """What tells true models apart: the graph, fully resolved and as plain data, and the seed of its kernels."""
    return hash_data({"gssm": graph, "seed": seed})


def path_hash(path: str) -> str:
    """What a file of sequences is found by, however long its path is."""
    return hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()
