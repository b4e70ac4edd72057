"""What a worker says and hears."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from nanollama.api.schemas.base import Label, Request, Response
from nanollama.api.schemas.checkpoints import CommandKind
from nanollama.api.status import AttemptState


class WorkerRegistration(Request):
    """Who a worker is and what it has. Repeating it is harmless."""

    name: str = Field(min_length=1, max_length=200)
    pool: str = Field(min_length=1, max_length=500, description="workers of a pool can adopt each other's attempts")
    executor: Literal["local", "slurm", "fake"]
    host: str = Field(max_length=255)
    user: str = Field(max_length=255)
    run_root: str = Field(max_length=4096, description="absolute path under which attempt directories lie")
    slots: int = Field(ge=0, le=100_000)
    version: str = Field(max_length=64)
    accelerators: int | None = Field(default=None, ge=0, le=10_000, description="for all its runs together, as follows")
    cpus: int | None = Field(default=None, ge=0, le=100_000)
    memory_gb: float | None = Field(default=None, ge=0, le=1e6)
    labels: list[Annotated[Label, Field(max_length=64)]] = Field(default=[], max_length=64)
    problems: list[Annotated[Label, Field(max_length=1000)]] = Field(
        default=[], max_length=100, description="what people should know of it: a full run root, runs it was not given"
    )


class WorkerTerms(Response):
    """What the server asks of a worker."""

    worker_id: str
    lease_seconds: float
    heartbeat_seconds: float
    upload_seconds: float


class Held(Request):
    """An attempt that a worker believes it holds."""

    attempt_id: str
    epoch: int = Field(ge=0)


class UnknownReport(Request):
    """A worker's word that an attempt was started, is gone and left no account; without a reason, that it was found."""

    epoch: int = Field(ge=0)
    reason: str | None = Field(default=None, max_length=10_000)


class Command(Response):
    """Something that a worker is to do with a checkpoint below its run root. To do it again changes nothing."""

    id: str
    run_id: str
    step: int
    kind: CommandKind
    by: str = Field(default="", description="who has asked for it")


class CommandDone(Request):
    """What has become of a command. Repeating it is harmless."""

    id: str = Field(max_length=32)
    run_id: str = Field(max_length=32)
    step: int = Field(ge=0, lt=2**63)
    kind: CommandKind
    by: str = Field(default="", max_length=200)
    problem: str | None = Field(default=None, max_length=2000, description="why it cannot be done; done when absent")


class SyncRequest(Request):
    """Heartbeat and claim in one: renews what is held, asks for up to `free_slots` more.

    The server answers at once when it has something to say, otherwise after `wait_seconds`.
    """

    held: list[Held] = Field(default=[], max_length=100_000)
    free_slots: int = Field(default=0, ge=0, le=100_000)
    wait_seconds: float = Field(default=0, ge=0, le=30)
    draining: bool = False
    done: list[CommandDone] = Field(default=[], max_length=1000, description="commands of earlier answers")


class Lease(Response):
    """The right to execute an attempt, fenced by `epoch`. `state` tells how far an earlier holder had come."""

    attempt_id: str
    run_id: str
    run_name: str
    number: int
    epoch: int
    state: AttemptState
    app: str
    config: dict[str, Any]
    cancel_requested: bool = False
    experiment_id: str | None = Field(default=None, description="absent from a service of an older version")


class SyncReply(Response):
    """New or re-delivered leases; held attempts whose lease is lost; held attempts to cancel."""

    leases: list[Lease] = []
    lost: list[str] = []
    cancel: list[str] = []
    commands: list[Command] = Field(default=[], description="for checkpoints of its pool; again until they are `done`")
    drain: bool = Field(default=False, description="the worker was asked to take nothing more")
    upload_seconds: float


class TransitionRequest(Request):
    """A worker's report. Repeating a `transition_id` changes nothing and answers the same."""

    transition_id: str = Field(min_length=8, max_length=64)
    epoch: int = Field(ge=0)
    to: AttemptState
    reason: str | None = Field(default=None, max_length=10_000)
    exit_code: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    result: dict[str, Any] | None = Field(default=None, description="content of result.json")
    attempt_dir: str | None = Field(default=None, max_length=4096)
    provenance: dict[str, Any] | None = Field(default=None, description="content of provenance.json")


class Worker(Response):
    """A worker as the server knows it."""

    id: str
    name: str
    pool: str
    executor: str
    host: str
    user: str
    run_root: str
    slots: int
    busy: int = Field(description="attempts that it holds")
    alive: bool = Field(description="heard of within its lease")
    draining: bool = Field(description="takes nothing more, by itself or because it was asked to")
    drain_requested: bool = False
    version: str
    accelerators: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    labels: list[str] = []
    problems: list[str] = []
    last_seen_at: datetime
