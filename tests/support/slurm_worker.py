"""The worker on Slurm with a small program in the place of training: `python -m tests.support.slurm_worker ARGUMENTS`.

The program, called with `config=FILE attempt_dir=PATH`, makes a hundred steps a second and goes on from the step that
the run's last attempt has saved. It saves when the file `save` is in the run's directory, ends well when `finish` is,
saves and ends with 75 when it is asked to stop, and takes no notice of SIGTERM where the file `stubborn` lies there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from nanollama.cluster.slurm import Job
from nanollama.spec.rundir import (
    CHECKPOINTS,
    EVENTS,
    EXIT_INTERRUPTED,
    RESULT,
    STOP_REQUESTED,
    STOPPED,
    EventLine,
    MetricLine,
    Result,
    Stopped,
    checkpoint_name,
    encode_line,
    metrics_file,
    write_atomic,
)
from worker.executors.base import Executor
from worker.journal import Journal
from worker.main import slurm_executor, work
from worker.settings import Settings, read_settings

MODULE = "tests.support.slurm_worker"
SETTLE_SECONDS, LOOK_SECONDS = 1.0, 0.25


def train(directory: Path) -> int:
    """A run of many steps that waits for its end."""
    run = directory.parent
    if (run / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (run / "starts").open("a") as file:
        file.write(f"{directory.name} {os.environ['SLURM_JOB_ID']} {os.environ['SLURM_JOB_NODELIST']}\n")
    saved = sorted((run / CHECKPOINTS).glob("*"))
    step = int(saved[-1].name) if saved else 0
    path = metrics_file(directory, 0)
    path.parent.mkdir()
    with open(path, "ab", buffering=0) as file:
        for seq in range(10**9):
            if (run / "finish").exists():
                break
            step += 1
            line = MetricLine.model_validate(
                {"seq": seq, "step": step, "tokens": step, "time": time.time(), "loss": 1.0 / step}
            )
            file.write(encode_line(line.model_dump()))
            if (run / "save").exists():
                (run / "save").unlink()
                save(directory, step)
            if (directory / STOP_REQUESTED).exists():
                save(directory, step)
                write_atomic(
                    directory / STOPPED, Stopped(exit_code=EXIT_INTERRUPTED, step=step).model_dump_json().encode()
                )
                return EXIT_INTERRUPTED
            time.sleep(0.01)
    print(f"finished at step {step}", flush=True)
    result = Result(step=step, tokens=step, seconds=1.0)
    write_atomic(directory / RESULT, result.model_dump_json().encode())
    return 0


def save(directory: Path, step: int) -> None:
    """Note the step in a directory that stands for a checkpoint, and tell of it."""
    folder = directory.parent / CHECKPOINTS / checkpoint_name(step)
    folder.mkdir(parents=True)
    events = directory / EVENTS
    seq = len(events.read_bytes().splitlines()) if events.exists() else 0
    line = EventLine(
        seq=seq,
        kind="checkpoint_saved",
        step=step,
        time=time.time(),
        path=f"{CHECKPOINTS}/{folder.name}",
        size_bytes=1,
        digest=f"{step:064x}",
    )
    with open(events, "ab") as file:
        file.write(encode_line(line.model_dump()))


def small(job: Job) -> Job:
    """The job with this file's program."""
    return replace(job, module=MODULE, torchrun=False)


def make(settings: Settings, _memory: Journal) -> Executor:
    """An executor that runs this file's program."""
    return slurm_executor(settings, settle_seconds=SETTLE_SECONDS, look_seconds=LOOK_SECONDS, command=small)


def main(arguments: list[str]) -> int:
    """The program, or the worker that runs it."""
    if arguments[0].startswith("config="):
        (given,) = (argument for argument in arguments if argument.startswith("attempt_dir="))
        return train(Path(given.removeprefix("attempt_dir=")))
    return work(read_settings(arguments), make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
