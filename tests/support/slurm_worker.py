"""The worker on Slurm with a small program in the place of training: `-m tests.support.slurm_worker ARGUMENTS`."""

from __future__ import annotations

import sys
from dataclasses import replace

from nanollama.cluster.slurm import Job
from tests.support.small_training import MODULE
from worker.executors.base import Executor
from worker.journal import Journal
from worker.main import slurm_executor, work
from worker.settings import Settings, read_settings

SETTLE_SECONDS, LOOK_SECONDS = 1.0, 0.25


def small(job: Job) -> Job:
    """The job with the small program."""
    return replace(job, module=MODULE, torchrun=False)


def make(settings: Settings, _memory: Journal) -> Executor:
    """An executor that runs the small program."""
    return slurm_executor(settings, settle_seconds=SETTLE_SECONDS, look_seconds=LOOK_SECONDS, command=small)


if __name__ == "__main__":
    sys.exit(work(read_settings(sys.argv[1:]), make))
