"""Executes attempts as processes of this machine, each under a supervisor that outlives the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from nanollama.spec.base import Spec
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.provenance import write_provenance
from nanollama.spec.rundir import CONFIG, EXIT, EXIT_CLAIM_LOST, PROC, STDOUT, Exit, write_atomic
from nanollama.spec.yaml_text import dump_yaml
from worker.executors.base import Attempt, ExecutorKind, Forbidder, Phase, Status
from worker.executors.claim import Claim, read_claim, take_claim
from worker.executors.commands import app_command, nproc_per_node, read_spec
from worker.executors.devices import SUPERVISOR, Devices, find_supervised
from worker.executors.processes import boot_id, find_tree, is_alive, kill_tree
from worker.machine import CUDA_VISIBLE_DEVICES

_REAP_SECONDS = 0.5

RecordT = TypeVar("RecordT", bound=BaseModel)


class LocalExecutor:
    """Attempts as processes of this machine.

    Args:
        grace: seconds between the request to end and the kill.
        command: what a supervisor runs for an attempt.
        devices: gives accelerators to runs; without it they see what the worker sees.
        cpus: CPUs of a run, which its ranks share; without it each makes as many threads as there are.
    """

    def __init__(
        self,
        *,
        grace: float = 4.0,
        command: Callable[[Attempt, Spec], list[str]] = app_command,
        devices: Devices | None = None,
        cpus: int | None = None,
    ) -> None:
        self._grace = grace
        self._command = command
        self._devices = devices
        self._cpus = cpus
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # supervisors of this life, by attempt
        self._released: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    @property
    def kind(self) -> ExecutorKind:
        """The name of the executor on the wire."""
        return "local"

    @property
    def look_seconds(self) -> float:
        """Between two looks: what is looked at is cheap, and somebody waits for it."""
        return 0.25

    def start(self, attempt: Attempt) -> None:
        """Start a supervisor; it does nothing when the attempt has been claimed.

        Raises:
            Refused: an app or config that cannot be run.
            Busy: its accelerators are not free yet.
            OSError: a directory that cannot be written; nothing has been started.
        """
        spec = read_spec(attempt)
        environment = self._environment(attempt, spec)
        attempt.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(attempt.directory / CONFIG, dump_yaml(spec).encode())
        child = self._spawn(attempt, spec, environment)
        with self._lock:
            self._children[attempt.id] = child
        with contextlib.suppress(OSError):  # started it is; and while it starts there is time to ask git
            write_provenance(attempt.directory)

    def look(self, attempt: Attempt) -> Status:
        """Where the attempt is, by the files in its directory."""
        # first the process, then the files: it writes before it ends, so what it has written is seen
        with self._lock:
            child = self._children.get(attempt.id)
            code = None if child is None else child.poll()
        claim = read_claim(attempt.directory)
        if claim is None:
            if code in (0, EXIT_CLAIM_LOST):
                return Status(Phase.VANISHED, reason=f"{attempt.directory} has been removed")
            if code is not None:
                reason = f"the supervisor ended with code {code} before it could start the run"
                return Status(Phase.FAILED_TO_START, reason=reason)
            return Status(Phase.ABSENT if child is None else Phase.STARTING)
        if claim.holder != "job":
            return Status(Phase.FORBIDDEN, forbidder=claim.holder)
        alive = is_alive(claim.pid, claim.start_time, claim.boot_id)
        ended = _read_record(Exit, attempt.directory / EXIT)
        if ended is not None:
            return Status(Phase.ENDED, exit=ended)
        if not alive:
            return Status(Phase.VANISHED, reason=_why_vanished(claim))
        return Status(Phase.RUNNING if (attempt.directory / PROC).exists() else Phase.STARTING)

    def look_without_files(self, attempt: Attempt) -> Status:
        """Whether processes are left of it: these are left alone, until somebody cancels it."""
        gone = f"its files are gone from {attempt.directory}"
        supervisors = [run.pid for run in find_supervised() if run.attempt_id == attempt.id]
        left = supervisors or [process.pid for process in find_tree(attempt.id)]
        if left:
            return Status(Phase.UNKNOWN, reason=f"{gone}, and process {left[0]} goes on; cancel the run to end it")
        return Status(Phase.VANISHED, reason=gone)

    def forbid(self, attempt: Attempt, by: Forbidder) -> bool:
        """Take the claim, so that no supervisor can."""
        attempt.directory.mkdir(parents=True, exist_ok=True)
        return take_claim(attempt.directory, Claim(holder=by))

    def stop(self, attempt: Attempt) -> None:
        """Tell the supervisor to end the run and, after the grace, to kill what is left."""
        self._signal_supervisor(attempt, signal.SIGTERM)

    def kill(self, attempt: Attempt) -> None:
        """Kill supervisor and run; returns when nothing is left."""
        self._signal_supervisor(attempt, signal.SIGKILL)
        kill_tree(lambda: find_tree(attempt.id))

    def release(self, attempt: Attempt) -> None:
        """Reap the supervisor, which has nothing left to do; one that goes on for another worker is reaped later."""
        if self._devices:
            self._devices.free(attempt.id)
        with self._lock:
            child = self._children.pop(attempt.id, None)
        if child is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_REAP_SECONDS)
        with self._lock:
            self._released = [c for c in (*self._released, child) if c.poll() is None]

    def _signal_supervisor(self, attempt: Attempt, number: signal.Signals) -> None:
        claim = read_claim(attempt.directory)
        if claim is None or not is_alive(claim.pid, claim.start_time, claim.boot_id):
            return
        assert claim.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(claim.pid, number)

    def _environment(self, attempt: Attempt, spec: Spec) -> dict[str, str]:
        """What the run finds in its environment: its accelerators, and its share of the CPUs unless one is set."""
        environment = dict(os.environ)
        ranks = nproc_per_node(spec)
        if self._devices:
            cluster = spec.cluster if isinstance(spec, ExperimentSpec) else None
            wanted = 0 if cluster is None or cluster.device == "cpu" else ranks
            environment[CUDA_VISIBLE_DEVICES] = ",".join(self._devices.take(attempt.id, wanted))
        if self._cpus is not None:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, self._cpus // ranks)))
        return environment

    def find_strays(self, run_root: Path) -> dict[str, str]:
        """What supervisors execute on this machine below the run root, in words, by attempt."""
        return {
            run.attempt_id: f"{run.directory} is executed here by process {run.pid}, of which this worker's journal "
            "does not know; it is left alone until a worker of this pool is given its lease"
            for run in find_supervised()
            if run.directory.is_relative_to(run_root)
        }

    def _spawn(self, attempt: Attempt, spec: Spec, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", SUPERVISOR]
        arguments = [attempt.id, str(attempt.directory), str(self._grace), *self._command(attempt, spec)]
        with open(attempt.directory / STDOUT, "ab") as output:
            return subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )


def _why_vanished(claim: Claim) -> str:
    if claim.boot_id != boot_id():
        return "the machine has been restarted"
    return "the run's supervisor has vanished without an account; it was probably killed by hand or out of memory"


def _read_record(model: type[RecordT], path: Path) -> RecordT | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
