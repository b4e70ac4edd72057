"""`n2n doctor`: whether everything that a run passes through is there, line by line, each with its remedy."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal

import httpx
import typer
from rich.text import Text

from nanollama import __version__
from nanollama.api.client import DEFAULT_URL, Client, server_url
from nanollama.api.errors import ApiError, Forbidden, Unauthorized, Unavailable
from nanollama.commands.groups import new_app
from nanollama.commands.options import HOME, AsJson, DatabaseUrl, Home, TokenFile, Url, read_token
from nanollama.commands.output import out, plain, print_json, say
from nanollama.stack import API_PORT, HOST, PAGE_PORT, home_database

PROJECT = "nodes-to-narratives"
EXTRAS = {"train": "trains", "server": "serves the API", "worker": "executes runs", "dashboard": "serves the page"}
SCARCE_BYTES, LITTLE_BYTES = 1 << 30, 10 << 30  # of disk: too little to store anything, enough for a few checkpoints
SKEW_SECONDS = 10.0  # between the clocks of client and server, before ages look wrong
SECONDS = 120.0  # that a program may take to answer
SLURM = ("sbatch", "squeue", "scancel", "scontrol")

State = Literal["ok", "warn", "bad"]
_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}
_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"version": torch.__version__, "built": torch.version.cuda, "names": names}))
"""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    name: str
    state: State
    message: str
    remedy: str | None = None


app = new_app()


@app.command()
def doctor(
    url: Url = None,
    token_file: TokenFile = None,
    home: Home = HOME,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine, the database and the service; exit code 1 when something is bad."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python,
        check_torch,
        lambda: check_disk(home),
        lambda: check_database(database_url or home_database(home), made_by_up=database_url is None),
        lambda: check_ports(API_PORT, PAGE_PORT),
        lambda: check_service(url or server_url(), read_token(token_file)),
        check_slurm,
    ]
    findings: list[Finding] = []
    for check in checks:
        for finding in check():
            findings.append(finding)
            if not as_json:
                _show(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    raise typer.Exit(int(any(finding.state == "bad" for finding in findings)))


def _show(finding: Finding) -> None:
    line = Text(f"{finding.state:4}", style=_COLOURS[finding.state])
    line.append(f" {finding.name:10} {plain(finding.message)}", style="default")
    out.print(line, soft_wrap=True)
    if finding.remedy is not None:
        say(f"{'':15} {finding.remedy}", style="dim")


# -- this machine ------------------------------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """The interpreter, and which parts of the project have what they need."""
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {PROJECT} {__version__}")
    for extra, purpose in EXTRAS.items():
        missing = [name for name in required(extra) if not _is_installed(name)]
        if missing:
            remedy = f"pip install '{PROJECT}[{extra}]', if this machine is to do that"
            yield Finding(extra, "warn", f"{', '.join(missing)} missing: nothing {purpose} here", remedy)
        else:
            yield Finding(extra, "ok", "installed")


def required(extra: str) -> list[str]:
    """Packages that an extra of the project asks for."""
    lines = metadata.requires(PROJECT) or []
    wanted = [line for line in lines if re.search(rf"""extra == ['"]{extra}['"]""", line)]
    return [match[0] for line in wanted if (match := re.match(r"[A-Za-z0-9._-]+", line))]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_torch() -> Iterator[Finding]:
    """Whether torch loads, and the accelerators that it sees; in a process of its own, for it is heavy."""
    if not _is_installed("torch"):
        return
    code, text, error = _run([sys.executable, "-c", _ASK_TORCH])
    if code != 0:
        remedy = "install torch anew, in the build for this machine: https://pytorch.org/get-started"
        yield Finding("torch", "bad", f"does not load: {_last_line(error)}", remedy)
        return
    found = json.loads(text)
    names = found["names"]
    if names:
        yield Finding("torch", "ok", f"{found['version']}, {len(names)} accelerators: {', '.join(sorted(set(names)))}")
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {found['built']}" if found["built"] else "built without CUDA"
        remedy = "install the build of torch for this driver (nvidia-smi shows it): https://pytorch.org/get-started"
        yield Finding("torch", "warn", f"{found['version']}, {build}, sees no GPU, yet nvidia-smi is here", remedy)
    else:
        yield Finding("torch", "ok", f"{found['version']}, on CPUs: no GPU is here")


def check_disk(home: Path) -> Iterator[Finding]:
    """Whether the home can be written and has room."""
    folder = home.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Finding("home", "bad", f"{folder} cannot be written", "choose another with --home, or change its owner")
        return
    free = shutil.disk_usage(folder).free
    state: State = "bad" if free < SCARCE_BYTES else "warn" if free < LITTLE_BYTES else "ok"
    remedy = "remove old checkpoints, or choose a home on another disk with --home" if state != "ok" else None
    yield Finding("disk", state, f"{free / 1e9:,.1f} GB free at {folder}", remedy)


def check_slurm() -> Iterator[Finding]:
    """The commands of Slurm, where any is here, and whether its controller answers."""
    missing = [name for name in SLURM if shutil.which(name) is None]
    if len(missing) == len(SLURM):
        yield Finding("slurm", "ok", "not here; only workers with the executor slurm need it")
        return
    if missing:
        remedy = "put Slurm's programs on PATH (often `module load slurm`)"
        yield Finding("slurm", "warn", f"{', '.join(missing)} missing", remedy)
        return
    _, version, _ = _run(["sbatch", "--version"])
    code, _, error = _run(["squeue", "--me", "--noheader"])
    if code != 0:
        remedy = "see that this is a login node and that the controller is up: scontrol ping"
        yield Finding("slurm", "warn", f"squeue fails: {_last_line(error)}", remedy)
        return
    accounting = "" if shutil.which("sacct") else ", without sacct: ends are taken from scontrol"
    yield Finding("slurm", "ok", f"{version.strip() or 'answers'}{accounting}")


# -- database, ports, service ------------------------------------------------------------------------------------------


def check_database(url: str, *, made_by_up: bool) -> Iterator[Finding]:
    """Whether the database answers and has the newest schema."""
    if any(not _is_installed(name) for name in required("server")):
        return  # said already; this machine serves nothing
    code, text, error = _run([sys.executable, "-m", "backend", "check", f"--database-url={url}"])
    if code == 0:
        yield Finding("database", "ok", _last_line(text))
        return
    message, _, remedy = _last_line(error).removeprefix("error: ").rpartition("; ")
    if made_by_up and message.startswith("there is no database"):
        yield Finding("database", "warn", message, "`n2n up` makes one, or `n2n db upgrade`")
    else:
        yield Finding("database", "bad", message or remedy, remedy if message else None)


def check_ports(api_port: int, page_port: int) -> Iterator[Finding]:
    """Whether `n2n up` gets its ports, or who has them."""
    for name, option, port, path in (
        ("API", "--api-port", api_port, "/api/v1/health"),
        ("page", "--page-port", page_port, "/_stcore/health"),
    ):
        if _is_free(port):
            yield Finding(f"port {port}", "ok", f"free for the {name}")
        elif _answers(f"http://{HOST}:{port}{path}"):
            yield Finding(f"port {port}", "ok", f"the {name} of this project answers there")
        else:
            remedy = f"stop it, or give another port: `n2n up {option} {port + 10}`"
            yield Finding(f"port {port}", "warn", f"something else listens there, where the {name} would be", remedy)


def check_service(url: str, token: str | None = None) -> Iterator[Finding]:
    """Whether the service answers, is ready, of our version, on our time, and lets our token in."""
    with Client(url, token=token, timeout=10, retries=0) as client:
        try:
            health, theirs = client.health(), client.server_time()
        except ApiError as error:
            chosen = url != DEFAULT_URL
            remedy = "see that the URL is right and the service up" if chosen else "`n2n up` starts one"
            yield Finding("service", "bad" if chosen else "warn", str(error).splitlines()[0], remedy)
            return
        yield Finding("service", "ok", f"{url} answers, with {health.database}")
        if health.version == __version__:
            yield Finding("version", "ok", f"{__version__} on both sides")
        else:
            remedy = "install the same version on both sides"
            yield Finding("version", "warn", f"the service has {health.version}, this is {__version__}", remedy)
        skew = abs((datetime.now(timezone.utc) - theirs).total_seconds())
        late = skew > SKEW_SECONDS
        ntp = "let both machines take their time from NTP" if late else None
        yield Finding("clock", "warn" if late else "ok", f"{skew:.0f} s apart from the service's", ntp)
        yield _ready(client)
        yield _token(client, given=bool(token or os.environ.get("N2N_TOKEN")))


def _ready(client: Client) -> Finding:
    try:
        client.ready()
    except ApiError as error:
        return Finding("ready", "bad", error.detail, "see the service's log; `n2n db upgrade` mends an older schema")
    return Finding("ready", "ok", "the service's database answers and has its schema")


def _token(client: Client, *, given: bool) -> Finding:
    try:
        alive = sum(worker.alive for worker in client.workers())
    except Unauthorized as error:
        remedy = "set $N2N_TOKEN to a token that `n2n token create` showed, where the database is"
        return Finding("token", "bad", f"{'refused' if given else 'missing'}: {error.detail}", remedy)
    except Forbidden as error:
        return Finding("token", "warn", f"valid, but {error.detail}", "make one with the scope read as well")
    except Unavailable as error:
        return Finding("token", "bad", error.detail, "see the service's log")
    if not alive:
        remedy = "start a worker: `n2n up` here, or `python -m worker` where runs are to execute"
        return Finding("workers", "warn", "none is alive: runs stay queued", remedy)
    return Finding("workers", "ok", f"{alive} alive" + (", and the token reads" if given else ""))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _run(command: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of a program; one that hangs or cannot start has failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {SECONDS:.0f} s"
    except OSError as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "no reason was given")
