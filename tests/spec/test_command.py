from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nanollama.spec.base import SpecError
from nanollama.spec.command import run_command, stop_signals
from nanollama.spec.load import apply_override

ROOT = Path(__file__).parents[2]
COMMANDS = ["apps/gssm/train", "apps/gssm/data", "apps/gssm/entropy", "apps/gssm/calibrate", "launcher"]


def end_of(command: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run a command's file as a program in this process; returns its exit code."""
    file = str(ROOT / "nanollama" / f"{command}.py")
    monkeypatch.setattr(sys, "argv", [file, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(file, run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_prints_how_to_call(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(command, monkeypatch, "config=absent.yaml", option) == 0
    printed = capsys.readouterr()
    assert f"    python -m nanollama.{command.replace('/', '.')} " in printed.out
    assert "Exit codes: " in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_the_missing_one_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(command, monkeypatch) == 2
    (error,) = capsys.readouterr().err.splitlines()
    module = command.replace("/", ".")
    assert error.startswith(f"error: config: config=FILE is missing - write python -m nanollama.{module} ")
    assert "config=configs/gssm/" in error


def test_without_a_usage_the_command_gets_every_argument() -> None:
    seen: list[Sequence[str]] = []

    def main(arguments: Sequence[str]) -> int:
        seen.append(arguments)
        return 0

    assert run_command(main, ["--help"]) == run_command(main, []) == 0
    assert seen == [["--help"], []]


def test_a_bare_config_file_is_recognised() -> None:
    with pytest.raises(SpecError, match=r"cannot read the argument 'a/x.yaml' - write config=a/x.yaml$"):
        apply_override({}, "a/x.yaml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_noted_and_interrupt_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stopped()
    assert signal.getsignal(number) is before
