"""A run that the kernel really ends for lack of memory, in a control group of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanollama.spec.rundir import Exit
from worker.executors.base import Phase, Status
from worker.machine import ControlGroup
from worker.outcome import judge

LIMIT = 100_000_000


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory, below that of this process; needs the right to make one."""
    for controller, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        for own in list(ControlGroup()._folders(controller))[:1]:
            group = own / f"test-{uuid.uuid4().hex[:8]}"
            try:
                group.mkdir()
            except OSError:
                continue
            try:
                with contextlib.suppress(OSError):
                    (group / limit).write_text(str(LIMIT))
                    yield group
                    return
            finally:
                group.rmdir()
    pytest.skip("this user may not make a control group with a limit of memory")


def test_a_run_that_needs_too_much_memory_is_told_so(small_group: Path, tmp_path: Path) -> None:
    greedy = f"x = bytearray({10 * LIMIT}); print(len(x))"
    supervisor = [sys.executable, "-m", "worker.executors.supervisor", "greedy", str(tmp_path), "1"]
    command = [*supervisor, sys.executable, "-c", greedy]
    join = 'echo $$ > "$0" && exec "$@"'
    subprocess.run(["sh", "-c", join, str(small_group / "cgroup.procs"), *command], check=True, timeout=120)
    ended = Exit.model_validate_json((tmp_path / "exit.json").read_bytes())
    assert (ended.signal, ended.oom_kills) == (9, 1)
    assert (
        judge(tmp_path, Status(Phase.ENDED, exit=ended), None).reason == "killed by the kernel (SIGKILL): out of memory"
    )
