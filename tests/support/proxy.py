"""A TCP proxy in front of the service that loses answers, refuses connections, or swallows what it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal

Mode = Literal["pass", "lose", "refuse", "swallow"]
"""pass on; lose answers, after the service has given them; refuse connections; take requests and let them vanish."""

_CHUNK = 1 << 16


class Proxy:
    """Connections to a port of this machine; as a context manager.

    Args:
        port: of the service.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._mode: Mode = "pass"
        self._loses: Callable[[], bool] = lambda: False
        self.lost = 0
        """Answers that the service has given and nobody has got."""
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.close()
        self._cut()

    def set(self, mode: Mode) -> None:
        """Behave so from now on; connections that are open are cut, unless it passes on."""
        with self._lock:
            self._mode = mode
        if mode in ("refuse", "swallow"):
            self._cut()

    def lose_some(self, loses: Callable[[], bool]) -> None:
        """Ask, for each answer, whether it is to be lost."""
        with self._lock:
            self._loses = loses

    def _cut(self) -> None:
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _close(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self._mode
        if mode == "refuse":
            _close(client)
            return
        with self._lock:
            self._open.add(client)
        if mode == "swallow":
            with contextlib.suppress(OSError):
                while client.recv(_CHUNK):
                    pass
            return
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)
        with self._lock:
            self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if answers and (self._mode == "lose" or self._loses()):
                    with self._lock:
                        self.lost += 1
                    break  # the service has done it, and the one who asked sees the connection end
                sink.sendall(data)
        for end in (source, sink):
            _close(end)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
