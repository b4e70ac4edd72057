from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from nanollama.monitor.hardware import device_peak, memory_in_use, peak_flops
from nanollama.monitor.profiler import Load, Profiler
from nanollama.monitor.stopwatch import PHASES, StepTime, Stopwatch
from nanollama.spec.monitor import ProfilerSpec
from tests.support.training import events, metrics, one_thread, train, write_config

CPU = torch.device("cpu")

__all__ = ["one_thread"]  # a fixture of every test here


def test_laps_leave_no_gap_and_end_with_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    monkeypatch.setattr("nanollama.monitor.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU)
    for phase in ("monitor", "data", "model"):
        watch.lap(phase)
    assert watch.finished() == []
    watch.lap("optimizer", ends=7)
    watch.lap("monitor")
    (first,) = watch.finished()
    assert first == StepTime(7, {"monitor": 1.0, "data": 2.0, "model": 3.0, "optimizer": 4.0})
    assert first.total == 10.0
    watch.lap("optimizer", ends=8)
    assert watch.finished() == [StepTime(8, {"monitor": 5.0, "optimizer": 6.0})]


@pytest.mark.parametrize(("wait", "steps", "expected"), [(1, 2, [2, 3]), (0, 1, [1]), (3, -1, [4, 5, 6]), (1, 0, [])])
def test_the_light_profile_has_a_line_for_each_step_of_its_window(
    tmp_path: Path, wait: int, steps: int, expected: list[int]
) -> None:
    profiler = Profiler(ProfilerSpec(active=True, wait=wait, steps=steps), tmp_path, 1, CPU)
    times = [StepTime(step, {"model": 0.3, "data": 0.2}) for step in range(1, 7)]
    load = Load(tokens=100, flops_per_token=1e3, peak=1e6)
    written = [profiler.record([each], load) for each in times] + [profiler.close()]
    path = tmp_path / "profile" / "rank1.jsonl"
    assert [each for each in written if each] == ([path] if expected else [])
    if not expected:
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == expected
    assert lines[0]["seconds"] == 0.5
    assert (lines[0]["time_model"], lines[0]["time_data"]) == (0.3, 0.2)
    assert (lines[0]["tokens_per_second"], lines[0]["flops_per_second"]) == (200, 2e5)
    assert lines[0]["mfu"] == pytest.approx(0.2)
    assert lines[0]["memory"] > 0


def test_a_run_writes_its_profile_and_names_it(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", orchestration__profiler={"active": True, "wait": 2, "steps": 3})
    assert train(config, tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run/1/profile/rank0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5]
    assert all(line["seconds"] == pytest.approx(sum(line[f"time_{phase}"] for phase in PHASES)) for line in lines)
    assert "mfu" not in lines[0]
    (event,) = [event for event in events(tmp_path / "run" / "1") if event.kind == "profiled"]
    assert event.path == "1/profile/rank0.jsonl"


@pytest.mark.parametrize("steps", [2, -1])
def test_a_run_writes_a_trace_of_every_operation(tmp_path: Path, steps: int) -> None:
    profiler = {"active": True, "heavy": True, "wait": 1, "steps": steps}
    config = write_config(tmp_path / "c.yaml", optim__steps=5, orchestration__profiler=profiler)
    assert train(config, tmp_path / "run") == 0
    with gzip.open(tmp_path / "run/1/profile/rank0.json.gz") as file:
        trace = json.load(file)
    updates = [each for each in trace["traceEvents"] if each["name"].startswith("Optimizer.step")]
    assert len(updates) == (2 if steps == 2 else 4)
    (event,) = [event for event in events(tmp_path / "run" / "1") if event.kind == "profiled"]
    assert event.path == "1/profile/rank0.json.gz"


def test_the_time_split_covers_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", optim__steps=20, orchestration__logging={"period": 1})
    assert train(config, tmp_path / "run") == 0
    first, *lines = metrics(tmp_path / "run" / "1")
    split = sum(line.values[f"time_{phase}"] for line in lines for phase in PHASES)
    assert split == pytest.approx(lines[-1].time - first.time, rel=0.5)


def test_peaks_are_found_by_the_name_of_the_gpu() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", bfloat16=True) == 989e12
    assert peak_flops("NVIDIA H100 PCIe", bfloat16=True) == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", bfloat16=False) == 19.5e12
    assert peak_flops("Some other card", bfloat16=True) is None
    assert device_peak(CPU, bfloat16=True) is None


def test_memory_grows_with_what_is_kept() -> None:
    before = memory_in_use(CPU)
    kept = torch.ones(2**26)
    assert memory_in_use(CPU) - before == pytest.approx(0.25, abs=0.1)
    assert kept.numel()
