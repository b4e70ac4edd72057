"""What the worker finds on its machine, from files as kernels write them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from worker.machine import ControlGroup, count_cpus, count_oom_kills, find_accelerators, find_memory_gb


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("0,1", ("0", "1")),
        (" 2 , 3 ", ("2", "3")),
        ("GPU-6f3a,MIG-1", ("GPU-6f3a", "MIG-1")),
        ("", ()),
        ("-1", ()),
        ("0,-1,2", ("0",)),
        ("1,1,2", ("1",)),
        ("NoDevFiles", ()),
    ],
)
def test_reads_the_outer_choice_as_cuda_does(listed: str, found: tuple[str, ...]) -> None:
    assert find_accelerators({"CUDA_VISIBLE_DEVICES": listed}) == found


def test_counts_devices_without_a_driver(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert find_accelerators({}, tmp_path) == ("0", "1")


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/a/b\n")
    for folder, cpus, memory in (("a/b", "max 100000", "max"), ("a", "150000 100000", "3000000000")):
        (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / folder / "cpu.max").write_text(f"{cpus}\n")
        (tmp_path / "fs" / folder / "memory.max").write_text(f"{memory}\n")
    (tmp_path / "fs/a/b/memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "fs/a/memory.events").write_text("oom_kill 9\n")
    group = ControlGroup(tmp_path / "self", tmp_path / "fs")
    assert (group.cpus(), group.memory(), group.oom_kills()) == (1.5, 3e9, 2)
    assert count_cpus(group) == 1
    assert find_memory_gb(group) == 3.0
    assert count_oom_kills(group) == 2


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/box\n3:cpu,cpuacct:/box/inner\n0::/\n")
    files = {
        "cpu/box/inner/cpu.cfs_quota_us": "-1",
        "cpu/box/inner/cpu.cfs_period_us": "100000",
        "cpu/box/cpu.cfs_quota_us": "50000",
        "cpu/box/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": "2000000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
        "unified/cgroup.procs": "",
    }
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    group = ControlGroup(tmp_path / "self", tmp_path / "fs")
    assert (group.cpus(), group.memory(), group.oom_kills()) == (0.5, 2e9, 3)
    assert count_cpus(group) == 1


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    group = ControlGroup(tmp_path / "none", tmp_path)
    assert (group.cpus(), group.memory(), group.oom_kills()) == (math.inf, math.inf, None)
    assert count_cpus(group) == len(os.sched_getaffinity(0))
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    assert count_oom_kills(group, tmp_path / "vmstat") == 7
    assert count_oom_kills(group, tmp_path / "nothing") is None
