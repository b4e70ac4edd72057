from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nanollama.monitor import mirrors
from nanollama.spec.base import SpecError
from tests.support.training import events, metrics, one_thread, train, write_config

__all__ = ["one_thread"]  # a fixture of every test here


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package's own making
def test_tensorboard_shows_what_the_metric_lines_say(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = write_config(tmp_path / "c.yaml", orchestration__tensorboard={"active": True})
    assert train(config, tmp_path / "run") == 0
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "1" / "tensorboard")).Reload()
    lines = metrics(tmp_path / "run" / "1")
    assert set(found.Tags()["scalars"]) == set(lines[-1].values)
    for name in ("loss", "bound", "lr"):
        shown = [(scalar.step, scalar.value) for scalar in found.Scalars(name)]
        assert shown == [(line.step, pytest.approx(line.values[name], rel=1e-6)) for line in lines]


class FakeRun:
    """What `wandb.init` returns, as far as it is used."""

    def __init__(self, fail_after: int) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False
        self.fail_after = fail_after

    def log(self, values: dict[str, float], step: int) -> None:
        if len(self.logged) == self.fail_after:
            raise ConnectionError("no way out")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def fake_wandb(monkeypatch: pytest.MonkeyPatch, fail_after: int = -1) -> tuple[FakeRun, list[dict[str, Any]]]:
    run, calls = FakeRun(fail_after), []
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment] # find_spec asks no more than that it is there

    def init(**keys: Any) -> FakeRun:
        calls.append(keys)
        return run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run, calls


def test_wandb_gets_every_line_and_the_config_and_all_attempts_are_one_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = fake_wandb(monkeypatch)
    wandb = {"active": True, "entity": "team", "project": "learners"}
    config = write_config(tmp_path / "c.yaml", orchestration__wandb=wandb)
    assert train(config, tmp_path / "run") == 0
    assert [(step, values["loss"]) for step, values in run.logged] == [
        (line.step, line.values["loss"]) for line in metrics(tmp_path / "run" / "1")
    ]
    assert run.finished
    (tmp_path / "run" / "1" / "result.json").unlink()
    assert train(config, tmp_path / "run") == 0
    assert calls[0]["id"] == calls[1]["id"]
    assert (calls[0]["project"], calls[0]["entity"], calls[0]["resume"]) == ("learners", "team", "allow")
    assert calls[0]["config"]["optim"]["steps"] == 10


def test_a_mirror_that_fails_is_given_up_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch, fail_after=2)
    config = write_config(tmp_path / "c.yaml", orchestration__wandb={"active": True})
    assert train(config, tmp_path / "run") == 0
    (warning,) = [event for event in events(tmp_path / "run" / "1") if event.kind == "warning"]
    assert warning.message == "the mirror orchestration.wandb has failed and is given up: ConnectionError: no way out"
    assert len(metrics(tmp_path / "run" / "1")) == 6


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_mirror_without_its_package_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    config = write_config(tmp_path / "c.yaml", **{f"orchestration__{name}": {"active": True}})
    with pytest.raises(SpecError, match=rf"orchestration.{name}.active: the package {name} is not inst.*\[mirrors\]"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
