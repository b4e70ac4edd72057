"""The true model that a config describes, as the catalogue keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.spec.base import Problem, SpecError, parse
from nanollama.spec.data import DatasetSpec, FileData, OnlineData
from nanollama.spec.evaluation import DifficultySpec, EntropySpec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.identity import gssm_hash


@dataclass(frozen=True)
class TrueModel:
    """A graph with the seed of its kernels; and how long sequences of it are wanted, and what its config is called."""

    hash: str
    name: str
    graph: dict[str, Any]
    seed: int
    seq_len: int

    @classmethod
    def of(cls, name: str, data: Mapping[str, Any]) -> TrueModel | None:
        """That of a resolved `data` section; None where sequences come from a file."""
        if "gssm" not in data:
            return None
        graph, seed = data["gssm"], data["seed"]
        return cls(hash=gssm_hash(graph, seed), name=name, graph=graph, seed=seed, seq_len=data["seq_len"])


AnyWithGraph = ExperimentSpec | EntropySpec | DatasetSpec | DifficultySpec


def model_in(spec: AnyWithGraph) -> TrueModel:
    """The true model that a config of any kind describes; of several seeds, with the first.

    Raises:
        SpecError: its graph is in a data file.
    """
    if isinstance(spec, DifficultySpec):
        return _model(None, spec.gssm, spec.seeds[0], spec.seq_len)
    if isinstance(spec, DatasetSpec):
        return _model(None, spec.gssm, spec.seed, spec.seq_len)
    data: OnlineData | FileData = spec.data
    if isinstance(data, FileData):
        message = f"the graph of this config is in its data file, {data.path}"
        raise SpecError([Problem(path="data.path", message=message, remedy="give the config that generated the file")])
    name = spec.orchestration.name if isinstance(spec, ExperimentSpec) else None
    return _model(name, data.gssm, data.seed, data.seq_len)


def _model(name: str | None, spec: GSSMSpec, seed: int, seq_len: int) -> TrueModel:
    graph = spec.model_dump(mode="json")
    found = TrueModel.of(name or describe(spec), {"gssm": graph, "seed": seed, "seq_len": seq_len})
    assert found is not None
    return found


def describe(spec: GSSMSpec) -> str:
    """A name for a graph that has none: `8 x 8 states, 32 symbols`."""
    sizes = [str(node.state_dim) for node in spec.nodes if not node.observed]
    latents = " x ".join(sizes[:6]) + (" x …" if len(sizes) > 6 else "")
    return f"{latents or 'no'} states, {spec.observed.state_dim} symbols"


def read_graph(graph: Mapping[str, Any]) -> GSSMSpec:
    """The graph of a row. Raises SpecError for one of a version with other keys."""
    return parse(GSSMSpec, graph)
