"""Settings of the worker: a file, the command line over it, and what the machine has for what neither says."""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from nanollama.api.client import server_url
from nanollama.spec.base import Problem, Spec, SpecError, parse
from nanollama.spec.files import NO_ROOM
from nanollama.spec.load import expand_variables, read_config_file
from nanollama.spec.yaml_text import load_yaml, locate
from worker.allow import Allowed, AllowSpec
from worker.executors.slurm_options import SlurmOptions
from worker.journal import has_seen
from worker.machine import CUDA_VISIBLE_DEVICES, count_cpus, find_accelerators, find_memory_gb

_MAX_POOL_CHARS = 500
_CPUS_OF_A_SLOT = 4
_MEMORY_GB_OF_A_SLOT = 8.0

_MAX_SLOTS = 100_000

Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _checked_slots(value: int | str) -> int | str:
    if value == "auto" or (isinstance(value, int) and 1 <= value <= _MAX_SLOTS):
        return value
    raise ValueError(f"should be a number from 1 to {_MAX_SLOTS:,}, or auto")


class WorkerSpec(Spec):
    """The worker's config file. Options of the command line have the same names and win over it."""

    url: str | None = Field(default=None, description="root of the service; $N2N_URL, or loopback, when absent")
    token_file: str | None = Field(default=None, description="file that holds the access token; else $N2N_TOKEN")
    run_root: str = Field(description="folder under which each run gets its own")
    home: str = Field(description="folder for the worker's own files; one worker a home")
    executor: Literal["local", "slurm"] = Field(
        default="local", description="processes of this machine, or jobs of a Slurm cluster"
    )
    slots: Annotated[int | str, AfterValidator(_checked_slots)] = Field(
        default="auto",
        description="runs executed at once; auto: by accelerators, else by CPUs and memory; on Slurm max_jobs",
    )
    name: str | None = Field(default=None, min_length=1, max_length=200, description="name shown to people")
    pool: str | None = Field(
        default=None,
        min_length=1,
        max_length=_MAX_POOL_CHARS,
        description="workers of a pool take over each other's runs: same machine, user and run root, the default",
    )
    grace: float = Field(default=4.0, ge=0, le=86_400, description="seconds between asking a run to end and killing it")
    stop_jobs_on_exit: bool = Field(default=False, description="interrupt the runs at the end, instead of leaving them")
    accelerators: int | None = Field(default=None, ge=0, le=10_000, description="for all runs together; else as found")
    cpus: int | None = Field(default=None, ge=1, le=100_000, description="for all runs together; else as found")
    memory_gb: float | None = Field(default=None, ge=0, le=1e6, description="for all runs together; else as found")
    labels: list[Label] = Field(default=[], max_length=64, description="what runs may ask for by name")
    data_roots: list[str] = Field(default=[], description="folders whose sets of sequences are shown on the page")
    allow: AllowSpec = Field(default_factory=AllowSpec, description="limits on what the service may have run here")
    slurm: SlurmOptions = Field(default_factory=SlurmOptions, description="what runs get from Slurm; executor: slurm")


@dataclass(frozen=True)
class Settings:
    """What the worker was told, and what it has found.

    `run_root` and `home` are absolute; `grace` is in seconds; `devices` are the names by which CUDA programs are given
    the accelerators that are to be used. Amounts are for all its runs together.
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
    executor: Literal["local", "slurm"] = "local"
    token_file: Path | None = None
    accelerators: int | None = None
    devices: tuple[str, ...] = ()
    cpus: int | None = None
    memory_gb: float | None = None
    labels: tuple[str, ...] = ()
    data_roots: tuple[Path, ...] = ()
    allowed: Allowed = field(default_factory=Allowed)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError([Problem(path="arguments", message=message, remedy="see python -m worker --help")])


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the arguments of the command line and the file that they name.

    The home is made if it is missing; the run root must exist.

    Raises:
        SpecError: a value that cannot be used, named by its option or by its place in the file.
    """
    given = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    source = _Source(given.pop("config", None), given)
    spec = source.read()
    try:
        return _resolve(spec)
    except SpecError as error:
        raise SpecError(source.place(error.problems)) from None


class _Source:
    """Where values come from, to speak of them in the user's words."""

    def __init__(self, file: str | None, given: dict[str, Any]) -> None:
        self._given = given
        self._text = "" if file is None else read_config_file(file)
        self._file = file

    def read(self) -> WorkerSpec:
        try:
            data = load_yaml(self._text) if self._text.strip() else {}
            if isinstance(data, dict):
                data = expand_variables(data, os.environ)
                data = self._over(data)
            return parse(WorkerSpec, data)
        except SpecError as error:
            raise SpecError(self.place(error.problems)) from None

    def _over(self, data: dict[str, Any]) -> dict[str, Any]:
        allow = {name.removeprefix("allow_"): value for name, value in self._given.items() if name.startswith("allow_")}
        plain = {name: value for name, value in self._given.items() if not name.startswith("allow_")}
        if allow:
            before = data.get("allow")
            plain["allow"] = {**before, **allow} if isinstance(before, dict) else allow
        return data | plain

    def place(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems at their options, or at their lines in the file."""
        placed = []
        for problem in problems:
            head, _, rest = problem.path.partition(".")
            option = f"{head}_{rest.partition('.')[0]}" if head == "allow" else head
            if self._file is None or option in self._given:
                path = _OPTIONS.get(option, f"--{option.replace('_', '-')}") if problem.path else "arguments"
                missing = problem.message == "this key is required"
                said = {"message": "is missing", "remedy": f"write {path} and a value"} if missing else {}
                placed.append(problem.model_copy(update={"path": path, **said}))
            else:
                (found,) = locate(self._text, [problem])
                placed.append(found.model_copy(update={"path": f"{self._file}: {problem.path}".removesuffix(": ")}))
        return placed


_OPTIONS = {
    "labels": "--label",
    "data_roots": "--data-root",
    "allow_apps": "--allow-app",
    "allow_roots": "--allow-root",
}
"""Options that may be repeated, by the key whose list they make."""


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m worker",
        description="Execute runs that the service leases to this machine. Every option but --config can stand in the "
        "file, and wins over it.",
        epilog="docs/worker.md explains the file, services of systemd, and what happens when something fails.",
    )
    fields = {name: field.description for name, field in WorkerSpec.model_fields.items()}
    parser.add_argument("--config", help="YAML file with the settings", metavar="FILE")
    for name in ("url", "token_file", "run_root", "home", "name", "pool"):
        parser.add_argument(f"--{name.replace('_', '-')}", help=fields[name])
    parser.add_argument("--executor", choices=["local", "slurm"], help=fields["executor"])
    parser.add_argument("--slots", type=_slots, help=fields["slots"])
    parser.add_argument("--grace", type=float, help=f"{fields['grace']} (default: 4)")
    parser.add_argument("--stop-jobs-on-exit", action="store_true", default=None, help=fields["stop_jobs_on_exit"])
    for name, kind in (("accelerators", int), ("cpus", int), ("memory_gb", float)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=fields[name])
    limits = {f"allow_{name}": field.description for name, field in AllowSpec.model_fields.items()}
    for name, option in _OPTIONS.items():
        said = (fields | limits)[name]
        parser.add_argument(option, dest=name, action="append", help=f"{said}; may be repeated")
    return parser


def _slots(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _resolve(spec: WorkerSpec) -> Settings:
    url = _check_url(spec.url or server_url())
    run_root, home = Path(spec.run_root).expanduser().absolute(), Path(spec.home).expanduser().absolute()
    if not has_seen(home, run_root):  # else it is there, or comes back: the worker waits for it, and says so
        _check_run_root(run_root)
    _check_home(home)
    host, user = socket.gethostname(), getpass.getuser()
    pool = spec.pool or f"{spec.executor}:{host}:{user}:{run_root}"
    if len(pool) > _MAX_POOL_CHARS:
        message = f"its default, '{pool[:60]}…', has more than {_MAX_POOL_CHARS} characters"
        raise _problem("pool", message, "give a shorter name")
    offer = _offer_of_slurm(spec) if spec.executor == "slurm" else _offer_of_machine(spec)
    return Settings(
        url=url,
        run_root=run_root,
        home=home,
        slots=offer.slots,
        name=spec.name or host,
        pool=pool,
        host=host,
        user=user,
        grace=spec.grace,
        stop_jobs_on_exit=spec.stop_jobs_on_exit,
        executor=spec.executor,
        token_file=None if spec.token_file is None else _check_token_file(Path(spec.token_file).expanduser()),
        accelerators=offer.accelerators,
        devices=offer.devices,
        cpus=offer.cpus,
        memory_gb=offer.memory_gb,
        labels=tuple(dict.fromkeys(spec.labels)),
        data_roots=tuple(Path(root).expanduser().absolute() for root in spec.data_roots),
        allowed=_limits(spec.allow, run_root),
        slurm=spec.slurm,
    )


@dataclass(frozen=True)
class _Offer:
    """What there is for all runs together."""

    slots: int
    accelerators: int
    devices: tuple[str, ...]
    cpus: int
    memory_gb: float | None


def _offer_of_machine(spec: WorkerSpec) -> _Offer:
    devices = _choose_devices(spec)
    cpus = spec.cpus or count_cpus()
    memory_gb = find_memory_gb() if spec.memory_gb is None else spec.memory_gb
    slots = _count_slots(len(devices), cpus, memory_gb) if isinstance(spec.slots, str) else spec.slots
    return _Offer(slots, len(devices), devices, cpus, memory_gb)


def _offer_of_slurm(spec: WorkerSpec) -> _Offer:
    """What all its jobs get together; how much of the cluster is free, Slurm alone knows."""
    slots = spec.slurm.max_jobs if isinstance(spec.slots, str) else spec.slots
    nodes = spec.slurm.nodes * slots
    accelerators = spec.slurm.gpus_per_node * nodes if spec.accelerators is None else spec.accelerators
    memory_gb = spec.slurm.memory_gb if spec.memory_gb is None else spec.memory_gb
    if spec.memory_gb is None and memory_gb is not None:
        memory_gb *= nodes
    return _Offer(slots, min(accelerators, 10_000), (), min(spec.cpus or spec.slurm.cpus * nodes, 100_000), memory_gb)


def _choose_devices(spec: WorkerSpec) -> tuple[str, ...]:
    found = find_accelerators(os.environ)
    if spec.accelerators is None or spec.accelerators == len(found):
        return found
    if spec.accelerators < len(found):
        return found[: spec.accelerators]
    if CUDA_VISIBLE_DEVICES in os.environ:
        listed = os.environ[CUDA_VISIBLE_DEVICES]
        message = f"{spec.accelerators} are more than ${CUDA_VISIBLE_DEVICES} lists ('{listed}')"
        raise _problem("accelerators", message, f"use at most {len(found)}, or change ${CUDA_VISIBLE_DEVICES}")
    return tuple(str(i) for i in range(spec.accelerators))


def _count_slots(accelerators: int, cpus: int, memory_gb: float) -> int:
    if accelerators:
        return accelerators
    return max(1, min(cpus // _CPUS_OF_A_SLOT, int(memory_gb // _MEMORY_GB_OF_A_SLOT)))


def _limits(allow: AllowSpec, run_root: Path) -> Allowed:
    roots = None if allow.roots is None else [run_root, *(Path(root).expanduser().absolute() for root in allow.roots)]
    return Allowed(allow.apps, roots)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _problem("url", f"'{url}' is not the address of a service", "write it like http://127.0.0.1:8420")
    return url


def read_token(path: Path) -> str:
    """The token that a file holds.

    Raises:
        SpecError: a file that cannot be read, or without a token.
    """
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _problem("token_file", f"cannot read {path}: {said}", "write the token into it") from None
    if not token or any(c.isspace() for c in token):
        said = "is empty" if not token else "holds more than one word"
        raise _problem("token_file", f"{path} {said}", "write the token into it, and nothing else")
    return token


def _check_token_file(path: Path) -> Path:
    read_token(path)
    return path.absolute()


def _check_run_root(path: Path) -> None:
    if not path.exists():
        raise _problem("run_root", f"{path} does not exist", "make it, on a disk with room for checkpoints")
    if not path.is_dir():
        raise _problem("run_root", f"{path} is not a folder", "name a folder")
    _check_writable("run_root", path)


def _check_home(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _problem("home", f"cannot make {path}: {error.strerror}", "name a folder that you can write") from None
    _check_writable("home", path)


def _check_writable(key: str, path: Path) -> None:
    # by trying: permission bits say nothing to root, and nothing about a file system that is mounted read-only
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if error.errno in NO_ROOM:
            return  # it passes: the worker waits for room, and says so
        message = f"cannot write in {path}: {error.strerror}"
        raise _problem(key, message, "name a folder that you can write") from None


def _problem(key: str, message: str, remedy: str) -> SpecError:
    return SpecError([Problem(path=key, message=message, remedy=remedy)])
