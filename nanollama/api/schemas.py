"""Requests and responses of the REST API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from nanollama.api.scopes import POOL_PREFIX, check_scope
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.base import Note, Problem
from nanollama.spec.rundir import decode_number, encode_number

_WORDS = ("NaN", "Infinity", "-Infinity")

Number = Annotated[
    float,
    BeforeValidator(decode_number, json_schema_input_type=float | Literal["NaN", "Infinity", "-Infinity"]),
    PlainSerializer(encode_number, return_type=float | str, when_used="json"),
]
"""A float that survives JSON: NaN, Infinity and -Infinity travel as words."""


Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""One line of text that is not empty."""


class Request(BaseModel):
    """Input: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Response(BaseModel):
    """Output: readers ignore keys that a newer server added."""

    model_config = ConfigDict(extra="ignore")


class ErrorBody(Response):
    """application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    problems: list[Problem] = []
    expected_offset: int | None = None


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


class Resources(Request):
    """What each run needs; what is not asked for is not looked at."""

    executor: Literal["local", "slurm", "fake"] | None = None
    accelerators: int = Field(default=0, ge=0, le=10_000)
    cpus: int = Field(default=0, ge=0, le=100_000)
    memory_gb: float = Field(default=0, ge=0, le=1e6)
    labels: list[Annotated[Label, Field(max_length=64)]] = Field(
        default=[], max_length=32, description="each has to be one of the worker's"
    )


class Budgets(Request):
    """How often a run is tried again by itself, from its checkpoints."""

    retries: int = Field(default=0, ge=0, le=1000, description="attempts that may fail without ending the run")
    max_interruptions: int | None = Field(
        default=None, ge=0, le=1_000_000, description="attempts that may be interrupted; any number when absent"
    )


class ExperimentCreate(SpecInput, Budgets):
    """A spec to run. The experiment's name is `orchestration.name` unless `name` is given.

    `reuse` says what becomes of runs that would learn what an earlier one has: `never`, they run again; `always`,
    the earlier ones take their place; `ask`, nothing is created if there are any, and the error lists them.
    """

    name: Label | None = Field(default=None, max_length=200)
    notes: str = Field(default="", max_length=10_000)
    tags: list[Annotated[Label, Field(max_length=64)]] = Field(default=[], max_length=32)
    priority: int = Field(default=0, ge=-100, le=100, description="higher first")
    resources: Resources = Resources()
    reuse: Literal["never", "ask", "always"] = "never"


class Clone(Budgets):
    """A new experiment from a run's config. What is absent is as it was."""

    overrides: dict[str, Any] = Field(
        default={}, description="values by dotted key; `grid` makes a sweep", examples=[{"optim.lr": 1e-3}]
    )
    name: Label | None = Field(default=None, max_length=200)
    notes: str = Field(default="", max_length=10_000)
    tags: list[Annotated[Label, Field(max_length=64)]] | None = Field(default=None, max_length=32)
    priority: int | None = Field(default=None, ge=-100, le=100)
    resources: Resources | None = None
    reuse: Literal["never", "ask", "always"] = "never"


class RunPatch(Request):
    """What can be changed of a run that has not ended."""

    priority: int = Field(ge=-100, le=100, description="counts while it is queued, and for its later attempts")


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
        "resolved, or a kind of EventLine; "
        "a transition without attempt is the run's own"
    )
    at: datetime
    from_state: str | None = None
    to_state: str | None = None
    step: int | None = None
    message: str | None = None


class Checkpoint(Response):
    """A checkpoint that training reported."""

    step: int
    attempt: int
    path: str = Field(description="absolute, on the worker's file system")
    size_bytes: int
    digest: str
    created_at: datetime
    removed: bool = False
    pinned: bool | None = Field(default=None, description="unknown where the service does not reach the files")


class CheckpointFile(Response):
    """A file of a checkpoint."""

    name: str
    size_bytes: int


class Summary(Response):
    """Statistics over every stored point in the window, whatever was sent. `stderr` treats points as independent."""

    count: int
    mean: Number
    stderr: Number | None
    min: Number
    max: Number
    last: Number


Numbers = Annotated[
    list[float], WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"enum": list(_WORDS)}]}})
]
"""A column of such floats; the model that has it says so in its `ser_json_inf_nan`."""


class Series(Response):
    """One metric, as columns of equal length in order of step."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    step: list[int]
    tokens: list[int]
    time: list[float]
    value: Numbers
    x: Numbers | None = Field(default=None, description="the chosen axis, where it is none of the other columns")
    summary: Summary | None = None


class Metrics(Response):
    """Series by key. At most `max_points` a series; minimum and maximum of each bucket are kept."""

    run_id: str
    keys: list[str] = Field(description="every key that the run has")
    series: dict[str, Series]


MAX_RUNS, MAX_POINTS = 500, 100_000


class MetricsQuery(Request):
    """Which series of which runs, and how they are thinned out."""

    runs: list[str] = Field(min_length=1, max_length=MAX_RUNS, description="ids of the runs")
    keys: list[str] = Field(default=[], max_length=200, description="only these series; all when empty")
    x: Literal["step", "tokens", "flops", "time", "relative_time"] = "step"
    x_min: float | None = None
    x_max: float | None = None
    max_points: int = Field(default=1000, ge=5, le=MAX_POINTS, description="of each series")
    spacing: Literal["linear", "log"] = "linear"
    rank: int = Field(default=0, ge=0, le=99_999)


class MetricsReply(Response):
    """Series of several runs on one axis."""

    x: str
    runs: list[Metrics]


class MetricValues(Response):
    """Newest and best values of a metric; minimum and maximum are over numbers, and absent without any."""

    last: Number
    last_step: int
    min: Number | None
    min_step: int | None
    max: Number | None
    max_step: int | None


class RunValues(Response):
    """Newest and best values of a run, by key."""

    run_id: str
    values: dict[str, MetricValues]


class StreamInfo(Response):
    """A byte stream of an attempt."""

    attempt_id: str
    name: str
    length: int


class LogTail(Response):
    """The end of a text stream."""

    attempt: int
    name: str
    offset: int = Field(description="byte offset of the first byte of `text`")
    length: int = Field(description="bytes stored so far")
    text: str
    streams: list[str] = Field(default=[], description="names of the text streams that the attempt has")


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


class Resolve(Request):
    """A person's word on a run of which nobody knows whether it executes: it does not, and it counts as `to`."""

    to: Literal["INTERRUPTED", "FAILED", "CANCELLED"] = Field(
        description="INTERRUPTED lets the next attempt go on from its checkpoints"
    )
    reason: str | None = Field(default=None, max_length=2000)


class SyncRequest(Request):
    """Heartbeat and claim in one: renews what is held, asks for up to `free_slots` more.

    The server answers at once when it has something to say, otherwise after `wait_seconds`.
    """

    held: list[Held] = Field(default=[], max_length=100_000)
    free_slots: int = Field(default=0, ge=0, le=100_000)
    wait_seconds: float = Field(default=0, ge=0, le=30)
    draining: bool = False


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


class SyncReply(Response):
    """New or re-delivered leases; held attempts whose lease is lost; held attempts to cancel."""

    leases: list[Lease] = []
    lost: list[str] = []
    cancel: list[str] = []
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
    last_seen_at: datetime


ScopeName = Annotated[
    str,
    AfterValidator(check_scope),
    Field(max_length=len(POOL_PREFIX) + 500, description="read, submit, admin or worker:<pool>", examples=["read"]),
]


class TokenCreate(Request):
    """A token to make."""

    name: Label = Field(max_length=200, examples=["notebook"], description="whom or what it is for")
    scopes: list[ScopeName] = Field(min_length=1, max_length=32)
    expires_in_days: float | None = Field(default=None, gt=0, le=36_500, description="never when absent")


class Token(Response):
    """A token without its secret, which nobody can show again."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(default=None, description="to the minute")


class NewToken(Token):
    """A new token with its secret, which is shown this once."""

    secret: str


Waiting = Literal["queue_paused", "experiment_paused", "no_worker", "draining", "busy", "next"]


class QueueEntry(Response):
    """A job that waits, and why."""

    position: int = Field(description="in the order of claims, from 0: priority, then fair share, then age")
    run_id: str
    run_name: str
    experiment_id: str
    attempt: int
    priority: int
    since: datetime
    resources: Resources
    reason: Waiting
    detail: str = Field(description="the reason in words")


class Queue(Response):
    """Jobs that wait, in the order of claims."""

    paused_since: datetime | None = None
    waiting: int = Field(description="all jobs that wait, whatever was asked for")
    items: list[QueueEntry]


class Health(Response):
    """Liveness."""

    status: Literal["ok"] = "ok"
    version: str
    database: str = Field(description="sqlite or postgresql")
