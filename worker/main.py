"""Start the worker: settings, log, the lock of the home, and the daemon."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanollama.api.client import Client
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command
from nanollama.spec.files import NO_ROOM
from worker.daemon import Daemon
from worker.executors.base import Executor
from worker.executors.devices import Devices
from worker.executors.local import LocalExecutor
from worker.executors.slurm import SlurmExecutor
from worker.journal import FILE, Journal
from worker.pace import Backoff
from worker.settings import Settings, read_settings, read_token
from worker.watch import no_strays

LOCK = "worker.lock"
_M_ARENA_MAX = -8  # of malloc.h
_ROOM_BYTES = 1 << 18
_LONGEST_WAIT_FOR_ROOM = 15.0

log = logging.getLogger(__name__)

MakeExecutor = Callable[[Settings, Journal], Executor]


def run(arguments: Sequence[str]) -> int:
    """Run the worker until it is told to stop; returns the exit code.

    Raises:
        SpecError: settings that cannot be used, or a home that another worker uses.
    """
    return work(read_settings(arguments), make_executor)


def make_executor(settings: Settings, memory: Journal) -> Executor:
    """The executor that the settings name.

    Raises:
        SpecError: it cannot be used here.
    """
    if settings.executor == "slurm":
        return slurm_executor(settings)
    return local_executor(settings, memory)


def local_executor(settings: Settings, memory: Journal, **parts: Any) -> LocalExecutor:
    """An executor of processes on this machine, whose slots share its CPUs; `parts` as LocalExecutor takes them."""
    cpus = None if settings.cpus is None else max(1, settings.cpus // settings.slots)
    devices = Devices(settings.devices, memory)
    return LocalExecutor(grace=settings.grace, devices=devices, cpus=cpus, **parts)


def slurm_executor(settings: Settings, **parts: Any) -> SlurmExecutor:
    """An executor on the Slurm of this machine; `parts` as SlurmExecutor takes them.

    Raises:
        SpecError: there is no Slurm here.
    """
    if shutil.which("sbatch") is None:
        remedy = "start the worker on a login node of the cluster, or use executor: local"
        raise SpecError([Problem(path="executor", message="there is no sbatch on this machine", remedy=remedy)])
    return SlurmExecutor(settings.slurm, run_root=settings.run_root, grace=settings.grace, **parts)


def work(settings: Settings, make: MakeExecutor) -> int:
    """Work until told to stop; returns the exit code.

    Args:
        settings: what it was told.
        make: makes the executor; it may keep what has to survive in the journal.

    Raises:
        SpecError: a home that another worker uses, or an executor that cannot be used here.
    """
    _share_arenas()
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO, stream=sys.stderr)
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with (
        _home_locked(settings),
        contextlib.closing(Journal(settings.home / FILE)) as memory,
        Client(settings.url, token=_token(settings), retries=0) as client,  # the daemon has pauses of its own
    ):
        executor = make(settings, memory)
        find_strays = executor.find_strays if isinstance(executor, LocalExecutor) else no_strays
        return Daemon(settings, journal=memory, client=client, executor=executor, find_strays=find_strays).run()


def _share_arenas() -> None:
    """Let all threads allocate from two places: with one for each, a third of the memory would lie idle."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)  # of glibc; others have no such thing


def _token(settings: Settings) -> str | None:
    return None if settings.token_file is None else read_token(settings.token_file)


@contextlib.contextmanager
def _home_locked(settings: Settings) -> Iterator[None]:
    path: Path = settings.home / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another worker"
            message = f"{settings.home} is in use by {holder}"
            raise SpecError(
                [Problem(path="--home", message=message, remedy="stop it, or choose another home")]
            ) from None
        _await_room(settings.home)
        file.truncate(0)
        file.write(f"worker {settings.name} (process {os.getpid()} on {settings.host})")
        file.flush()
        yield


def _await_room(home: Path) -> None:
    """Wait until the home has room for what the worker has to write before it can do anything."""
    backoff = Backoff(longest=_LONGEST_WAIT_FOR_ROOM)
    while True:
        try:
            with tempfile.TemporaryFile(dir=home) as file:
                file.write(bytes(_ROOM_BYTES))
                file.flush()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not backoff.failing:
                log.warning("cannot write in %s: %s; the worker waits for room", home, error.strerror)
            time.sleep(backoff.next())
        else:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m worker`."""
    return run_command(run, arguments)
