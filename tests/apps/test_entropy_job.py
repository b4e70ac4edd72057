"""The entropy of a graph as a job in an attempt directory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanollama.apps.gssm import entropy as app
from nanollama.apps.gssm.entropy_job import MAX_POSITIONS
from nanollama.spec.command import run_command
from nanollama.spec.evaluation import EntropySpec
from nanollama.spec.rundir import STOP_REQUESTED, MetricLine, Stopped
from tests.support.examples import experiment
from tests.support.training import events

CONTEXT = {
    "nodes": [
        {"name": "Z", "state_dim": 2, "alpha": 0.5},
        {"name": "X", "state_dim": 3, "alpha": 0.5, "parents": ["Z"], "mode": "context", "observed": True},
    ]
}


def job(folder: Path, *, graph: dict[str, Any] | None = None, **changes: Any) -> tuple[int, Path]:
    """Run a job of the example's graph in this process; its exit code and attempt directory."""
    data = experiment()["data"] | ({} if graph is None else {"gssm": graph})
    data |= {key: changes.pop(key) for key in ("seq_len",) if key in changes}
    attempt_dir = folder / "r1" / "1"
    attempt_dir.mkdir(parents=True, exist_ok=True)
    config = EntropySpec.model_validate({"data": data, **changes}).model_dump(mode="json")
    (attempt_dir / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = [f"config={attempt_dir / 'config.yaml'}", f"attempt_dir={attempt_dir}"]
    return run_command(app.main, arguments, usage=app.__doc__), attempt_dir


def result(attempt_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((attempt_dir / "result.json").read_text(), parse_constant=pytest.fail)
    return found


def lines(attempt_dir: Path) -> list[MetricLine]:
    text = (attempt_dir / "metrics" / "rank0.jsonl").read_text()
    return [MetricLine.model_validate_json(line) for line in text.splitlines()]


def test_a_job_finds_what_the_command_prints(tmp_path: Path) -> None:
    code, attempt_dir = job(tmp_path, num_sequences=40)
    assert code == 0
    found = result(attempt_dir)
    target = tmp_path / "out.json"
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(experiment()))
    assert app.main([f"config={config}", "num_sequences=40", f"output={target}"]) == 0
    printed = json.loads(target.read_text())
    for name in ("nats_per_token", "stderr"):
        assert found[name] == pytest.approx(printed[name], rel=1e-12)
    assert found["by_position"]["positions"] == list(range(1, 16))
    assert found["by_position"]["mean"] == pytest.approx(printed["by_position"]["mean"], rel=1e-12)
    assert (found["step"], found["tokens"], found["num_sequences"]) == (40, 600, 40)
    assert found["kernels_hash"] == printed["kernels_hash"]
    assert [event.kind for event in events(attempt_dir)] == ["started", "finished"]
    last = lines(attempt_dir)[-1]
    assert (last.step, last.tokens) == (40, 600)
    assert last.values["bound"] == pytest.approx(found["nats_per_token"])
    assert not (attempt_dir / "stopped.json").exists()


def test_it_stops_between_two_batches_when_it_is_asked_to(tmp_path: Path) -> None:
    (tmp_path / "r1" / "1").mkdir(parents=True)
    (tmp_path / "r1" / "1" / STOP_REQUESTED).touch()
    code, attempt_dir = job(tmp_path, num_sequences=2**20)
    assert code == 75
    stopped = Stopped.model_validate_json((attempt_dir / "stopped.json").read_bytes())
    (line,) = lines(attempt_dir)
    assert (stopped.exit_code, stopped.step) == (75, line.step)
    assert stopped.message == f"stopped by the file stop_requested after {line.step:,} sequences"
    assert not (attempt_dir / "result.json").exists()
    assert [event.kind for event in events(attempt_dir)] == ["started", "preempted"]


def test_it_scores_no_more_once_its_time_is_up(tmp_path: Path) -> None:
    code, attempt_dir = job(tmp_path, num_sequences=2**20, max_seconds=1e-9)
    assert code == 0
    assert 2 <= result(attempt_dir)["num_sequences"] < 2**20


def test_a_graph_out_of_reach_is_bad_input_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"Z{i}" for i in range(8)]
    nodes: list[dict[str, Any]] = [{"name": name, "state_dim": 64, "alpha": 0.1} for name in names]
    nodes.append({"name": "X", "state_dim": 4, "alpha": 0.1, "parents": names, "observed": True})
    code, attempt_dir = job(tmp_path, graph={"nodes": nodes})
    assert code == 2
    stopped = Stopped.model_validate_json((attempt_dir / "stopped.json").read_bytes())
    assert "the exact bound is out of reach" in str(stopped.message)
    assert "data.gssm.nodes" in capsys.readouterr().err
    assert [event.kind for event in events(attempt_dir)] == ["started", "failed"]


def test_in_context_mode_both_bounds_are_kept(tmp_path: Path) -> None:
    code, attempt_dir = job(tmp_path, graph=CONTEXT, num_sequences=8)
    assert code == 0
    found = result(attempt_dir)
    assert found["nats_per_token"] == pytest.approx((found["lower"] + found["upper"]) / 2)
    assert found["lower"] <= found["upper"] + 5 * found["gap_stderr"]  # each of them is right in expectation
    assert found["by_position"] is None
    assert lines(attempt_dir)[-1].values.keys() == {"bound", "lower", "upper"}


def test_of_long_sequences_some_positions_are_kept(tmp_path: Path) -> None:
    code, attempt_dir = job(tmp_path, num_sequences=2, seq_len=5001)
    assert code == 0
    curve = result(attempt_dir)["by_position"]
    positions = curve["positions"]
    assert positions == sorted(set(positions))
    assert (positions[0], positions[1], positions[-1]) == (1, 2, 5000)
    assert len(positions) == len(curve["mean"]) == len(curve["stderr"]) <= MAX_POSITIONS
    assert max(b - a for a, b in pairwise(positions)) <= 10


def test_a_directory_serves_once(tmp_path: Path) -> None:
    assert job(tmp_path, num_sequences=2)[0] == 0
    assert job(tmp_path, num_sequences=2)[0] == 2


def test_it_needs_no_torch(tmp_path: Path) -> None:
    """A bound job is cheap to start."""
    code = "import sys, nanollama.apps.gssm.entropy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
