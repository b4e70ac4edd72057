"""The worker with a training that takes no time: `python -m tests.support.quick_worker ARGUMENTS`.

Everything is real but the program in the place of torchrun, which writes a few metric lines and a result.
"""

from __future__ import annotations

import sys

from nanollama.spec.base import Spec
from worker.executors.base import Attempt
from worker.main import local_executor, work
from worker.settings import read_settings

# no import of ours: dozens of these are started
_PROGRAM = """
import json, pathlib, sys
directory = pathlib.Path(sys.argv[1])
(directory / "metrics").mkdir()
with open(directory / "metrics" / "rank0.jsonl", "w") as file:
    for seq in range(20):
        step, excess = 10 * (seq + 1), 1 / (seq + 1)
        line = {"seq": seq, "step": step, "tokens": 496 * step, "time": 1e9 + seq}
        file.write(json.dumps(line | {"loss": 2 + excess, "bound": 2.0, "excess": excess}) + "\\n")
result = {"step": 200, "tokens": 99200, "seconds": 1.0, "loss": 2.05, "bound": 2.0, "excess": 0.05}
(directory / "result.tmp").write_text(json.dumps(result))
(directory / "result.tmp").rename(directory / "result.json")
"""


def command(attempt: Attempt, _spec: Spec) -> list[str]:
    """This file's program for an attempt."""
    return [sys.executable, "-S", "-c", _PROGRAM, str(attempt.directory)]


if __name__ == "__main__":
    sys.exit(
        work(read_settings(sys.argv[1:]), lambda settings, memory: local_executor(settings, memory, command=command))
    )
