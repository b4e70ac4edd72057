"""The worker on Slurm whose jobs train with the code of this checkout: `-m tests.support.slurm_trainer ARGUMENTS`.

Their own copy of the code would be compiled anew, by each rank at the same time: minutes on a machine that is busy.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from nanollama.cluster.slurm import Job
from tests.support.slurm_worker import LOOK_SECONDS, SETTLE_SECONDS
from worker.executors.base import Executor
from worker.journal import Journal
from worker.main import slurm_executor, work
from worker.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]


def here(job: Job) -> Job:
    """The job with this checkout in the place of the copy."""
    assert job.harness is not None
    return replace(job, work_dir=ROOT, harness=replace(job.harness, python_path=ROOT))


def make(settings: Settings, _memory: Journal) -> Executor:
    """An executor that trains."""
    return slurm_executor(settings, settle_seconds=SETTLE_SECONDS, look_seconds=LOOK_SECONDS, command=here)


if __name__ == "__main__":
    sys.exit(work(read_settings(sys.argv[1:]), make))
