"""Bounds as jobs: what a job is asked, what of its result is kept, and what people see of it."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from backend.catalogue.models import read_graph
from backend.catalogue.repository import CatalogueRepository
from backend.tables import GSSM, Run
from nanollama.api import schemas
from nanollama.api.schemas.catalogue import BoundState
from nanollama.api.status import RunState
from nanollama.data.gssm import relevant_latents
from nanollama.spec.base import hash_data
from nanollama.spec.data import OnlineData
from nanollama.spec.evaluation import EntropySpec

APP = "gssm.entropy"
EXACT_SEQUENCES, CONTEXT_SEQUENCES = 10_000, 100
"""Sequences that a job scores, and that it bounds from both sides, which takes seconds for each."""
MAX_SECONDS = 600.0
"""A job takes no more sequences once so long has passed."""


class Curve(BaseModel):
    """`by_position` of a result."""

    model_config = ConfigDict(allow_inf_nan=False)

    positions: list[int] = Field(max_length=4096)
    mean: list[float] = Field(max_length=4096)
    stderr: list[float] = Field(max_length=4096)


class Found(BaseModel):
    """What is kept of a job's result.json: it comes from a worker, so that it is checked."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    nats_per_token: float
    stderr: float = Field(ge=0)
    num_sequences: int = Field(ge=2)
    seq_len: int = Field(ge=2)
    method: str | None = Field(default=None, max_length=500)
    lower: float | None = None
    lower_stderr: float | None = None
    upper: float | None = None
    upper_stderr: float | None = None
    by_position: Curve | None = None
    kernels_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


def job_config(row: GSSM) -> dict[str, Any]:
    """The config of a job that finds the entropy of a true model."""
    graph = read_graph(row.graph)
    latents = relevant_latents(graph)
    hidden = math.prod(node.state_dim for node in latents) > 1
    context = hidden and any(node.mode == "context" for node in (*latents, graph.observed))
    spec = EntropySpec(
        data=OnlineData(seq_len=row.seq_len, batch_size=1, seed=row.seed, gssm=graph),
        num_sequences=CONTEXT_SEQUENCES if context else EXACT_SEQUENCES,
        max_seconds=MAX_SECONDS,
    )
    return spec.model_dump(mode="json")


def job_row(row: GSSM, run_id: str, position: int, now: datetime, experiment_id: str) -> dict[str, Any]:
    """The run of a job."""
    config = job_config(row)
    digest = hash_data(config)
    name = f"bound of {row.name}"[:200]
    return {
        "id": run_id,
        "experiment_id": experiment_id,
        "position": position,
        "name": name,
        "params": {},
        "tags": [],
        "notes": "",
        "archived": False,
        "search": f"{name}\n{run_id}\n{row.hash}".lower(),
        "priority": 0,
        "app": APP,
        "config": config,
        "config_hash": digest,
        "training_hash": digest,
        "needs": None,
        "retries": 0,
        "max_interruptions": None,
        "counted_from": 1,
        "state": RunState.QUEUED,
        "cancel_requested": False,
        "attempt": 1,
        "created_at": now,
        "total_steps": config["num_sequences"],
        "step": 0,
        "tokens": 0,
        "latest": {},
    }


def keep_result(session: Session, run: Run, result: dict[str, Any] | None, now: datetime) -> None:
    """Let what a job has found be that of its true model, in the transaction that ends the job."""
    if run.app != APP:
        return
    try:
        found = Found.model_validate(result)
    except ValidationError:
        return  # the view says that it cannot be read
    kept = found.model_dump(exclude={"kernels_hash"}) | {"run_id": run.id}
    CatalogueRepository(session).keep_bound(run.id, kept, found.kernels_hash, now)


def bound_view(row: GSSM, job: Run | None) -> schemas.Bound:
    """What is known of a bound."""
    state, reason = _state(row, job)
    known = row.bound or {}
    same = ("lower", "lower_stderr", "upper", "upper_stderr", "num_sequences", "seq_len", "method")
    return schemas.Bound(
        state=state,
        reason=reason,
        run_id=None if job is None else job.id,
        entropy=known.get("nats_per_token"),
        entropy_stderr=known.get("stderr"),
        **{name: known.get(name) for name in same},
    )


def _state(row: GSSM, job: Run | None) -> tuple[BoundState, str | None]:
    if job is None:
        return "none", None
    if not job.state.terminal:
        return ("queued" if job.state is RunState.QUEUED else "running"), job.reason
    if job.state is not RunState.SUCCEEDED:
        return "failed", job.reason or f"the job was {job.state.value}"
    if row.bound is None or row.bound["run_id"] != job.id:
        return "failed", "the job has succeeded, but its result is none that can be read"
    if row.bound.get("lower") is None:
        return "done", None
    why = "kernels are redrawn for every sequence, so the entropy is estimated from both sides; this is the middle"
    return "inexact", why


def by_position_view(row: GSSM) -> schemas.EntropyCurve | None:
    """The entropy by position, where it is known."""
    curve = (row.bound or {}).get("by_position")
    if curve is None:
        return None
    return schemas.EntropyCurve(positions=curve["positions"], entropy=curve["mean"], entropy_stderr=curve["stderr"])
