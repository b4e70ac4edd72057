"""What this machine lets the worker use: accelerators, CPUs, memory; and what its kernel has ended for lack of memory.

A limit counts wherever it is set: the affinity of the process, and every control group from its own up to the root, of
either version.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

_UNLIMITED_BYTES = 1 << 60  # version 1 writes a number near 2^63 where there is no limit


def find_accelerators(environment: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The names by which CUDA programs of this process would be given accelerators, without a driver being asked.

    Where CUDA_VISIBLE_DEVICES is set these are its entries (numbers, or UUIDs) up to the first that names none, as CUDA
    itself reads it; else the numbers of the NVIDIA devices that the machine has.
    """
    listed = environment.get(CUDA_VISIBLE_DEVICES)
    if listed is None:
        count = sum(1 for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal())
        return tuple(str(i) for i in range(count))
    found: list[str] = []
    for entry in (entry.strip() for entry in listed.split(",")):
        if not (entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))) or entry in found:
            break
        found.append(entry)
    return tuple(found)


class ControlGroup:
    """The control groups of this process.

    Args:
        membership: the file that names them.
        mounts: where they are mounted.
    """

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> None:
        self._mounts = mounts
        self._paths: dict[str, str] = {}  # by controller; '' is version 2
        with contextlib.suppress(OSError):
            for line in membership.read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                self._paths |= dict.fromkeys(controllers.split(","), path)

    def cpus(self) -> float:
        """How many CPUs' worth of time it may use; infinite without a limit."""
        limits = [math.inf]
        for folder in self._folders(""):
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            if quota.isdecimal() and period.isdecimal():
                limits.append(int(quota) / int(period))
        for folder in self._folders("cpu"):
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if quota.isdecimal() and period.isdecimal():
                limits.append(int(quota) / int(period))
        return min(limits)

    def memory(self) -> float:
        """How many bytes of memory it may use; infinite without a limit."""
        limits = [math.inf]
        for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
            for folder in self._folders(controller):
                text = _read(folder / name)
                if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
                    limits.append(int(text))
        return min(limits)

    def oom_kills(self) -> int | None:
        """How many processes of its own group the kernel has ended for lack of memory; None when it does not say."""
        for controller, name in (("", "memory.events"), ("memory", "memory.oom_control")):
            for folder in self._folders(controller):
                count = _field(_read(folder / name), "oom_kill")
                if count is not None:
                    return count
                break  # only the own group counts its own processes
        return None

    def _folders(self, controller: str) -> Iterator[Path]:
        """The group's folder and those of its ancestors, as far as they can be seen from here."""
        path = self._paths.get(controller)
        if path is None:
            return
        root = self._mounts / controller
        if not controller and (self._mounts / "unified").is_dir():
            root = self._mounts / "unified"
        folder = root / path.lstrip("/")
        while True:
            yield folder
            if folder == root or root not in folder.parents:
                return
            folder = folder.parent


def count_cpus(group: ControlGroup | None = None) -> int:
    """CPUs that this process may use at once; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min(allowed, (group or ControlGroup()).cpus())))


def find_memory_gb(group: ControlGroup | None = None) -> float:
    """Memory that this process may use, in GB."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return round(min(present, (group or ControlGroup()).memory()) / 1e9, 1)


def count_oom_kills(group: ControlGroup | None = None, statistics: Path = Path("/proc/vmstat")) -> int | None:
    """Processes that the kernel has ended for lack of memory: in this control group, or where none counts, anywhere."""
    own = (group or ControlGroup()).oom_kills()
    return own if own is not None else _field(_read(statistics), "oom_kill")


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
