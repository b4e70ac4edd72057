"""The service in memory with what Launch, Data and Workers & queue use besides."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from nanollama.api import schemas
from nanollama.api.errors import AlreadySucceeded, InvalidRequest, NotFound, TooLarge
from nanollama.api.status import RunState
from nanollama.spec.base import Problem, SpecError, parse
from nanollama.spec.drawing import draw_graph
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.grid import expand
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.load import Document
from nanollama.spec.yaml_text import MAX_BYTES, load_yaml, locate
from tests.support.fake_client import CONFIG_YAML, NOW, FakeClient, config, worker

SWEEP_YAML = CONFIG_YAML + "grid:\n  optim.lr: [1e-3, 1e-2]\n  data.seed: range(3)\n"
HASH = "ab12" * 16


def gssm(content_hash: str = HASH, name: str = "Z → X", **fields: Any) -> schemas.GSSMDetail:
    """A graph whose bound is not computed, unless `fields` says otherwise."""
    values: dict[str, Any] = {
        "hash": content_hash,
        "name": name,
        "nodes": ["Z", "X"],
        "num_latents": 1,
        "joint_states": 8,
        "vocab": 16,
        "seq_len": 64,
        "seed": 3,
        "num_runs": 0,
        "created_at": NOW - timedelta(hours=3),
        "bound": schemas.Bound(state="none"),
        "config": config()["data"],
    }
    return schemas.GSSMDetail(**values | fields)


def computed(content_hash: str = HASH, name: str = "Z → X", **fields: Any) -> schemas.GSSMDetail:
    """A graph whose entropy is known, by position too."""
    positions = list(range(1, 64))
    bound = schemas.Bound(
        state="done", run_id="b1", entropy=1.5906, entropy_stderr=0.0014, num_sequences=10_000, seq_len=64
    )
    curve = schemas.EntropyCurve(
        positions=positions,
        entropy=[1.58 + 0.9 / p for p in positions],
        entropy_stderr=[0.004 for _ in positions],
    )
    return gssm(content_hash, name, **{"bound": bound, "by_position": curve} | fields)


def entry(position: int, run_id: str, reason: schemas.Waiting = "busy", **fields: Any) -> schemas.QueueEntry:
    """A job that waits."""
    values: dict[str, Any] = {
        "position": position,
        "run_id": run_id,
        "run_name": f"run {run_id}",
        "experiment_id": "e1",
        "attempt": 1,
        "priority": 0,
        "since": NOW - timedelta(minutes=5),
        "resources": schemas.Resources(),
        "reason": reason,
        "detail": f"because {reason}",
    }
    return schemas.QueueEntry(**values | fields)


class FakeCatalogue(FakeClient):
    """FakeClient, and graphs, sets, estimates, experiments and a queue in lists that a test fills."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[schemas.GSSMDetail] = []
        self.sets: list[schemas.Dataset] = []
        self.line: list[schemas.QueueEntry] = []
        self.queue_paused = False
        self.held_back: set[str] = set()
        self.learnt: dict[str, str] = {}
        self.orders: list[dict[str, Any]] = []
        self.estimate: schemas.Estimate | None = None

    # -- configs -------------------------------------------------------------------------------------------------------

    def templates(self) -> list[schemas.Template]:
        return [
            *super().templates(),
            schemas.Template(name="sweep", summary="Which learning rate is best?", yaml=SWEEP_YAML),
        ]

    def validate(self, *, yaml: str | None = None) -> schemas.Validation:
        self._call("validate")
        assert yaml is not None
        if len(yaml) > 4 * MAX_BYTES:
            raise TooLarge(f"the body has more than {4 * MAX_BYTES:,} bytes")
        try:
            runs = expand(Document(load_yaml(yaml), yaml, (), {}, frozenset()), ExperimentSpec)
        except SpecError as error:
            return schemas.Validation(valid=False, problems=locate(yaml, error.problems))
        names = [run.name for run in runs]
        spec = parse(ExperimentSpec, runs[0].data)
        return schemas.Validation(
            valid=True,
            config=spec.model_dump(mode="json"),
            config_hash="cd" * 32,
            num_runs=len(runs),
            first_run=names[0],
            last_run=names[-1],
            names=names[:50],
            estimate=self.estimate,
        )

    def draft_graph(self, *, yaml: str) -> str:
        self._call("draft_graph")
        try:
            return draw_graph(parse(GSSMSpec, load_yaml(yaml)["data"]["gssm"]))
        except (SpecError, KeyError, TypeError):
            raise InvalidRequest("the config describes no graph") from None

    def submit(self, *, yaml: str, name: str | None, idempotency_key: str, **order: Any) -> schemas.Experiment:
        self.submissions.append(idempotency_key)
        self._call("submit")
        validation = self.validate(yaml=yaml)
        if not validation.valid:
            raise InvalidRequest("the spec is invalid", validation.problems)
        self.orders.append({"name": name, **order})
        earlier = {n: run_id for n, run_id in self.learnt.items() if n in validation.names}
        if earlier and order["reuse"] == "ask":
            problems = [Problem(path=n, message=f"run {i} has learnt this already") for n, i in earlier.items()]
            raise AlreadySucceeded(f"{len(earlier)} of {validation.num_runs} runs have succeeded before", problems)
        names = validation.names if validation.num_runs > 1 else [name or "small"]
        for i, each in enumerate(names, 1):
            self.add(f"new{i}", RunState.QUEUED, name=each, tags=order["tags"], priority=order["priority"])
        runs: list[schemas.Run] = [self.stored[f"new{i}"] for i in range(1, len(names) + 1)]
        return schemas.Experiment(
            id="e1", name=name or "small", notes="", tags=order["tags"], created_at=NOW, num_runs=len(runs), runs=runs
        )

    # -- graphs and sets -----------------------------------------------------------------------------------------------

    def gssms(self, *, limit: int = 50) -> schemas.GSSMPage:
        self._call("gssms")
        return schemas.GSSMPage(items=list(self.graphs[:limit]))

    def gssm(self, content_hash: str) -> schemas.GSSMDetail:
        self._call("gssm")
        return self.graphs[self._graph(content_hash)]

    def gssm_graph(self, content_hash: str) -> str:
        self._call("gssm_graph")
        return draw_graph(parse(GSSMSpec, self.gssm(content_hash).config["gssm"]))

    def compute_bound(self, content_hash: str) -> schemas.GSSM:
        self._call("compute_bound")
        i = self._graph(content_hash)
        bound = schemas.Bound(state="queued", run_id="b1")
        self.graphs[i] = self.graphs[i].model_copy(update={"bound": bound})
        return self.graphs[i]

    def datasets(self) -> list[schemas.Dataset]:
        self._call("datasets")
        return self.sets

    def _graph(self, content_hash: str) -> int:
        found = [i for i, each in enumerate(self.graphs) if each.hash == content_hash]
        if not found:
            raise NotFound(f"no graph {content_hash}")
        return found[0]

    # -- workers and queue ---------------------------------------------------------------------------------------------

    def queue(self, *, limit: int = 100, offset: int = 0) -> schemas.Queue:
        self._call("queue")
        since = NOW if self.queue_paused else None
        return schemas.Queue(paused_since=since, waiting=len(self.line), items=self.line[offset : offset + limit])

    def pause_queue(self) -> schemas.Queue:
        self._call("pause_queue")
        self.queue_paused = True
        return self.queue()

    def resume_queue(self) -> schemas.Queue:
        self._call("resume_queue")
        self.queue_paused = False
        return self.queue()

    def experiment(self, experiment_id: str) -> schemas.ExperimentDetail:
        self._call("experiment")
        return schemas.ExperimentDetail(
            id=experiment_id,
            name=f"sweep {experiment_id}",
            notes="",
            tags=[],
            created_at=NOW,
            paused_since=NOW if experiment_id in self.held_back else None,
            resources=schemas.Resources(cpus=4),
            runs=[],
        )

    def pause(self, experiment_id: str) -> schemas.Experiment:
        self._call("pause")
        self.held_back.add(experiment_id)
        return self.experiment(experiment_id)

    def resume(self, experiment_id: str) -> schemas.Experiment:
        self._call("resume")
        self.held_back.discard(experiment_id)
        return self.experiment(experiment_id)

    def drain_worker(self, worker_id: str) -> schemas.Worker:
        return self._drain(worker_id, draining=True)

    def resume_worker(self, worker_id: str) -> schemas.Worker:
        return self._drain(worker_id, draining=False)

    def _drain(self, worker_id: str, *, draining: bool) -> schemas.Worker:
        self._call("drain" if draining else "undrain")
        (i,) = (i for i, each in enumerate(self.known_workers) if each.id == worker_id)
        changed = {"draining": draining, "drain_requested": draining}
        self.known_workers[i] = self.known_workers[i].model_copy(update=changed)
        return self.known_workers[i]


def filled() -> FakeCatalogue:
    """A laboratory in which something of everything is going on."""
    fake = FakeCatalogue()
    fake.add("r1", RunState.RUNNING, name="width=64", step=600, worker="gpu-1", experiment_id="e1")
    fake.add("r2", RunState.SUCCEEDED, name="width=32", step=1000, experiment_id="e1")
    fake.add("q1", RunState.QUEUED, name="width=128", experiment_id="e1")
    fake.add("q2", RunState.QUEUED, name="width=256", experiment_id="e2")
    busy = worker("gpu-1", slots=2, busy=1).model_copy(update={"accelerators": 2, "cpus": 16, "labels": ["a100"]})
    fake.known_workers = [busy, worker("old", alive=False)]
    fake.line = [
        entry(0, "q1", "next", run_name="width=128", priority=5),
        entry(1, "q2", "no_worker", run_name="width=256", experiment_id="e2", resources=schemas.Resources(cpus=64)),
    ]
    fake.graphs = [
        computed(num_runs=2, runs=[fake.stored["r1"], fake.stored["r2"]]),
        gssm("cd34" * 16, "four chains", nodes=["A", "B", "C", "D", "X"], num_latents=4, joint_states=4096),
    ]
    fake.sets = [
        schemas.Dataset(
            path="/data/sets/debug.h5",
            gssm_hash=HASH,
            num_sequences=100_000,
            seq_len=64,
            vocab=16,
            size_bytes=12_800_000,
            entropy=1.5906,
            entropy_stderr=0.0014,
            num_runs=1,
            present=True,
        )
    ]
    fake.estimate = schemas.Estimate(
        parameters=41_280,
        flops_per_token=260_000,
        tokens_per_run=4_032_000,
        total_tokens=24_192_000,
        hours_per_run=0.02,
        total_hours=0.12,
        based_on=7,
        bound_method="exact filter",
        bound_states=8,
        bound_seconds_per_batch=0.004,
        vocab=16,
        gssm_hash=HASH,
    )
    return fake
