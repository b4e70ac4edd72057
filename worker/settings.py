"""Settings of the worker, from its command line."""

from __future__ import annotations

import argparse
import getpass
import math
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from nanollama.api.client import server_url
from nanollama.spec.base import Problem, SpecError

_MAX_POOL_CHARS = 500
_MAX_LABEL_CHARS = 64


@dataclass(frozen=True)
class Settings:
    """What the worker was told.

    `run_root` and `home` are absolute; `grace` is in seconds.
    """

    url: str
    run_root: Path
    home: Path
    slots: int
    name: str
    pool: str
    host: str
    user: str
    grace: float
    stop_jobs_on_exit: bool
    accelerators: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    labels: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError([Problem(path="arguments", message=message, remedy="see python -m worker --help")])


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the arguments of the command line. The home is made if it is missing; the run root must exist.

    Raises:
        SpecError: a value that cannot be used.
    """
    given = _parser().parse_args(arguments)
    url = _check_url(given.url or server_url())
    if given.slots < 1:
        raise _problem("--slots", f"{given.slots} runs at once would be none", "use at least 1")
    if not (math.isfinite(given.grace) and given.grace >= 0):
        raise _problem("--grace", f"{given.grace} is no time in seconds", "use 0 or more")
    for option, value in (
        ("--accelerators", given.accelerators),
        ("--cpus", given.cpus),
        ("--memory-gb", given.memory_gb),
    ):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise _problem(option, f"{value} is no amount", "use 0 or more")
    for label in given.label:
        if not (0 < len(label) <= _MAX_LABEL_CHARS and label.isprintable()):
            raise _problem("--label", f"{label!r} is no label", f"use 1 to {_MAX_LABEL_CHARS} printable characters")
    run_root, home = Path(given.run_root).absolute(), Path(given.home).absolute()
    _check_run_root(run_root)
    _check_home(home)
    host, user = socket.gethostname(), getpass.getuser()
    pool = given.pool or f"local:{host}:{user}:{run_root}"
    if len(pool) > _MAX_POOL_CHARS:
        raise _problem("--pool", f"'{pool[:60]}…' has more than {_MAX_POOL_CHARS} characters", "give a shorter name")
    return Settings(
        url=url,
        run_root=run_root,
        home=home,
        slots=given.slots,
        name=given.name or host,
        pool=pool,
        host=host,
        user=user,
        grace=given.grace,
        stop_jobs_on_exit=given.stop_jobs_on_exit,
        accelerators=count_accelerators() if given.accelerators is None else given.accelerators,
        cpus=len(os.sched_getaffinity(0)) if given.cpus is None else given.cpus,
        memory_gb=_memory_gb() if given.memory_gb is None else given.memory_gb,
        labels=tuple(dict.fromkeys(given.label)),
    )


def _parser() -> _Parser:
    parser = _Parser(prog="python -m worker", description="Execute runs that the service leases to this machine.")
    parser.add_argument("--url", help="root of the service; $N2N_URL, or the default on loopback, when absent")
    parser.add_argument("--run-root", required=True, help="folder under which each run gets its own")
    parser.add_argument("--home", required=True, help="folder for the worker's own files; one worker a home")
    parser.add_argument("--slots", type=int, default=1, help="runs executed at once (default: 1)")
    parser.add_argument("--name", help="name shown to people (default: the host's)")
    parser.add_argument(
        "--pool", help="workers of a pool take over each other's runs: same machine, user and run root (the default)"
    )
    parser.add_argument(
        "--grace", type=float, default=5.0, help="seconds between asking a run to end and killing it (default: 5)"
    )
    parser.add_argument(
        "--stop-jobs-on-exit", action="store_true", help="interrupt the runs at the end, instead of leaving them be"
    )
    parser.add_argument("--accelerators", type=int, help="for all its runs together (default: what is found)")
    parser.add_argument("--cpus", type=int, help="for all its runs together (default: those it may use)")
    parser.add_argument("--memory-gb", type=float, help="for all its runs together (default: the machine's)")
    parser.add_argument("--label", action="append", default=[], help="what runs may ask for by name; may be repeated")
    return parser


def count_accelerators(devices: Path = Path("/dev")) -> int:
    """Number of NVIDIA devices of this machine, without a driver being asked."""
    return sum(1 for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal())


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _problem("--url", f"'{url}' is not the address of a service", "write it like http://127.0.0.1:8420")
    return url


def _check_run_root(path: Path) -> None:
    if not path.exists():
        raise _problem("--run-root", f"{path} does not exist", "make it, on a disk with room for checkpoints")
    if not path.is_dir():
        raise _problem("--run-root", f"{path} is not a folder", "name a folder")
    _check_writable("--run-root", path)


def _check_home(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _problem("--home", f"cannot make {path}: {error.strerror}", "name a folder that you can write") from None
    _check_writable("--home", path)


def _check_writable(option: str, path: Path) -> None:
    # by trying: permission bits say nothing to root, and nothing about a file system that is mounted read-only
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        message = f"cannot write in {path}: {error.strerror}"
        raise _problem(option, message, "name a folder that you can write") from None


def _problem(option: str, message: str, remedy: str) -> SpecError:
    return SpecError([Problem(path=option, message=message, remedy=remedy)])
