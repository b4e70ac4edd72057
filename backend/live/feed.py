"""The log of what happened to runs, followed in the order of its ids; and the progress of those that run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from backend.deps import Context
from backend.live.repository import LiveRepository
from backend.live.sse import Message, looks
from backend.runs.service import event_view, progress_view
from backend.tables import Event

AT_ONCE = 500
GAP_SECONDS = 2.0


class Feed:
    """What has happened since an event.

    On Postgres ids are given before transactions commit, so an event may appear after one with a larger id: at a gap
    the feed waits for a while, and goes on once the missing one must have been undone.

    Args:
        context: the parts of the service.
        after: id of the last event that was seen; from now on when absent.
        run_ids: of these runs only; of all when empty.
    """

    def __init__(self, context: Context, after: int | None, run_ids: Sequence[str]) -> None:
        self._context = context
        self._after = after
        self._run_ids = run_ids
        self._gap: tuple[int, datetime] | None = None
        self._progress_at: datetime | None = None

    async def messages(self) -> AsyncIterator[Message | None]:
        """Events and progress, without end."""
        async for found in looks(self._context, self.look, bool):
            for message in found:
                yield message
            yield None

    def look(self) -> list[Message]:
        """What is new."""
        now = self._context.clock()
        with self._context.database.read() as session:
            live = LiveRepository(session)
            if self._after is None:
                self._after = live.newest_event()
            events = self._settled(live.events(self._after, AT_ONCE), now)
            since = self._progress_at or now
            moved = live.progressed(since, self._run_ids)
        self._progress_at = max([since, *(run.progress_at for run in moved if run.progress_at is not None)])
        wanted = [event for event in events if not self._run_ids or event.run_id in self._run_ids]
        messages = [
            Message("event", {"run_id": event.run_id, **event_view(event).model_dump(mode="json")}, id=str(event.id))
            for event in wanted
        ]
        return messages + [
            Message("progress", {"run_id": run.id, **progress_view(run).model_dump(mode="json")}) for run in moved
        ]

    def _settled(self, events: Sequence[Event], now: datetime) -> list[Event]:
        """The events up to the first gap that may still be filled."""
        assert self._after is not None
        settled = []
        for event in events:
            if event.id != self._after + 1 and not self._given_up(event.id, now):
                break
            self._gap, self._after = None, event.id
            settled.append(event)
        return settled

    def _given_up(self, beyond: int, now: datetime) -> bool:
        if self._gap is None or self._gap[0] != beyond:
            self._gap = beyond, now
        return now - self._gap[1] >= timedelta(seconds=GAP_SECONDS)
