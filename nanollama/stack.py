"""The service, one local worker and the page as children of one process: what `n2n up` and `n2n demo` start."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote

import httpx

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.spec.base import Problem, SpecError

HOST = "127.0.0.1"
API_PORT = 8420
PAGE_PORT = 8421
LOCK = "n2n.lock"
MAX_RESTARTS = 3  # within RESTART_WINDOW seconds; more often means that restarting mends nothing
RESTART_WINDOW = 60.0
START_SECONDS = 90.0
STOP_SECONDS = 20.0

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class StackError(Exception):
    """A child that cannot be started or kept alive."""


@dataclass
class Child:
    """One process of the stack; its output goes to a file of its own."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RESTARTS + 1))

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches only its supervisor."""
        self.starts.append(time.monotonic())
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - started from the main thread only
            )

    def tail(self, num_lines: int = 8) -> str:
        """The last lines that it wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-num_lines:])
        return ""

    def signal(self, number: int) -> None:
        """Send a signal if it is alive."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when the time is over."""
        if self.process is not None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
        return True


def _die_with_parent() -> None:
    # if the supervisor is killed outright, the kernel tells its children to stop
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Stack:
    """API, worker and page on loopback, with everything they keep under `home`.

    With `stop_runs` the end of the stack interrupts the runs under way (they continue from their last checkpoint when
    it is started again); without, they go on and the next worker takes them up.
    """

    def __init__(
        self,
        home: Path,
        *,
        api_port: int = API_PORT,
        page_port: int = PAGE_PORT,
        slots: int = 1,
        database_url: str | None = None,
        stop_runs: bool = False,
    ) -> None:
        self.home = home.absolute()
        self.api_url = f"http://{HOST}:{api_port}"
        self.page_url = f"http://{HOST}:{page_port}"
        self.run_root = self.home / "runs"
        self._ports = {"--api-port": api_port, "--page-port": page_port}
        database = database_url or home_database(self.home)
        python = [sys.executable, "-m"]
        logs = self.home / "logs"
        api = [*python, "backend", "serve", "--migrate", "--host", HOST, "--port", str(api_port)]
        api += ["--run-roots", str(self.run_root)]
        worker = [*python, "worker", "--url", self.api_url, "--run-root", str(self.run_root), "--slots", str(slots)]
        worker += ["--home", str(self.home / "worker"), *(["--stop-jobs-on-exit"] if stop_runs else [])]
        page = [*python, "dashboard", "--port", str(page_port), "--api-url", self.api_url]
        self.api = Child("api", [*api, "--database-url", database], logs / "api.log")
        self.worker = Child("worker", worker, logs / "worker.log")
        self.page = Child("page", page, logs / "page.log")
        self.children = (self.api, self.worker, self.page)
        self._lock: IO[str] | None = None  # held while it is open

    def start(self) -> None:
        """Start all three and wait until API and page answer.

        Raises:
            SpecError: a port that is in use, or a home that cannot be written or that another stack uses.
            StackError: a child that ended or did not answer in time.
        """
        if len(set(self._ports.values())) < len(self._ports):
            message = "the API and the page cannot share a port"
            raise SpecError([Problem(path="--page-port", message=message, remedy="choose two different ones")])
        for option, port in self._ports.items():
            _require_free(option, port)
        for folder in (self.home, self.run_root, self.home / "logs"):
            _require_writable(folder)
        self._lock_home()
        self.api.start()
        with Client(self.api_url, retries=0, timeout=5) as client:
            self._await(self.api, lambda: _answers(client))
        self.worker.start()
        self.page.start()
        self._await(self.page, lambda: _page_answers(self.page_url))

    def watch(self) -> None:
        """Restart a child that has ended.

        Raises:
            StackError: it ends again and again.
        """
        for child in self.children:
            if child.process is None or child.process.poll() is None:
                continue
            recent = [start for start in child.starts if time.monotonic() - start < RESTART_WINDOW]
            if len(recent) > MAX_RESTARTS:
                raise StackError(_ended(child))
            print(f"{child.name} ended with code {child.process.returncode}; starting it again", file=sys.stderr)
            child.start()

    def stop(self) -> None:
        """Stop every child; the worker before the API, so that its last reports are heard."""
        self.page.signal(signal.SIGTERM)
        self.worker.signal(signal.SIGTERM)
        self.worker.wait(STOP_SECONDS)
        self.api.signal(signal.SIGTERM)
        for child in self.children:
            if not child.wait(STOP_SECONDS):
                child.signal(signal.SIGKILL)
                child.wait(STOP_SECONDS)
        if self._lock is not None:
            self._lock.close()

    def _lock_home(self) -> None:
        self._lock = open(self.home / LOCK, "a+")  # noqa: SIM115 - held until the stack stops
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            message = f"{self.home} is in use by {self._lock.read().strip() or 'another process'}"
            self._lock.close()
            remedy = "use that one, stop it, or choose another home"
            raise SpecError([Problem(path="--home", message=message, remedy=remedy)]) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}, whose page is {self.page_url}")
        self._lock.flush()

    def _await(self, child: Child, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if child.process is None or child.process.poll() is not None:
                raise StackError(_ended(child))
            if time.monotonic() > deadline:
                raise StackError(f"{child.name} did not answer within {START_SECONDS:.0f} s; see {child.log}")
            time.sleep(0.05)


def home_database(home: Path) -> str:
    """URL of the SQLite database under a home, whatever characters its path holds."""
    return f"sqlite:///{quote(str(home.absolute() / 'n2n.sqlite'))}"


def _ended(child: Child) -> str:
    code = child.process.returncode if child.process is not None else None
    return f"{child.name} ended with code {code}; its last lines ({child.log}):\n{child.tail()}"


def _answers(client: Client) -> bool:
    try:
        client.health()
    except Unavailable:
        return False
    return True


def _page_answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/_stcore/health", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _require_free(option: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            remedy = f"stop what listens there, or choose another with {option}"
            problem = Problem(path=option, message=f"port {port} is not free: {error.strerror}", remedy=remedy)
            raise SpecError([problem]) from None


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = "choose a home that you can write, with --home or $N2N_HOME"
        problem = Problem(path="--home", message=f"cannot write {folder}: {error.strerror}", remedy=remedy)
        raise SpecError([problem]) from None
