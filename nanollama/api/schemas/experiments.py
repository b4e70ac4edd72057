"""Experiments: submitted configs and the runs that they made."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from nanollama.api.schemas.base import Label, Request, Response
from nanollama.api.schemas.needs import Budgets, Resources
from nanollama.api.schemas.runs import MAX_TAGS, Notes, Run, Tag
from nanollama.api.schemas.specs import SpecInput
from nanollama.api.status import RunState
from nanollama.spec.base import Note


class ExperimentCreate(SpecInput, Budgets):
    """A spec to run. The experiment's name is `orchestration.name` unless `name` is given.

    `reuse` says what becomes of runs that would learn what an earlier one has: `never`, they run again; `always`,
    the earlier ones take their place; `ask`, nothing is created if there are any, and the error lists them.
    """

    name: Label | None = Field(default=None, max_length=200)
    notes: Notes = ""
    tags: list[Tag] = Field(default=[], max_length=MAX_TAGS)
    priority: int = Field(default=0, ge=-100, le=100, description="higher first")
    resources: Resources = Resources()
    reuse: Literal["never", "ask", "always"] = "never"


class ExperimentPatch(Request):
    """What can be changed of an experiment; what is absent, or null, stays. At least one must be given."""

    name: Label | None = Field(default=None, max_length=200, description="its runs keep their own")
    tags: list[Tag] | None = Field(
        default=None, max_length=MAX_TAGS, description="in place of those that it has; its runs keep their own"
    )
    notes: Notes | None = None

    @model_validator(mode="after")
    def _any(self) -> ExperimentPatch:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


SHOWN_RUNS = 20


class Experiment(Response):
    """A spec and the runs that it made."""

    id: str
    name: str
    notes: str
    tags: list[str]
    created_at: datetime
    priority: int = 0
    resources: Resources = Resources()
    paused_since: datetime | None = None
    num_runs: int = Field(default=1, description="of its own, and those of earlier experiments that it reuses")
    num_reused: int = 0
    counts: dict[RunState, int] = Field(default={}, description="runs by state")
    runs: list[Run] = Field(description=f"the first {SHOWN_RUNS} of its runs; GET /runs?experiment= pages all")
    spec_notes: list[Note] = Field(default=[], description="on submission: keys that have moved or mean nothing now")


class ExperimentDetail(Experiment):
    """An experiment with what was submitted."""

    yaml: str | None = None
    config: dict[str, Any] | None = None


class ExperimentPage(Response):
    """A page of experiments, newest first."""

    items: list[Experiment]
    next_cursor: str | None = None
