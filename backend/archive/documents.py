"""What the files of an archive hold. Version 1; a change that an older reader would misunderstand raises it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat

from backend.columns import BIGINT_MAX
from nanollama.api.schemas import MAX_TAGS, ByPosition, Label, Resources
from nanollama.api.schemas.runs import Notes, Tag
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import decode_number

FORMAT: Final = "nodes-to-narratives"
VERSION: Final = 1

HEADER, MANIFEST = "archive.json", "manifest.json"
MAX_DOCUMENT = 64 << 20
"""Bytes of a file that is read as a whole."""

Small = Annotated[int, Field(ge=0, lt=2**31)]
Big = Annotated[int, Field(ge=0, le=BIGINT_MAX)]
Priority = Annotated[int, Field(ge=-100, le=100)]
Name = Annotated[Label, Field(max_length=200)]
RunId = Annotated[str, Field(pattern=r"^r[0-9a-hjkmnp-tv-z]{14}$")]
ExperimentId = Annotated[str, Field(pattern=r"^e[0-9a-hjkmnp-tv-z]{14}$")]
AttemptId = Annotated[str, Field(pattern=r"^a[0-9a-hjkmnp-tv-z]{14}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _resources(value: dict[str, Any]) -> dict[str, Any]:
    Resources.model_validate(value)
    return value


def _latest(value: dict[str, Any]) -> dict[str, Any]:
    try:
        for number in value.values():
            decode_number(number)
    except OverflowError:
        raise ValueError("holds a number that is larger than any float") from None
    return value


def _source(value: dict[str, Any]) -> dict[str, Any]:
    if not all((key, type(given)) in (("yaml", str), ("config", dict)) for key, given in value.items()):
        raise ValueError("holds something else than `yaml` or `config`")
    return value


def _by_position(value: dict[str, Any]) -> dict[str, Any]:
    ByPosition.model_validate(value)
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("lies outside of the years that a calendar has") from None


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]

# as they are stored, checked by what shows them
ResourcesData = Annotated[dict[str, Any], AfterValidator(_resources)]
LatestData = Annotated[dict[str, Any], AfterValidator(_latest)]
SourceData = Annotated[dict[str, Any], AfterValidator(_source)]
Curves = Annotated[dict[str, list[int | float | None]], AfterValidator(_by_position)]


class Document(BaseModel):
    """Part of an archive."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(BaseModel):
    """archive.json, the first file: what this is. Read before anything else, whatever else it may say."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: str
    version: int
    kind: Literal["run", "experiment"] = "run"
    id: str = Field(default="", max_length=32)
    created_at: Moment
    made_by: str = Field(default="", max_length=64, description="version of the service that has written it")


class File(Document):
    """A file of the archive."""

    name: str
    size_bytes: Big
    sha256: Sha256


class Manifest(Document):
    """manifest.json, the last file: all the others."""

    files: list[File]


class Reused(Document):
    """An earlier run that stands for one of an experiment's."""

    position: Small
    run_id: RunId
    name: Name


class ExperimentDocument(Document):
    """An experiment: experiments/<id>.json."""

    id: ExperimentId
    name: Name
    notes: Notes
    tags: list[Tag] = Field(max_length=MAX_TAGS)
    created_at: Moment
    priority: Priority
    resources: ResourcesData
    source: SourceData | None
    num_runs: Small
    reused: list[Reused]


class AttemptDocument(Document):
    """A try at executing a run. Its streams are files of their own, runs/<run id>/<number>/<name>."""

    id: AttemptId
    number: Small
    priority: Priority
    state: AttemptState
    epoch: Small
    new_checkpoints: Small
    reason: str | None
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None
    attempt_dir: str | None
    provenance: dict[str, Any] | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    streams: dict[str, Big] = Field(description="length by name, of what was sent; the file may hold less")


class EventDocument(Document):
    """Something that happened to a run."""

    attempt: Small | None
    kind: Annotated[str, Field(max_length=32)]
    at: Moment
    from_state: Annotated[str, Field(max_length=16)] | None
    to_state: Annotated[str, Field(max_length=16)] | None
    epoch: Small | None
    step: Big | None
    message: str | None


class CheckpointDocument(Document):
    """A checkpoint that training has reported; its files stay where they are."""

    step: Big
    attempt: Small
    path: str
    size_bytes: Big
    digest: Annotated[str, Field(max_length=128)]
    created_at: Moment
    removed: bool
    pinned: bool | None


class EvaluationDocument(Document):
    """What a learner was worth at a step."""

    step: Big
    attempt: Small
    at: Moment
    values: dict[str, FiniteFloat | None]
    by_position: Curves | None


class RunDocument(Document):
    """A run with all but its streams: runs/<id>/run.json."""

    id: RunId
    experiment_id: ExperimentId
    position: Small
    name: Name
    params: dict[str, Any]
    tags: list[Tag] = Field(max_length=MAX_TAGS)
    notes: Notes
    archived: bool
    priority: Priority
    app: Name
    config: dict[str, Any]
    config_hash: str
    resources: ResourcesData = Field(description="what it needs of a worker")
    retries: Small
    max_interruptions: Small | None
    counted_from: Small
    state: RunState
    reason: str | None
    cancel_requested: bool
    unknown_since: Moment | None
    attempt: Small
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    total_steps: Big
    step: Big
    tokens: Big
    latest: LatestData
    progress_at: Moment | None
    result: dict[str, Any] | None
    attempts: list[AttemptDocument]
    events: list[EventDocument]
    checkpoints: list[CheckpointDocument]
    evaluations: list[EvaluationDocument]


def experiment_file(experiment_id: str) -> str:
    """Name of the file of an experiment."""
    return f"experiments/{experiment_id}.json"


def run_file(run_id: str) -> str:
    """Name of the file of a run."""
    return f"runs/{run_id}/run.json"


def stream_file(run_id: str, number: int, name: str) -> str:
    """Name of the file of a stream of an attempt."""
    return f"runs/{run_id}/{number}/{name}"
