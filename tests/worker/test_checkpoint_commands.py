"""Pins and deletions that the service leaves to the worker: done once, below the run root, and told until heard."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nanollama.api.schemas import Command, CommandDone
from nanollama.spec.checkpoint_folder import CheckpointFolder
from tests.support.examples import experiment
from tests.worker.test_protocol import Bench
from worker.commands import Commands


def checkpoint(root: Path, run_id: str = "r1", step: int = 5) -> Path:
    folder = root / run_id / "checkpoints" / f"{step:010d}"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    return folder


def command(kind: str, **fields: Any) -> Command:
    given = {"id": f"c-{kind}", "run_id": "r1", "step": 5, "kind": kind, "by": "Ada"} | fields
    return Command.model_validate(given)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "runs", lambda run_id: run_id == "held")


def carry_out(commands: Commands, *given: Command) -> None:
    """As the service has it: what it has heard of is forgotten before more is asked for."""
    commands.told(commands.done)
    commands.take(given)
    assert commands.under_way
    commands.step()
    assert not commands.under_way


def problems(commands: Commands) -> list[str | None]:
    return [report.problem for report in commands.done]


def test_each_is_done_and_may_come_again(commands: Commands, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "runs")
    for _ in range(2):
        carry_out(commands, command("pin"))
        assert (folder / "pinned").read_text() == "pinned by Ada\n"
        assert problems(commands) == [None]
    carry_out(commands, command("delete"))
    assert problems(commands)[-1] == "this checkpoint is pinned; unpin it first"
    assert (folder / "model.pt").exists()
    for _ in range(2):
        carry_out(commands, command("unpin"))
        assert not (folder / "pinned").exists()
    for _ in range(2):
        carry_out(commands, command("delete"))
        assert list(folder.parent.iterdir()) == []
        assert problems(commands) == [None]
    carry_out(commands, command("pin"))
    assert "are gone" in str(commands.done[0].problem)
    reports = commands.done
    commands.take([command("pin", id="later")])
    commands.step()
    commands.told(reports)
    assert [report.id for report in commands.done] == ["later"]


def test_they_are_done_in_their_order_and_none_twice(commands: Commands, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "runs")
    asked = [command("pin", id="1"), command("delete", id="2"), command("unpin", id="3"), command("delete", id="4")]
    commands.take(asked[:2])
    commands.take(asked)  # the service repeats what it has not heard of
    commands.step()
    commands.take(asked[:2])
    assert not commands.under_way
    assert [report.id for report in commands.done] == ["1", "2", "3", "4"]
    assert problems(commands) == [None, "this checkpoint is pinned; unpin it first", None, None]
    assert not folder.exists()


def test_a_removal_that_was_cut_short_is_finished(commands: Commands, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "runs")
    folder.rename(folder.with_name(".0000000005.deleted"))
    carry_out(commands, command("delete"))
    assert problems(commands) == [None]
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("run_id", ["..", ".", "", "../runs/r1", "/etc", "a/b", "r1\x00", "r1/checkpoints"])
def test_nothing_outside_the_run_root_is_touched(commands: Commands, tmp_path: Path, run_id: str) -> None:
    inside = checkpoint(tmp_path / "runs")
    outside = checkpoint(tmp_path, run_id="", step=5)  # what ../ and its like would reach
    for kind in ("pin", "unpin", "delete"):
        carry_out(commands, command(kind, run_id=run_id))
        assert "is not the id of a run" in str(commands.done[-1].problem)
    for folder in (inside, outside):
        assert [path.name for path in folder.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_link_on_the_way_leads_nowhere(commands: Commands, tmp_path: Path, depth: int) -> None:
    folder = checkpoint(tmp_path / "runs")
    link, elsewhere = [folder, *folder.parents][depth], tmp_path / "elsewhere"
    link.rename(elsewhere)
    (elsewhere / ".0000000005.deleted").mkdir()
    link.symlink_to(elsewhere)
    for kind in ("pin", "delete"):
        carry_out(commands, command(kind))
        assert "leads out of its run" in str(commands.done[-1].problem)
    assert len(list(elsewhere.rglob("model.pt"))) == len(list(elsewhere.rglob(".0000000005.deleted"))) == 1


def test_nothing_is_deleted_of_a_run_that_is_held(commands: Commands, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "runs", "held")
    carry_out(commands, command("delete", run_id="held"), command("pin", run_id="held"))
    assert problems(commands) == ["the run goes on here, and may continue from it", None]
    assert (folder / "pinned").exists()


def test_a_folder_that_cannot_be_written_to_is_a_reason(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "runs")

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device", "pinned")

    monkeypatch.setattr("nanollama.spec.checkpoint_folder.write_atomic", full)
    carry_out(commands, command("pin"))
    assert problems(commands) == ["No space left on device: pinned"]


# -- in the daemon -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(tmp_path)) as bench:
        yield bench


def test_the_worker_does_it_and_tells_the_service_until_it_has_heard(bench: Bench) -> None:
    bench.service.add("a0", experiment())
    bench.sync()
    own = checkpoint(bench.settings.run_root, "r-a0")
    other = checkpoint(bench.settings.run_root, "r1")
    bench.service.commands = {"c1": command("pin", id="c1", run_id="r-a0"), "c2": command("delete", id="c2")}
    bench.service.commands["c3"] = command("delete", id="c3", run_id="r-a0")
    bench.sync()
    bench.do_commands()
    assert (own / "pinned").exists()
    assert not other.exists()
    assert bench.service.done == []
    bench.service.away = True
    bench.sync()
    bench.service.away = False
    bench.service.lose_replies = 1
    bench.sync()
    told = {report.id: report.problem for report in bench.service.done}
    assert told == {"c1": None, "c2": None, "c3": "the run goes on here, and may continue from it"}
    bench.sync()  # the reply was lost: it tells them again
    assert [report.id for report in bench.service.done] == ["c1", "c2", "c3"] * 2
    bench.sync()
    assert len(bench.service.done) == 6
    assert all(isinstance(report, CommandDone) for report in bench.service.done)


def test_a_long_deletion_costs_no_heartbeat_and_a_start_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(_folder: CheckpointFolder) -> None:
        entered.set()
        assert release.wait(60)

    monkeypatch.setattr(CheckpointFolder, "delete", slow)
    checkpoint(bench.settings.run_root, "r-a0")
    bench.service.commands = {"c1": command("delete", id="c1", run_id="r-a0")}
    bench.sync()
    bench.sync()
    deleting = threading.Thread(target=bench.do_commands, daemon=True)
    deleting.start()
    assert entered.wait(60)
    bench.service.add("a0", experiment())  # somebody tries the run again
    before = len(bench.service.calls)
    bench.sync()
    bench.sync()
    assert len(bench.service.calls) == before + 2
    bench.tick()
    assert bench.executor.starts == {}
    release.set()
    deleting.join(60)
    bench.tick()
    assert bench.executor.starts == {"a0": 1}
    bench.sync()
    assert [(report.id, report.problem) for report in bench.service.done] == [("c1", None)]
