"""The curves of a run: loss and excess against the bound, what held-out sequences say, and how the machine fares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import streamlit as st

from dashboard import data
from dashboard.charts.curves import Chart, entropy_label, excess_chart, locate, loss_chart, refine, small_chart
from dashboard.charts.evaluations import (
    draw_evaluations,
    evaluation_points,
    excess_by_position,
    excess_law,
    law_words,
    loss_by_position,
    probe_chart,
)
from dashboard.components.page import note, section
from dashboard.components.plot import plot, zoom
from dashboard.data.shared import once, steady
from dashboard.figure import Axis, XKind
from dashboard.panels.checkpoints import choose, chosen_step
from dashboard.wording import DASH, ago, plural
from nanollama.api.schemas import Checkpoint, Evaluation, Metrics, RunDetail
from nanollama.api.status import RunState

LIVE_POINTS, FINAL_POINTS = 500, 1000  # of one series
SMALL = (
    ("tokens_per_second", "Throughput", "tokens/s"),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", ""),
    ("memory", "Memory", "GiB"),
)
BOUNDED = ("loss", "bound", "excess")


@dataclass(frozen=True)
class View:
    """How the curves are looked at: what is counted, on which axis, and whether the raw loss is drawn."""

    kind: XKind
    log_x: bool
    raw: bool


@dataclass(frozen=True)
class Curves:
    """What is drawn: `even` is spaced as the axis is, `log` evenly in the logarithm."""

    even: Metrics
    log: Metrics
    evaluations: list[Evaluation]


def load_curves(run: RunDetail, view: View) -> Curves:
    """Read the series of a run, finer where a chart is zoomed in."""
    points = FINAL_POINTS if run.state.terminal else LIVE_POINTS
    keys = (*BOUNDED, *(key for key, _, _ in SMALL))
    even = _metrics(run.id, keys, points, log_x=view.log_x)
    log = even if view.log_x else _metrics(run.id, ("excess",), points, log_x=True)
    even = _zoomed(run.id, view, even, f"loss-{run.id}", points, log_x=view.log_x)
    log = _zoomed(run.id, view, log, f"excess-{run.id}", points, log_x=True)
    return Curves(even, log, steady(("evaluations", run.id), data.evaluations(run.id)))


def charts(run: RunDetail, curves: Curves, view: View, checkpoints: list[Checkpoint]) -> None:
    """Loss and excess, side by side, and the small charts under them."""
    p, keys = run.progress, curves.even.keys
    end = float(p.total_steps) if view.kind == "step" else p.total_steps * p.tokens / p.step if p.step else None
    axis = Axis(view.kind, view.log_x, end)
    running, chosen = run.state is RunState.RUNNING, chosen_step(run.id)
    bounded = "bound" in keys and "excess" in keys
    left, right = st.columns([0.58, 0.42], gap="medium")
    with left:
        section("Loss", _loss_subtitle(curves.even, bounded, view.raw))
        chart = once(
            ("loss", run.id, axis, view.raw, running, chosen),
            (curves.even, checkpoints),
            lambda: loss_chart(curves.even, axis, checkpoints, raw=view.raw, running=running, chosen=chosen),
        )
        choose(run.id, plot(chart, f"loss-{run.id}", listen=True).clicked)
    with right:
        if not bounded:
            section("Excess")
            note("Nothing to subtract: the metrics of this run carry no bound.", title="No excess")
        else:
            chart = once(
                ("excess", run.id, axis, running, chosen),
                (curves.log, curves.evaluations, checkpoints),
                lambda: _excess(curves, axis, checkpoints, running=running, chosen=chosen),
            )
            section("Excess", "loss − bound on the same tokens · log–log")
            choose(run.id, plot(chart, f"excess-{run.id}", listen=True).clicked)
    shown = [item for item in SMALL if item[0] in keys]
    for column, (key, title, unit) in zip(st.columns(max(1, len(shown)), gap="medium"), shown, strict=False):
        with column:
            section(title, unit)
            plot(_small(run.id, curves.even, axis, key, title), f"{key}-{run.id}")


def evaluation_charts(run: RunDetail, evaluations: list[Evaluation], now: datetime) -> None:
    """What the newest evaluation says of each position, and of each layer."""
    by_position = next((e for e in reversed(evaluations) if e.by_position is not None), None)
    probed = next((e for e in reversed(evaluations) if e.probes), None)
    pictures: list[tuple[str, str, Chart, str]] = []
    if by_position is not None and by_position.by_position is not None:
        found = by_position.by_position
        at = f"step {by_position.step:,}, {ago(by_position.at, now)} · band: ± 1 standard error"
        if any(v is not None for v in found.excess):
            chart = once(("position", run.id), (found,), lambda: excess_by_position(found))
            pictures.append(("Excess by position", at, chart, f"position-{run.id}"))
        chart = once(("position-loss", run.id), (found,), lambda: loss_by_position(found))
        pictures.append(("Loss by position", at, chart, f"position-loss-{run.id}"))
    if probed is not None and probed.probes:
        probes = probed.probes
        what = f"step {probed.step:,} · R² of a linear read-out of p(latent | past) from each layer"
        chart = once(("probes", run.id), (probes,), lambda: probe_chart(probes))
        pictures.append(("Belief probes", what, chart, f"probes-{run.id}"))
    if not pictures:
        return
    for column, (title, subtitle, chart, key) in zip(st.columns(len(pictures), gap="medium"), pictures, strict=True):
        with column:
            section(title, subtitle)
            plot(chart, key)


def _small(run_id: str, metrics: Metrics, axis: Axis, key: str, title: str) -> Chart:
    return once((key, run_id, axis), (metrics,), lambda: small_chart(metrics, axis, key, title, from_zero=key != "lr"))


def _excess(curves: Curves, axis: Axis, checkpoints: list[Checkpoint], *, running: bool, chosen: int | None) -> Chart:
    """The excess with its evaluations, and what is seen in it in words."""
    chart = excess_chart(curves.log, axis, checkpoints, running=running, chosen=chosen)
    series = curves.log.series.get("excess")
    if series is None or not curves.evaluations:
        return chart
    places = [locate(axis, series, e.step) for e in curves.evaluations]
    points = evaluation_points(curves.evaluations, places)
    law = excess_law(points)
    draw_evaluations(chart.figure, axis, points, law)
    fitted = law_words(law, points, axis.kind)
    count = plural(len(points), "evaluation")
    told = f"{count} on held-out sequences" + (f"; {fitted}" if fitted else "")
    return replace(chart, alt=f"{chart.alt}; {told}", notes=[*chart.notes, told])


def _metrics(
    run_id: str,
    keys: tuple[str, ...],
    points: int,
    *,
    log_x: bool,
    x: XKind = "step",
    window: tuple[float, float] | None = None,
) -> Metrics:
    found = data.metrics(run_id, keys, points, log_x, x=x, window=window)
    return steady(("metrics", run_id, keys, points, log_x, x, window), found)


def _zoomed(run_id: str, view: View, coarse: Metrics, key: str, points: int, *, log_x: bool) -> Metrics:
    """Metrics with all points that there is room for in the range that a chart shows."""
    window = zoom(key)
    if window is None:
        return coarse
    fine = _metrics(run_id, BOUNDED, points, log_x=log_x, x=view.kind, window=window)

    def finer() -> Metrics:
        series = {
            name: refine(series, fine.series[name]) if name in fine.series else series
            for name, series in coarse.series.items()
        }
        return coarse.model_copy(update={"series": series})

    return once(("zoomed", key, view, points, window), (coarse, fine), finer)


def _loss_subtitle(curves: Metrics, bounded: bool, raw: bool) -> str:
    if not bounded:
        return "nats/token · no exact bound for this data, so none is drawn"
    what = "loss of each batch" if raw else "entropy + paired excess"
    return f"{what} · dashed: entropy of the data, {entropy_label(curves) or DASH}"
