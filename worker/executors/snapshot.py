"""The code that a run was submitted with, kept under the run root: later attempts run it, whatever is edited meanwhile.

A snapshot is a folder named after the content of its files. The first run of an experiment chooses it for all others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nanollama
import worker
from nanollama.spec.provenance import GIT_SECONDS, find_provenance
from nanollama.spec.rundir import PROVENANCE, Provenance, sync_directory
from worker.executors.base import Refused, is_plain_name

CODE = ".code"
"""Folder of the run root; no run has this name."""

MAX_FILE_BYTES = 1 << 20
"""Larger files are data."""

_PACKAGES = (nanollama, worker)
_SOURCES = (".py", ".pyi", ".toml", ".yaml", ".yml", ".json", ".sh", ".cfg", ".txt")
"""Of files that are not tracked yet, those that may be code."""


def snapshot_of(experiment: str, run_root: Path) -> Path:
    """The folder with the code of an experiment: that of its first run, or else a copy of what is here now.

    Args:
        experiment: names what shares the code; a plain name.
        run_root: where snapshots are kept.

    Raises:
        OSError: it cannot be written.
        Refused: a name that is not plain, or a chosen snapshot that has been removed.
    """
    if not is_plain_name(experiment):
        raise Refused(f"the experiment '{experiment}' cannot name a file")
    code = run_root / CODE
    chosen = code / "of" / experiment
    digest = _read(chosen)
    if digest is None:
        digest = take_snapshot(code)
        chosen.parent.mkdir(parents=True, exist_ok=True)
        digest = _choose(chosen, digest)
    folder = code / digest
    if not folder.is_dir():
        raise Refused(f"the code with which this experiment began is gone from {folder}; clone the run to use today's")
    return folder


def take_snapshot(code: Path) -> str:
    """Copy the code of this interpreter into a folder named after its content, unless it is there; the name."""
    files = dict(find_code())
    contents = {name: path.read_bytes() for name, path in sorted(files.items())}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{len(name.encode())}:{name}:{len(content)}:".encode())
        digest.update(content)
    folder = code / digest.hexdigest()[:32]
    if folder.is_dir():
        return folder.name
    code.mkdir(parents=True, exist_ok=True)
    growing = Path(tempfile.mkdtemp(prefix=".growing-", dir=code))
    try:
        growing.chmod(0o755)
        provenance = find_provenance().model_copy(update={"snapshot": folder.name})
        (growing / PROVENANCE).write_text(provenance.model_dump_json(indent=2))
        for name, content in contents.items():
            place = growing / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        with contextlib.suppress(OSError):  # another worker was quicker: its copy is the same
            growing.rename(folder)
            sync_directory(code)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    if not folder.is_dir():
        raise OSError(f"cannot write the code to {folder}")
    return folder.name


def provenance_of(folder: Path) -> Provenance:
    """With what, and where, a snapshot was taken."""
    return Provenance.model_validate_json((folder / PROVENANCE).read_bytes())


def find_code() -> Iterator[tuple[str, Path]]:
    """Each file of code by its name in the snapshot: what the checkout tracks or has new, or the installed packages."""
    checkout = _checkout()
    if checkout is None:
        for package in _PACKAGES:
            root = Path(package.__file__ or "").parent
            for path in root.rglob("*"):
                if _is_code(path) and "__pycache__" not in path.parts:
                    yield f"{root.name}/{path.relative_to(root).as_posix()}", path
        return
    tracked = _git(checkout, "ls-files", "-z")
    new = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard")
    for name in (tracked or "").split("\0"):
        if name and _is_code(checkout / name):
            yield name, checkout / name
    for name in (new or "").split("\0"):
        if name.endswith(_SOURCES) and _is_code(checkout / name):
            yield name, checkout / name


def _is_code(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_FILE_BYTES


def _checkout() -> Path | None:
    """The checkout that tracks both packages; None where they are installed."""
    tops = set()
    for package in _PACKAGES:
        folder = Path(package.__file__ or "").parent
        if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
            return None
        tops.add(_git(folder, "rev-parse", "--show-toplevel"))
    top = tops.pop()
    return Path(top.rstrip("\n")) if top and not tops else None


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout)


def _read(chosen: Path) -> str | None:
    try:
        return chosen.read_text().strip()
    except FileNotFoundError:
        return None


def _choose(chosen: Path, digest: str) -> str:
    """Make the choice, or find that another has made it first."""
    handle, temporary = tempfile.mkstemp(prefix=".choice-", dir=chosen.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.link(temporary, chosen)
    except FileExistsError:
        return chosen.read_text().strip()
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_directory(chosen.parent)
    return digest
