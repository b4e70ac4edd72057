"""Which workers could run a job, and why the others could not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboard.wording import plural
from nanollama.api.schemas import Resources, Worker

_AMOUNTS = {"accelerators": "accelerators", "cpus": "CPUs", "memory_gb": "GB of memory"}


@dataclass(frozen=True)
class Placement:
    """The workers that could run a job, and of those that are alive and could not, why."""

    able: list[Worker]
    unable: list[tuple[Worker, str]]

    @property
    def sentence(self) -> str:
        """In words, the names of some workers included."""
        if not self.able and not self.unable:
            return "No worker is alive. The runs wait until one is."
        if not self.able:
            worker, why = self.unable[0]
            return f"No worker that is alive can run this; of {worker.name}: {why}. The runs would wait."
        free = sum(max(0, w.slots - w.busy) for w in self.able if not w.draining)
        names = ", ".join(w.name for w in self.able[:3]) + (" …" if len(self.able) > 3 else "")
        where = f"{plural(len(self.able), 'worker')} can run this ({names})"
        return f"{where}; {plural(free, 'slot')} free now." if free else f"{where}; all are busy now."


def place(need: Resources, workers: Sequence[Worker]) -> Placement:
    """Match a job with the workers that are alive, as the service does."""
    alive = [w for w in workers if w.alive]
    reasons = [(w, why_never(need, w)) for w in alive]
    return Placement([w for w, why in reasons if why is None], [(w, why) for w, why in reasons if why is not None])


def why_never(need: Resources, worker: Worker) -> str | None:
    """Why a worker could not run such a job even if it were idle; None when it could."""
    if need.executor is not None and need.executor != worker.executor:
        return f"its executor is {worker.executor}, not {need.executor}"
    missing = [label for label in need.labels if label not in worker.labels]
    if missing:
        return f"it lacks the label {missing[0]}"
    for name, unit in _AMOUNTS.items():
        has, wanted = getattr(worker, name), getattr(need, name)
        if wanted > (has or 0):
            return f"it has not said how many {unit} it has" if has is None else f"it has {has:g} {unit}"
    return None


def needs(resources: Resources) -> str:
    """What a job needs, in few words; empty when nothing in particular."""
    parts: list[str] = [resources.executor or ""]
    if resources.accelerators:
        parts.append(plural(resources.accelerators, "accelerator"))
    if resources.cpus:
        parts.append(plural(resources.cpus, "CPU"))
    if resources.memory_gb:
        parts.append(f"{resources.memory_gb:g} GB")
    return ", ".join([part for part in parts if part] + [f"label {label}" for label in resources.labels])
