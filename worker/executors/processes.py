"""Processes of this machine: telling a reused pid apart, and finding and ending everything of an attempt."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MARK = "N2N_ATTEMPT"
"""Environment variable that every process of an attempt inherits; its value is the attempt's id."""

_START_TIME_FIELD = 21  # of /proc/<pid>/stat, from 0; see proc(5)


def boot_id() -> str:
    """Identity of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> float | None:
    """When a process started, in seconds since boot; None when there is none, or only what is left of it (a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold spaces and parentheses
    if fields[0] in "ZX":
        return None
    return int(fields[_START_TIME_FIELD - 2]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int | None, started: float | None, boot: str | None) -> bool:
    """Whether the very process that was recorded is still there."""
    return pid is not None and boot == boot_id() and started is not None and start_time(pid) == started


def find_tree(attempt_id: str, root: int | None = None) -> Iterator[psutil.Process]:
    """Every live process that carries the mark of the attempt, or descends from one that does or from `root`.

    Marked ones are told as they are found, so that they can be ended before they fork; then, as long as new processes
    have appeared meanwhile, these are looked at too. The calling process and `root` are left out.
    """
    import psutil  # noqa: PLC0415 - a run does not wait for it to start

    parents: dict[int, int] = {}
    found: set[int] = set()
    while new := set(psutil.pids()) - parents.keys():
        for pid in new:
            parents[pid] = 0
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                if pid in (os.getpid(), root) or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    continue
                parents[pid] = process.ppid()
                if process.environ().get(MARK) == attempt_id:
                    found.add(pid)
                    yield process
    relatives = found | ({root} if root is not None else set())
    while more := {pid for pid, parent in parents.items() if parent in relatives} - relatives:
        relatives |= more
        for pid in more:
            with contextlib.suppress(psutil.NoSuchProcess):
                yield psutil.Process(pid)


def kill_tree(find: Callable[[], Iterable[psutil.Process]], reap: Callable[[], int] = lambda: 0) -> None:
    """Kill what `find` returns until twice in a row there is nothing: what forks meanwhile is found in the next round.

    A process is killed together with its group, unless that is the caller's own. A single process that forks and exits
    again and again is gone before a signal to its pid arrives; a signal to a group reaches every member at once, and
    the kernel lets none of them fork any more.

    Args:
        find: the processes to end.
        reap: called after each round where the caller has children; returns how many had ended.
    """
    import psutil  # noqa: PLC0415 - as above

    quiet = rounds = 0
    while quiet < 2:
        killed = 0
        for process in find():
            killed += 1
            with contextlib.suppress(OSError):
                group = os.getpgid(process.pid)
                if group != os.getpgrp():
                    os.killpg(group, signal.SIGKILL)
            with contextlib.suppress(psutil.Error):
                process.kill()
        quiet = 0 if reap() or killed else quiet + 1
        rounds += 1
        if killed:
            time.sleep(min(0.01 * rounds, 1.0))  # a process in the kernel's hands can take its time
