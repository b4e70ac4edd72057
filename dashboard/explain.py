"""Why things are as they are, in words, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dashboard.wording import number, plural, seconds_between, si
from nanollama.api.schemas import Run, RunDetail, Worker
from nanollama.api.status import RunState
from nanollama.spec.experiment import APPS
from nanollama.spec.rundir import decode_number


@dataclass(frozen=True)
class Advice:
    """What is so, and what to type about it, if anything."""

    text: str
    code: str = ""


def why_waiting(run: Run, workers: Sequence[Worker], url: str) -> Advice:
    """Why a run that has not started waits."""
    if run.state is RunState.SUBMITTED:
        return Advice("The cluster's scheduler has it; it starts when the scheduler gives it its resources.")
    if run.state is RunState.LEASED:
        return Advice(f"The worker {run.worker or ''} has taken it and is about to start it.".replace("  ", " "))
    alive = [w for w in workers if w.alive]
    if not alive:
        text = "No worker is alive, so nothing can start it. To start a worker on this machine:"
        return Advice(text, worker_command(url))
    open_workers = [w for w in alive if not w.draining]
    if not open_workers:
        return Advice("Every worker that is alive is draining: they finish what they hold and take nothing new.")
    free = sum(max(0, w.slots - w.busy) for w in open_workers)
    if free:
        return Advice(f"{plural(free, 'slot')} free: a worker takes it within moments.")
    slots = sum(w.slots for w in open_workers)
    busy = "The only slot of the workers is" if slots == 1 else f"All {slots} slots of the workers are"
    return Advice(f"{busy} busy; it starts when one is free.")


def why_idle(counts: Mapping[RunState, int], workers: Sequence[Worker], url: str) -> Advice | None:
    """Why none of the runs that wait can start; None when some worker takes them, or none waits."""
    waiting = counts.get(RunState.QUEUED, 0)
    if not waiting:
        return None
    alive = [w for w in workers if w.alive]
    wait = f"{plural(waiting, 'run')} {'waits' if waiting == 1 else 'wait'}"
    if not alive:
        return Advice(f"{wait}, but no worker is alive. To start one on this machine:", worker_command(url))
    if all(w.draining for w in alive):
        return Advice(f"{wait}, but every worker that is alive is draining and takes nothing new.")
    return None


def worker_command(url: str) -> str:
    """What to type to start a worker on this machine."""
    return f"mkdir -p runs && python -m worker --url {url} --run-root runs --home .n2n/worker"


def outcome(run: RunDetail) -> Advice | None:
    """How a run ended, in words; None while it has not, or when there is nothing to add."""
    if run.state is RunState.FAILED:
        return Advice(run.reason or "No reason was recorded; the log below is the place to look.")
    if run.state is RunState.CANCELLED:
        return Advice(run.reason or "Cancelled on request.")
    return None


def final_result(run: RunDetail) -> str:
    """The result of a finished run: means over its last metric lines."""
    result = run.result or {}
    loss, bound, excess = (_float(result.get(key)) for key in ("loss", "bound", "excess"))
    if loss is None:
        return ""
    text = f"mean of the last {plural(int(result.get('num_points') or 0), 'metric line')}: loss {number(loss)}"
    if bound is None or excess is None:
        return text + " nats/token"
    error = _float(result.get("excess_stderr"))
    spread = f" ± {number(error)}" if error is not None else ""
    return f"{text}, bound {number(bound)}, excess {number(excess)}{spread} nats/token"


def remaining_seconds(run: Run) -> float | None:
    """Seconds until the last step at the present speed; None when that is unknown."""
    p = run.progress
    if run.state is not RunState.RUNNING or not p.tokens_per_second or not p.step or not p.tokens:
        return None
    return (p.total_steps - p.step) * p.tokens / p.step / p.tokens_per_second


def elapsed_seconds(run: Run, now: datetime) -> float | None:
    """Seconds since the start, or from start to end."""
    return seconds_between(run.started_at, run.finished_at or now)


def repeat_commands(config: dict[str, Any], file_name: str) -> str:
    """What to type to train the same config again: through the service, or by hand without any."""
    app = APPS.get(str(config.get("app")), APPS["gssm.train"])
    return f"n2n submit {file_name}\n# or without any service:\npython -m {app.module} config={file_name}"


def summary(config: dict[str, Any]) -> list[tuple[str, str]]:
    """What a config would run, as name and value."""
    data, optim, model = (config.get(key) or {} for key in ("data", "optim", "model"))
    steps, batch, length = optim.get("steps"), data.get("batch_size"), data.get("seq_len")
    facts = [("steps", f"{steps:,}" if isinstance(steps, int) else "")]
    if isinstance(steps, int) and isinstance(batch, int):
        facts.append(("sequences", f"{si(steps * batch)} ({batch:,} a step)"))
        if isinstance(length, int):
            facts.append(("tokens", f"{si(steps * batch * (length - 1))} ({length - 1:,} predicted in each sequence)"))
    facts.append(("data", "sampled on the fly" if "gssm" in data else str(data.get("path", ""))))
    facts.append(("learner", str(model.get("implementation", ""))))
    return [(name, value) for name, value in facts if value]


def graph(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of the graph that a config samples from; none when the data comes from a file."""
    nodes = ((config.get("data") or {}).get("gssm") or {}).get("nodes") or []
    return [node for node in nodes if isinstance(node, dict)]


def _float(value: Any) -> float | None:
    try:
        return decode_number(value)
    except ValueError:
        return None
