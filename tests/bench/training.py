"""The training app with all its monitors, beside a bare PyTorch loop of the same learner on one fixed batch."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from nanollama.apps.gssm.train import main as train
from nanollama.data.loader import build_loader
from nanollama.model.build import build_model
from nanollama.optim import build_optimizer, clip_gradient
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from tests.bench.timing import Row

ROOT = Path(__file__).resolve().parents[2]
STEPS, ROUNDS = 100, 3


def bench_training() -> list[Row]:
    """The debug config: fresh sequences, bound at every logged step, checkpoints; best of three, taking turns."""
    arguments = [f"config={ROOT / 'configs/gssm/debug.yaml'}", f"optim.steps={STEPS}", "optim.warmup=10"]
    arguments.append("orchestration.logging.level=ERROR")
    spec = load_config(ExperimentSpec, arguments)
    ours, bare = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            assert train([*arguments, f"orchestration.log_dir={folder}/run"]) == 0
            result = json.loads(Path(folder, "run", "1", "result.json").read_text())
        ours.append(result["tokens"] / result["seconds"])
        bare.append(result["tokens"] / _bare(spec))
    best, beside = max(ours), max(bare)
    work = f"tokens trained on, debug config, {STEPS} steps"
    return [Row(work, f"{best:,.0f} /s", f"bare loop {beside:,.0f} /s", f"{best / beside:.2f} x")]


def _bare(spec: ExperimentSpec) -> float:
    """Seconds of the same number of steps."""
    loader = build_loader(spec.data, rank=0, world_size=1)
    torch.manual_seed(0)
    model = build_model(spec.model, loader.vocab_size)
    optimizer = build_optimizer(spec.optim, model)
    tokens = loader.batch(0)
    start = time.perf_counter()
    for _ in range(STEPS):
        logits = model(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        clip_gradient(model, spec.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start
