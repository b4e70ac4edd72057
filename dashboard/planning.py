"""What a draft would run and cost, as facts with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboard.explain import summary
from dashboard.wording import DASH, duration, number, plural, si
from nanollama.api.schemas import Bound, Estimate, Validation

_MADE_OF = {
    "learner": ("model.implementation",),
    "steps": ("optim.steps",),
    "sequences": ("optim.steps", "data.batch_size"),
    "data": ("data.path",),
}
"""What a plan tells of a config, and the keys that it comes from."""


@dataclass(frozen=True)
class Fact:
    """A name, a value and what stands behind it."""

    name: str
    value: str
    why: str = ""
    tone: str = ""


def facts(validation: Validation) -> list[Fact]:
    """What a valid draft would run."""
    estimate, count = validation.estimate, max(1, validation.num_runs)
    known = dict(summary(validation.config or {}))
    found = [Fact("Runs", f"{count:,}", _names(validation))]
    if estimate is None:
        found.append(Fact("Time", "unknown", "the file of the data is not known to the service yet"))
    else:
        found += [
            _time(estimate, count),
            _parameters(estimate),
            Fact(
                "Tokens", si(estimate.total_tokens), f"{si(estimate.total_tokens / count)} a run" if count > 1 else ""
            ),
        ]
    for name, keys in _MADE_OF.items():
        if name in known:
            value, _, why = known[name].partition(" (")
            found.append(Fact(name.capitalize(), value, _of_first(validation, keys) or why.rstrip(")")))
    return found


def _of_first(validation: Validation, keys: Sequence[str]) -> str:
    """That a value, made of these keys, is the first run's alone; empty where all runs have the same."""
    varied = [key for key in validation.varied if any(_overlap(key, other) for other in keys)]
    return f"in the first run; {', '.join(varied)} {'vary' if len(varied) > 1 else 'varies'}" if varied else ""


def _overlap(key: str, other: str) -> bool:
    """Whether one is the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def bound_facts(validation: Validation, bound: Bound | None) -> list[Fact]:
    """The entropy of the data, where it is known, and what it costs to score the batches with the true model."""
    estimate, found = validation.estimate, []
    if bound is not None and bound.entropy is not None:
        found.append(_entropy_fact(validation, bound))
    if estimate is None:
        return found
    if estimate.bound_method is None:
        return [*found, Fact("Bound", "not scored", estimate.bound_reason or "", "warn")]
    states = "" if estimate.bound_states is None else f", {plural(estimate.bound_states, 'joint state')}"
    cost, steps = estimate.bound_seconds_per_batch, _steps(validation)
    why = estimate.bound_reason or ""
    if cost is not None:
        each = f", {_seconds(cost * steps)} a run" if steps else ""
        why = f"costs {_seconds(cost)} of one core a batch{each}"
    first = _of_first(validation, ("data", "optim.steps"))
    why = ", ".join(filter(None, (why, first)))
    return [*found, Fact("Bound", f"{estimate.bound_method}{states}", why)]


def _entropy_fact(validation: Validation, bound: Bound) -> Fact:
    """An entropy that was computed before; of sequences of another length it is not quite the draft's."""
    length = ((validation.config or {}).get("data") or {}).get("seq_len")
    fits = bound.seq_len is None or length is None or bound.seq_len == length
    why = "nats per token, " + ("from both sides" if bound.state == "inexact" else "computed before")
    why += "" if fits else f" for sequences of {bound.seq_len:,} tokens, not {length:,}"
    why = ", ".join(filter(None, (why, _of_first(validation, ("data.gssm", "data.seq_len")))))
    return Fact("Entropy", entropy_text(bound), why, "good" if fits and bound.state != "inexact" else "warn")


def _steps(validation: Validation) -> int:
    steps = ((validation.config or {}).get("optim") or {}).get("steps")
    return steps if isinstance(steps, int) else 0


def entropy_text(bound: Bound) -> str:
    """An entropy with its standard error, or the two sides between which it lies."""
    if bound.state == "inexact" and bound.lower is not None and bound.upper is not None:
        return f"{number(bound.lower)} to {number(bound.upper)}"
    if bound.entropy is None:
        return DASH
    return number(bound.entropy) + ("" if bound.entropy_stderr is None else f" ± {number(bound.entropy_stderr)}")


def _time(estimate: Estimate, count: int) -> Fact:
    if estimate.total_hours is None:
        return Fact("Time", "unknown", "no past run tells how fast such a learner trains")
    each = f"{_hours(estimate.total_hours / count)} a run; " if count > 1 else ""
    why = f"{each}from the speed of {plural(estimate.based_on, 'past run')}"
    return Fact("Device time", _hours(estimate.total_hours), why)


def _names(validation: Validation) -> str:
    first, last = validation.first_run or "", validation.last_run or ""
    return first if validation.num_runs < 2 or first == last else f"{first} … {last}"


def _parameters(estimate: Estimate) -> Fact:
    """How large the learners of a sweep are, from the smallest to the largest."""
    smallest, largest = si(estimate.parameters_min), si(estimate.parameters_max)
    flops = f"{si(estimate.flops_per_token)} FLOPs a token" if estimate.flops_per_token else ""
    if estimate.parameters_min is None or smallest == largest:
        return Fact("Parameters", si(estimate.parameters), flops)
    return Fact("Parameters", f"{smallest} to {largest}", flops and f"{flops} in the first run")


def _hours(hours: float | None) -> str:
    if hours is None:
        return ""
    return f"{hours:,.1f} h" if hours >= 10 else duration(hours * 3600) if hours >= 1 / 60 else _seconds(hours * 3600)


def _seconds(seconds: float) -> str:
    if seconds >= 60:
        return duration(seconds)
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"
