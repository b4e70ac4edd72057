"""The server process around the application."""

from __future__ import annotations

import gc
import os
import socket

import uvicorn
from fastapi import FastAPI

from backend.deps import Context
from backend.settings import SettingsError


class Server(uvicorn.Server):
    """Uvicorn that lets go of the requests that only wait, as soon as it is asked to stop."""

    def __init__(self, app: FastAPI, log_level: str) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning" if log_level == "info" else log_level,
            access_log=False,
            log_config=None,  # its lines go where ours go, in our format
            lifespan="on",
            timeout_graceful_shutdown=10,
            timeout_keep_alive=75,  # longer than clients keep theirs: they, not we, close an idle connection
        )
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As usual; what there is by then stays for good, and collections of garbage no longer walk through it."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # otherwise every hundredth answer comes 0.1 s late

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the long polls, then as usual: no new connection, wait for the requests that work."""
        context: Context = self._app.state.context
        context.notifier.close()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        SettingsError: the port is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; stop what uses the port, or choose "
            "another one with --port (--port 0 takes any free one)"
        ) from None
    # asyncio sets it only on sockets that name their protocol; without it every answer waits 40 ms for a delayed ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
