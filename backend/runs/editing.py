"""What people write on runs: tags, notes, and which of them lists leave out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.runs.repository import EventRepository, RunRepository
from backend.runs.service import no_run
from backend.tables import Run
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem


def search_text(experiment_name: str, name: str, run_id: str, tags: Iterable[str]) -> str:
    """What a word in a filter is looked for in."""
    return "\n".join(dict.fromkeys([experiment_name, name, run_id, *tags])).lower()


class RunEditor:
    """Changes of runs that no worker needs to know of, as of one moment."""

    def __init__(self, session: Session, now: datetime) -> None:
        self._now = now
        self._runs = RunRepository(session)
        self._events = EventRepository(session)

    def change(self, run_id: str, patch: schemas.RunPatch) -> None:
        """Change tags, notes and whether it is archived, where the patch has them. Raises NotFound."""
        found = self._runs.lock([run_id])
        if not found:
            raise no_run(run_id)
        if patch.tags is not None:
            self._set_tags(found, [patch.tags])
        if patch.notes is not None and patch.notes != found[0].notes:
            found[0].notes = patch.notes
            self._note(found, "edited", "notes")
        if patch.archived is not None:
            self._archive(found, archived=patch.archived)

    def archive(self, run_ids: Sequence[str], *, archived: bool) -> list[str]:
        """Archive runs, or take them back; the ids of those that were not so before."""
        return self._archive(self._runs.lock(run_ids), archived=archived)

    def retag(self, run_ids: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
        """Add tags to runs, and remove some; the ids of those whose tags have changed.

        Raises:
            InvalidRequest: a run would have more tags than one may have; none has been changed.
        """
        runs = self._runs.lock(run_ids)
        wanted = [[tag for tag in dict.fromkeys([*run.tags, *add]) if tag not in remove] for run in runs]
        for run, tags in zip(runs, wanted, strict=True):
            if len(tags) > schemas.MAX_TAGS:
                message = f"run '{run.id}' would have {len(tags)} tags, and {schemas.MAX_TAGS} are allowed"
                problem = Problem(path="add", message=message, remedy="remove some of its tags first")
                raise InvalidRequest(message, [problem])
        return self._set_tags(runs, wanted)

    def rename_experiment(self, experiment_id: str, name: str) -> None:
        """Let the runs of an experiment be found by its new name."""
        runs = self._runs.of_experiment(experiment_id)
        self._runs.update_many(
            [{"id": run.id, "search": search_text(name, run.name, run.id, run.tags)} for run in runs]
        )

    def _archive(self, runs: Sequence[Run], *, archived: bool) -> list[str]:
        changed = [run for run in runs if run.archived is not archived]
        self._runs.update_many([{"id": run.id, "archived": archived} for run in changed])
        self._note(changed, "archived" if archived else "unarchived", None)
        return [run.id for run in changed]

    def _set_tags(self, runs: Sequence[Run], wanted: Sequence[Sequence[str]]) -> list[str]:
        names = self._runs.experiment_names({run.experiment_id for run in runs})
        rows: list[dict[str, Any]] = []
        changed = []
        for run, given in zip(runs, wanted, strict=True):
            tags = list(dict.fromkeys(given))
            if tags != run.tags:
                search = search_text(names[run.experiment_id], run.name, run.id, tags)
                rows.append({"id": run.id, "tags": tags, "search": search})
                changed.append(run)
        self._runs.update_many(rows)
        self._note(changed, "edited", "tags")
        return [run.id for run in changed]

    def _note(self, runs: Sequence[Run], kind: str, message: str | None) -> None:
        event = {"attempt": None, "kind": kind, "at": self._now, "message": message}
        self._events.add_many([{"run_id": run.id, **event} for run in runs])
