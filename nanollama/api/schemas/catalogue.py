"""What sequences come from: true models with the entropy of their sequences, and files of sequences."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from nanollama.api.schemas.base import Label, Request, Response
from nanollama.api.schemas.runs import Run

SHOWN_OF_GSSM = 20
MAX_DATASETS = 10_000

BoundState = Literal["none", "queued", "running", "done", "failed", "inexact"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Bound(Response):
    """The entropy of a true model's sequences, in nats per token: no learner's expected loss is lower.

    It is computed by a job, once. While a job is queued or runs, the figures are those of an earlier one, if any.
    """

    state: BoundState = Field(
        description="`inexact`: estimated from both sides, because kernels are redrawn for every sequence; the entropy "
        "is then the middle"
    )
    run_id: str | None = Field(default=None, description="of the newest job")
    entropy: float | None = None
    entropy_stderr: float | None = None
    lower: float | None = Field(default=None, description="where inexact, like those that follow")
    lower_stderr: float | None = None
    upper: float | None = None
    upper_stderr: float | None = None
    num_sequences: int | None = Field(default=None, description="that were sampled and scored")
    seq_len: int | None = Field(default=None, description="of these, the start token included")
    method: str | None = None
    reason: str | None = Field(default=None, description="why there is none, or no exact one")


class GSSM(Response):
    """A true model: a graph and the seed of its kernels."""

    hash: str = Field(description="of graph and seed: equal for every config that describes this model")
    name: str = Field(description="of the config that first described it")
    nodes: list[str] = Field(description="names, as listed in the config")
    num_latents: int
    joint_states: int = Field(description="of the latents that the tokens depend on")
    vocab: int = Field(description="states of the observed node")
    seq_len: int = Field(description="the greatest that was asked for, the start token included")
    seed: int
    num_runs: int = Field(description="runs that are trained on sequences sampled from it")
    created_at: datetime
    bound: Bound


class GSSMPage(Response):
    """A page of true models, newest first."""

    items: list[GSSM]
    next_cursor: str | None = None


class EntropyCurve(Response):
    """Entropy of each token given those before it, in nats: at some positions where there are very many."""

    positions: list[int]
    entropy: list[float]
    entropy_stderr: list[float]


class GSSMDetail(GSSM):
    """A true model with its graph, its entropy by position and the runs on it."""

    config: dict[str, Any] = Field(description="the `data` section of a config that trains on it")
    by_position: EntropyCurve | None = None
    runs: list[Run] = Field(default=[], description=f"the newest {SHOWN_OF_GSSM} runs on it")


class DatasetReport(Request):
    """A file of sequences as a worker has found it."""

    path: str = Field(min_length=1, max_length=4096, description="absolute")
    num_sequences: int = Field(ge=0, lt=2**63)
    seq_len: int = Field(ge=1, lt=2**63, description="tokens per sequence, the start token included")
    vocab: int = Field(ge=1, lt=2**31)
    size_bytes: int = Field(ge=0, lt=2**63)
    split: Label | None = Field(default=None, max_length=200)
    gssm_hash: Hash | None = Field(default=None, description="absent where the kernels are not those of a seed")
    graph: dict[str, Any] | None = Field(
        default=None, description="that of gssm_hash, fully resolved; once for all files of a graph is enough"
    )
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="of its kernels")
    kernels_hash: Hash | None = None
    entropy: float | None = Field(default=None, description="nats per token")
    entropy_stderr: float | None = Field(default=None, ge=0)
    created_at: datetime | None = None


class DatasetReports(Request):
    """All files of sequences that a worker finds in the folders that it looks through."""

    datasets: list[DatasetReport] = Field(max_length=MAX_DATASETS)


class Dataset(Response):
    """A file of sequences that a run reads or that a worker has found; what nobody has said is absent."""

    path: str
    pool: str | None = Field(default=None, description="of the workers that have found it")
    gssm_hash: str | None = None
    num_sequences: int | None = None
    seq_len: int | None = None
    vocab: int | None = None
    size_bytes: int | None = None
    split: str | None = None
    entropy: float | None = None
    entropy_stderr: float | None = None
    created_at: datetime | None = None
    num_runs: int = Field(description="runs that read this path")
    present: bool | None = Field(
        default=None, description="whether it was there when a worker of the pool last looked; absent: none has looked"
    )
