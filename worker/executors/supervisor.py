"""The process that executes one attempt and outlives the daemon.

`python -m worker.executors.supervisor ATTEMPT_ID DIRECTORY GRACE COMMAND…` takes the claim of the attempt directory,
runs the command in a session and process group of its own, and writes proc.json and at the end, when nothing of the
attempt is left, exit.json. On SIGTERM it passes the signal on to the command's group and kills after GRACE seconds
whatever is still there. It ends with 77, having run nothing, when the claim is taken.

A run waits for all that is imported here, so until it has started that is the standard library. The records are those
of nanollama.spec.rundir, written by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from nanollama.spec.files import EXIT, EXIT_CLAIM_LOST, NO_ROOM, PROC, STDOUT, write_atomic
from worker.executors.claim import Claim, take_claim
from worker.executors.processes import MARK, find_tree, kill_tree
from worker.machine import count_oom_kills

_PR_SET_CHILD_SUBREAPER = 36
_EXIT_NOT_STARTED = 127

FULL_BYTES = 10**6
"""Room below which a run that fails has probably failed for the lack of it."""

ROOM_SECONDS = 2.0
"""Between two tries to write how a run has ended, where there is no room."""


class Supervisor:
    """One attempt's execution."""

    def __init__(
        self, attempt_id: str, directory: Path, grace: float, command: Sequence[str], claim: Claim | None = None
    ) -> None:
        self._claim = claim or Claim.of_this_process()
        self._attempt_id = attempt_id
        self._directory = directory
        self._grace = grace
        self._command = list(command)
        self._terminated = False
        self._disk_full = False
        self._process: subprocess.Popen[bytes] | None = None  # kept: a forgotten one reaps its child when collected
        self._child: int | None = None
        self._status: int | None = None  # wait status of the child
        self._signals, wakeup = os.pipe()
        for end in (self._signals, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup)

    def run(self) -> int:
        """Execute the attempt and return this process's exit code."""
        # handlers, not SIG_IGN: an ignored signal would stay ignored in the command
        signal.signal(signal.SIGTERM, self._note_termination)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _nothing)
        claim = self._claim
        if not take_claim(self._directory, claim):
            return EXIT_CLAIM_LOST
        # orphans of the attempt become children of this process and are found, whatever session they made
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if self._terminated:
            self._write_exit(exit_code=None, signal=int(signal.SIGTERM), terminated=True)
            return 0
        killed_before = count_oom_kills()
        try:
            self._process = self._spawn()
        except OSError as error:
            print(f"error: cannot start {self._command[0]}: {error.strerror}", file=sys.stderr)
            self._write_exit(exit_code=_EXIT_NOT_STARTED)
            return 0
        self._child = self._process.pid
        try:
            self._write_proc(claim, self._child)
        except OSError as error:
            print(f"error: cannot write {PROC}: {error.strerror}; the run is ended", file=sys.stderr)
            self._disk_full = error.errno in NO_ROOM
            self._kill_everything()
        code = os.waitstatus_to_exitcode(self._wait())
        terminated = self._terminated
        self._kill_everything()
        killed = count_oom_kills()
        oom_kills = None if killed is None or killed_before is None else max(0, killed - killed_before)
        ended = {"exit_code": code, "signal": None} if code >= 0 else {"exit_code": None, "signal": -code}
        self._write_exit(**ended, terminated=terminated, oom_kills=oom_kills)
        return 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, MARK: self._attempt_id, "PYTHONUNBUFFERED": "1"}
        environment.pop("N2N_TOKEN", None)  # the worker's, not the run's
        with open(self._directory / STDOUT, "ab") as output:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _wait(self) -> int:
        """Wait for the command, ending it when told to, and return its wait status."""
        deadline: float | None = None
        while True:
            self._reap()
            if self._status is not None:
                return self._status
            if self._terminated and deadline is None:
                assert self._child is not None
                os.killpg(self._child, signal.SIGTERM)  # not reaped yet, so the group is ours
                deadline = time.monotonic() + self._grace
            if deadline is not None and time.monotonic() >= deadline:
                self._kill_everything()
                continue
            timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
            select.select([self._signals], [], [], timeout)
            self._drain_signals()

    def _kill_everything(self) -> None:
        kill_tree(lambda: find_tree(self._attempt_id, root=os.getpid()), reap=self._reap)

    def _reap(self) -> int:
        """Take leave of every child that has ended, adopted ones too; returns how many there were."""
        for count in itertools.count():
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return count
            if pid == 0:
                return count
            if pid == self._child:
                self._status = status
        raise AssertionError("unreachable")

    def _drain_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._signals, 4096)

    def _note_termination(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True

    def _write_proc(self, claim: Claim, group: int) -> None:
        """Leave a record of type Proc."""
        proc = {"pid": claim.pid, "start_time": claim.start_time, "boot_id": claim.boot_id, "pgid": group}
        write_atomic(self._directory / PROC, json.dumps(proc).encode())

    def _write_exit(self, **ended: Any) -> None:
        """Leave a record of type Exit, however long it takes until there is room for it: without it nobody knows."""
        ended["time"] = time.time()
        full = self._disk_full or _room(self._directory) < FULL_BYTES
        pauses = itertools.chain([0.1, 0.5, 1.0], itertools.repeat(ROOM_SECONDS))
        while True:
            try:
                write_atomic(self._directory / EXIT, json.dumps(ended | {"disk_full": full}).encode())
            except FileNotFoundError:
                raise  # the directory has been removed: nobody wants to know
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                full = True
                time.sleep(next(pauses))
            else:
                return


def _room(directory: Path) -> float:
    """Bytes that are left to this user where a directory is; as much as anybody wants where that cannot be told."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return math.inf
    return status.f_bavail * status.f_frsize


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Wake the supervisor, no more."""


def main(arguments: Sequence[str]) -> int:
    """Run the program on its arguments."""
    attempt_id, directory, grace, *command = arguments
    return Supervisor(attempt_id, Path(directory), float(grace), command).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
