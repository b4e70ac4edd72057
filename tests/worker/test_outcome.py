from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanollama.api.status import AttemptState
from nanollama.spec.rundir import Exit
from worker.executors.base import Phase, Status
from worker.outcome import Ending, judge, log_reason

RESULT = '{"step": 10, "tokens": 100, "seconds": 1.5, "loss": 1.25}'


def ended(**fields: Any) -> Status:
    return Status(Phase.ENDED, exit=Exit(**{"exit_code": None, "time": 0.0, **fields}))


@pytest.mark.parametrize(
    ("status", "files", "ending", "state", "words", "code"),
    [
        (ended(exit_code=0), {"result.json": RESULT}, None, "SUCCEEDED", "", 0),
        (ended(exit_code=0), {}, None, "FAILED", "without a result", 0),
        (ended(exit_code=0), {"result.json": "{"}, None, "FAILED", "not JSON", 0),
        (ended(exit_code=0), {"result.json": "[]"}, None, "FAILED", "not an object", 0),
        (ended(exit_code=0), {"result.json": r'{"a": "\ud800"}'}, None, "FAILED", "not JSON", 0),
        (ended(exit_code=0), {"result.json": '{"a":' * 300 + "1" + "}" * 300}, None, "FAILED", "not JSON", 0),
        (ended(exit_code=0), {"result.json": "[" * 100_000}, None, "FAILED", "not JSON", 0),
        (ended(exit_code=0), {"result.json": '"' + "x" * 10**6 + '"'}, None, "FAILED", "1,000,002 bytes", 0),
        (ended(exit_code=1), {"result.json": RESULT}, None, "FAILED", "exit code 1", 1),
        (ended(exit_code=1), {"stopped.json": '{"exit_code": 75, "step": 7}'}, None, "INTERRUPTED", "after step 7", 75),
        (
            ended(exit_code=1),
            {"stopped.json": '{"exit_code": 2, "step": 0, "message": "data.path: no such file"}'},
            None,
            "FAILED",
            "bad input: data.path: no such file",
            2,
        ),
        (ended(exit_code=75), {}, None, "INTERRUPTED", "stopped on request", 75),
        (ended(exit_code=3), {"stopped.json": '{"reason": "of another program"}'}, None, "FAILED", "exit code 3", 3),
        (ended(exit_code=0), {"stopped.json": "{", "result.json": RESULT}, None, "SUCCEEDED", "", 0),
        (ended(exit_code=2), {"stdout.log": "error: no such file\n"}, None, "FAILED", "bad input: no such", 2),
        (ended(signal=9), {}, None, "FAILED", "probably out of memory", 137),
        (ended(signal=11), {}, None, "FAILED", "crashed (SIGSEGV)", 139),
        (ended(signal=10), {}, None, "FAILED", "ended by a signal (SIGUSR1)", 138),
        (ended(signal=15, terminated=True), {}, None, "INTERRUPTED", "from outside", 143),
        (ended(exit_code=1, disk_full=True), {}, None, "INTERRUPTED", "was full", 1),
        (ended(exit_code=1, disk_full=True), {}, "cancel", "CANCELLED", "cancelled", 1),
        (ended(exit_code=0, disk_full=True), {"result.json": RESULT}, None, "SUCCEEDED", "", 0),
        (ended(exit_code=0), {"result.json": RESULT}, "cancel", "SUCCEEDED", "", 0),
        (ended(exit_code=0), {}, "cancel", "CANCELLED", "cancelled", 0),
        (ended(signal=15, terminated=True), {}, "cancel", "CANCELLED", "cancelled", 143),
        (ended(exit_code=1), {"stopped.json": '{"exit_code": 75, "step": 7}'}, "cancel", "CANCELLED", "", 75),
        (ended(exit_code=1), {}, "interrupt", "INTERRUPTED", "worker was stopped", 1),
        (Status(Phase.VANISHED, reason="gone"), {}, None, "INTERRUPTED", "gone", None),
        (Status(Phase.VANISHED, reason="gone"), {}, "cancel", "CANCELLED", "cancelled", None),
        (Status(Phase.FORBIDDEN, forbidder="cancel"), {}, None, "CANCELLED", "before it started", None),
        (Status(Phase.FORBIDDEN, forbidder="void"), {}, None, "VOID", "", None),
        (
            Status(Phase.FAILED_TO_START, reason="the supervisor ended with code 1"),
            {"stdout.log": "ModuleNotFoundError: No module named 'psutil'\n"},
            None,
            "FAILED",
            "code 1: ModuleNotFoundError: No module",
            None,
        ),
    ],
)
def test_an_end_is_told_by_its_evidence(
    *,
    status: Status,
    files: dict[str, str],
    ending: Ending | None,
    state: str,
    words: str,
    code: int | None,
    tmp_path: Path,
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    outcome = judge(tmp_path, status, ending)
    assert (outcome.to, outcome.exit_code) == (AttemptState(state), code)
    assert words in (outcome.reason or "")
    assert (outcome.result is not None) == (state == "SUCCEEDED")


TWO_RANKS = """\
step 10 loss 1.2
[rank1]: Traceback (most recent call last):
[rank1]:   File "train.py", line 3, in <module>
[rank1]:     main()
[rank1]: RuntimeError: the loss is nan at step 12
[rank0]: Traceback (most recent call last):
[rank0]:   File "train.py", line 3, in <module>
[rank0]: torch.distributed.DistBackendError: Connection closed by peer [127.0.0.1]:1234
rank 1 ended with exit code 1; the other ranks were stopped
"""


CHAINED = """\
Traceback (most recent call last):
  x
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  y
ValueError: no a
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", None),
        ("step 1\nall is well\n\n", "all is well"),
        ("error: data.path: no such file\nbye\n", "data.path: no such file"),
        (TWO_RANKS, "RuntimeError: the loss is nan at step 12"),
        (
            CHAINED,
            "ValueError: no a",
        ),
        ("Traceback (most recent call last):\n  x\nMemoryError\n", "MemoryError"),
        ("x" * 2000, "x" * 499 + "…"),
    ],
)
def test_the_reason_is_the_line_that_says_most(text: str, reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text(text)
    assert log_reason(tmp_path) == reason


@pytest.mark.parametrize(
    ("oom_kills", "words"),
    [
        (1, "killed by the kernel (SIGKILL): out of memory"),
        (0, "killed (SIGKILL): by hand or by another program; the kernel has killed nothing for lack of memory"),
        (None, "killed (SIGKILL): probably out of memory, or killed by hand"),
    ],
)
def test_a_kill_for_memory_is_told_from_others(tmp_path: Path, oom_kills: int | None, words: str) -> None:
    assert judge(tmp_path, ended(signal=9, oom_kills=oom_kills), None).reason == words
    (tmp_path / "stdout.log").write_text("step 1\nrank 0 ended with signal 9; the other ranks were stopped\n")
    assert judge(tmp_path, ended(exit_code=1, oom_kills=oom_kills), None).reason == f"a rank was {words}"


def test_bytes_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_bytes(b"\xff\xfe\n" * 50_000 + b"error: no\n")
    assert log_reason(tmp_path) == "no"
