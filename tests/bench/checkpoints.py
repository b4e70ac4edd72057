"""What a checkpoint every 50 steps costs the training loop: written by the loop, and beside it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from nanollama.apps.gssm.train import Trainer
from nanollama.apps.gssm.train import main as train
from nanollama.monitor.checkpoint import Checkpoints
from nanollama.monitor.monitor import Monitor
from tests.bench.timing import Row

ROOT = Path(__file__).resolve().parents[2]
STEPS, PERIOD, ROUNDS = 150, 50, 2


def bench_checkpoints() -> list[Row]:
    """The debug config; the loop's share is the time that it spends on copying, on writing or on waiting for it.

    The thread's CPU time is the most that the loop can lose beside, on a machine without a core to spare.
    """
    shares: dict[str, list[float]] = {"true": [], "false": []}
    threads: list[float] = []
    for _ in range(ROUNDS):
        for asynchronous in ("true", "false"):
            loop, thread, total = _run(asynchronous)
            shares[asynchronous].append(loop / total)
            if asynchronous == "true":
                threads.append(thread / total)
    beside, inside = (statistics.median(found) for found in shares.values())
    work = f"share of the loop, a checkpoint every {PERIOD} steps of the debug config"
    share = Row(work, f"{beside:.2%}", f"written by the loop {inside:.2%}", f"{inside / beside:.1f} x", "< 3 %")
    return [share, Row("CPU time of the thread that writes, share of the loop", f"{statistics.median(threads):.2%}")]


def _run(asynchronous: str) -> tuple[float, float, float]:
    """Seconds that the loop spends on checkpoints, CPU seconds of writing them, and seconds of all steps."""
    loop: list[float] = []
    thread: list[float] = []

    def timed(function: Callable[..., Any], clock: Callable[[], float], seconds: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = clock()
            value = function(*args)
            seconds.append(clock() - start)
            return value

        return call

    arguments = [f"config={ROOT / 'configs/gssm/debug.yaml'}", f"optim.steps={STEPS}", "optim.warmup=10"]
    arguments += ["evaluation.period=0"]
    arguments += [f"orchestration.checkpoint.period={PERIOD}", f"orchestration.checkpoint.asynchronous={asynchronous}"]
    with (
        mock.patch.object(Monitor, "save", timed(Monitor.save, time.perf_counter, loop)),
        mock.patch.object(Trainer, "state", timed(Trainer.state, time.perf_counter, loop)),
        mock.patch.object(Checkpoints, "save", timed(Checkpoints.save, time.thread_time, thread)),
        tempfile.TemporaryDirectory(dir=ROOT) as folder,  # on a real disk: /tmp may be memory
    ):
        assert train([*arguments, "orchestration.logging.level=ERROR", f"orchestration.log_dir={folder}/run"]) == 0
        result = json.loads(Path(folder, "run", "1", "result.json").read_text())
    return sum(loop), sum(thread), result["seconds"]
