"""Where an attempt runs and with which code: what has to be known to explain a result years later."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import nanollama
from nanollama.spec.rundir import PROVENANCE, Provenance, write_atomic

GIT_SECONDS = 10.0


def write_provenance(attempt_dir: Path) -> None:
    """Write provenance.json for an attempt that this interpreter starts. Raises OSError."""
    write_atomic(attempt_dir / PROVENANCE, find_provenance().model_dump_json(indent=2).encode())


def find_provenance() -> Provenance:
    """What this interpreter would run now; what cannot be found out is left out."""
    package = Path(nanollama.__file__).parent
    sha, diff = _checkout(package)
    return Provenance(
        version=nanollama.__version__,
        python=platform.python_version(),
        host=socket.gethostname(),
        platform=platform.platform(),
        git_sha=sha,
        git_diff_sha256=hashlib.sha256(diff).hexdigest() if diff else None,
        packages=_packages(),
    )


def _checkout(package: Path) -> tuple[str | None, bytes | None]:
    """Commit and uncommitted changes of the repository that tracks the package; a foreign one around it is none."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    sha = _git(package, "rev-parse", "HEAD")
    return None if sha is None else sha.decode().strip(), _git(package, "diff", "HEAD")


def _git(folder: Path, *arguments: str) -> bytes | None:
    # it must neither take locks nor ask, and the folder is the only thing that says which repository is meant
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _packages() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name is not None:
            found[name] = distribution.version
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
