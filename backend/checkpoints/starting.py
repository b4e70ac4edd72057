"""Checkpoints of runs that new runs start from."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from backend.checkpoints.repository import CheckpointRepository
from backend.tables import Run
from nanollama.api.errors import InvalidRequest
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.load import set_value

LISTED = 20
"""Steps that an error names."""


class StartingPoints:
    """Where new runs can start."""

    def __init__(self, session: Session) -> None:
        self._checkpoints = CheckpointRepository(session)

    def start_from(self, run: Run, step: int, config: dict[str, Any]) -> str | None:
        """Let a config start from a run's checkpoint; returns the pool whose workers reach it, if any ever has.

        Raises:
            InvalidRequest: it is not there, is about to go, or lies at the end of what the config trains.
        """
        row = self._checkpoints.get(run.id, step)
        if row is None or row.removed or row.pending == "delete":
            there = [str(row.step) for row in self._checkpoints.of_run(run.id) if not row.removed][-LISTED:]
            message = f"run '{run.id}' has no checkpoint at step {step}"
            if row is not None and not row.removed:
                message = f"the checkpoint of step {step} is about to be deleted"
            remedy = f"use one of {', '.join(there)}" if there else "leave it out to train from the first step"
            raise InvalidRequest(message, [Problem(path="from_checkpoint", message=message, remedy=remedy)])
        optim = config.get("optim")
        steps = optim.get("steps") if isinstance(optim, dict) else None
        if isinstance(steps, int) and step >= steps:
            message = f"the checkpoint has done {step:,} steps, and the new run is to end after {steps:,}"
            remedy = f'override "optim.steps" with more than {step}'
            raise InvalidRequest(message, [Problem(path="overrides", message=message, remedy=remedy)])
        try:
            set_value(config, "orchestration.checkpoint.start_from", row.path)
            set_value(config, "orchestration.checkpoint.start_digest", row.digest)
        except SpecError as error:
            raise InvalidRequest("the overrides leave no place for the checkpoint", error.problems) from None
        return self.pool_of(run.id, row.attempt)

    def pool_of(self, run_id: str, attempt: int) -> str | None:
        """The pool that has run an attempt."""
        return self._checkpoints.pool_of(run_id, attempt)
