"""start.claim: the right to start an attempt, which exactly one of all contenders can take.

With the standard library alone, as what starts a run waits for every import.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nanollama.spec.files import START_CLAIM, sync_directory, write_beside
from worker.executors.processes import boot_id, start_time


class Claim(NamedTuple):
    """Who took it: the job, named by its supervisor's process and Slurm's number, or one who forbade the start."""

    holder: Literal["job", "cancel", "void"]
    pid: int | None = None
    start_time: float | None = None
    boot_id: str | None = None
    slurm_job_id: int | None = None

    @classmethod
    def of_this_process(cls) -> Claim:
        """The claim of a job whose supervisor is the calling process."""
        return cls(holder="job", pid=os.getpid(), start_time=start_time(os.getpid()), boot_id=boot_id())


def take_claim(directory: Path, claim: Claim) -> bool:
    """Take the claim of an attempt directory; False when somebody has it. A claim is never seen half-written."""
    path = directory / START_CLAIM
    temporary = write_beside(path, json.dumps(claim._asdict()).encode())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_directory(directory)
    return True


def read_claim(directory: Path) -> Claim | None:
    """The claim of an attempt directory, or None.

    Raises:
        ValueError: it is no claim; nobody but an executor writes there.
    """
    path = directory / START_CLAIM
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    found: dict[str, Any] = json.loads(text)
    if not isinstance(found, dict) or found.get("holder") not in ("job", "cancel", "void"):
        raise ValueError(f"{path} is no claim: {text[:200]!r}")
    return Claim(**{key: value for key, value in found.items() if key in Claim._fields})
