"""A service in memory with the methods of nanollama.api.client.Client that the page uses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from nanollama.api import schemas
from nanollama.api.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from nanollama.api.filters import parse_filter
from nanollama.api.schemas import ByPosition
from nanollama.api.status import RunState
from nanollama.spec.base import SpecError, parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.yaml_text import MAX_BYTES, load_yaml, locate

ENTROPY = 1.9184
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)

CONFIG_YAML = """\
# Does the smallest setting come near its bound?
data:
  seq_len: 64
  batch_size: 64
  gssm:
    nodes:
      - {name: Z, state_dim: 8, alpha: 0.1, mode: slow}
      - {name: X, state_dim: 16, alpha: 0.2, parents: [Z], observed: true}
model: {emb_dim: 32, nb_layers: 2}
optim: {steps: 1000, warmup: 50}
orchestration: {name: small}
"""


def config() -> dict[str, Any]:
    """A resolved config."""
    return parse(ExperimentSpec, load_yaml(CONFIG_YAML)).model_dump(mode="json")


def series(steps: list[int], values: list[float], tokens_per_step: int = 4032) -> schemas.Series:
    """A series with its summary."""
    finite = [v for v in values if math.isfinite(v)]
    summary = None
    if values:
        mean = sum(finite) / max(1, len(finite))
        variance = sum((v - mean) ** 2 for v in finite) / max(1, len(finite) - 1)
        summary = schemas.Summary(
            count=len(values),
            mean=mean,
            stderr=math.sqrt(variance / len(finite)) if len(finite) > 1 else None,
            min=min(finite, default=math.nan),
            max=max(finite, default=math.nan),
            last=values[-1],
        )
    return schemas.Series(
        step=steps,
        tokens=[s * tokens_per_step for s in steps],
        time=[1e9 + s for s in steps],
        value=values,
        summary=summary,
    )


def learning(num_steps: int, *, period: int = 10, seed: int = 0, bound: bool = True) -> dict[str, schemas.Series]:
    """Metrics of a learner that approaches its bound by a power law; loss and bound share the noise of their batch."""
    rng = random.Random(seed)
    steps = [1, *range(period, num_steps + 1, period)]
    noise = [rng.gauss(0, 0.016) for _ in steps]
    excess = [0.9 * (1 + s / 12) ** -0.75 * math.exp(rng.gauss(0, 0.05)) for s in steps]
    bounds = [ENTROPY + n for n in noise]
    values = {
        "loss": [b + e for b, e in zip(bounds, excess, strict=True)],
        "lr": [3e-4 * min(1.0, s / 50) for s in steps],
        "grad_norm": [0.4 + 2 / (1 + s / 20) + abs(rng.gauss(0, 0.05)) for s in steps],
        "tokens_per_second": [61_000 + rng.gauss(0, 900) for _ in steps],
    }
    if bound:
        values |= {"bound": bounds, "excess": excess}
    return {key: series(steps, column) for key, column in values.items()}


class FakeClient:
    """Runs, and what belongs to them, in dicts that a test fills; `away` makes every call fail."""

    url = "http://127.0.0.1:8420"

    def __init__(self) -> None:
        self.away = False
        self.stored: dict[str, schemas.RunDetail] = {}
        self.series: dict[str, dict[str, schemas.Series]] = {}
        self.saved: dict[str, list[schemas.Checkpoint]] = {}
        self.happened: dict[str, list[schemas.Event]] = {}
        self.text: dict[str, dict[str, str]] = {}
        self.known_workers: list[schemas.Worker] = []
        self.calls: list[str] = []
        self.submissions: list[str] = []
        self.clones: list[schemas.Clone] = []
        self.selections: list[schemas.RunSelection] = []
        self.tries: dict[str, list[schemas.Attempt]] = {}
        self.evaluated: dict[str, list[schemas.Evaluation]] = {}
        self.finer: dict[str, schemas.Series] = {}

    def add(self, run_id: str, state: RunState, *, name: str = "small", step: int = 0, **fields: Any) -> None:
        """Store a run; with a step above zero it has metrics, events and a log."""
        total = 1000
        curves = learning(step) if step else {}
        last = {key: curve.value[-1] for key, curve in curves.items()}
        progress = schemas.Progress(
            step=step,
            total_steps=total,
            tokens=step * 4032,
            loss=last.get("loss"),
            bound=last.get("bound"),
            excess=last.get("excess"),
            tokens_per_second=last.get("tokens_per_second"),
        )
        values: dict[str, Any] = {
            "id": run_id,
            "experiment_id": "e" + run_id,
            "name": name,
            "state": state,
            "cancel_requested": False,
            "attempt": 1,
            "priority": 0,
            "tags": [],
            "config_hash": "ab" * 32,
            "created_at": NOW - timedelta(minutes=len(self.stored)),
            "started_at": NOW if step else None,
            "progress": progress,
            "config": config(),
            **fields,
        }
        self.stored[run_id] = schemas.RunDetail(**values)
        self.series[run_id] = curves
        self.saved[run_id] = [checkpoint(s) for s in range(250, step + 1, 250)]
        self.happened[run_id] = [
            schemas.Event(id=1, attempt=1, kind="transition", at=NOW, from_state="QUEUED", to_state=state.value)
        ]
        self.text[run_id] = {"logs/rank0.log": "".join(f"step {s}\n" for s in range(0, step, 10))} if step else {}

    # -- the client's methods ------------------------------------------------------------------------------------------

    def health(self) -> schemas.Health:
        self._call("health")
        return schemas.Health(version="0", database="sqlite")

    def templates(self) -> list[schemas.Template]:
        self._call("templates")
        return [schemas.Template(name="debug", summary="Does it learn at all?", yaml=CONFIG_YAML)]

    def validate(self, *, yaml: str | None = None) -> schemas.Validation:
        self._call("validate")
        assert yaml is not None
        if len(yaml) > 4 * MAX_BYTES:
            raise TooLarge(f"the body has more than {4 * MAX_BYTES:,} bytes")
        try:
            data = load_yaml(yaml)
            if isinstance(data, dict):
                data.pop("grid", None)  # the service itself is tested with sweeps
            spec = parse(ExperimentSpec, data)
        except SpecError as error:
            return schemas.Validation(valid=False, problems=locate(yaml, error.problems))
        return schemas.Validation(valid=True, config=spec.model_dump(mode="json"), config_hash="cd" * 32)

    def draft_graph(self, *, yaml: str) -> str:
        self._call("draft_graph")
        return f"<svg xmlns='http://www.w3.org/2000/svg'><text>{len(yaml)}</text></svg>"

    def submit(
        self,
        *,
        yaml: str,
        name: str | None,
        tags: list[str],
        priority: int,
        idempotency_key: str,
        **_more: Any,
    ) -> schemas.Experiment:
        self.submissions.append(idempotency_key)
        self._call("submit")
        validation = self.validate(yaml=yaml)
        if not validation.valid:
            raise InvalidRequest("the spec is invalid", validation.problems)
        self.add("new1", RunState.QUEUED, name=name or "small", tags=tags, priority=priority)
        run = self.stored["new1"]
        return schemas.Experiment(id="e1", name=run.name, notes="", tags=run.tags, created_at=NOW, runs=[run])

    def runs(
        self,
        *,
        state: list[str] | None = None,
        filter: str | None = None,  # noqa: A002 - the client's name
        sort: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> schemas.RunPage:
        self._call("runs")
        found = [run for run in self.stored.values() if _matches(run, filter or "")]
        if sort == "-excess":
            found.sort(key=lambda run: -(run.progress.excess or 0))
        counts = {s: sum(r.state is s for r in found) for s in RunState}
        found = [r for r in found if not state or r.state.value in state]
        start = int(cursor or 0)
        more = str(start + limit) if start + limit < len(found) else None
        return schemas.RunPage(items=list(found[start : start + limit]), next_cursor=more, counts=counts)

    def run(self, run_id: str) -> schemas.RunDetail:
        self._call("run")
        if run_id not in self.stored:
            raise NotFound(f"no run {run_id}")
        return self.stored[run_id]

    def cancel(self, run_id: str) -> schemas.Run:
        self._call("cancel")
        if self.stored[run_id].state.terminal:
            raise Conflict("the run has ended")
        return self._set(run_id, cancel_requested=True)

    def retry(self, run_id: str) -> schemas.Run:
        self._call("retry")
        if self.stored[run_id].state not in (RunState.FAILED, RunState.CANCELLED):
            raise Conflict("only runs that failed or were cancelled can be retried")
        return self._set(run_id, state=RunState.QUEUED, attempt=self.stored[run_id].attempt + 1)

    def resolve(self, run_id: str, resolve: schemas.Resolve) -> schemas.Run:
        self._call("resolve")
        state = RunState.QUEUED if resolve.to == "INTERRUPTED" else RunState(resolve.to)
        return self._set(run_id, state=state, unknown_since=None)

    def change_run(self, run_id: str, patch: schemas.RunPatch) -> schemas.Run:
        self._call("change_run")
        return self._set(run_id, **patch.model_dump(exclude_none=True))

    def cancel_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        return self._bulk(selection, lambda r: None if r.state.terminal else {"cancel_requested": True})

    def retry_runs(self, selection: schemas.RunSelection) -> schemas.RunsChanged:
        return self._bulk(selection, lambda r: {"state": RunState.QUEUED} if r.state is RunState.FAILED else None)

    def archive_runs(self, selection: schemas.Archive) -> schemas.RunsChanged:
        return self._bulk(selection, lambda _: {"archived": selection.archived})

    def tag_runs(self, selection: schemas.Retag) -> schemas.RunsChanged:
        gone = set(selection.remove)
        return self._bulk(selection, lambda r: {"tags": [*(t for t in r.tags if t not in gone), *selection.add]})

    def clone(self, run_id: str, clone: schemas.Clone, *, idempotency_key: str) -> schemas.Experiment:
        self._call("clone")
        self.submissions.append(idempotency_key)
        self.clones.append(clone)
        self.add("clone1", RunState.QUEUED, name=clone.name or self.stored[run_id].name)
        run = self.stored["clone1"]
        return schemas.Experiment(id="e2", name=run.name, notes="", tags=[], created_at=NOW, runs=[run])

    def attempts(self, run_id: str) -> list[schemas.Attempt]:
        self._call("attempts")
        return self.tries.get(run_id, [])

    def evaluations(self, run_id: str) -> list[schemas.Evaluation]:
        self._call("evaluations")
        return self.evaluated.get(run_id, [])

    def pin_checkpoint(self, run_id: str, step: int, *, pinned: bool = True) -> schemas.Checkpoint:
        self._call("pin_checkpoint")
        return self._save(run_id, step, pinned=pinned)

    def delete_checkpoint(self, run_id: str, step: int) -> schemas.Checkpoint:
        self._call("delete_checkpoint")
        if any(c.step == step and c.pinned for c in self.saved[run_id]):
            raise Conflict("the checkpoint is pinned")
        return self._save(run_id, step, removed=True)

    def download_checkpoint(self, run_id: str, step: int) -> list[bytes]:
        self._call("download_checkpoint")
        return [b"tar of ", f"{run_id} {step}".encode()]

    def export_run(self, run_id: str) -> list[bytes]:
        self._call("export_run")
        return [b"archive of ", run_id.encode()]

    def events(self, run_id: str) -> list[schemas.Event]:
        self._call("events")
        return self.happened[run_id]

    def checkpoints(self, run_id: str) -> list[schemas.Checkpoint]:
        self._call("checkpoints")
        return self.saved[run_id]

    def metrics(self, run_id: str, keys: list[str], *, x_min: float | None = None, **_spacing: Any) -> schemas.Metrics:
        self._call("metrics")
        known = self.finer if x_min is not None else self.series[run_id]
        return schemas.Metrics(run_id=run_id, keys=sorted(known), series={k: known[k] for k in keys if k in known})

    def curves(self, query: schemas.MetricsQuery) -> schemas.MetricsReply:
        self._call("curves")
        found = [
            schemas.Metrics(
                run_id=i,
                keys=sorted(self.series[i]),
                series={k: self.series[i][k] for k in query.keys if k in self.series[i]},
            )
            for i in query.runs
        ]
        return schemas.MetricsReply(x=query.x, runs=found)

    def logs(self, run_id: str, *, stream: str | None = None, **_place: Any) -> schemas.LogTail:
        self._call("logs")
        streams = self.text[run_id]
        name = stream or next(iter(streams), "stdout.log")
        text = streams.get(name, "")
        return schemas.LogTail(attempt=1, name=name, offset=0, length=len(text), text=text, streams=list(streams))

    def workers(self) -> list[schemas.Worker]:
        self._call("workers")
        return self.known_workers

    def _set(self, run_id: str, **values: Any) -> schemas.RunDetail:
        self.stored[run_id] = self.stored[run_id].model_copy(update=values)
        return self.stored[run_id]

    def _save(self, run_id: str, step: int, **values: Any) -> schemas.Checkpoint:
        at = next(i for i, c in enumerate(self.saved[run_id]) if c.step == step)
        self.saved[run_id][at] = self.saved[run_id][at].model_copy(update=values)
        return self.saved[run_id][at]

    def _bulk(
        self, selection: schemas.RunSelection, change: Callable[[schemas.RunDetail], dict[str, Any] | None]
    ) -> schemas.RunsChanged:
        self._call("bulk")
        self.selections.append(selection)
        ids = selection.ids
        if ids is None:
            ids = [run.id for run in self.stored.values() if _matches(run, selection.filter or "")]
        made = {i: values for i in ids if (values := change(self.stored[i])) is not None}
        for run_id, values in made.items():
            self._set(run_id, **values)
        return schemas.RunsChanged(changed=list(made))

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise Unavailable(f"no answer from {self.url} (connection refused)")


def _matches(run: schemas.RunDetail, text: str) -> bool:
    """Whether a run meets the few conditions that the tests of the page use."""
    terms = parse_filter(text)
    if run.archived and not any(term.name == "archived" for term in terms):
        return False
    for term in terms:
        if term.kind == "word" and not any(str(term.values[0]) in field for field in (run.name, run.id, *run.tags)):
            return False
        if term.kind == "state" and run.state.value not in term.values:
            return False
        if term.name == "archived" and run.archived not in term.values:
            return False
    return True


def checkpoint(step: int, path: str | None = None, *, removed: bool = False) -> schemas.Checkpoint:
    """A checkpoint of a step."""
    return schemas.Checkpoint(
        step=step,
        attempt=1,
        path=path or f"/runs/r/checkpoints/{step:010d}",
        size_bytes=1_234_567,
        digest="sha256:" + f"{step:064x}",
        created_at=NOW,
        removed=removed,
    )


def evaluation(step: int, num_positions: int = 40) -> schemas.Evaluation:
    """An evaluation of a learner that approaches its bound by a power law."""
    excess = 0.9 * (1 + step / 12) ** -0.75
    positions = list(range(1, num_positions + 1))
    return schemas.Evaluation(
        step=step,
        attempt=1,
        at=NOW,
        loss=ENTROPY + excess,
        bound=ENTROPY,
        excess=excess,
        excess_stderr=0.02 * excess,
        kl=0.98 * excess,
        by_position=ByPosition(
            positions=positions,
            loss=[ENTROPY + 1 / t + excess for t in positions],
            bound=[ENTROPY + 1 / t for t in positions],
            excess=[excess for _ in positions],
            excess_stderr=[0.1 * excess for _ in positions],
            kl=[0.98 * excess for _ in positions],
        ),
        probes={f"layer{i}/{name}": 1 - 0.4 / (i + 1) for i in range(3) for name in ("Z", "C")},
    )


def worker(name: str = "w1", *, alive: bool = True, slots: int = 1, busy: int = 0) -> schemas.Worker:
    """A worker."""
    return schemas.Worker(
        id="i" + name,
        name=name,
        pool="p",
        executor="local",
        host="h",
        user="u",
        run_root="/runs",
        slots=slots,
        busy=busy,
        alive=alive,
        draining=False,
        version="0",
        last_seen_at=NOW,
    )
