"""start.claim: the right to start an attempt, which exactly one of all contenders can take."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nanollama.spec.rundir import START_CLAIM, sync_directory
from worker.executors.processes import boot_id, start_time


class Claim(BaseModel):
    """Who took it: the job, named by its supervisor's process and Slurm's number, or one who forbade the start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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
    handle, temporary = tempfile.mkstemp(prefix=f".{START_CLAIM}.", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(claim.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # as the other files: mkstemp's 0600 would hide it from other users
        try:
            os.link(temporary, directory / START_CLAIM)
        except FileExistsError:
            return False
    finally:
        Path(temporary).unlink()
    sync_directory(directory)
    return True


def read_claim(directory: Path) -> Claim | None:
    """The claim of an attempt directory, or None."""
    try:
        return Claim.model_validate_json((directory / START_CLAIM).read_bytes())
    except FileNotFoundError:
        return None
