from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.monitor.preemption import StopSignals
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

WAITS = """
import ctypes, threading
from nanollama.monitor.preemption import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    while not signals.received():
        threading.Event().wait(0.01)
    print(signals.received(), flush=True)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    while {stuck}:
        libc.pthread_mutex_lock(mutex)  # the second time for ever, whatever signals come
    while True:
        threading.Event().wait(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_noted_at_once_and_handlers_are_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with StopSignals() as signals:
        assert signals.received() is None
        os.kill(os.getpid(), number)
        assert signals.received() == number.name
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)  # however often it is given
        assert signals.received() == number.name
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_whatever_it_waits_for(number: signal.Signals, stuck: bool) -> None:
    command = [sys.executable, "-c", WAITS.format(stuck=stuck)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"
        eventually(lambda: process.poll() is not None or process.send_signal(number), what="the end")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == f"ended at once by a second {number.name}\n"


def test_under_torchrun_an_echo_of_the_first_signal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # or this process would be gone
        assert signals.received() == "SIGTERM"
