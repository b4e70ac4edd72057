"""Viewers of live pages without browsers: they speak the page's protocol, and ask for a tick when a browser would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

FIRST, LAST = 5.0, 60.0  # seconds over which the viewers arrive; seconds after which an answer is no longer waited for
MAX_AGE = 2  # runs for which a browser keeps a large message that was not drawn again


@dataclass
class Viewer:
    """What one viewer has seen.

    Attributes:
        page: name of the page, as in its address.
        query: the rest of the address.
        updates: seconds from asking for a tick to its last part, from when all viewers have arrived.
        sent: bytes that have come.
        script: which page it is to the server.
        ticks: seconds between two ticks, and the part of the page that is drawn again.
        known: large messages by their hash, and the run in which each was drawn last: the server need not send them
            again while they hold.
        runs: of the page's script and its parts.
    """

    page: str
    query: str = ""
    updates: list[float] = field(default_factory=list)
    sent: int = 0
    script: str = ""
    ticks: tuple[float, str] | None = None
    known: dict[str, int] = field(default_factory=dict)
    runs: int = 0

    async def watch(self, base: str, delay: float, seconds: float) -> None:
        """Open the page after a delay and follow it; what is measured begins when all have arrived."""
        await asyncio.sleep(delay)
        url = f"{base.replace('http:', 'ws:')}/_stcore/stream"
        async with websockets.connect(url, subprotocols=[websockets.Subprotocol("streamlit")], max_size=None) as socket:
            await socket.send(self._ask(""))
            await self._finish(socket)
            assert self.ticks is not None, f"{self.page} is not live"
            await asyncio.sleep(FIRST - delay)
            due, end = time.monotonic(), time.monotonic() + seconds
            while time.monotonic() < end:
                interval, fragment = self.ticks
                due = max(due + interval, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
                start = time.monotonic()
                await socket.send(self._ask(fragment))
                await self._finish(socket)
                self.updates.append(time.monotonic() - start)

    def _ask(self, fragment: str) -> bytes:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_name, state.page_script_hash = self.query, self.page, self.script
        state.fragment_id, state.is_auto_rerun = fragment, bool(fragment)
        state.cached_message_hashes.extend(self.known)
        return message.SerializeToString()

    async def _finish(self, socket: websockets.ClientConnection) -> None:
        while True:
            data = await asyncio.wait_for(socket.recv(), LAST)
            assert isinstance(data, bytes)
            self.sent += len(data)
            message = ForwardMsg.FromString(data)
            kind = message.WhichOneof("type")
            if message.metadata.cacheable or kind == "ref_hash":
                self.known[message.ref_hash or message.hash] = self.runs
            if kind == "new_session":
                self.script = message.new_session.page_script_hash
            elif kind == "auto_rerun":
                self.ticks = message.auto_rerun.interval, message.auto_rerun.fragment_id
            elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                self.runs += 1
                self.known = {each: run for each, run in self.known.items() if self.runs - run <= MAX_AGE}
                return


def watch(base: str, viewers: Sequence[Viewer], seconds: float) -> None:
    """Let all of them watch at once for so long."""

    async def all_of_them() -> None:
        pause = FIRST / len(viewers)
        await asyncio.gather(*(viewer.watch(base, i * pause, seconds) for i, viewer in enumerate(viewers)))

    asyncio.run(all_of_them())
