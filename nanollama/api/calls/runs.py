"""Runs: list, cancel, retry, clone, and what happened to them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from nanollama.api import schemas
from nanollama.api.calls.transport import SWEEP_SECONDS, Transport, parse_replies, parse_reply, segment
from nanollama.api.following import Message


class RunCalls(Transport):
    """Runs: list, cancel, retry, clone, and what happened to them."""

    def runs(
        self,
        *,
        state: list[str] | None = None,
        search: str | None = None,
        experiment: str | None = None,
        filter: str | None = None,  # noqa: A002 - the name on the wire
        sort: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> schemas.RunPage:
        """Runs, newest first; of some states only, with `search` in the name, the id or a tag, of one experiment.

        Args:
            state: only runs in one of these states.
            search: part of the name, the id or a tag.
            experiment: only runs of this experiment, and those that it reuses.
            filter: see nanollama.api.filters, for example "optim.lr>1e-3 excess<0.02".
            sort: a field or a metric, with `-` in front for the largest first.
            limit: how many, at most 500.
            cursor: `next_cursor` of the page before.

        Raises:
            InvalidRequest: with the place in the filter.
        """
        return self._get(
            "/runs",
            schemas.RunPage,
            state=state,
            search=search,
            experiment=experiment,
            filter=filter,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )

    def run(self, run_id: str) -> schemas.RunDetail:
        """One run."""
        return self._get(f"/runs/{segment(run_id)}", schemas.RunDetail)

    def cancel(self, run_id: str) -> schemas.Run:
        """Ask for a run to stop. At once when it is queued, otherwise when its worker has evidence."""
        return parse_reply(self._call("POST", f"/runs/{segment(run_id)}/cancel", idempotent=True), schemas.Run)

    def retry(self, run_id: str) -> schemas.Run:
        """Open a run again that failed or was cancelled; it goes on from its checkpoints. Raises Conflict."""
        return parse_reply(self._call("POST", f"/runs/{segment(run_id)}/retry"), schemas.Run)

    def clone(
        self, run_id: str, clone: schemas.Clone | None = None, *, idempotency_key: str | None = None
    ) -> schemas.Experiment:
        """Make a new experiment from a run's config, with overrides, and perhaps from one of its checkpoints on."""
        return parse_reply(
            self._call(
                "POST",
                f"/runs/{segment(run_id)}/clone",
                body=clone or schemas.Clone(),
                headers={"Idempotency-Key": idempotency_key or secrets.token_hex(16)},
                timeout=max(self._timeout, SWEEP_SECONDS),
                idempotent=True,
            ),
            schemas.Experiment,
        )

    def resolve(self, run_id: str, resolve: schemas.Resolve) -> schemas.Run:
        """Say how a run ended of which nobody knows. Raises Conflict when it is not lost."""
        return parse_reply(self._call("POST", f"/runs/{segment(run_id)}/resolve", body=resolve), schemas.Run)

    def prioritise(self, run_id: str, priority: int) -> schemas.Run:
        """Change the priority of a run that has not ended."""
        return self.change_run(run_id, schemas.RunPatch(priority=priority))

    def change_run(self, run_id: str, patch: schemas.RunPatch) -> schemas.Run:
        """Change priority, tags or notes of a run, or archive it."""
        return parse_reply(self._call("PATCH", f"/runs/{segment(run_id)}", body=patch, idempotent=True), schemas.Run)

    def cancel_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        """Ask several runs to stop; those that have ended are passed over."""
        return parse_reply(self._call("POST", "/runs:cancel", body=selection, idempotent=True), schemas.RunsChanged)

    def retry_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        """Retry several runs; those that can't be are passed over."""
        return parse_reply(self._call("POST", "/runs:retry", body=selection), schemas.RunsChanged)

    def prioritise_runs(self, selection: schemas.Prioritise) -> schemas.RunsChanged:
        """Change the priority of several runs; those that have ended are passed over."""
        return parse_reply(self._call("POST", "/runs:prioritise", body=selection, idempotent=True), schemas.RunsChanged)

    def archive_runs(self, selection: schemas.Archive) -> schemas.RunsChanged:
        """Have lists leave several runs out, or show them again; those that are so already are passed over."""
        return parse_reply(self._call("POST", "/runs:archive", body=selection, idempotent=True), schemas.RunsChanged)

    def tag_runs(self, selection: schemas.Retag) -> schemas.RunsChanged:
        """Add tags to several runs, or remove some. Raises InvalidRequest when one would have too many."""
        return parse_reply(self._call("POST", "/runs:tag", body=selection, idempotent=True), schemas.RunsChanged)

    def attempts(self, run_id: str) -> list[schemas.Attempt]:
        """The attempts of a run, oldest first."""
        reply = self._call("GET", f"/runs/{segment(run_id)}/attempts")
        return parse_replies(reply, schemas.Attempt)

    def events(self, run_id: str) -> list[schemas.Event]:
        """What happened to a run, oldest first."""
        reply = self._call("GET", f"/runs/{segment(run_id)}/events")
        return parse_replies(reply, schemas.Event)

    def follow_events(self, run_ids: list[str] | None = None, *, after: str | None = None) -> Iterator[Message]:
        """What happens to runs, as it happens, without end; after a broken connection it goes on where it was.

        Args:
            run_ids: only these; all when absent.
            after: `id` of the last message that was seen; from now on when absent.

        Raises:
            Unavailable: the service stays away.
        """
        return self._follow("/events/stream", {"run": run_ids or []}, after)
