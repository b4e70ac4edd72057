"""What the runs of a config would cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.specs import pricing
from backend.specs.pricing import price_bound
from nanollama.data import filter as engine
from nanollama.data.filter import Filter
from nanollama.data.gssm import draw_kernels
from nanollama.model.build import build_model, num_parameters
from nanollama.spec.base import parse
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.gssm import GSSMSpec
from nanollama.spec.yaml_text import load_yaml
from tests.support.service import SPEC_YAML, Caller

TOKENS = 100 * 8 * 15  # of a run of SPEC_YAML
FILE_YAML = (
    SPEC_YAML[: SPEC_YAML.index("  seq_len")]
    + "  path: /d/a.h5\n  batch_size: 8\n"
    + SPEC_YAML[SPEC_YAML.index("model:") :]
)


def validated(caller: Caller, yaml: str = SPEC_YAML) -> dict[str, Any]:
    found = caller.post("/specs/validate", yaml=yaml)
    assert found["valid"], found["problems"]
    assert isinstance(found, dict)
    return found


def train(caller: Caller, yaml: str, seconds: float) -> None:
    """Bring a run to its end, as if it had taken so long."""
    run_id = caller.submit(yaml=yaml)
    caller.register("w")
    (lease,) = (lease for lease in caller.sync("w", slots=1)["leases"] if lease["run_id"] == run_id)
    result = {"step": 100, "tokens": TOKENS, "seconds": seconds}
    reply = caller.report(lease, "SUCCEEDED", exit_code=0, result=result)
    assert reply.status_code == 200, reply.text


def test_sizes_are_those_of_the_learner(caller: Caller) -> None:
    estimate = validated(caller)["estimate"]
    spec = parse(ExperimentSpec, load_yaml(SPEC_YAML))
    torch.manual_seed(0)
    model = build_model(spec.model, 8)
    assert estimate["parameters"] == num_parameters(model)
    assert estimate["flops_per_token"] == pytest.approx(model.flops_per_token(15).total)
    assert (estimate["tokens_per_run"], estimate["total_tokens"], estimate["vocab"]) == (TOKENS, TOKENS, 8)
    assert (estimate["hours_per_run"], estimate["total_hours"], estimate["based_on"]) == (None, None, 0)
    caller.submit()
    assert estimate["gssm_hash"] == caller.get("/gssms")["items"][0]["hash"]


def test_a_sweep_is_named_and_added_up(caller: Caller) -> None:
    grid = "grid:\n  orchestration.utils.seed: range(0, 60)\n  optim.steps: [100, 200]\n"
    found = validated(caller, SPEC_YAML + grid)
    assert len(found["names"]) == 50
    assert found["names"][0] == found["first_run"]
    assert found["estimate"]["tokens_per_run"] == TOKENS
    assert found["estimate"]["total_tokens"] == 60 * 3 * TOKENS


def test_the_parameters_of_a_sweep_are_a_range(caller: Caller) -> None:
    sizes = [
        validated(caller, SPEC_YAML.replace("emb_dim: 16", f"emb_dim: {width}"))["estimate"]["parameters"]
        for width in (16, 32, 64)
    ]
    found = validated(caller, SPEC_YAML + "grid:\n  model.emb_dim: [32, 64, 16]\n")["estimate"]
    assert (found["parameters_min"], found["parameters"], found["parameters_max"]) == (sizes[0], sizes[1], sizes[2])


def test_hours_come_from_past_runs_that_are_like_it(caller: Caller) -> None:
    for seconds in (90.0, 100.0, 110.0):
        train(caller, SPEC_YAML, seconds)
    train(caller, SPEC_YAML.replace("emb_dim: 16", "emb_dim: 256"), 1.0)  # too many parameters to say anything
    estimate = validated(caller)["estimate"]
    assert estimate["based_on"] == 3
    assert estimate["hours_per_run"] == pytest.approx(100 / 3600)
    longer = validated(caller, SPEC_YAML + "grid:\n  optim.steps: [200, 300]\n")["estimate"]
    assert longer["hours_per_run"] == pytest.approx(200 / 3600)
    assert longer["total_hours"] == pytest.approx(500 / 3600)
    for other in ("cluster: {device: cuda}\n", "cluster: {dtype: bfloat16}\n"):
        assert validated(caller, SPEC_YAML + other)["estimate"]["based_on"] == 0
    mixed = validated(caller, SPEC_YAML + "grid:\n  cluster.device: [auto, cpu]\n")["estimate"]
    assert mixed["hours_per_run"] is not None
    assert mixed["total_hours"] is None  # of some of its runs nobody knows


def test_of_a_file_nothing_is_said_until_a_worker_has_seen_it(caller: Caller) -> None:
    assert validated(caller, FILE_YAML)["estimate"] is None
    caller.register("w")
    report = {"path": "/d/a.h5", "num_sequences": 9, "seq_len": 16, "vocab": 8, "size_bytes": 1, "gssm_hash": "ab" * 32}
    caller.http.put("/workers/w/datasets", json={"datasets": [report]}).raise_for_status()
    estimate = validated(caller, FILE_YAML)["estimate"]
    assert (estimate["tokens_per_run"], estimate["gssm_hash"]) == (TOKENS, "ab" * 32)
    assert estimate["parameters"] == validated(caller)["estimate"]["parameters"]
    assert estimate["bound_method"] is None


# -- what a bound costs ------------------------------------------------------------------------------------------------


def graph(*sizes: int, mode: str = "default", alpha: float = 0.1) -> GSSMSpec:
    names = [f"Z{i}" for i in range(len(sizes))]
    nodes: list[dict[str, Any]] = [
        {"name": name, "state_dim": size, "alpha": alpha} for name, size in zip(names, sizes, strict=True)
    ]
    nodes.append({"name": "X", "state_dim": 8, "alpha": alpha, "parents": names, "observed": True, "mode": mode})
    return parse(GSSMSpec, {"nodes": nodes})


def test_the_limits_are_the_engines() -> None:
    assert (pricing.MEMORY_BUDGET, pricing.MAX_OPERATIONS) == (engine.MEMORY_BUDGET, engine.MAX_OPERATIONS)


@pytest.mark.parametrize("sizes", [(4,), (64,), (16, 16), (8, 8, 8)])
def test_the_price_is_that_of_the_engines_own_plan(sizes: tuple[int, ...]) -> None:
    spec = graph(*sizes)
    price = price_bound(spec, 3, 33, 10)
    plan = Filter(draw_kernels(spec, 3)).plan
    assert price.states == plan.states
    assert price.seconds_per_batch == pytest.approx(plan.nanoseconds() * 320 / 1e9)
    assert price.method is not None
    assert all(step.option.method in price.method for step in plan.steps)
    assert price.reason is None


@pytest.mark.parametrize(
    ("spec", "states", "reason"),
    [
        (graph(4, mode="context"), 4, "the kernels of X are redrawn for every sequence"),
        (graph(*[64] * 8), 64**8, "out of reach: 281,474,976,710,656 joint states"),
        (graph(*[2] * 20), 2**20, "too large to be priced here"),
        (graph(*[1000] * 30), 1000**30, "out of reach: about 10^90 joint states"),
    ],
)
def test_what_is_not_priced_says_why(spec: GSSMSpec, states: int, reason: str) -> None:
    price = price_bound(spec, 0, 33, 10)
    assert (price.method, price.seconds_per_batch, price.states) == (None, None, states)
    assert reason in str(price.reason)


def test_the_price_is_in_the_estimate(caller: Caller) -> None:
    estimate = validated(caller)["estimate"]
    assert (estimate["bound_states"], estimate["bound_reason"]) == (4, None)
    assert estimate["bound_method"].startswith("forward filter: ")
    assert 0 < estimate["bound_seconds_per_batch"] < 1
