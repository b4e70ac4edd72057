"""The worker with runs that are no processes: `python -m tests.support.crowded_worker ARGUMENTS`; they never end."""

from __future__ import annotations

import sys

from worker.executors.fake import FakeExecutor
from worker.main import work
from worker.settings import read_settings

if __name__ == "__main__":
    sys.exit(work(read_settings(sys.argv[1:]), lambda _settings, _memory: FakeExecutor()))
