"""What the runs of a config would cost: sizes are counted, hours guessed from past runs that are like them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from backend.catalogue.repository import CatalogueRepository
from backend.runs.repository import RunRepository
from backend.specs.pricing import price_bound
from backend.specs.service import Sweep
from nanollama.api import schemas
from nanollama.spec.base import parse
from nanollama.spec.cost import Cost, cost_of
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.model import ModelSpec

PAST_RUNS = 200
"""Runs that are looked at, the newest that have succeeded."""
NEAREST = 5
"""Of these so many count, those that come nearest in their number of parameters,"""
MAX_RATIO = 4.0
"""and none that has more than so many times as many, or as few."""

_SAME = ("device", "nproc_per_node", "dtype", "compile_model", "parallel")
"""Keys of `cluster` that must be equal for the speed of a run to say something about another."""

_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


@dataclass(frozen=True)
class Shape:
    """How many symbols sequences have, and how many tokens, the start token included."""

    vocab: int
    seq_len: int


@dataclass(frozen=True)
class Past:
    """A run that has succeeded: what it was run on, its parameters, and the operations that it did in a second."""

    kind: str
    parameters: int
    flops_per_second: float


class Estimator:
    """Estimates, from what the database knows."""

    def __init__(self, session: Session) -> None:
        self._catalogue = CatalogueRepository(session)
        self._runs = RunRepository(session)
        self._shapes: dict[str, Shape | None] = {}
        self._speeds: dict[tuple[str, int], tuple[float | None, int]] = {}
        self._past: list[Past] | None = None

    def estimate(self, sweep: Sweep) -> schemas.Estimate | None:
        """What the runs cost; None while nobody has said what is in a data file that one of them reads."""
        hours: list[float | None] = []
        tokens: list[int] = []
        parameters: list[int] = []
        for run in sweep.runs:
            shape = self._shape(run.config)
            if shape is None:
                return None
            tokens.append(_num_tokens(run.config, shape))
            cost = _cost(run.config, shape)
            parameters.append(cost.parameters)
            speed, _ = self._speed(run.config, cost.parameters)
            hours.append(None if speed is None else tokens[-1] * cost.flops_per_token / speed / 3600)
        first = sweep.runs[0]
        shape = self._shape(first.config)
        assert shape is not None
        cost = _cost(first.config, shape)
        price: dict[str, Any] = {}
        if first.model is not None:
            graph = parse(GSSMSpec, first.model.graph)
            found = price_bound(graph, first.model.seed, shape.seq_len, first.config["data"]["batch_size"])
            price = {f"bound_{name}": value for name, value in vars(found).items()}
        known = [value for value in hours if value is not None]
        return schemas.Estimate(
            parameters=cost.parameters,
            parameters_min=min(parameters),
            parameters_max=max(parameters),
            flops_per_token=cost.flops_per_token,
            tokens_per_run=tokens[0],
            total_tokens=sum(tokens),
            hours_per_run=hours[0],
            total_hours=sum(known) if len(known) == len(hours) else None,
            based_on=self._speed(first.config, cost.parameters)[1],
            vocab=shape.vocab,
            gssm_hash=self._gssm_hash(first.config) if first.model is None else first.model.hash,
            **price,
        )

    def _shape(self, config: Mapping[str, Any]) -> Shape | None:
        data = config["data"]
        if "gssm" in data:
            observed = next(node for node in data["gssm"]["nodes"] if node["observed"])
            return Shape(observed["state_dim"], data["seq_len"])
        path = data["path"]
        if path not in self._shapes:
            content = self._content(path)
            readable = content.get("seq_len", 0) >= 2 and "vocab" in content
            self._shapes[path] = Shape(content["vocab"], content["seq_len"]) if readable else None
        return self._shapes[path]

    def _content(self, path: str) -> dict[str, Any]:
        found = self._catalogue.found_at(path)
        return {} if found is None else found.content

    def _gssm_hash(self, config: Mapping[str, Any]) -> str | None:
        content_hash: str | None = self._content(config["data"]["path"]).get("gssm_hash")
        return content_hash

    def _speed(self, config: Mapping[str, Any], parameters: int) -> tuple[float | None, int]:
        """Operations a second, by past runs that are like it, and how many these are."""
        key = (_kind(config), parameters)
        if key not in self._speeds:
            if self._past is None:
                self._past = self._past_runs()
            apart = [
                (abs(math.log(past.parameters / parameters)), past.flops_per_second)
                for past in self._past
                if past.kind == key[0]
            ]
            near = [speed for distance, speed in sorted(apart)[:NEAREST] if distance <= math.log(MAX_RATIO)]
            self._speeds[key] = (statistics.median(near) if near else None, len(near))
        return self._speeds[key]

    def _past_runs(self) -> list[Past]:
        found = []
        for config, result in self._runs.finished_trainings(PAST_RUNS):
            # configs of other versions, perhaps from an archive, and results, which workers write, have any shape
            with suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration):
                past = self._past_run(config, result)
                found += [] if past is None else [past]
        return found

    def _past_run(self, config: Mapping[str, Any], result: Mapping[str, Any]) -> Past | None:
        shape = self._shape(config)
        tokens, seconds = _positive(result.get("tokens")), _positive(result.get("seconds"))
        if shape is None or tokens is None or seconds is None:
            return None
        cost = _cost(config, shape)
        speed = _positive(tokens * cost.flops_per_token / seconds)
        return None if speed is None else Past(_kind(config), cost.parameters, speed)


def _positive(value: Any) -> float | None:
    """A number of a result, which a worker wrote, where it can be divided by."""
    return value if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


def _num_tokens(config: Mapping[str, Any], shape: Shape) -> int:
    count: int = config["optim"]["steps"] * config["data"]["batch_size"] * (shape.seq_len - 1)
    return count


def _kind(config: Mapping[str, Any]) -> str:
    """What must be equal for two runs to be compared."""
    return json.dumps([config["model"]["implementation"], *(config["cluster"].get(name) for name in _SAME)])


def _cost(config: Mapping[str, Any], shape: Shape) -> Cost:
    return _cost_of(json.dumps(config["model"], sort_keys=True), shape)


@lru_cache(maxsize=4096)
def _cost_of(model: str, shape: Shape) -> Cost:
    return cost_of(_MODEL.validate_json(model), vocab=shape.vocab, seq_len=shape.seq_len)
