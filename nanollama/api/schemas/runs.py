"""Runs, their attempts and events."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nanollama.api.schemas.base import Label, Number, Request, Response
from nanollama.api.schemas.needs import Budgets, Resources
from nanollama.api.status import AttemptState, RunState

Tag = Annotated[Label, Field(max_length=64)]
MAX_TAGS = 32
Notes = Annotated[str, Field(max_length=10_000)]


class Clone(Budgets):
    """A new experiment from a run's config. What is absent is as it was."""

    overrides: dict[str, Any] = Field(
        default={}, description="values by dotted key; `grid` makes a sweep", examples=[{"optim.lr": 1e-3}]
    )
    name: Label | None = Field(default=None, max_length=200)
    notes: Notes = ""
    tags: list[Tag] | None = Field(default=None, max_length=MAX_TAGS)
    priority: int | None = Field(default=None, ge=-100, le=100)
    resources: Resources | None = None
    reuse: Literal["never", "ask", "always"] = "never"
    from_checkpoint: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="step of a checkpoint of the run: go on from its weights and position, not from fresh ones; "
        "only workers of the pool that has it take the new runs",
    )


class RunPatch(Request):
    """What can be changed of a run; what is absent, or null, stays. At least one must be given."""

    priority: int | None = Field(
        default=None, ge=-100, le=100, description="counts while it is queued, and for its later attempts"
    )
    tags: list[Tag] | None = Field(default=None, max_length=MAX_TAGS, description="in place of those that it has")
    notes: Notes | None = None
    archived: bool | None = Field(default=None, description="lists leave it out; it goes on all the same")

    @model_validator(mode="after")
    def _any(self) -> RunPatch:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self


class RunSelection(Request):
    """Runs: those with these ids, or those that a list with the same filter shows; one of the two."""

    ids: list[str] | None = Field(default=None, min_length=1, max_length=10_000)
    experiment: str | None = Field(default=None, max_length=32)
    filter: str | None = Field(default=None, min_length=1, max_length=2000, examples=["state:queued tag:exp2"])

    @model_validator(mode="after")
    def _one(self) -> RunSelection:
        if (self.ids is None) == (self.experiment is None and self.filter is None):
            raise ValueError("give either `ids`, or `experiment`, `filter` or both")
        return self


class Prioritise(RunSelection):
    """A priority for several runs."""

    priority: int = Field(ge=-100, le=100)


class Archive(RunSelection):
    """Runs to be archived, or to be taken back from there."""

    archived: bool = True


class Retag(RunSelection):
    """Tags that several runs get or lose; the others stay."""

    add: list[Tag] = Field(default=[], max_length=MAX_TAGS)
    remove: list[Tag] = Field(default=[], max_length=MAX_TAGS)

    @model_validator(mode="after")
    def _any(self) -> Retag:
        if not (self.add or self.remove):
            raise ValueError("give tags to `add`, to `remove`, or both")
        both = sorted(set(self.add) & set(self.remove))
        if both:
            raise ValueError(f"{both[0]!r} cannot be added and removed at once")
        return self


class RunsChanged(Response):
    """The runs that a request made a difference to."""

    changed: list[str] = Field(description="their ids")
    more: bool = Field(default=False, description="the filter matches more than one request changes: repeat it")


class Progress(Response):
    """Where a run is. Loss, bound, excess: nats per token, of the newest metric line."""

    step: int = 0
    total_steps: int
    tokens: int = 0
    loss: Number | None = None
    bound: Number | None = None
    excess: Number | None = None
    tokens_per_second: Number | None = None
    updated_at: datetime | None = None


class Run(Response):
    """One training run, with the state of its newest attempt."""

    id: str
    experiment_id: str
    experiment: str = Field(default="", description="name of its experiment")
    name: str
    params: dict[str, Any] = Field(default={}, description="what the grid of its experiment sets, by dotted key")
    state: RunState
    reason: str | None = Field(default=None, description="why it is in this state, in words")
    cancel_requested: bool
    unknown_since: datetime | None = None
    attempt: int = Field(description="number of the newest attempt, from 1")
    priority: int
    retries: int = 0
    max_interruptions: int | None = None
    tags: list[str]
    notes: str = ""
    archived: bool = Field(default=False, description="left out of lists whose filter does not name `archived`")
    config_hash: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress
    worker: str | None = Field(default=None, description="name of the worker that holds it")


class RunDetail(Run):
    """A run with its config and, once finished, its result."""

    config: dict[str, Any]
    result: dict[str, Any] | None = None


class RunPage(Response):
    """A page of runs, newest first; `counts` is over all runs that match the filter but for the state."""

    items: list[Run]
    next_cursor: str | None = None
    counts: dict[RunState, int] = {}


class Attempt(Response):
    """One try at executing a run."""

    id: str
    run_id: str
    number: int
    state: AttemptState
    epoch: int
    reason: str | None = None
    exit_code: int | None = None
    worker_id: str | None = None
    attempt_dir: str | None = None
    provenance: dict[str, Any] | None = Field(
        default=None, description="in lists: host, versions and commit with which it ran, once it runs"
    )
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Event(Response):
    """Something that happened to a run: transitions, cancel requests, and the training's own events."""

    id: int
    attempt: int | None
    kind: str = Field(
        description="transition, cancel_requested, reopened, prioritised, adopted, redelivered, unknown, found, "
        "resolved, edited, archived, unarchived, checkpoint_pinned, checkpoint_unpinned, imported, or a kind of "
        "EventLine; "
        "a transition without attempt is the run's own"
    )
    at: datetime
    from_state: str | None = None
    to_state: str | None = None
    step: int | None = None
    message: str | None = None


class Resolve(Request):
    """A person's word on a run of which nobody knows whether it executes: it does not, and it counts as `to`."""

    to: Literal["INTERRUPTED", "FAILED", "CANCELLED"] = Field(
        description="INTERRUPTED lets the next attempt go on from its checkpoints"
    )
    reason: str | None = Field(default=None, max_length=2000)
