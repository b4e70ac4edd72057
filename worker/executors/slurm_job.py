"""What a job of Slurm runs around its command.

`python -m worker.executors.slurm_job ATTEMPT_ID DIRECTORY GRACE COMMAND…` takes the claim of the attempt directory in
the name of the job and supervises the command as on a single machine. It ends with 77, having run nothing, when the
claim is taken or the job has run before, and else with the code of the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanollama.spec.provenance import find_provenance
from nanollama.spec.rundir import EXIT, EXIT_CLAIM_LOST, PROVENANCE, Exit, Provenance, write_atomic
from worker.executors.claim import Claim, read_claim
from worker.executors.supervisor import Supervisor

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program on its arguments; returns the exit code."""
    attempt_id, given, grace, *command = arguments
    directory = Path(given)
    job_id = environment["SLURM_JOB_ID"]
    if environment.get("SLURM_RESTART_COUNT", "0") not in ("", "0"):
        print(f"error: job {job_id} was requeued; an attempt runs once, so it ends", file=sys.stderr)
        return EXIT_CLAIM_LOST
    end_with_parent()
    claim = Claim.of_this_process()._replace(slurm_job_id=int(job_id))
    supervisor = Supervisor(attempt_id, directory, float(grace), command, claim)
    if read_claim(directory) is None:
        _tell_where(directory)
    code = supervisor.run()
    if code != 0:
        return code
    record = Exit.model_validate_json((directory / EXIT).read_bytes())
    return 128 + record.signal if record.signal is not None else record.exit_code or 0


def end_with_parent() -> None:
    """Get a SIGTERM when the job's script is killed: Slurm may know of this process through it alone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _tell_where(directory: Path) -> None:
    """Bring provenance.json, which was written where the job was submitted, in line with where it runs."""
    planned = Provenance.model_validate_json((directory / PROVENANCE).read_bytes())
    code = {"git_sha": planned.git_sha, "git_diff_sha256": planned.git_diff_sha256, "snapshot": planned.snapshot}
    here = find_provenance().model_copy(update=code)
    write_atomic(directory / PROVENANCE, here.model_dump_json(indent=2).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
