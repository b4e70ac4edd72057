"""The worker with a small program in the place of torchrun: `python -m tests.support.tiny_worker ARGUMENTS`.

The program writes metric lines until the file `finish` appears in its attempt directory, or, unless the file `stubborn`
is there, until it is asked to stop.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from nanollama.spec.base import Spec
from nanollama.spec.rundir import (
    EXIT_INTERRUPTED,
    RESULT,
    STOP_REQUESTED,
    STOPPED,
    MetricLine,
    Result,
    Stopped,
    encode_line,
    metrics_file,
    write_atomic,
)
from worker.executors.base import Attempt
from worker.main import local_executor, work
from worker.settings import read_settings

_PROGRAM = """
import pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
(directory / "started").write_text(str(time.time()))  # before the imports, which take a while
from tests.support.tiny_worker import train
sys.exit(train(directory))
"""


def command(attempt: Attempt, _spec: Spec) -> list[str]:
    """This file's program for an attempt."""
    return [sys.executable, "-c", _PROGRAM, str(attempt.directory)]


def train(directory: Path) -> int:
    """A run of many steps that waits for its end."""
    if (directory.parent / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = metrics_file(directory, 0)
    path.parent.mkdir()
    step = 0
    with open(path, "ab", buffering=0) as file:
        while not (directory / "finish").exists():
            line = MetricLine(seq=step, step=step + 1, tokens=step, time=time.time())
            file.write(encode_line(line.model_dump()))
            step += 1
            stubborn = (directory.parent / "stubborn").exists()
            if (directory / STOP_REQUESTED).exists() and not stubborn:
                stopped = Stopped(exit_code=EXIT_INTERRUPTED, step=step)
                write_atomic(directory / STOPPED, stopped.model_dump_json().encode())
                return EXIT_INTERRUPTED
            time.sleep(0.01)
    print(json.dumps({"steps": step}), end="")
    result = Result(step=step, tokens=step, seconds=1.0)
    write_atomic(directory / RESULT, result.model_dump_json().encode())
    return 0


def main(arguments: list[str]) -> int:
    """The worker."""
    return work(read_settings(arguments), lambda settings, memory: local_executor(settings, memory, command=command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
