"""Reads of the catalogue, and bounds asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.catalogue import bounds
from backend.catalogue.models import TrueModel, describe, read_graph
from backend.catalogue.repository import BOUNDS, CatalogueRepository
from backend.ids import new_id
from backend.queue.service import QueueService
from backend.runs.repository import RunRepository
from backend.runs.service import run_view
from backend.tables import GSSM, Dataset, Run
from backend.workers.repository import WorkerRepository
from backend.workers.service import no_worker
from nanollama.api import schemas
from nanollama.api.errors import Conflict, InvalidRequest, NotFound
from nanollama.api.status import RunState
from nanollama.data.gssm import relevant_latents
from nanollama.spec.base import Problem, SpecError, hash_data
from nanollama.spec.drawing import draw_graph
from nanollama.spec.gssm import GSSMSpec


class CatalogueService:
    """The catalogue, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._catalogue = CatalogueRepository(session)
        self._runs = RunRepository(session)
        self._queue = QueueService(session, now)
        self._workers = WorkerRepository(session)

    # -- true models ---------------------------------------------------------------------------------------------------

    def page(self, *, limit: int, cursor: str | None) -> schemas.GSSMPage:
        """A page of true models, newest first.

        Raises:
            InvalidRequest: a cursor that is none.
        """
        after = None
        if cursor is not None:
            after = self._catalogue.get(cursor)
            if after is None:
                message = f"'{cursor}' is not a cursor"
                problem = Problem(path="cursor", message=message, remedy="give `next_cursor` of the page before")
                raise InvalidRequest(f"the request is invalid: {problem}", [problem])
        rows = self._catalogue.page(limit=limit + 1, after=after)
        return schemas.GSSMPage(
            items=self._views(rows[:limit]), next_cursor=rows[limit - 1].hash if len(rows) > limit else None
        )

    def get(self, content_hash: str) -> schemas.GSSMDetail:
        """One of them. Raises NotFound."""
        row = self._require(content_hash)
        (view,) = self._views([row])
        return schemas.GSSMDetail(
            **dict(view),
            config={"seq_len": row.seq_len, "batch_size": 1, "seed": row.seed, "gssm": row.graph},
            by_position=bounds.by_position_view(row),
            runs=[run_view(run) for run in self._catalogue.newest_runs(content_hash, schemas.SHOWN_OF_GSSM)],
        )

    def graph(self, content_hash: str) -> str:
        """A picture of its graph. Raises NotFound, or Conflict when this version cannot read it."""
        return draw_graph(_graph_of(self._require(content_hash)))

    def add(self, model: TrueModel) -> schemas.GSSM:
        """Enter a true model, unless it is known."""
        self._catalogue.register([model], self._now)
        return self._view(self._require(model.hash))

    def compute_bound(self, content_hash: str) -> schemas.GSSM:
        """Queue the job that finds the entropy, unless it is known for this length or on its way.

        Raises:
            NotFound: no such true model.
            Conflict: its graph was stored by another version.
        """
        row = self._require(content_hash)
        _graph_of(row)
        job = self._job(row)
        if job is not None and self._wants_retry(row, job):
            with suppress(Conflict):  # somebody else has, just now
                self._queue.retry(job.id)
            return self._view(row)
        row = self._require(content_hash, lock=True)  # whoever comes second finds the job of the first
        job = self._job(row)
        if job is None or (job.state.terminal and not self._wants_retry(row, job) and self._is_short(row)):
            run_id = new_id("r", self._now)
            made = bounds.job_row(row, run_id, self._catalogue.next_job(self._now), self._now, BOUNDS)
            self._runs.add_many([made])
            self._queue.open_first_attempts([made])
            row.bound_run_id = run_id
        return self._view(row)

    def _wants_retry(self, row: GSSM, job: Run) -> bool:
        """Whether a job has failed that would be the right one still."""
        if job.state not in (RunState.FAILED, RunState.CANCELLED):
            return False
        return job.config_hash == hash_data(bounds.job_config(row))

    def _is_short(self, row: GSSM) -> bool:
        """Whether what is known is of shorter sequences than are wanted."""
        return row.bound is None or row.bound["seq_len"] < row.seq_len

    def _require(self, content_hash: str, *, lock: bool = False) -> GSSM:
        row = self._catalogue.get(content_hash, lock=lock)
        if row is None:
            raise NotFound(f"there is no GSSM '{content_hash}'; POST /api/v1/gssms enters that of a config")
        return row

    def _job(self, row: GSSM) -> Run | None:
        return None if row.bound_run_id is None else self._runs.get(row.bound_run_id)

    def _view(self, row: GSSM) -> schemas.GSSM:
        (view,) = self._views([row])
        return view

    def _views(self, rows: Sequence[GSSM]) -> list[schemas.GSSM]:
        counts = self._catalogue.num_runs([row.hash for row in rows])
        jobs = self._catalogue.runs([row.bound_run_id for row in rows if row.bound_run_id is not None])
        return [_gssm_view(row, counts.get(row.hash, 0), jobs.get(row.bound_run_id or "")) for row in rows]

    # -- files of sequences --------------------------------------------------------------------------------------------

    def datasets(self) -> list[schemas.Dataset]:
        """Every file that a run reads or a worker has found, by path."""
        rows = self._catalogue.datasets()
        found = {row.path_hash for row in rows if row.pool is not None}
        return self._dataset_views([row for row in rows if row.pool is not None or row.path_hash not in found])

    def report(self, worker_id: str, reports: schemas.DatasetReports) -> list[schemas.Dataset]:
        """Enter what a worker has found, for all of its pool; the files of the pool.

        Raises:
            NotFound: the worker is not registered.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            raise no_worker(worker_id)
        found = [(one.path, one.model_dump(mode="json", exclude={"path", "graph", "seed"})) for one in reports.datasets]
        self._catalogue.register(filter(None, map(_model_of, reports.datasets)), self._now)
        self._catalogue.report(worker.pool, found, self._now)
        return self._dataset_views(self._catalogue.datasets(worker.pool))

    def _dataset_views(self, rows: Sequence[Dataset]) -> list[schemas.Dataset]:
        readers = self._catalogue.readers()
        return [_dataset_view(row, readers.get(row.path_hash, 0)) for row in rows]


def _model_of(report: schemas.DatasetReport) -> TrueModel | None:
    """The true model of a file; None where the worker does not say, or says what does not fit together."""
    if report.graph is None or report.seed is None:
        return None
    try:
        spec = read_graph(report.graph)
    except SpecError:
        return None
    data = {"gssm": spec.model_dump(mode="json"), "seed": report.seed, "seq_len": report.seq_len}
    model = TrueModel.of(describe(spec), data)
    return model if model is not None and model.hash == report.gssm_hash else None


def _gssm_view(row: GSSM, num_runs: int, job: Run | None) -> schemas.GSSM:
    return schemas.GSSM(
        hash=row.hash,
        name=row.name,
        **_sizes(row.graph),
        seq_len=row.seq_len,
        seed=row.seed,
        num_runs=num_runs,
        created_at=row.created_at,
        bound=bounds.bound_view(row, job),
    )


def _graph_of(row: GSSM) -> GSSMSpec:
    """The graph of a row, to work with. Raises Conflict when this version cannot read it."""
    try:
        return read_graph(row.graph)
    except SpecError as error:
        why = "its graph was stored by another version, and does not load in this version"
        raise Conflict(f"nothing can be done with the GSSM '{row.hash}': {why}", error.problems) from None


def _sizes(graph: dict[str, Any]) -> dict[str, Any]:
    """What lists say of a graph; one of another version, which may not load, is taken as it stands there."""
    try:
        spec = read_graph(graph)
    except SpecError:
        nodes = graph["nodes"]
        latents = [node["state_dim"] for node in nodes if not node.get("observed")]
        vocab = next(node["state_dim"] for node in nodes if node.get("observed"))
        names = [node["name"] for node in nodes]
        return {"nodes": names, "num_latents": len(latents), "joint_states": math.prod(latents), "vocab": vocab}
    return {
        "nodes": [node.name for node in spec.nodes],
        "num_latents": len(spec.nodes) - 1,
        "joint_states": math.prod(node.state_dim for node in relevant_latents(spec)),
        "vocab": spec.observed.state_dim,
    }


_SAID = (schemas.DatasetReport.model_fields.keys() & schemas.Dataset.model_fields.keys()) - {"path"}
"""What a worker says of a file that is shown as it is."""


def _dataset_view(row: Dataset, num_runs: int) -> schemas.Dataset:
    content: dict[str, Any] = row.content
    return schemas.Dataset(
        **{name: content.get(name) for name in _SAID},
        path=row.path,
        pool=row.pool,
        num_runs=num_runs,
        present=row.present,
    )
