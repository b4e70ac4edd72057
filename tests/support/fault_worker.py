"""The local worker with a small program in the place of torchrun: `python -m tests.support.fault_worker ARGUMENTS`."""

from __future__ import annotations

import sys

from nanollama.spec.base import Spec
from nanollama.spec.rundir import CONFIG
from tests.support.small_training import MODULE
from worker.executors.base import Attempt
from worker.main import local_executor, work
from worker.settings import read_settings


def command(attempt: Attempt, _spec: Spec) -> list[str]:
    """The small program for an attempt."""
    directory = attempt.directory
    return [sys.executable, "-m", MODULE, f"config={directory / CONFIG}", f"attempt_dir={directory}"]


if __name__ == "__main__":
    parts = {"command": command}
    sys.exit(work(read_settings(sys.argv[1:]), lambda settings, memory: local_executor(settings, memory, **parts)))
