"""Submission and reads of experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.catalogue.repository import CatalogueRepository
from backend.checkpoints.starting import StartingPoints
from backend.columns import content_digest
from backend.experiments.repository import ExperimentRepository, IdempotencyRepository
from backend.ids import new_id
from backend.queue.needs import NeedRepository
from backend.queue.pauses import PauseRepository
from backend.queue.service import QueueService
from backend.runs.editing import RunEditor, search_text
from backend.runs.repository import RunRepository
from backend.runs.service import no_run, run_view
from backend.specs.service import Sweep, Variation
from backend.tables import Experiment
from nanollama.api import schemas
from nanollama.api.errors import AlreadySucceeded, Conflict, InvalidRequest, NotFound
from nanollama.api.status import RunState
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.identity import path_hash, start
from nanollama.spec.load import set_value

INSERTED = 500
"""Runs in one statement: so much is in memory twice."""
LISTED = 100
"""Earlier runs that an error names."""


class ExperimentService:
    """Experiments, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._experiments = ExperimentRepository(session)
        self._keys = IdempotencyRepository(session)
        self._catalogue = CatalogueRepository(session)
        self._runs = RunRepository(session)
        self._needs = NeedRepository(session)
        self._pauses = PauseRepository(session)
        self._queue = QueueService(session, now)
        self._editor = RunEditor(session, now)
        self._checkpoints = StartingPoints(session)

    def submit(
        self, given: schemas.ExperimentCreate, sweep: Sweep, idempotency_key: str | None, pool: str | None = None
    ) -> schemas.Experiment:
        """Create an experiment and queue its runs, for workers of a pool only if one is given.

        Raises:
            Conflict: the key was used for another request.
            AlreadySucceeded: with `reuse: ask`, runs that need not run again.
        """
        if idempotency_key is None:
            return self._create(given, sweep, pool)
        request_hash = content_digest(given)
        before = self._keys.take(idempotency_key, request_hash, self._now)
        if before is None:
            answer = self._create(given, sweep, pool)
            self._keys.answered(idempotency_key, answer.model_dump(mode="json"))
            return answer
        if before.request_hash != request_hash:
            raise Conflict("this Idempotency-Key was used for another request; choose a new key for each submission")
        return schemas.Experiment.model_validate(before.answer)

    def get(self, experiment_id: str) -> schemas.ExperimentDetail:
        """One experiment with its first runs. Raises NotFound."""
        row = self._experiments.get(experiment_id, source=True)
        if row is None:
            raise no_experiment(experiment_id)
        return schemas.ExperimentDetail(**dict(self._view(row)), **(row.source or {}))

    def set_paused(self, experiment_id: str, since: datetime | None) -> schemas.Experiment:
        """Pause an experiment since a moment, or resume it. Raises NotFound."""
        self._pauses.set_experiment(experiment_id, since)
        row = self._experiments.get(experiment_id)
        if row is None:
            raise no_experiment(experiment_id)
        return self._view(row)

    def change(self, experiment_id: str, patch: schemas.ExperimentPatch) -> schemas.Experiment:
        """Change name, tags and notes, where the patch has them. Raises NotFound."""
        row = self._experiments.lock(experiment_id)
        if row is None:
            raise no_experiment(experiment_id)
        if patch.tags is not None:
            row.tags = list(dict.fromkeys(patch.tags))
        if patch.notes is not None:
            row.notes = patch.notes
        if patch.name is not None and patch.name != row.name:
            row.name = patch.name
            self._editor.rename_experiment(experiment_id, patch.name)
        return self._view(row)

    def clone_of(self, run_id: str, clone: schemas.Clone) -> tuple[schemas.ExperimentCreate, str | None]:
        """The submission that runs a run's config once more, with changes; and the pool that has what it starts from.

        Raises:
            NotFound: no such run.
            InvalidRequest: an override that leads nowhere, a checkpoint that is not there or at the end.
        """
        run = self._runs.get(run_id, details=True)
        if run is None:
            raise no_run(run_id)
        experiment = self._experiments.get(run.experiment_id)
        assert experiment is not None, "a run is of an experiment"
        config = dict(run.config)
        try:
            for key, value in clone.overrides.items():
                set_value(config, key, value)
        except SpecError as error:
            raise InvalidRequest("an override cannot be made", error.problems) from None
        notes, pool = clone.notes, None
        if clone.from_checkpoint is not None:
            pool = self._checkpoints.start_from(run, clone.from_checkpoint, config)
            notes = notes or f"from step {clone.from_checkpoint:,} of run {run.id} ({run.name})"
        elif start(run.config) is not None:
            pool = self._checkpoints.pool_of(run.id, 1)  # it starts from the same, which that pool has reached
        given = clone.model_fields_set
        submission = schemas.ExperimentCreate(
            config=config,
            name=clone.name or run.name,
            notes=notes,
            tags=run.tags if clone.tags is None else clone.tags,
            priority=run.priority if clone.priority is None else clone.priority,
            resources=clone.resources or schemas.Resources.stored(experiment.resources),
            retries=clone.retries if "retries" in given else run.retries,
            max_interruptions=clone.max_interruptions if "max_interruptions" in given else run.max_interruptions,
            reuse=clone.reuse,
        )
        return submission, pool

    def page(self, *, limit: int, cursor: str | None) -> schemas.ExperimentPage:
        """A page of experiments with their first runs, newest first."""
        rows = self._experiments.page(limit=limit + 1, cursor=cursor)
        return schemas.ExperimentPage(
            items=self._views(rows[:limit]),
            next_cursor=rows[limit - 1].id if len(rows) > limit else None,
        )

    def _create(self, given: schemas.ExperimentCreate, sweep: Sweep, pool: str | None) -> schemas.Experiment:
        reused = self._reusable(sweep.runs) if given.reuse != "never" else {}
        if reused and given.reuse == "ask":
            raise _already_succeeded(sweep, reused)
        source = {"config": given.config} if given.yaml is None else {"yaml": given.yaml}
        experiment = Experiment(
            id=new_id("e", self._now),
            name=given.name or sweep.name,
            notes=given.notes,
            tags=list(dict.fromkeys(given.tags)),
            created_at=self._now,
            priority=given.priority,
            resources=given.resources.model_dump(),
            source=source,
            num_runs=len(sweep.runs),
        )
        self._experiments.add(experiment)
        self._register_data(experiment.name, sweep)
        needs = self._needs.put(given.resources)
        rows: list[dict[str, Any]] = []
        configs: list[tuple[str, dict[str, Any]]] = []
        for row in self._new_runs(experiment, given, sweep, needs, reused):
            rows.append(row)
            configs.append((row["id"], row["config"]))
            if len(rows) == INSERTED:
                self._enqueue(rows, pool)
                rows = []
        self._enqueue(rows, pool)
        self._runs.add_params(experiment.id, configs)
        self._experiments.reuse(
            {"experiment_id": experiment.id, "position": position, "run_id": run_id, "name": sweep.runs[position].name}
            for position, run_id in reused.items()
        )
        return self._view(experiment).model_copy(update={"spec_notes": list(sweep.notes)})

    def _register_data(self, name: str, sweep: Sweep) -> None:
        """Enter what the sequences of the runs come from; one that all of them share is called as the experiment."""
        models = [run.model for run in sweep.runs if run.model is not None]
        if len({model.hash for model in models}) == 1:
            models = [replace(model, name=name) for model in models]
        self._catalogue.register(models, self._now)
        self._catalogue.register_paths([run.path for run in sweep.runs if run.path is not None], self._now)

    def _enqueue(self, rows: Sequence[dict[str, Any]], pool: str | None) -> None:
        if rows:
            self._runs.add_many(rows)
            self._queue.open_first_attempts(rows, pool)

    def _reusable(self, runs: Sequence[Variation]) -> dict[int, str]:
        """By position, the id of an earlier run that has learnt the same."""
        known = self._runs.succeeded([run.training_hash for run in runs])
        return {i: known[run.training_hash] for i, run in enumerate(runs) if run.training_hash in known}

    def _new_runs(
        self,
        experiment: Experiment,
        given: schemas.ExperimentCreate,
        sweep: Sweep,
        needs: str | None,
        reused: dict[int, str],
    ) -> Iterator[dict[str, Any]]:
        """Rows of the runs that have to run."""
        lone = len(sweep.runs) == 1 and not sweep.runs[0].params
        for position, run in enumerate(sweep.runs):
            if position in reused:
                continue
            run_id = new_id("r", self._now)
            name = experiment.name if lone else run.name
            yield {
                "id": run_id,
                "experiment_id": experiment.id,
                "position": position,
                "name": name,
                "params": run.params,
                "tags": experiment.tags,
                "notes": "",
                "archived": False,
                "search": search_text(experiment.name, name, run_id, experiment.tags),
                "priority": given.priority,
                "app": run.app,
                "config": run.config,
                "config_hash": run.config_hash,
                "training_hash": run.training_hash,
                "gssm_hash": None if run.model is None else run.model.hash,
                "dataset_hash": None if run.path is None else path_hash(run.path),
                "needs": needs,
                "retries": given.retries,
                "max_interruptions": given.max_interruptions,
                "counted_from": 1,
                "state": RunState.QUEUED,
                "cancel_requested": False,
                "attempt": 1,
                "created_at": self._now,
                "total_steps": run.steps,
                "step": 0,
                "tokens": 0,
                "latest": {},
            }

    def _view(self, row: Experiment) -> schemas.Experiment:
        (view,) = self._views([row])
        return view

    def _views(self, rows: Sequence[Experiment]) -> list[schemas.Experiment]:
        """As many queries for any number of experiments."""
        ids = [row.id for row in rows]
        reused, counts = self._experiments.num_reused(ids), self._runs.counts_of(ids)
        runs = self._runs.first_of(ids, schemas.SHOWN_RUNS)
        return [
            schemas.Experiment(
                id=row.id,
                name=row.name,
                notes=row.notes,
                tags=row.tags,
                created_at=row.created_at,
                priority=row.priority,
                resources=schemas.Resources.stored(row.resources),
                paused_since=row.paused_since,
                num_runs=row.num_runs,
                num_reused=reused.get(row.id, 0),
                counts=counts[row.id],
                runs=[run_view(run) for run in runs[row.id]],
            )
            for row in rows
        ]


def no_experiment(experiment_id: str) -> NotFound:
    """The error for an experiment that does not exist."""
    return NotFound(f"there is no experiment '{experiment_id}'")


def _already_succeeded(sweep: Sweep, reused: dict[int, str]) -> AlreadySucceeded:
    remedy = "submit with reuse: always to take its result, or with reuse: never to run it again"
    problems = [
        Problem(path=sweep.runs[position].name, message=f"run {run_id} has learnt this already", remedy=remedy)
        for position, run_id in list(reused.items())[:LISTED]
    ]
    runs = "1 run has" if len(reused) == 1 else f"{len(reused):,} of {len(sweep.runs):,} runs have"
    return AlreadySucceeded(f"{runs} succeeded before; nothing was created", problems)
