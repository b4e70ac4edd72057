from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nanollama.apps.gssm.train import main
from nanollama.monitor.attempt import read_stopped
from nanollama.spec.rundir import RESULT, STOP_REQUESTED, STOPPED
from tests.support.training import events, metrics, one_thread, reproducible, train, write_config
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
OURS = ["-m", "nanollama.cluster.torchrun"]
PLAIN = ["-m", "torch.distributed.run"]

__all__ = ["one_thread"]  # a fixture of every test here


def start(config: Path, attempt_dir: Path, launch: list[str]) -> subprocess.Popen[str]:
    """Two ranks, after their first steps."""
    launch = [*launch, "--nproc-per-node=2"] if launch else []
    command = [sys.executable, *launch, "-m", "nanollama.apps.gssm.train"]
    process = subprocess.Popen(
        [*command, f"config={config}", f"attempt_dir={attempt_dir}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    stream = attempt_dir / "metrics" / "rank0.jsonl"
    eventually(lambda: stream.exists() and stream.stat().st_size > 0, within=240, what="a metric line")
    return process


def endless(path: Path) -> Path:
    return write_config(path / "c.yaml", optim__steps=1_000_000)


def rank(process: subprocess.Popen[str], number: int) -> psutil.Process:
    ranks = psutil.Process(process.pid).children()
    return next(child for child in ranks if child.environ()["RANK"] == str(number))


Ask = Callable[[subprocess.Popen[str], Path], object]
ASKS: dict[str, tuple[list[str], Ask, int, str]] = {
    "SIGTERM to our torchrun": (OURS, lambda p, _: p.send_signal(signal.SIGTERM), 75, "SIGTERM"),
    "SIGUSR1 to our torchrun": (OURS, lambda p, _: p.send_signal(signal.SIGUSR1), 75, "SIGUSR1"),
    "SIGTERM to plain torchrun": (PLAIN, lambda p, _: p.send_signal(signal.SIGTERM), 1, "SIGTERM"),
    "SIGUSR1 to one rank": (OURS, lambda p, _: rank(p, 1).send_signal(signal.SIGUSR1), 75, "SIGUSR1"),
    "SIGTERM to one rank": (PLAIN, lambda p, _: rank(p, 1).send_signal(signal.SIGTERM), 1, "SIGTERM"),
    "file": (PLAIN, lambda _, d: (d / STOP_REQUESTED).touch(), 1, "the file stop_requested"),
}
QUICK = ("SIGTERM to our torchrun", "SIGUSR1 to one rank")


@pytest.mark.parametrize("ask", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ASKS])
def test_two_ranks_stop_after_the_same_step_however_they_are_asked(tmp_path: Path, ask: str) -> None:
    launch, request_stop, code, said = ASKS[ask]
    attempt_dir = tmp_path / "1"
    with start(endless(tmp_path), attempt_dir, launch) as process:
        request_stop(process, attempt_dir)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    if launch is OURS:
        assert "Traceback" not in errors
    stopped = read_stopped(attempt_dir)
    assert stopped is not None, errors
    assert stopped.exit_code == 75
    assert f"as requested by {said}; the next attempt continues from there" in str(stopped.message)
    assert [(event.kind, event.step) for event in events(attempt_dir)[-2:]] == [
        ("checkpoint_saved", stopped.step),
        ("preempted", stopped.step),
    ]
    assert (tmp_path / "checkpoints" / f"{stopped.step:010d}").is_dir()
    assert not (attempt_dir / RESULT).exists()


def test_a_second_sigterm_ends_two_ranks_at_once(tmp_path: Path) -> None:
    config = endless(tmp_path)
    program = tmp_path / "stuck.py"
    program.write_text(STUCK)
    command = [sys.executable, *OURS, "--nproc-per-node=2", str(program), f"config={config}"]
    arguments = [*command, f"attempt_dir={tmp_path / '1'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        ranks = psutil.Process(process.pid).children()
        eventually(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM), what="the end")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "ended at once by a second SIGTERM" in errors
    assert not any(child.is_running() for child in ranks)
    assert not (tmp_path / "1" / STOPPED).exists()


STUCK = """
import ctypes, sys
from nanollama.apps.gssm.train import Trainer, main
from nanollama.cluster.cluster import leave, this_rank
from nanollama.spec.command import run_command

def stuck(trainer, monitor):
    if this_rank() == 0:
        print("stuck", flush=True)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    while True:
        libc.pthread_mutex_lock(mutex)

Trainer.train_step = stuck
leave(run_command(main, sys.argv[1:]))
"""


def test_a_run_in_a_chosen_directory_that_is_told_to_end_saves_and_continues_to_the_last_bit(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=1_000, orchestration__logging={"period": 100})
    with start(config, tmp_path / "cut" / "1", []) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=240)
    assert process.returncode == 75
    assert main([f"config={config}", f"attempt_dir={tmp_path / 'cut' / '2'}"]) == 0
    assert train(config, tmp_path / "whole") == 0
    done = events(tmp_path / "cut" / "2")[0].step
    assert done > 0
    resumed = reproducible(metrics(tmp_path / "cut" / "2"))
    assert resumed == reproducible(metrics(tmp_path / "whole" / "1"), after=done)
