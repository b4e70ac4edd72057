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


class Validation(Response):
    """What the service thinks of a spec. `problems` is empty exactly when `valid`."""

    valid: bool
    problems: list[Problem] = []
    config: dict[str, Any] | None = Field(default=None, description="the full resolved config, of the first run")
    config_hash: str | None = None
    num_runs: int = Field(default=0, description="runs that it describes")
    first_run: str | None = Field(default=None, description="name of the first run")
    last_run: str | None = None
    notes: list[Note] = Field(default=[], description="keys that have moved or mean nothing any more")


class Template(Response):
    """A config that ships with the project."""

    name: str = Field(examples=["debug"])
    summary: str = Field(description="first line of the file's comment: the question that it serves")
    yaml: str
