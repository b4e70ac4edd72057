"""Configs, their check, and templates."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nanollama.api.schemas.base import Request, Response
from nanollama.spec.base import Note, Problem


class SpecInput(Request):
    """A training config, as YAML text (errors then carry lines) or as an object: exactly one of the two.

    With a `grid` it describes several runs. Older shapes are understood, and what was found idle is noted.
    """

    yaml: str | None = Field(default=None, examples=["data:\n  seq_len: 64\n"])
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> SpecInput:
        if (self.yaml is None) == (self.config is None):
            raise ValueError("give either `yaml` or `config`")
        return self


SHOWN_NAMES = 50


class Estimate(Response):
    """What the runs of a spec would cost. Hours are guessed from past runs, and absent where there are none like them.

    Such runs have the same learner, device, ranks and arithmetic, and about as many parameters; those that come
    nearest count, by the operations that they did in a second.
    """

    parameters: int = Field(description="of the first run's learner")
    parameters_min: int | None = Field(default=None, description="of the smallest learner among all runs")
    parameters_max: int | None = Field(default=None, description="of the largest one")
    flops_per_token: float = Field(description="matrix products, forward and backward, of the first run")
    tokens_per_run: int = Field(description="predicted tokens of the first run")
    total_tokens: int = Field(description="of all runs")
    hours_per_run: float | None = Field(default=None, description="of the first run")
    total_hours: float | None = Field(default=None, description="of all runs, one after the other")
    based_on: int = Field(default=0, description="past runs that the hours of the first run are guessed from")
    bound_method: str | None = Field(default=None, description="how the sequences are scored with the true model")
    bound_states: int | None = Field(default=None, description="joint states of the latents")
    bound_seconds_per_batch: float | None = Field(default=None, description="of one core, to score one batch exactly")
    bound_reason: str | None = Field(default=None, description="why the batches are not scored, or not priced")
    vocab: int
    gssm_hash: str | None = None


class Validation(Response):
    """What the service thinks of a spec. `problems` is empty exactly when `valid`."""

    valid: bool
    problems: list[Problem] = []
    config: dict[str, Any] | None = Field(default=None, description="the full resolved config, of the first run")
    config_hash: str | None = None
    num_runs: int = Field(default=0, description="runs that it describes")
    first_run: str | None = Field(default=None, description="name of the first run")
    last_run: str | None = None
    names: list[str] = Field(default=[], description=f"of the first {SHOWN_NAMES} runs")
    varied: list[str] = Field(default=[], description="keys whose values differ between the runs")
    estimate: Estimate | None = Field(default=None, description="absent while the data file is not known")
    notes: list[Note] = Field(default=[], description="keys that have moved or mean nothing any more")


class Template(Response):
    """A config that ships with the project."""

    name: str = Field(examples=["debug"])
    summary: str = Field(description="first line of the file's comment: the question that it serves")
    yaml: str
