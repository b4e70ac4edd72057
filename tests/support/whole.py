"""A service with something in every room, and all that it answers about it: to compare one database with another."""

from __future__ import annotations

from typing import Any

from tests.support.service import SPEC_YAML, Caller, checkpoint_line, metric_line

HOSTILE = "naïve 🦉 <script> \\N{x} 'quoted' \u202ertl"


def fill(caller: Caller) -> None:
    """Runs that wait, work, have failed and have succeeded; metrics, logs, events, checkpoints; a sweep that waits."""
    caller.submit(tags=["done", HOSTILE], notes=HOSTILE)
    caller.register("w", labels=["a100"], cpus=8, memory_gb=12.5, accelerators=1)
    done = caller.claim()
    caller.report(done, "RUNNING", attempt_dir="/root/r/1", provenance={"host": "h", "packages": {"torch": "2"}})
    lines = b"".join(
        metric_line(i, i, loss=[0.1, float("nan"), float("inf"), 1e-17][i % 4], bound=0.25 * i) for i in range(300)
    )
    assert caller.put(done, "metrics/rank0.jsonl", lines).status_code == 200
    assert caller.put(done, "events.jsonl", checkpoint_line(0, 7) + checkpoint_line(1, 9)).status_code == 200
    assert caller.put(done, "logs/rank0.log", f"{HOSTILE}\n".encode() + bytes(range(256))).status_code == 200
    caller.end(done, "SUCCEEDED")
    caller.submit(name="fails")
    caller.end(caller.claim(), "FAILED", reason=HOSTILE, exit_code=-9)
    caller.submit(name="works")
    working = caller.claim()
    caller.report(working, "RUNNING")
    caller.put(working, "metrics/rank0.jsonl", lines[: len(lines) // 2])
    grid = {"yaml": SPEC_YAML + "grid:\n  orchestration.utils.seed: range(0, 40)\n", "priority": -3}
    reply = caller.http.post("/experiments", json=grid, headers={"Idempotency-Key": "once"})
    assert reply.status_code == 201, reply.text


def answers(caller: Caller) -> dict[str, Any]:
    """Everything that a GET of the service says, by path."""
    found: dict[str, Any] = {}
    for path in ("/experiments", "/runs?limit=500", "/runs?sort=min.loss&filter=state:succeeded", "/workers", "/queue"):
        found[path] = caller.http.get(path).json()
    for experiment in found["/experiments"]["items"]:
        found[path] = caller.get(path := f"/experiments/{experiment['id']}")
    for run in found["/runs?limit=500"]["items"]:
        for end in ("", "/attempts", "/events", "/checkpoints", "/metrics"):
            found[path] = caller.get(path := f"/runs/{run['id']}{end}")
        path = f"/runs/{run['id']}/logs"
        found[path] = caller.http.get(path).json()
    return found
