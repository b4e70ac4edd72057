"""A small program in the place of training: `python -m tests.support.small_training config=FILE attempt_dir=PATH`.

It makes a hundred steps a second and goes on from the step that the run's last attempt has saved. It is told what to do
by files in the run's directory: it saves when `save` is there, and every fifty steps while `saving` is; it ends well
when `finish` is; it saves and ends with 75 when it is asked to stop, and takes no notice of SIGTERM while `stubborn` is
there. It keeps a ledger of its starts in `starts`, and notes in `twice` when it is not alone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

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

MODULE = "tests.support.small_training"
STARTS, TWICE = "starts", "twice"
SAVE_STEPS = 50


def train(directory: Path) -> int:
    """A run of many steps that waits for its end."""
    run = directory.parent
    if (run / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (run / STARTS).open("a") as file:
        job, node = os.environ.get("SLURM_JOB_ID", os.getpid()), os.environ.get("SLURM_JOB_NODELIST", "here")
        file.write(f"{directory.name} {job} {node}\n")
    with (run / "alone").open("a") as alone:
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (run / TWICE).write_text(f"attempt {directory.name} has begun while another went on\n")
        return _steps(directory)


def _steps(directory: Path) -> int:
    run = directory.parent
    saved = sorted((run / CHECKPOINTS).glob("*"))
    step = int(saved[-1].name) if saved else 0
    path = metrics_file(directory, 0)
    path.parent.mkdir()
    with open(path, "ab", buffering=0) as file:
        for seq in range(10**9):
            if (run / "finish").exists():
                break
            step += 1
            values = {"seq": seq, "step": step, "tokens": step, "time": time.time(), "loss": 1.0 / step}
            file.write(encode_line(MetricLine.model_validate(values).model_dump()))
            if (run / "save").exists():
                (run / "save").unlink()
                save(directory, step)
            elif step % SAVE_STEPS == 0 and (run / "saving").exists():
                save(directory, step)
            if (directory / STOP_REQUESTED).exists():
                save(directory, step)
                stopped = Stopped(exit_code=EXIT_INTERRUPTED, step=step)
                write_atomic(directory / STOPPED, stopped.model_dump_json().encode())
                return EXIT_INTERRUPTED
            time.sleep(0.01)
    print(f"finished at step {step}", flush=True)
    result = Result(step=step, tokens=step, seconds=1.0)
    write_atomic(directory / RESULT, result.model_dump_json().encode())
    return 0


def save(directory: Path, step: int) -> None:
    """Note the step in a directory that stands for a checkpoint, and tell of it."""
    folder = directory.parent / CHECKPOINTS / checkpoint_name(step)
    folder.mkdir(parents=True, exist_ok=True)
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


if __name__ == "__main__":
    (given,) = (argument for argument in sys.argv[1:] if argument.startswith("attempt_dir="))
    sys.exit(train(Path(given.removeprefix("attempt_dir="))))
