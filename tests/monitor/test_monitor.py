from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from nanollama.monitor.monitor import Monitor
from nanollama.spec.base import parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.rundir import RESULT, STOP_REQUESTED, STOPPED, EventLine, MetricLine, Result, Stopped
from tests.support.examples import experiment


def monitor(attempt_dir: Path, rank: int = 0, keep_only: int = 0) -> Monitor:
    data = experiment()
    data["orchestration"] = {"checkpoint": {"keep_only": keep_only}}
    return Monitor(parse(ExperimentSpec, data), attempt_dir, rank)


def events(attempt_dir: Path) -> list[EventLine]:
    return [EventLine.model_validate_json(line) for line in (attempt_dir / "events.jsonl").read_bytes().splitlines()]


def test_a_run_in_two_attempts_tells_its_story(tmp_path: Path) -> None:
    contents = {"model.pt": torch.zeros(3)}
    with monitor(tmp_path / "1", keep_only=1) as first:
        assert first.newest_checkpoint() is None
        first.started(0, 0, None)
        first.save(3, contents)
        first.save(5, contents)
        assert not first.stop_requested()
        (tmp_path / "1" / STOP_REQUESTED).touch()
        assert first.stop_requested()
        first.preempted(5)
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
    assert (stopped.exit_code, stopped.step) == (75, 5)

    with monitor(tmp_path / "2") as second:
        checkpoint = second.newest_checkpoint()
        second.started(5, 50, checkpoint)
        second.warn("mind the gap", 5)
        second.finished(Result(step=10, tokens=100, seconds=1.0))
    assert [(event.kind, event.step, event.path or event.message) for event in events(tmp_path / "2")] == [
        ("resumed", 5, "checkpoints/0000000005"),
        ("warning", 5, "mind the gap"),
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


def test_other_ranks_write_their_log_and_nothing_else(tmp_path: Path) -> None:
    with monitor(tmp_path / "1", rank=1) as other:
        (tmp_path / "1" / STOP_REQUESTED).touch()
        other.started(0, 0, None)
        other.metrics(1, 1, {"loss": 1.0})
        other.save(1, {"model.pt": 1})
        other.warn("w")
        assert not other.stop_requested()
        assert other.newest_checkpoint() is None
        other.preempted(1)
        other.finished(Result(step=1, tokens=1, seconds=1.0))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"1/logs/rank1.log", f"1/{STOP_REQUESTED}"}


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
