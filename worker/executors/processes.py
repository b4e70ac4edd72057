"""Processes of this machine: telling a reused pid apart, and finding and ending everything of an attempt."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

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


def find_tree(attempt_id: str, root: int | None = None) -> list[psutil.Process]:
    """Every live process that carries the mark of the attempt or descends from one that does, or from `root`."""
    found: set[psutil.Process] = set()
    parents = [psutil.Process(root)] if root is not None else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == attempt_id:
                found.add(process)
    for process in [*parents, *found]:
        with contextlib.suppress(psutil.Error, OSError):
            found.update(process.children(recursive=True))
    found.difference_update([*parents, psutil.Process()])
    return [process for process in found if _runs(process)]


def kill_tree(find: Callable[[], list[psutil.Process]], after_round: Callable[[], None] = lambda: None) -> None:
    """Kill what `find` returns until twice in a row it finds nothing: what forks meanwhile is found in the next round.

    Args:
        find: the processes to end.
        after_round: called after each round; reaps children where the caller has some.
    """
    quiet = rounds = 0
    while quiet < 2:
        found = find()
        rounds += 1
        quiet = 0 if found else quiet + 1
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        after_round()
        if found:
            time.sleep(min(0.02 * rounds, 1.0))  # a process in the kernel's hands can take its time


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
