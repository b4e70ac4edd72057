from __future__ import annotations

import errno
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanollama.monitor.checkpoint import Checkpoints, SavedCheckpoint, verify
from nanollama.monitor.logger import JsonLines
from nanollama.monitor.monitor import Monitor
from nanollama.spec.base import parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import CONFIG, RESULT, STOP_REQUESTED, STOPPED, EventLine, MetricLine, Result, Stopped
from tests.support.examples import experiment


def monitor(attempt_dir: Path, rank: int = 0, **checkpoint: Any) -> Monitor:
    data = experiment()
    data["orchestration"] = {"checkpoint": checkpoint}
    return Monitor(parse(ExperimentSpec, data), attempt_dir, rank)


def events(attempt_dir: Path) -> list[EventLine]:
    return [EventLine.model_validate_json(line) for line in (attempt_dir / "events.jsonl").read_bytes().splitlines()]


def test_a_run_in_two_attempts_tells_its_story(tmp_path: Path) -> None:
    contents = {"model.pt": torch.zeros(3)}
    with monitor(tmp_path / "1", keep_last=1) as first:
        assert first.newest_checkpoint() is None
        first.started(0, 0, None)
        first.save(3, contents)
        first.save(5, contents)
        assert first.stop_requested() is None
        (tmp_path / "1" / STOP_REQUESTED).touch()
        assert first.stop_requested() == "the file stop_requested"
        assert first.preempted(5, "SIGTERM") == 75
    story = events(tmp_path / "1")
    assert [event.seq for event in story] == list(range(5))
    assert [(event.kind, event.step, event.path) for event in story] == [
        ("started", 0, None),
        ("checkpoint_saved", 3, "checkpoints/0000000003"),
        ("checkpoint_saved", 5, "checkpoints/0000000005"),
        ("checkpoint_removed", 3, "checkpoints/0000000003"),
        ("preempted", 5, None),
    ]
    assert all(event.size_bytes and event.digest for event in story[1:3])
    stopped = Stopped.model_validate_json((tmp_path / "1" / STOPPED).read_bytes())
    message = "stopped after step 5, as requested by SIGTERM; the next attempt continues from there"
    assert stopped == Stopped(exit_code=75, step=5, message=message)

    with monitor(tmp_path / "2") as second:
        checkpoint = second.newest_checkpoint()
        second.started(5, 50, checkpoint)
        second.warn("mind the gap", 5)
        second.save(10, contents)
        assert second.finished(Result(step=10, tokens=100, seconds=1.0)) == 0
    assert [(event.kind, event.step, event.path or event.message) for event in events(tmp_path / "2")] == [
        ("resumed", 5, "checkpoints/0000000005"),
        ("warning", 5, "mind the gap"),
        ("checkpoint_saved", 10, "checkpoints/0000000010"),
        ("finished", 10, None),
    ]
    assert (tmp_path / "2" / RESULT).exists()
    assert not (tmp_path / "2" / STOPPED).exists()


def test_metrics_carry_the_speed_since_the_line_before(tmp_path: Path) -> None:
    with monitor(tmp_path / "1") as writer:
        writer.started(5, 500, None)
        writer.metrics(6, 600, {"loss": 2.0})
    line = MetricLine.model_validate_json((tmp_path / "1" / "metrics" / "rank0.jsonl").read_bytes())
    assert (line.seq, line.step, line.tokens, line.values["loss"]) == (0, 6, 600, 2.0)
    assert line.values["tokens_per_second"] > 0


def test_other_ranks_write_their_log_and_their_own_metrics_and_nothing_else(tmp_path: Path) -> None:
    with monitor(tmp_path / "1", rank=1) as other:
        (tmp_path / "1" / STOP_REQUESTED).touch()
        other.started(0, 0, None)
        other.metrics(1, 1, {"loss": 1.0, "lr": 0.5}, own_loss=1.25)
        other.save(1, {"model.pt": 1})
        other.warn("w")
        assert other.stop_requested() is None
        other.note_score(1, 1.0)
        assert other.newest_checkpoint() is None
        other.preempted(1)
        other.finished(Result(step=1, tokens=1, seconds=1.0))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"1/logs/rank1.log", "1/metrics/rank1.jsonl", f"1/{STOP_REQUESTED}"}
    line = MetricLine.model_validate_json((tmp_path / "1" / "metrics" / "rank1.jsonl").read_bytes())
    assert set(line.values) == {"loss", "memory"}
    assert line.values["loss"] == 1.25


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    with monitor(tmp_path / "1") as first:
        first.save(1, {"model.pt": 1})
        first.save(2, {"model.pt": 1})
    (tmp_path / "checkpoints" / "0000000002" / "model.pt").write_bytes(b"")
    with monitor(tmp_path / "2") as second:
        assert second.newest_checkpoint() == tmp_path / "checkpoints" / "0000000001"
    (warning,) = events(tmp_path / "2")
    assert warning.kind == "warning"
    assert "0000000002 is skipped: model.pt has 0 bytes" in str(warning.message)


def test_an_error_is_kept_in_the_log_and_the_library_is_left_silent(tmp_path: Path) -> None:
    handlers = list(logging.getLogger("nanollama").handlers)
    with pytest.raises(ZeroDivisionError), monitor(tmp_path / "1"):
        raise ZeroDivisionError("what went wrong")
    text = (tmp_path / "1" / "logs" / "rank0.log").read_text()
    assert "Traceback" in text
    assert "ZeroDivisionError: what went wrong" in text
    assert logging.getLogger("nanollama").handlers == handlers


def test_progress_is_told_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with monitor(tmp_path / "1") as writer:
        writer.started(0, 0, None)
        for step in range(1, 11):
            writer.metrics(step, step, {"loss": 1.0 * step, "bound": 0.5, "excess": step - 0.5})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert lines[0] == "step 1 of 10  loss 1.0000  bound 0.5000  excess 0.5000"
    assert lines[-1] == "step 10 of 10  loss 10.0000  bound 0.5000  excess 9.5000"
    assert json.loads((tmp_path / "1" / "events.jsonl").read_text())["kind"] == "started"


def full_disk(*_: Any) -> SavedCheckpoint:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_a_warning_with_a_remedy_and_the_next_save_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    with monitor(tmp_path / "1", asynchronous=asynchronous) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", full_disk)
            writer.save(1, {"model.pt": 1})
            assert writer.preempted(1) == 75
        writer.save(2, {"model.pt": 1})
        assert writer.preempted(2) == 75
    warning, unsaved, saved, preempted = events(tmp_path / "1")
    assert (warning.kind, warning.step) == ("warning", 1)
    assert "step 1 could not be saved: No space left on device; training goes on" in str(warning.message)
    assert f"make room in {tmp_path}, or keep fewer checkpoints" in str(warning.message)
    assert "continues after none: it starts anew" in str(unsaved.message)
    assert (saved.kind, saved.step) == ("checkpoint_saved", 2)
    assert str(preempted.message).endswith("continues from there")


def test_a_run_whose_last_checkpoint_is_lost_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monitor(tmp_path / "1") as writer:
        writer.save(5, {"model.pt": 1})
        writer.note_score(5, 1.0)
        monkeypatch.setattr(Checkpoints, "save", full_disk)
        writer.save(10, {"model.pt": 1})
        assert writer.finished(Result(step=10, tokens=100, seconds=1.0)) == 1
    assert not (tmp_path / "1" / RESULT).exists()
    stopped = Stopped.model_validate_json((tmp_path / "1" / STOPPED).read_bytes())
    assert (stopped.exit_code, stopped.step) == (1, 10)
    assert "the last checkpoint could not be saved (No space left on device)" in str(stopped.message)
    assert "it continues after step 5 (checkpoints/0000000005)" in str(stopped.message)
    assert f"error: {stopped.message}" in capsys.readouterr().err
    assert events(tmp_path / "1")[-1].kind == "failed"


def test_a_checkpoint_is_written_beside_the_loop_and_announced_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    save = Checkpoints.save
    weights = torch.zeros(3)

    def held_up(store: Checkpoints, *args: Any) -> SavedCheckpoint:
        assert may_write.wait(60)
        return save(store, *args)

    monkeypatch.setattr(Checkpoints, "save", held_up)
    with monitor(tmp_path / "1") as writer:
        writer.save(1, {"model.pt": weights})
        weights.fill_(7)  # the loop goes on
        writer.metrics(2, 2, {"loss": 1.0})
        assert events(tmp_path / "1") == []
        may_write.set()
        writer.save(2, {"model.pt": weights})  # waits for the one before
        assert events(tmp_path / "1")[0].step == 1
        assert len(events(tmp_path / "1")) <= 2
    assert [event.step for event in events(tmp_path / "1")] == [1, 2]
    for step, value in ((1, 0.0), (2, 7.0)):
        path = tmp_path / "checkpoints" / f"{step:010d}"
        verify(path)
        assert torch.equal(torch.load(path / "model.pt", weights_only=True), torch.full((3,), value))
        assert load_config(ExperimentSpec, [f"config={path / CONFIG}"]).model.emb_dim == 16


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("end", [lambda _: None, lambda writer: writer.save(2, {}), lambda writer: writer.preempted(1)])
def test_a_bug_in_the_background_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool, end: Callable[[Monitor], object]
) -> None:
    def bug(*_: Any) -> SavedCheckpoint:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Checkpoints, "save", bug)

    def save_and_end() -> None:
        with monitor(tmp_path / "1", asynchronous=asynchronous) as writer:
            writer.save(1, {"model.pt": 1})
            end(writer)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        save_and_end()


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(_: Checkpoints) -> list[Path]:
        raise OSError(errno.EACCES, "Permission denied", "checkpoints/0000000001")

    monkeypatch.setattr(Checkpoints, "prune", stuck)
    with monitor(tmp_path / "1", keep_last=1) as writer:
        writer.save(2, {"model.pt": 1})
    saved, warning = events(tmp_path / "1")
    assert saved.kind == "checkpoint_saved"
    assert warning.message == "an old checkpoint cannot be removed: Permission denied: checkpoints/0000000001"


def test_the_checkpoint_to_go_back_to_is_named_when_training_diverges(tmp_path: Path) -> None:
    with monitor(tmp_path / "1") as writer:
        writer.save(5, {"model.pt": 1})
        assert writer.diverged(7, "no number at step 8") == 1
    stopped = Stopped.model_validate_json((tmp_path / "1" / STOPPED).read_bytes())
    message = "no number at step 8; the last good checkpoint is step 5 (checkpoints/0000000005)"
    assert stopped == Stopped(exit_code=1, step=7, message=message)


def test_a_run_whose_last_lines_are_lost_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_handle: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monitor(tmp_path / "1") as writer:
        writer.save(10, {"model.pt": 1})
        writer.metrics(10, 10, {"loss": 1.0})
        writer.note_score(10, 1.0)
        monkeypatch.setattr(JsonLines, "_append", lambda _: full(0, b""))
        assert writer.finished(Result(step=10, tokens=100, seconds=1.0)) == 1
    errors = capsys.readouterr().err
    assert "all steps are done, but the last lines of the streams could not be written (No space left on" in errors
    assert f"error: the last lines of {tmp_path}/1/events.jsonl are lost: No space left on device\n" in errors
    assert not (tmp_path / "1" / RESULT).exists()
    assert (tmp_path / "1" / STOPPED).exists()
