"""A sweep to compare: reported to a real service, or held in memory behind the client's methods."""

from __future__ import annotations

import math
import random
from typing import Any

from nanollama.api import schemas
from nanollama.api.client import Client
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import encode_line
from tests.support.acting_worker import ActingRun, ActingWorker
from tests.support.fake_client import ENTROPY, FakeClient, config, series

SWEEP_YAML = """\
data:
  seq_len: 64
  batch_size: 64
  gssm:
    nodes:
      - {name: Z, state_dim: 8, alpha: 0.1, mode: slow}
      - {name: X, state_dim: 16, alpha: 0.2, parents: [Z], observed: true}
model: {emb_dim: 32, nb_layers: 2}
optim: {steps: 1000, warmup: 50}
grid:
  model.emb_dim: [16, 32, 64, 128]
  orchestration.utils.seed: [0, 1, 2]
"""
TOKENS = 64 * 63  # of a step


def excess_at(step: float, width: int) -> float:
    """What a learner of some width loses beyond the bound: a power law, steeper for a wider one."""
    return 2.2 * math.pow(1 + step / 4, -(0.25 + 0.06 * math.log2(width / 16)))


def flops_per_token(width: int) -> float:
    """Rough, and growing with the width as it does."""
    return 6.0 * 2 * 12 * width**2


def lines(width: int, seed: int, start: int, end: int, *, period: int = 10, evaluate: int = 0, seq: int = 0) -> bytes:
    """Metric lines of a run from after one step up to another."""
    rng = random.Random(f"{width} {seed} {start}")
    tilt = 1 + 0.04 * (seed - 1)
    text = b""
    for step in [s for s in (1, 2, 5) if start < s <= end and period > s] + [
        s for s in range(start + 1, end + 1) if s % period == 0
    ]:
        bound = ENTROPY + rng.gauss(0, 0.016)
        excess = excess_at(step, width) * tilt * math.exp(rng.gauss(0, 0.04))
        at = {"step": step, "tokens": step * TOKENS, "time": 1_790_000_000.0 + step * (0.05 + width / 4000)}
        values = {
            "loss": bound + excess,
            "bound": bound,
            "excess": excess,
            "flops": step * TOKENS * flops_per_token(width),
        }
        text += encode_line({"seq": seq, **at, **values, "tokens_per_second": 60_000.0})
        seq += 1
        if evaluate and step % evaluate == 0:
            held_out = excess_at(step, width) * tilt
            scores = {"eval/excess": held_out * math.exp(rng.gauss(0, 0.01)), "eval/excess_stderr": 0.01 * held_out}
            text += encode_line({"seq": seq, **at, **scores})
            seq += 1
    return text


def send(run: ActingRun, width: int, seed: int, end: int, **how: int) -> None:
    """Report the metric lines of a run up to a step."""
    text = lines(width, seed, run.step, end, seq=run.num_lines, **how)
    run.send("metrics/rank0.jsonl", text)
    run.num_lines += text.count(b"\n")
    run.step = end


def report_sweep(
    client: Client, *, yaml: str = SWEEP_YAML, name: str = "widths", leave_running: int = 1
) -> list[ActingRun]:
    """Submit a sweep and report its runs: all but the last `leave_running` have succeeded; those are under way."""
    experiment = client.submit(yaml=yaml, name=name, tags=["exp2"])
    worker = ActingWorker(client)
    started = []
    count = experiment.num_runs
    for i in range(count):
        run = worker.start()
        width, seed = width_and_seed(client.run(run.lease.run_id).config)
        done = i < count - leave_running
        send(run, width, seed, 1000 if done else 620, evaluate=100)
        if done:
            run.report(AttemptState.SUCCEEDED, result=True)
            worker.held.pop()
        started.append(run)
    return started


def width_and_seed(of: dict[str, Any]) -> tuple[int, int]:
    """What the sweep varies."""
    return of["model"]["emb_dim"], of["orchestration"]["utils"]["seed"]


class CompareClient(FakeClient):
    """The client's methods that the Compare page uses, over runs in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[schemas.MetricsQuery] = []
        self.filters: list[str | None] = []

    def add_run(
        self, run_id: str, *, width: int = 32, seed: int = 0, steps: int = 1000, bound: bool = True, **fields: Any
    ) -> None:
        """Store a run of the sweep with curves up to a step, evaluated every 100 steps."""
        settings = config()
        settings["model"]["emb_dim"] = width
        settings["orchestration"]["utils"]["seed"] = seed
        values: dict[str, Any] = {
            "name": f"widths/emb_dim={width},seed={seed}",
            "params": {"model.emb_dim": width, "orchestration.utils.seed": seed},
            "config": settings,
            "experiment_id": "e1",
        }
        state = fields.pop("state", RunState.SUCCEEDED if steps >= 1000 else RunState.RUNNING)
        self.add(run_id, state, step=steps, **values | fields)
        if not steps:
            return
        rng = random.Random(f"{width} {seed}")
        at = [1, 2, 5, *range(10, steps + 1, 10)]
        excess = [excess_at(s, width) * (1 + 0.04 * (seed - 1)) * math.exp(rng.gauss(0, 0.04)) for s in at]
        bounds = [ENTROPY + rng.gauss(0, 0.016) for _ in at]
        curves = {"loss": series(at, [b + e for b, e in zip(bounds, excess, strict=True)], TOKENS)}
        curves["flops"] = series(at, [s * TOKENS * flops_per_token(width) for s in at], TOKENS)
        if bound:
            curves |= {"bound": series(at, bounds, TOKENS), "excess": series(at, excess, TOKENS)}
            evaluated = list(range(100, steps + 1, 100))
            held_out = [excess_at(s, width) * (1 + 0.04 * (seed - 1)) for s in evaluated]
            curves["eval/excess"] = series(evaluated, held_out, TOKENS)
            curves["eval/excess_stderr"] = series(evaluated, [0.01 * e for e in held_out], TOKENS)
        self.series[run_id] = curves

    def runs(
        self,
        *,
        filter: str | None = None,  # noqa: A002
        limit: int = 50,
        **_rest: Any,
    ) -> schemas.RunPage:
        self._call("runs")
        self.filters.append(filter)
        words = (filter or "").split()
        wanted = next((word[3:].split(",") for word in words if word.startswith("id:")), None)
        names = [word for word in words if ":" not in word]
        found = [r for r in self.stored.values() if wanted is None or r.id in wanted]
        found = [r for r in found if all(n in r.name for n in names)]
        counts = {s: sum(r.state is s for r in found) for s in RunState}
        return schemas.RunPage(items=list(found[:limit]), counts=counts)

    def curves(self, query: schemas.MetricsQuery) -> schemas.MetricsReply:
        self._call("curves")
        self.queries.append(query)
        replies = []
        for run_id in query.runs:
            known = self.series[run_id]
            wanted = {k: self._on_axis(run_id, known[k], query) for k in query.keys if k in known}
            replies.append(schemas.Metrics(run_id=run_id, keys=sorted(known), series=wanted))
        return schemas.MetricsReply(x=query.x, runs=replies)

    def values(self, run_ids: list[str]) -> list[schemas.RunValues]:
        self._call("values")
        return [
            schemas.RunValues(run_id=i, values={k: _values(s) for k, s in self.series[i].items() if s.value})
            for i in run_ids
        ]

    def _on_axis(self, run_id: str, found: schemas.Series, query: schemas.MetricsQuery) -> schemas.Series:
        width = self.stored[run_id].config["model"]["emb_dim"]
        x = None
        if query.x == "flops":
            x = [t * flops_per_token(width) for t in found.tokens]
        elif query.x == "relative_time":
            x = [t - self.series[run_id]["loss"].time[0] for t in found.time]
        place = x or [float(v) for v in (found.tokens if query.x == "tokens" else found.step)]
        low = -math.inf if query.x_min is None else query.x_min
        high = math.inf if query.x_max is None else query.x_max
        keep = [i for i, at in enumerate(place) if low <= at <= high]
        columns = {k: [getattr(found, k)[i] for i in keep] for k in ("step", "tokens", "time", "value")}
        return schemas.Series(**columns, x=None if x is None else [x[i] for i in keep], summary=found.summary)


def _values(found: schemas.Series) -> schemas.MetricValues:
    low, high = min(found.value), max(found.value)
    return schemas.MetricValues(
        last=found.value[-1], last_step=found.step[-1], min=low, min_step=1, max=high, max_step=1
    )
