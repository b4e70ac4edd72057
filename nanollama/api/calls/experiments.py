"""Experiments: submit, list, pause."""

from __future__ import annotations

import secrets
import time
from typing import Any

from nanollama.api import schemas
from nanollama.api.calls.transport import SWEEP_SECONDS, Transport, parse_reply, segment
from nanollama.api.errors import InvalidRequest, Unavailable
from nanollama.spec.base import SpecError, parse

AWAY_SECONDS = 600.0
"""How long the service may be away while somebody waits for runs."""


class ExperimentCalls(Transport):
    """Experiments: submit, list, pause."""

    def submit(
        self,
        *,
        yaml: str | None = None,
        config: dict[str, Any] | None = None,
        name: str | None = None,
        notes: str = "",
        tags: list[str] | None = None,
        priority: int = 0,
        resources: schemas.Resources | None = None,
        reuse: str = "never",
        retries: int = 0,
        max_interruptions: int | None = None,
        idempotency_key: str | None = None,
    ) -> schemas.Experiment:
        """Create an experiment and queue its runs. Without a key of your own, retries of this call share a fresh one.

        Args:
            yaml: a config, perhaps with a `grid`; or else
            config: the same as plain data.
            name: of the experiment; `orchestration.name` when absent.
            notes: free text.
            tags: of the experiment and its runs.
            priority: higher runs first.
            resources: what each run needs.
            reuse: what becomes of runs that would learn what an earlier one has learnt: never, ask, always.
            retries: attempts that may fail without ending a run.
            max_interruptions: attempts that may be interrupted; any number when absent.
            idempotency_key: repetitions with the same key create nothing and get the same answer.

        Raises:
            InvalidRequest: with every problem of the spec.
            AlreadySucceeded: with reuse="ask", the earlier runs; nothing was created.
        """
        given = {
            "yaml": yaml,
            "config": config,
            "name": name,
            "notes": notes,
            "tags": tags or [],
            "priority": priority,
            "resources": {} if resources is None else resources.model_dump(),
            "reuse": reuse,
            "retries": retries,
            "max_interruptions": max_interruptions,
        }
        try:
            body = parse(schemas.ExperimentCreate, given)
        except SpecError as error:
            raise InvalidRequest("the submission is invalid", error.problems) from None
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        timeout = max(self._timeout, SWEEP_SECONDS)
        reply = self._call("POST", "/experiments", body=body, headers=headers, timeout=timeout, idempotent=True)
        return parse_reply(reply, schemas.Experiment)

    def experiments(self, *, limit: int = 50, cursor: str | None = None) -> schemas.ExperimentPage:
        """Experiments, newest first."""
        return self._get("/experiments", schemas.ExperimentPage, limit=limit, cursor=cursor)

    def experiment(self, experiment_id: str) -> schemas.ExperimentDetail:
        """One experiment with what was submitted and its first runs; `runs(experiment=…)` pages all."""
        return self._get(f"/experiments/{segment(experiment_id)}", schemas.ExperimentDetail)

    def wait(self, experiment_id: str, *, timeout: float | None = None, poll: float = 1.0) -> schemas.Experiment:
        """The experiment once all its runs have ended, well or not: see its `counts`.

        Args:
            experiment_id: which one.
            timeout: seconds after which to give up; never when absent.
            poll: seconds between two looks.

        Raises:
            TimeoutError: runs have not ended by then.
            Unavailable: the service has been away for ten minutes.
        """
        start = seen = time.monotonic()
        while True:
            try:
                found = self.experiment(experiment_id)
                seen = time.monotonic()
                if sum(count for state, count in found.counts.items() if state.terminal) == found.num_runs:
                    return found
            except Unavailable:
                if time.monotonic() - seen > AWAY_SECONDS:
                    raise
            if timeout is not None and time.monotonic() - start >= timeout:
                raise TimeoutError(f"runs of {experiment_id} have not ended after {timeout:g} s")
            time.sleep(poll)

    def change_experiment(self, experiment_id: str, patch: schemas.ExperimentPatch) -> schemas.Experiment:
        """Change name, tags or notes of an experiment."""
        path = f"/experiments/{segment(experiment_id)}"
        return parse_reply(self._call("PATCH", path, body=patch, idempotent=True), schemas.Experiment)

    def pause(self, experiment_id: str) -> schemas.Experiment:
        """Lease none of an experiment's runs until it is resumed."""
        path = f"/experiments/{segment(experiment_id)}/pause"
        return parse_reply(self._call("POST", path, idempotent=True), schemas.Experiment)

    def resume(self, experiment_id: str) -> schemas.Experiment:
        """Let the runs of a paused experiment be leased again."""
        path = f"/experiments/{segment(experiment_id)}/resume"
        return parse_reply(self._call("POST", path, idempotent=True), schemas.Experiment)
