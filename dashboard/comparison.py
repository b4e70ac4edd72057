"""What differs between runs: configs as flat keys, groups of runs that differ in their seeds alone, the baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from dashboard.fits import Point
from dashboard.wording import number
from nanollama.api.schemas import Run, Series, Summary
from nanollama.api.status import RunState
from nanollama.spec.identity import LEARNT

SECONDARY = ("data.prefetch", "data.kernels_hash")
"""Keys of the sections that a run learns from which change nothing in what it learns."""
NAMES = ("orchestration.name", "orchestration.log_dir", "launcher.log_dir")
"""Keys that differ between any two runs, and say nothing."""
EACH_RUN = "each run"
"""In place of keys to group by: every run by itself."""
MAX_LABEL_KEYS = 3
TAIL_POINTS = 8  # of a curve, whose mean stands for its end where there is neither an evaluation nor a result

Source = Literal["evaluation", "result", "batches"]
SOURCES: dict[Source, str] = {
    "evaluation": "newest evaluation on held-out sequences",
    "result": "mean of the run's last metric lines",
    "batches": "mean of the last points of its curve, paired on the same tokens",
}


@dataclass(frozen=True)
class Excess:
    """How far a run is from its bound now, in nats per token, with its standard error where that is known."""

    value: float
    error: float | None
    source: Source


@dataclass(frozen=True)
class Entry:
    """A run that is compared.

    Attributes:
        run: it.
        config: its config by dotted key.
        excess: its distance from the bound; None while there is none.
        curve: paired excess by x, or the loss where the data has no bound.
        loss: of each batch, where it was asked for.
        bound: statistics of its bound; None without one.
        evaluations: held-out excesses by x, each with its standard error.
        sizes: parameters, tokens, flops and sequences, as far as they are known.
    """

    run: Run
    config: Mapping[str, Any]
    excess: Excess | None = None
    curve: Series | None = None
    loss: Series | None = None
    bound: Summary | None = None
    evaluations: tuple[Point, ...] = ()
    sizes: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def world(self) -> str:
        """Which data it learns from: runs of the same world have the same bound."""
        kept = {k: v for k, v in self.config.items() if k.startswith(("data.gssm.", "data.path"))}
        if "data.path" not in kept:
            kept |= {k: self.config.get(k) for k in ("data.seed", "data.seq_len")}
        return json.dumps(kept, sort_keys=True, default=str)


@dataclass(frozen=True)
class Group:
    """Runs that are drawn as one.

    Attributes:
        label: what tells it from the others.
        index: of its colour and dash.
        entries: its runs.
        baseline: whether the others are measured against it.
    """

    label: str
    index: int
    entries: tuple[Entry, ...]
    baseline: bool = False

    @property
    def key(self) -> str:
        """A name that stays while the group's first run stays."""
        return self.entries[0].run.id

    @property
    def running(self) -> bool:
        """Whether one of its runs is."""
        return any(e.run.state is RunState.RUNNING for e in self.entries)

    @cached_property
    def worlds(self) -> frozenset[str]:
        """The data that its runs learn from."""
        return frozenset(e.world for e in self.entries)

    @cached_property
    def excess(self) -> Excess | None:
        """Mean over its runs; the error is over runs where there are two or more, otherwise the run's own."""
        known = [e.excess for e in self.entries if e.excess is not None]
        if len(known) < 2:
            return known[0] if known else None
        mean = sum(x.value for x in known) / len(known)
        variance = sum((x.value - mean) ** 2 for x in known) / (len(known) - 1)
        return Excess(mean, math.sqrt(variance / len(known)), known[0].source)

    def size(self, kind: str) -> float | None:
        """Mean of a size over those of its runs that have an excess."""
        known = [e.sizes[kind] for e in self.entries if kind in e.sizes and e.excess is not None]
        return sum(known) / len(known) if known else None


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by dotted key, as the filter language names them; lists of sections by their place."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for i, inner in enumerate(value):
                walk(f"{prefix}.{i}", inner)
        else:
            flat[prefix] = value

    walk("", config)
    return flat


def is_seed(key: str) -> bool:
    """Whether a key seeds something."""
    return key.rpartition(".")[2] in ("seed", "seeds")


def matters(key: str) -> bool:
    """Whether a key changes what is learnt, seeds aside."""
    return key.partition(".")[0] in LEARNT and key not in SECONDARY and not is_seed(key)


def varying(configs: Sequence[Mapping[str, Any]], grid: Iterable[str] = ()) -> list[str]:
    """Keys whose values are not all equal: first those of the grid, then those that change what is learnt."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differ = [k for k in keys if k not in NAMES and len({_stamp(config.get(k)) for config in configs}) > 1]
    swept = set(grid)
    return sorted(differ, key=lambda k: (k not in swept, is_seed(k), not matters(k)))


def value_text(value: Any) -> str:
    """A value of a config as it is written."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Keys by their last words, as many as it takes to tell them apart."""
    names = {}
    for key in keys:
        words = key.split(".")
        others = [other for other in keys if other != key]
        count = next(n for n in range(1, len(words) + 1) if n == len(words) or not _ends(others, words[-n:]))
        names[key] = ".".join(words[-count:])
    return names


def grouped(entries: Sequence[Entry], by: Sequence[str] = (), baseline: str = "") -> list[Group]:
    """Put runs together.

    Args:
        entries: in the order in which their groups get colours.
        by: keys that tell groups apart; without any, all that change what is learnt, so that a group's runs differ in
            their seeds alone; `EACH_RUN`: every run is a group.
        baseline: id of a run whose group is the baseline.
    """
    configs = [e.config for e in entries]
    keys = [k for k in by if k != EACH_RUN] or [k for k in varying(configs) if matters(k)]
    members: dict[Any, list[Entry]] = {}
    for entry in entries:
        stamp = entry.run.id if EACH_RUN in by else tuple(_stamp(entry.config.get(k)) for k in keys)
        members.setdefault(stamp, []).append(entry)
    groups = [
        Group("", i, tuple(own), any(e.run.id == baseline for e in own)) for i, own in enumerate(members.values())
    ]
    labels = _labels(groups, [] if EACH_RUN in by else keys, chosen=bool(by))
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


def _labels(groups: Sequence[Group], keys: Sequence[str], *, chosen: bool) -> list[str]:
    """What tells groups apart: values of the grid's keys or of the few that differ; else the names of their runs."""
    swept = {k for g in groups for e in g.entries for k in e.run.params if not is_seed(k)}
    differ = [k for k in keys if len({_stamp(g.entries[0].config.get(k)) for g in groups}) > 1]
    for candidates in ([k for k in differ if k in swept], differ):
        few = bool(candidates) and (len(candidates) <= MAX_LABEL_KEYS or chosen)
        names = short_names(candidates)
        labels = [", ".join(f"{names[k]} {value_text(g.entries[0].config.get(k))}" for k in candidates) for g in groups]
        if few and len(set(labels)) == len(groups):
            return labels
    names_of = [g.entries[0].run.name for g in groups]
    return [
        name if names_of.count(name) == 1 else f"{name} {g.key[-4:]}" for g, name in zip(groups, names_of, strict=True)
    ]


@dataclass(frozen=True)
class Diff:
    """A key that differs: the values of each group as text, and whether they are not the baseline's."""

    key: str
    swept: bool
    values: tuple[str, ...]
    changed: tuple[bool, ...]


def differences(groups: Sequence[Group]) -> list[Diff]:
    """Keys that differ between groups, those of the grid first. The first group is what the others are held against."""
    entries = [e for g in groups for e in g.entries]
    swept = {k for e in entries for k in e.run.params}
    rows = []
    for key in varying([e.config for e in entries], swept):
        told = [tuple(dict.fromkeys(_told(e.config, key) for e in g.entries)) for g in groups]
        if len({frozenset(t) for t in told}) < 2:
            continue
        changed = tuple(set(t) != set(told[0]) for t in told)
        rows.append(Diff(key, key in swept, tuple(map(_several, told)), changed))
    return rows


def relative(excess: Excess | None, base: Excess | None) -> float | None:
    """By how much an excess is larger than the baseline's, as a share; None where there is nothing to compare."""
    if excess is None or base is None or not base.value > 0:
        return None
    return excess.value / base.value - 1


def entropies(entries: Iterable[Entry]) -> dict[str, float]:
    """The bound of each world in nats per token: the mean of what its runs have measured, all batches alike."""
    totals: dict[str, tuple[float, int]] = {}
    for entry in entries:
        bound = entry.bound
        if bound is not None and bound.count and math.isfinite(bound.mean):
            total, count = totals.get(entry.world, (0.0, 0))
            totals[entry.world] = (total + bound.mean * bound.count, count + bound.count)
    return {world: total / count for world, (total, count) in totals.items()}


def tail_mean(series: Series | None) -> Excess | None:
    """The end of a curve: mean and standard error of its last points."""
    values = [v for v in (series.value if series else [])[-TAIL_POINTS:] if math.isfinite(v)]
    if not values:
        return None
    mean = sum(values) / len(values)
    if len(values) < 3:
        return Excess(mean, None, "batches")
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return Excess(mean, math.sqrt(variance / len(values)), "batches")


def excess_text(excess: Excess | None) -> str:
    """An excess with its error and where it is from, in 10^-3 nats per token."""
    if excess is None:
        return "no excess yet"
    error = f" ± {number(excess.error * 1e3, 2)}" if excess.error is not None else ""
    return f"{number(excess.value * 1e3, 2)}{error} mnat: {SOURCES[excess.source]}"


def _ends(keys: Iterable[str], words: list[str]) -> bool:
    return any(key.split(".")[-len(words) :] == words for key in keys)


def _stamp(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return json.dumps(value, sort_keys=True, default=str)


def _told(config: Mapping[str, Any], key: str) -> str:
    return value_text(config[key]) if key in config else "–"


def _several(values: tuple[str, ...]) -> str:
    return ", ".join(values) if len(values) <= 4 else f"{values[0]} … {values[-1]} ({len(values)} values)"
