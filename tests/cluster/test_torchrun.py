from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_ranks(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Two ranks that run `body`, which knows its number as `rank`."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{body}\n")
    return subprocess.run(
        [sys.executable, "-m", "nanollama.cluster.torchrun", "--nproc-per-node=2", str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("time.sleep(1000) if rank else sys.exit(2)", 2, ""),
        ("sys.exit(5)", 1, "ended with exit code 5; the other ranks were stopped"),
        ("time.sleep(1000) if rank else os.kill(os.getpid(), signal.SIGKILL)", 1, "rank 0 ended with signal 9"),
    ],
)
def test_the_exit_code_tells_how_the_ranks_ended(tmp_path: Path, body: str, code: int, message: str) -> None:
    ran = run_ranks(tmp_path, body)
    assert ran.returncode == code
    assert message in ran.stderr
    assert ran.stderr.count("\n") == (1 if message else 0)


def test_ranks_sleep_while_they_wait_and_nothing_is_said_about_threads(tmp_path: Path) -> None:
    ran = run_ranks(tmp_path, "os.write(1, f\"{rank} {os.environ['OMP_WAIT_POLICY']}\\n\".encode())")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(ran.stdout.splitlines()) == ["0 PASSIVE", "1 PASSIVE"]


WAITING = """
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, _: stop.append(number))
os.write(1, b"ready\\n")
while not stop:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("number", "body", "code"),
    [
        (signal.SIGUSR1, WAITING + "sys.exit(75)", 75),
        (signal.SIGTERM, WAITING + "sys.exit(0)", 0),
        (signal.SIGTERM, "os.write(1, b'ready\\n')\ntime.sleep(1000)", 128 + signal.SIGTERM),
        (signal.SIGINT, WAITING + "os._exit(130)", 130),
    ],
)
def test_signals_reach_every_rank_and_the_ranks_decide_how_it_ends(
    tmp_path: Path, number: signal.Signals, body: str, code: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, signal, sys, time\n{body}\n")
    command = [sys.executable, "-m", "nanollama.cluster.torchrun", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, "")
