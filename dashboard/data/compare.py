"""What the Compare page reads: many runs in few calls, and what has ended only once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import streamlit as st

from dashboard import data
from dashboard.comparison import Entry, Excess, flatten, tail_mean
from dashboard.data.shared import once, steady
from dashboard.figure import Axis, XKind
from dashboard.fits import Point
from nanollama.api import schemas
from nanollama.api.filters import MAX_VALUES
from nanollama.spec.base import SpecError, parse
from nanollama.spec.cost import num_parameters
from nanollama.spec.data import OnlineData
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.rundir import decode_number

TOTAL_POINTS, FEWEST_POINTS, MOST_POINTS = 24_000, 120, 1000
SPARK_POINTS = 40
PARALLEL = 8  # requests for configs under way at once
LONG = 600.0  # seconds that what has ended is kept

Window = tuple[float, float] | None
NO_VALUES: Mapping[str, schemas.MetricValues] = {}


@dataclass(frozen=True)
class View:
    """How series are read: the axis, how many points of each, whether even in log x, and from where to where."""

    x: XKind = "step"
    count: int = MOST_POINTS
    log_x: bool = False
    window: Window = None


X_NAMES: dict[XKind, Literal["step", "tokens", "flops", "relative_time"]] = {
    "step": "step",
    "tokens": "tokens",
    "flops": "flops",
    "time": "relative_time",
}


@st.cache_data(ttl=data.TTL, show_spinner=False, max_entries=64)
def listing(filter_text: str, limit: int) -> schemas.RunPage:
    """The newest runs that a filter lets through.

    Raises:
        InvalidRequest: with the place in the filter.
    """
    return data.client().runs(filter=filter_text or None, limit=limit)


@st.cache_data(ttl=data.TTL, show_spinner=False, max_entries=64)
def named(ids: tuple[str, ...]) -> list[schemas.Run]:
    """Runs by their ids, in that order; those that there are, archived ones too."""
    found: dict[str, schemas.Run] = {}
    for start in range(0, len(ids), MAX_VALUES):
        part = ids[start : start + MAX_VALUES]
        page = data.client().runs(filter=f"archived:any id:{','.join(part)}", limit=len(part))
        found |= {run.id: run for run in page.items}
    return [found[run_id] for run_id in ids if run_id in found]


def entries(
    runs: Sequence[schemas.Run], x: XKind, *, log_x: bool, raw: bool = False, window: Window = None
) -> tuple[Entry, ...]:
    """Everything that is drawn of runs; the very same entries while nothing has changed.

    Args:
        runs: which.
        x: the horizontal axis.
        log_x: whether points are spaced evenly in log x.
        raw: read the loss of each batch, too.
        window: the part of the axis that is zoomed in on, which is read finer; None: all of it.
    """
    if not runs:
        return ()
    details = _details(runs)
    known = values([run.id for run in runs])
    count = max(FEWEST_POINTS, min(MOST_POINTS, TOTAL_POINTS // len(runs)))
    view = View(x, count, log_x, window)
    main = _zoomed(runs, ("excess",), view)
    bounds = _curves(runs, ("bound",), View(count=5))
    held_out = _curves(runs, ("eval/excess", "eval/excess_stderr"), View(x, log_x=log_x))
    lossy = list(runs) if raw else [run for run in runs if "excess" not in main[run.id].series]
    losses = _zoomed(lossy, ("loss",), view) if lossy else {}

    def entry(run: schemas.Run) -> Entry:
        sources = _Sources(
            steady(("run", run.id), run),
            details[run.id],
            known.get(run.id, NO_VALUES),
            main[run.id],
            bounds[run.id],
            held_out[run.id],
            losses.get(run.id),
        )
        return once(("entry", run.id, view), sources, lambda: _entry(sources, x))

    made = tuple(map(entry, runs))
    return once(("entries", tuple(run.id for run in runs), view), made, lambda: made)


class _Sources(NamedTuple):
    """What is known of a run that is drawn."""

    run: schemas.Run
    detail: schemas.RunDetail
    newest: Mapping[str, schemas.MetricValues]
    excess: schemas.Metrics
    bound: schemas.Metrics
    held_out: schemas.Metrics
    loss: schemas.Metrics | None


def _entry(of: _Sources, x: XKind) -> Entry:
    paired, bound = of.excess.series.get("excess"), of.bound.series.get("bound")
    per_step = _per_step(of.newest.get("flops"))
    return Entry(
        run=of.run,
        config=once(("flat", of.detail.id), (of.detail,), lambda: flatten(of.detail.config)),
        excess=standing(of.newest, of.detail.result, paired, of.run),
        curve=paired,
        loss=of.loss.series.get("loss") if of.loss is not None else None,
        bound=bound.summary if bound else None,
        evaluations=_points(of.held_out, x, per_step),
        sizes=_sizes(of.detail, of.run.progress, per_step),
    )


def sparks(ids: Sequence[str]) -> dict[str, schemas.Series]:
    """Coarse excesses of runs, for a list."""
    if not ids:
        return {}
    reply = _live_curves(tuple(ids), ("excess",), View(count=SPARK_POINTS, log_x=True))
    return {each.run_id: each.series["excess"] for each in reply.runs if "excess" in each.series}


def values(ids: Sequence[str]) -> dict[str, dict[str, schemas.MetricValues]]:
    """Newest and best values of runs."""
    found: dict[str, dict[str, schemas.MetricValues]] = {}
    for start in range(0, len(ids), MAX_VALUES):
        for each in _values(tuple(ids[start : start + MAX_VALUES])):
            found[each.run_id] = steady(("values", each.run_id), each.values)
    return found


def standing(
    newest: Mapping[str, schemas.MetricValues],
    result: Mapping[str, object] | None,
    curve: schemas.Series | None,
    run: schemas.Run,
) -> Excess | None:
    """How far a run is from its bound: by its newest evaluation, else its result, else the end of its curve."""
    value = newest.get("eval/excess")
    if value is not None and math.isfinite(value.last):
        error = newest.get("eval/excess_stderr")
        return Excess(value.last, error.last if error is not None and math.isfinite(error.last) else None, "evaluation")
    if result and run.state.terminal:
        mean, error_ = (_number(result.get(key)) for key in ("excess", "excess_stderr"))
        if mean is not None:
            return Excess(mean, error_, "result")
    if curve is not None:
        return tail_mean(curve)
    newest_excess = run.progress.excess
    if newest_excess is None or not math.isfinite(newest_excess):
        return None
    return Excess(newest_excess, None, "batches")


@st.cache_data(ttl=data.TTL, show_spinner=False, max_entries=64)
def _values(ids: tuple[str, ...]) -> list[schemas.RunValues]:
    return data.client().values(list(ids))


def _curves(runs: Sequence[schemas.Run], keys: tuple[str, ...], view: View) -> dict[str, schemas.Metrics]:
    """Series of runs; those of ended runs are kept for long."""
    found: dict[str, schemas.Metrics] = {}
    ended = tuple((run.id, f"{run.state} {run.attempt}") for run in runs if run.state.terminal)
    living = tuple(run.id for run in runs if not run.state.terminal)
    if ended:
        found |= {each.run_id: each for each in _ended_curves(ended, keys, view).runs}
    if living:
        found |= {each.run_id: each for each in _live_curves(living, keys, view).runs}
    return {run_id: steady(("curves", run_id, keys, view), each) for run_id, each in found.items()}


def _zoomed(runs: Sequence[schemas.Run], keys: tuple[str, ...], view: View) -> dict[str, schemas.Metrics]:
    """Series of runs as a whole, and finer in the window, so that zooming out shows at once what there is."""
    whole = _curves(runs, keys, replace(view, window=None))
    if view.window is None:
        return whole
    fine = _curves(runs, keys, view)

    def finer(run_id: str) -> schemas.Metrics:
        both = whole[run_id], fine[run_id]
        return once(("zoomed", run_id, keys, view), both, lambda: _finer(*both, view))

    return {run_id: finer(run_id) for run_id in whole}


def _finer(whole: schemas.Metrics, fine: schemas.Metrics, view: View) -> schemas.Metrics:
    """Metrics with the points of finer ones in the window."""
    assert view.window is not None
    low, high = view.window
    axis = Axis(view.x, view.log_x, None)
    series = {
        key: _refined(coarse, fine.series[key], axis, low, high) if key in fine.series else coarse
        for key, coarse in whole.series.items()
    }
    return whole.model_copy(update={"series": series})


def _refined(coarse: schemas.Series, fine: schemas.Series, axis: Axis, low: float, high: float) -> schemas.Series:
    """The coarse series with its points from low to high replaced by those of the fine one."""
    xs = axis.of(coarse)
    before = [i for i, x in enumerate(xs) if x < low]
    after = [i for i, x in enumerate(xs) if x > high]

    def join(name: str) -> list[float] | None:
        outside, inside = getattr(coarse, name), getattr(fine, name)
        if outside is None or inside is None:
            return None
        return [*(outside[i] for i in before), *inside, *(outside[i] for i in after)]

    return coarse.model_copy(update={name: join(name) for name in ("step", "tokens", "time", "value", "x")})


@st.cache_data(ttl=data.TTL, show_spinner=False, max_entries=32)
def _live_curves(ids: tuple[str, ...], keys: tuple[str, ...], view: View) -> schemas.MetricsReply:
    return _ask(ids, keys, view)


@st.cache_data(ttl=LONG, show_spinner=False, max_entries=32)
def _ended_curves(versions: tuple[tuple[str, str], ...], keys: tuple[str, ...], view: View) -> schemas.MetricsReply:
    return _ask(tuple(run_id for run_id, _ in versions), keys, view)


def _ask(ids: tuple[str, ...], keys: tuple[str, ...], view: View) -> schemas.MetricsReply:
    low, high = view.window or (None, None)
    spacing: Literal["linear", "log"] = "log" if view.log_x else "linear"
    query = schemas.MetricsQuery(
        runs=list(ids),
        keys=list(keys),
        x=X_NAMES[view.x],
        x_min=low,
        x_max=high,
        max_points=view.count,
        spacing=spacing,
    )
    return data.client().curves(query)


@st.cache_resource(max_entries=1, show_spinner=False)
def _kept() -> dict[tuple[str, str], schemas.RunDetail]:
    """Details by id and version of a run: a config never changes, a result only with the state."""
    return {}


def _details(runs: Sequence[schemas.Run]) -> dict[str, schemas.RunDetail]:
    kept = _kept()  # another session may empty it at any time
    wanted = {run.id: (run.id, f"{run.state} {run.attempt}") for run in runs}
    found = {run_id: detail for run_id, version in wanted.items() if (detail := kept.get(version)) is not None}
    missing = [run_id for run_id in wanted if run_id not in found]
    if missing:
        if len(kept) > 5000:
            kept.clear()
        client = data.client()
        with ThreadPoolExecutor(PARALLEL) as pool:
            for detail in pool.map(client.run, missing):
                kept[wanted[detail.id]] = found[detail.id] = detail
    return {run_id: found[run_id] for run_id in wanted}


def _points(metrics: schemas.Metrics, x: XKind, flops_per_step: float | None) -> tuple[Point, ...]:
    """Evaluations by x. Their lines carry no FLOPs: those are in proportion to the steps."""
    series, errors = metrics.series.get("eval/excess"), metrics.series.get("eval/excess_stderr")
    if series is None:
        return ()
    error_at = {} if errors is None else dict(zip(errors.step, errors.value, strict=True))
    if x == "flops":
        xs = [step * flops_per_step if flops_per_step else math.nan for step in series.step]
    elif x == "time":
        xs = list(series.x or [])
    else:
        xs = [float(v) for v in (series.step if x == "step" else series.tokens)]
    points = zip(xs, series.value, series.step, strict=True)
    return tuple(Point(at, value, _positive(error_at.get(step))) for at, value, step in points if math.isfinite(at))


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _per_step(flops: schemas.MetricValues | None) -> float | None:
    """Floating-point operations of a step."""
    if flops is None or not flops.last_step or not math.isfinite(flops.last):
        return None
    return flops.last / flops.last_step


def _sizes(detail: schemas.RunDetail, progress: schemas.Progress, flops_per_step: float | None) -> dict[str, float]:
    sizes: dict[str, float] = {}
    batch = (detail.config.get("data") or {}).get("batch_size")
    if progress.tokens:
        sizes["tokens"] = float(progress.tokens)
    if isinstance(batch, int) and progress.step:
        sizes["sequences"] = float(batch * progress.step)
    if flops_per_step and progress.step:
        sizes["flops"] = flops_per_step * progress.step
    parameters = once(("parameters", detail.id), (detail,), lambda: _parameters(detail.config))
    if parameters is not None:
        sizes["parameters"] = float(parameters)
    return sizes


def _parameters(config: Mapping[str, object]) -> int | None:
    """Of the learner; None where the vocabulary is known to the data file alone, or the config is of another time."""
    try:
        spec = parse(ExperimentSpec, config)
    except SpecError:
        return None
    symbols = spec.data.gssm.observed.state_dim if isinstance(spec.data, OnlineData) else spec.model.vocab_size
    return None if symbols is None else num_parameters(spec.model, spec.model.vocab_size or symbols)


def _number(value: object) -> float | None:
    try:
        number = decode_number(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
