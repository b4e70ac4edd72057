"""Tables. The wire has its own schemas; what both share are the states."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, Enum, Float, ForeignKey, Index, LargeBinary, MetaData, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from backend.columns import BigInt, BigSerial, Json, UtcDateTime, Words
from nanollama.api.status import AttemptState, RunState

ID = 32
NAME = 200
REASON = 10_000
PATH = 4096
STREAM = 64

ACTIVE = (AttemptState.LEASED, AttemptState.SUBMITTED, AttemptState.RUNNING)
"""States in which an attempt is somebody's: it has a lease, and may have processes."""


class Base(DeclarativeBase):
    """Root of the tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[str]: Json,
        float: Float(53),
        bytes: LargeBinary(),
        AttemptState: Enum(AttemptState, native_enum=False, length=16),
        RunState: Enum(RunState, native_enum=False, length=16),
    }


class Experiment(Base):
    """A spec as it was submitted."""

    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(Words(ID), primary_key=True)
    name: Mapped[str] = mapped_column(Words(NAME))
    notes: Mapped[str] = mapped_column(Words(10_000))
    tags: Mapped[list[str]]
    created_at: Mapped[datetime]
    priority: Mapped[int]
    resources: Mapped[dict[str, Any]] = mapped_column(doc="what each run needs, as it was asked for")
    source: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True), deferred=True, doc="`yaml` or `config`, the grid included"
    )
    num_runs: Mapped[int] = mapped_column(doc="runs of its own and reused ones")
    paused_since: Mapped[datetime | None]


class Run(Base):
    """One training run. Its state follows the newest attempt; `latest` holds the newest value of each metric."""

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "state", "experiment_id", "id", "archived", "app"),  # all that most filters look at
        Index(None, "experiment_id", "position"),
        Index(None, "experiment_id", "state"),
        Index(None, "training_hash", "state"),
        Index(None, "gssm_hash"),
        Index(None, "dataset_hash"),
    )

    id: Mapped[str] = mapped_column(Words(ID), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    position: Mapped[int] = mapped_column(doc="among the runs of the experiment, from 0")
    name: Mapped[str] = mapped_column(Words(NAME))
    params: Mapped[dict[str, Any]] = mapped_column(doc="what the grid sets, by dotted key")
    tags: Mapped[list[str]]
    notes: Mapped[str] = mapped_column(Words(10_000), server_default="")
    archived: Mapped[bool] = mapped_column(server_default=false())
    search: Mapped[str] = mapped_column(Words(4096), doc="name, id and tags in lower case, one a line")
    priority: Mapped[int]
    app: Mapped[str] = mapped_column(Words(NAME))
    config: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    config_hash: Mapped[str] = mapped_column(Words(64))
    training_hash: Mapped[str] = mapped_column(Words(64), doc="equal for runs that learn the same")
    gssm_hash: Mapped[str | None] = mapped_column(Words(64), doc="of `gssms`: what its sequences are sampled from")
    dataset_hash: Mapped[str | None] = mapped_column(Words(64), doc="of the path of the file that it reads")
    needs: Mapped[str | None] = mapped_column(Words(64), doc="a row of `needs`; nothing in particular when absent")
    retries: Mapped[int] = mapped_column(doc="attempts that may fail without ending the run")
    max_interruptions: Mapped[int | None] = mapped_column(doc="attempts that may be interrupted; any number if absent")
    counted_from: Mapped[int] = mapped_column(doc="attempt from which on both budgets count")
    state: Mapped[RunState]
    reason: Mapped[str | None] = mapped_column(Words(REASON))
    cancel_requested: Mapped[bool]
    unknown_since: Mapped[datetime | None]
    attempt: Mapped[int]
    worker: Mapped[str | None] = mapped_column(Words(NAME), doc="name of the worker that holds it")
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    total_steps: Mapped[int] = mapped_column(BigInt)
    step: Mapped[int] = mapped_column(BigInt)
    tokens: Mapped[int] = mapped_column(BigInt)
    latest: Mapped[dict[str, Any]]
    progress_at: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)

    experiment: Mapped[Experiment] = relationship(viewonly=True)


class GSSM(Base):
    """A true model: a graph and the seed of its kernels; and the entropy of its sequences, once a job has found it."""

    __tablename__ = "gssms"
    __table_args__ = (Index(None, "created_at", "hash"), Index(None, "bound_run_id"))

    hash: Mapped[str] = mapped_column(Words(64), primary_key=True, doc="of graph and seed")
    name: Mapped[str] = mapped_column(Words(NAME), doc="of the config that first described it")
    graph: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInt)
    seq_len: Mapped[int] = mapped_column(BigInt, doc="the greatest that was asked for")
    created_at: Mapped[datetime]
    bound_run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), doc="the newest job")
    bound_at: Mapped[datetime | None]
    bound: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), doc="what the job found")
    kernels_hash: Mapped[str | None] = mapped_column(Words(64), doc="as files of its sequences carry it")


class Dataset(Base):
    """A file of sequences: named by a run (without a pool), or seen by a worker for all of its pool."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "path_hash"),)

    id: Mapped[str] = mapped_column(Words(64), primary_key=True, doc="hash of pool and path")
    path_hash: Mapped[str] = mapped_column(Words(64))
    path: Mapped[str] = mapped_column(Words(PATH))
    pool: Mapped[str | None] = mapped_column(Words(500))
    content: Mapped[dict[str, Any]] = mapped_column(doc="what the file says of itself")
    present: Mapped[bool | None] = mapped_column(
        doc="whether it was there when the pool last looked; unknown if absent"
    )
    seen_at: Mapped[datetime]


class Param(Base):
    """A scalar of configs, by dotted key: of one run, or without a run id of every run of the experiment."""

    __tablename__ = "params"
    __table_args__ = (Index(None, "key", "number"), Index(None, "key", "text"))

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    key: Mapped[str] = mapped_column(Words(NAME))
    number: Mapped[float | None]
    text: Mapped[str] = mapped_column(Words(NAME), doc="words as they are, other scalars as JSON")


class Worker(Base):
    """A worker, under the id that it chose."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Words(128), primary_key=True)
    name: Mapped[str] = mapped_column(Words(NAME))
    pool: Mapped[str] = mapped_column(Words(500))
    executor: Mapped[str] = mapped_column(Words(16))
    host: Mapped[str] = mapped_column(Words(255))
    user: Mapped[str] = mapped_column(Words(255))
    run_root: Mapped[str] = mapped_column(Words(PATH))
    slots: Mapped[int]
    version: Mapped[str] = mapped_column(Words(64))
    accelerators: Mapped[int | None] = mapped_column(doc="absent, like those that follow: it has not said")
    cpus: Mapped[int | None]
    memory_gb: Mapped[float | None]
    labels: Mapped[list[str]]
    problems: Mapped[list[str]] = mapped_column(doc="what people should know of it, in its own words")
    draining: Mapped[bool] = mapped_column(doc="it has said so itself")
    drain_requested: Mapped[bool] = mapped_column(doc="somebody has asked it to take nothing more")
    syncs: Mapped[int] = mapped_column(BigInt, doc="number of the newest sync: an older one that still waits is void")
    last_seen_at: Mapped[datetime]
    token_id: Mapped[str | None] = mapped_column(Words(ID), doc="with which it registered, when tokens are on")


class Token(Base):
    """An access token, of which only the digest is kept."""

    __tablename__ = "tokens"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[str] = mapped_column(Words(ID), primary_key=True)
    name: Mapped[str] = mapped_column(Words(NAME))
    digest: Mapped[str] = mapped_column(Words(64))
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Need(Base):
    """What jobs need of a worker; one row for all that need the same."""

    __tablename__ = "needs"

    id: Mapped[str] = mapped_column(Words(64), primary_key=True, doc="hash of the content")
    content: Mapped[dict[str, Any]]


class Pause(Base):
    """While there is a row for a scope, nothing of it is leased."""

    __tablename__ = "pauses"

    scope: Mapped[str] = mapped_column(Words(16), primary_key=True, doc="queue")
    since: Mapped[datetime]


class ReusedRun(Base):
    """A run of an earlier experiment that stands for one of this experiment's, which would have learnt the same."""

    __tablename__ = "reused_runs"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    name: Mapped[str] = mapped_column(Words(NAME), doc="of the run that it stands for")


class Attempt(Base):
    """One try at executing a run. `epoch` counts its leases.

    `pool` says who may claim it, where earlier attempts have left checkpoints, and adopt it once the lease expired.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("run_id", "number"),
        Index(None, "state", "experiment_id"),
        Index(None, "worker_id", "state"),
    )

    id: Mapped[str] = mapped_column(Words(ID), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    number: Mapped[int]
    priority: Mapped[int]
    needs: Mapped[str | None] = mapped_column(Words(64))
    state: Mapped[AttemptState]
    epoch: Mapped[int]
    worker_id: Mapped[str | None] = mapped_column(ForeignKey("workers.id"))
    pool: Mapped[str | None] = mapped_column(Words(500))
    lease_expires_at: Mapped[datetime | None]
    cancel_told_epoch: Mapped[int | None] = mapped_column(doc="lease whose holder has been told to cancel")
    new_checkpoints: Mapped[int] = mapped_column(doc="checkpoints at steps that no earlier attempt had saved")
    reason: Mapped[str | None] = mapped_column(Words(REASON))
    exit_code: Mapped[int | None] = mapped_column(BigInt)
    attempt_dir: Mapped[str | None] = mapped_column(Words(PATH))
    provenance: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Event(Base):
    """What happened to a run, in order of `id`. Replaying the transitions and leases gives the rows."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "run_id", "id"),)

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    attempt: Mapped[int | None]
    kind: Mapped[str] = mapped_column(Words(32))
    at: Mapped[datetime]
    from_state: Mapped[str | None] = mapped_column(Words(16))
    to_state: Mapped[str | None] = mapped_column(Words(16))
    epoch: Mapped[int | None]
    step: Mapped[int | None] = mapped_column(BigInt)
    message: Mapped[str | None] = mapped_column(Words(REASON))


class Transition(Base):
    """A worker's report that was carried out, and the answer that it got."""

    __tablename__ = "transitions"

    transition_id: Mapped[str] = mapped_column(Words(64), primary_key=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    request_hash: Mapped[str] = mapped_column(Words(64))
    answer: Mapped[dict[str, Any]]


class IdempotencyKey(Base):
    """A submission that was carried out, and the answer that it got."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(Words(NAME), primary_key=True)
    request_hash: Mapped[str] = mapped_column(Words(64))
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime]


class Stream(Base):
    """A byte stream of an attempt: a prefix of the worker's file."""

    __tablename__ = "streams"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Words(STREAM), primary_key=True)
    length: Mapped[int] = mapped_column(BigInt)


class StreamChunk(Base):
    """A piece of a stream, from `byte_offset` on; the pieces abut."""

    __tablename__ = "stream_chunks"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Words(STREAM), primary_key=True)
    byte_offset: Mapped[int] = mapped_column(BigInt, primary_key=True, autoincrement=False)
    data: Mapped[bytes]


class MetricStream(Base):
    """What a rank of an attempt has logged: sealed blocks of lines up to the byte `sealed`, and the lines after it."""

    __tablename__ = "metric_streams"
    __table_args__ = (Index(None, "run_id", "rank"),)

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    attempt: Mapped[int]
    lines: Mapped[int] = mapped_column(BigInt)
    first_step: Mapped[int | None] = mapped_column(BigInt, doc="the smallest")
    first_time: Mapped[float | None] = mapped_column(doc="of the first line")
    keys: Mapped[dict[str, Any]] = mapped_column(
        doc="by metric: smallest step, largest step, whether each point's step lies beyond the one before"
    )
    kept: Mapped[int | None] = mapped_column(BigInt, doc="bytes that can be read back; all when absent")
    sealed: Mapped[int] = mapped_column(BigInt)
    tail: Mapped[bytes]


class MetricBlock(Base):
    """Successive lines of a stream: what all metrics share. Extents are over the lines; of FLOPs if each has them."""

    __tablename__ = "metric_blocks"
    __table_args__ = (UniqueConstraint("attempt_id", "rank", "byte_offset"),)

    id: Mapped[int] = mapped_column(BigSerial, primary_key=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    rank: Mapped[int]
    byte_offset: Mapped[int] = mapped_column(BigInt)
    byte_end: Mapped[int] = mapped_column(BigInt)
    lines: Mapped[int]
    step_min: Mapped[int | None] = mapped_column(BigInt)
    step_max: Mapped[int | None] = mapped_column(BigInt)
    tokens_min: Mapped[int | None] = mapped_column(BigInt)
    tokens_max: Mapped[int | None] = mapped_column(BigInt)
    time_min: Mapped[float | None]
    time_max: Mapped[float | None]
    flops_min: Mapped[float | None]
    flops_max: Mapped[float | None]
    layouts: Mapped[list[Any]] = mapped_column(Json)
    axes: Mapped[bytes] = mapped_column(doc="seq, step, tokens, time and layout of each line, encoded")
    text: Mapped[bytes | None] = mapped_column(doc="deflated; absent where the columns give the same bytes")


class MetricColumn(Base):
    """One metric of a block: its values, and records of successive points in two sizes."""

    __tablename__ = "metric_columns"

    block_id: Mapped[int] = mapped_column(ForeignKey("metric_blocks.id"), primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(Words(NAME), primary_key=True)
    points: Mapped[int]
    coarse: Mapped[bytes]
    fine: Mapped[bytes]
    data: Mapped[bytes]


class RunMetric(Base):
    """Newest, smallest and largest value of a metric over a run's surviving points, so that lists read no columns.

    NaN is NULL; minimum and maximum are over the numbers.
    """

    __tablename__ = "run_metrics"
    __table_args__ = (Index(None, "key", "last"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Words(NAME), primary_key=True)
    last: Mapped[float | None]
    last_step: Mapped[int] = mapped_column(BigInt)
    min: Mapped[float | None]
    min_step: Mapped[int | None] = mapped_column(BigInt)
    max: Mapped[float | None]
    max_step: Mapped[int | None] = mapped_column(BigInt)


class Checkpoint(Base):
    """A checkpoint that training reported; the newest report of a step counts."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index(None, "pending"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInt, primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    path: Mapped[str] = mapped_column(Words(PATH))
    size_bytes: Mapped[int] = mapped_column(BigInt)
    digest: Mapped[str] = mapped_column(Words(128))
    created_at: Mapped[datetime]
    removed: Mapped[bool]
    pinned: Mapped[bool | None] = mapped_column(doc="as a worker has said; unknown when absent")
    pending: Mapped[str | None] = mapped_column(Words(8), doc="pin, unpin or delete, which a worker is to do")
    command_id: Mapped[str | None] = mapped_column(Words(ID), doc="of what is pending")
    command_by: Mapped[str | None] = mapped_column(Words(NAME), doc="who has asked for it")


class Evaluation(Base):
    """What a learner was worth at a step, as training reported; the newest report of a step counts."""

    __tablename__ = "evaluations"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInt, primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    at: Mapped[datetime]
    values: Mapped[dict[str, Any]] = mapped_column(
        doc="means, standard errors and probes, by metric; null if not finite"
    )
    by_position: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
