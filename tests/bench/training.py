"""The training app with its monitors beside a bare PyTorch loop of the same learner on one fixed batch; imports."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from nanollama.apps.gssm.train import main as train
from nanollama.data.loader import build_loader
from nanollama.model.build import build_model, num_parameters
from nanollama.monitor.monitor import Monitor
from nanollama.optim import build_optimizer, clip_gradient
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from tests.bench.timing import Row

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
DEBUG = [f"config={ROOT / 'configs/gssm/debug.yaml'}", "optim.warmup=1", "evaluation.period=0"]
MILLION = ["data.seq_len=257", "data.batch_size=32", "model.emb_dim=128", "model.nb_layers=4"]
MILLION += ["model.block.feed_forward=swiglu", "model.block.hidden_dim=512"]
GOAL = ">= 0.97 x"
ORIGINAL = {"false": "9,100 /s", "true": "12,700 /s"}
"""Tokens per second of the original with 1.06 M parameters, batch 32 x 256 and 2 threads, without metrics."""
IMPORTS = {"nanollama.spec.experiment": 0.15, "nanollama.apps.gssm.train": 3.0}


def bench_training() -> list[Row]:
    """Fresh sequences, the bound at every logged step, checkpoints; the best of some rounds, taking turns.

    Both are timed from the end of the first step on, which allocates, and loads what was compiled.
    """
    rows = []
    for name, overrides, steps in (("debug config", [], 100), ("1.06 M parameters, 32 x 256", MILLION, 10)):
        arguments = [*DEBUG, *overrides, f"optim.steps={steps}"]
        spec = load_config(ExperimentSpec, arguments)
        ours, bare = [], []
        for _ in range(ROUNDS):
            _, lines = _run(arguments)
            first, last = lines[0], lines[-1]
            ours.append((last["tokens"] - first["tokens"]) / (last["time"] - first["time"]))
            bare.append(spec.data.batch_size * (spec.data.seq_len - 1) * (steps - 1) / _bare(spec))
        best, beside = max(ours), max(bare)
        work = f"tokens trained on, {name}, {steps} steps"
        rows.append(Row(work, f"{best:,.0f} /s", f"bare loop {beside:,.0f} /s", f"{best / beside:.2f} x", GOAL))
    return rows


def bench_training_compiled() -> list[Row]:
    """The learner of 1.06 M parameters, eager and compiled, beside the original: tokens between the last two lines."""
    rows = []
    for compiled, original in ORIGINAL.items():
        arguments = [*DEBUG, *MILLION, "optim.steps=10", f"cluster.compile_model={compiled}"]
        _, lines = _run(arguments)
        work = f"tokens trained on, 1.06 M parameters, {'compiled' if compiled == 'true' else 'eager'}"
        speed = lines[-1]["tokens_per_second"]
        goal = float(original.removesuffix(" /s").replace(",", ""))
        rows.append(Row(work, f"{speed:,.0f} /s", f"original {original}", f"{speed / goal:.1f} x"))
    return rows


def bench_monitor() -> list[Row]:
    """Shares of the loop's time in the debug config: all but the learner and its update, and the light profiler."""
    _, lines = _run([*DEBUG, "optim.steps=100"])
    parts = {key: sum(line[key] for line in lines[1:]) for key in lines[-1] if key.startswith("time_")}
    share = (parts["time_data"] + parts["time_monitor"]) / sum(parts.values())
    rows = [Row("share of the loop, batches, bounds and lines, debug config", f"{share:.2%}", goal="< 3 %")]

    spent = 0.0
    collect = Monitor._collect

    def timed(monitor: Monitor) -> None:
        nonlocal spent
        start = time.perf_counter()
        collect(monitor)
        spent += time.perf_counter() - start

    profiled = ["orchestration.profiler.active=true", "orchestration.profiler.steps=-1"]
    with mock.patch.object(Monitor, "_collect", timed):
        result, _ = _run([*DEBUG, "optim.steps=100", *profiled])
    rows.append(Row("share of the loop, light profile of every step", f"{spent / result['seconds']:.2%}", goal="< 1 %"))
    return rows


def bench_imports() -> list[Row]:
    """Seconds of imports in a new process beyond the interpreter's own start, the best of some."""
    start = _import("sys")
    return [
        Row(f"import of {module}", f"{_import(module) - start:.2f} s", goal=f"< {goal:g} s")
        for module, goal in IMPORTS.items()
    ]


def _run(arguments: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and metric lines of a run."""
    with tempfile.TemporaryDirectory() as folder:
        assert train([*arguments, "orchestration.logging.level=ERROR", f"orchestration.log_dir={folder}/run"]) == 0
        attempt_dir = Path(folder, "run", "1")
        lines = (attempt_dir / "metrics" / "rank0.jsonl").read_text().splitlines()
        return json.loads((attempt_dir / "result.json").read_text()), [json.loads(line) for line in lines]


def _bare(spec: ExperimentSpec) -> float:
    """Seconds of the same number of steps but for the first."""
    loader = build_loader(spec.data, rank=0, world_size=1)
    torch.manual_seed(0)
    model = build_model(spec.model, loader.vocab_size)
    assert num_parameters(model) < 1.1e6
    optimizer = build_optimizer(spec.optim, model)
    tokens = loader.batch(0)
    start = 0.0
    for step in range(spec.optim.steps):
        if step == 1:
            start = time.perf_counter()
        logits = model(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        clip_gradient(model, spec.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def _import(module: str) -> float:
    """Seconds of a process that imports the module and ends."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    return min(times)
