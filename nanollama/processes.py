"""Runs as processes of this machine, one after the other or several at a time, and the signals that reach them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from nanollama.cluster.slurm import Job
from nanollama.monitor.attempt import read_stopped
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import EXIT_INTERRUPTED, STDOUT, STOP_REQUESTED


@dataclass(frozen=True)
class Start:
    """A run that can be started: its name, and the function that runs it to its end and returns its exit code."""

    name: str
    run: Callable[[], int]


class Runner:
    """Runs jobs here and passes signals on; after the first signal it starts no more.

    USR1, and the first SIGINT, ask jobs that know attempts to save and to stop.

    Args:
        keep_output: write what a job prints into its attempt's directory instead of here.
    """

    def __init__(self, *, keep_output: bool = False) -> None:
        self._keep_output = keep_output
        self._live: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._lock = threading.RLock()  # a signal's handler may come while this very thread holds it
        self.stopping = False

    def run(self, job: Job) -> int:
        """Run the job's ranks until they end; returns the exit code, or EXIT_INTERRUPTED when it was not started."""
        # standalone: a port of its own, or the runs of a grid that train at the same time would meet on the default one
        ranks = ["--standalone", f"--nproc-per-node={job.nproc_per_node}", "-m", job.module, *job.arguments]
        command = [job.python, "-m", "nanollama.cluster.torchrun", *ranks]
        with self._lock:
            if self.stopping:
                return EXIT_INTERRUPTED
            # a session of its own, or torchrun would get the terminal's Ctrl-C twice: from the terminal and from here
            if self._keep_output:
                with open(job.attempt_dir / STDOUT, "ab") as output:
                    process = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
            else:
                process = subprocess.Popen(command, start_new_session=True)
            self._live[process.pid] = (job, process)
        code = process.wait()
        with self._lock:
            del self._live[process.pid]
        stopped = read_stopped(job.attempt_dir)
        if stopped is not None:
            return stopped.exit_code
        return code if code >= 0 else 128 - code

    def pass_on(self, number: int, _frame: FrameType | None = None) -> None:
        """Ask for a stop, or hand the signal to every process under way."""
        with self._lock:
            asks = number == signal.SIGUSR1 or (number == signal.SIGINT and not self.stopping)
            self.stopping = True
            for job, process in self._live.values():
                if asks and (job.knows_attempts or number == signal.SIGUSR1):
                    (job.attempt_dir / STOP_REQUESTED).touch()
                else:
                    process.send_signal(number)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within it, this process passes its signals on instead of ending."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        before = {number: signal.signal(number, self.pass_on) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_LOOK_SECONDS = 1.0
"""A second signal may find the main thread asleep on a lock, and is handled when it wakes."""


def run_all(runner: Runner, starts: Sequence[Start], *, parallel: int, summarise: bool) -> int:
    """Run all, `parallel` at a time, and return one exit code.

    Args:
        runner: knows of signals.
        starts: the runs, in order.
        parallel: how many at a time.
        summarise: whether they are a grid, whose progress is told and whose code is 0, or 1 when one has failed, or 75
            after a stop; the code of a run by itself is that of the run.

    Raises:
        SpecError: of the first run that could not be started; those under way go on to their end.
    """
    codes: dict[int, int] = {}
    errors: list[SpecError] = []
    with runner.signals(), ThreadPoolExecutor(parallel) as pool:
        waiting = iter(enumerate(starts))
        live: dict[Future[int], int] = {}
        while True:
            while len(live) < parallel and not (runner.stopping or errors) and (item := next(waiting, None)):
                index, start = item
                if summarise:
                    print(f"[{index + 1}/{len(starts)}] {start.name}", file=sys.stderr, flush=True)
                live[pool.submit(start.run)] = index
            if not live:
                break
            done, _ = wait(live, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                index = live.pop(future)
                try:
                    codes[index] = future.result()
                except SpecError as error:
                    errors.append(error)
    if errors:
        raise errors[0]
    if not summarise:
        return codes.get(0, EXIT_INTERRUPTED)
    return _summary(starts, codes, stopped=runner.stopping)


def _summary(starts: Sequence[Start], codes: dict[int, int], *, stopped: bool) -> int:
    """Print how a grid has ended and return its exit code."""
    finished = sum(code == 0 for code in codes.values())
    failed = [i for i, code in sorted(codes.items()) if code not in (0, EXIT_INTERRUPTED)]
    rest = len(starts) - finished - (0 if stopped else len(failed))
    print(f"{finished} of {len(starts)} runs finished", file=sys.stderr)
    if stopped:
        print(f"{rest} were stopped or not started; the same command continues", file=sys.stderr)
        return next((codes[i] for i in failed), EXIT_INTERRUPTED)
    for i in failed:
        print(f"failed with exit code {codes[i]}: {starts[i].name}", file=sys.stderr)
    return 1 if failed else 0 if finished == len(starts) else EXIT_INTERRUPTED
