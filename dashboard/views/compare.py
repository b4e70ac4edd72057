"""Compare: which choice made the difference. Everything that is chosen here is in the address."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast, get_args

import streamlit as st

from dashboard import data, export
from dashboard.charts.compare import Fitted, Options, excess_chart, fits_of, loss_chart
from dashboard.charts.panels import panels_chart
from dashboard.charts.scaling import SIZES, Law, Size, law_words, scaling_chart, scaling_laws
from dashboard.comparison import EACH_RUN, Entry, Excess, Group, grouped, is_seed, matters, varying
from dashboard.components.export import File, exporter, share
from dashboard.components.page import Chip, away_note, header, live, note, section
from dashboard.components.plot import expect_plots, plot, zoom
from dashboard.components.table import reselect, selected
from dashboard.data import compare as read
from dashboard.data.compare import Window
from dashboard.data.shared import once
from dashboard.figure import AXIS_TITLES, XKind
from dashboard.panels.comparison import PIN, RUNS_KEY, diff_table, fits_table, runs_table
from dashboard.panels.filter import explain_error
from dashboard.panels.first_steps import teach
from dashboard.wording import STATES, plural
from nanollama.api.filters import parse_filter
from nanollama.api.schemas import RunPage, Series
from nanollama.api.status import RunState
from nanollama.spec.base import SpecError

T = TypeVar("T")

LISTED, MOST = 100, 200  # runs in the list, and runs that are drawn
AUTOMATIC = 24  # runs that are chosen until somebody chooses
NOTHING = "none"  # in the address: no run is selected
VIEWS: tuple[export.View, ...] = get_args(export.View)
XS: tuple[XKind, ...] = get_args(XKind)


@dataclass(frozen=True)
class Snapshot:
    """What one tick reads: the list, the runs that are drawn, those of them that are gone, and what the list shows."""

    page: RunPage
    entries: tuple[Entry, ...]
    gone: tuple[str, ...]
    standings: Mapping[str, Excess | None]
    sparks: Mapping[str, Series]


def body() -> None:
    """What is drawn at every tick."""
    head = st.container()
    left, right = st.container(key="n2n-compare").columns([0.42, 0.58], gap="medium")
    with left:
        title = st.container()
        text = _filter()
        condition = _condition(text)
    page, _, _ = data.latest("compare-list", condition or "", lambda: read.listing(condition or "", LISTED))
    ids = _chosen(page, condition or "")
    with right:
        view, size, options, places = _controls()
    window = None if view == "scaling" else _window(options)

    def load() -> Snapshot:
        return _load(page, ids[:MOST], options, window)

    snap, at, away = data.latest("compare", f"{text} {ids} {options} {window}", load)
    by = _grouping(snap.entries, left)
    base = _baseline(snap.entries)
    what = ids, tuple(by), base, options, window
    groups = once(("groups", what), (snap.entries,), lambda: tuple(grouped(snap.entries, by, base)))
    with head:
        _head(snap, groups, at)
        if away:
            away_note(away, at)
    with title:
        section("Runs", _count(page, groups, snap.entries))
    with left:
        _runs(snap, groups, options, ids)
        _diff(groups)
    with right:
        if not page.items and not snap.entries:
            if text:
                note("Change the filter on the left, or empty it.", title="No run matches")
            else:
                teach()
        elif not groups:
            note(
                "Tick runs in the list. Runs that differ in their seeds alone are drawn as one.", title="Nothing chosen"
            )
        else:
            charts = _charts(what, groups, view, size, options)
            with places:
                share("compare-share", runs=",".join(ids), base=base)
                _export(groups, view, size, options, charts)


def _load(page: RunPage, ids: Sequence[str], options: Options, window: Window) -> Snapshot:
    runs = read.named(tuple(ids)) if ids else []
    entries = read.entries(runs, options.x, log_x=options.log, raw=options.raw, window=window)
    found = {run.id for run in runs}
    started = [run for run in page.items if run.progress.step]
    listed = [run.id for run in started]
    sparks, values = read.sparks(listed), read.values(listed)
    standings = {run.id: read.standing(values.get(run.id, {}), None, sparks.get(run.id), run) for run in started}
    standings |= {entry.run.id: entry.excess for entry in entries}
    return Snapshot(page, entries, tuple(each for each in ids if each not in found), standings, sparks)


def _filter() -> str:
    text = st.text_input(
        "Filter",
        key="q",
        bind="query-params",
        placeholder="Filter: name, state:running, model.emb_dim>64, tag:exp2 …",
        label_visibility="collapsed",
        icon=":material/search:",
    )
    return (text or "").strip()


def _condition(text: str) -> str | None:
    """The filter as the service is asked for it; None when it cannot be read, which is said."""
    try:
        parse_filter(text)
    except SpecError as error:
        explain_error(text, error)
        return None
    return text


def _chosen(page: RunPage, text: str) -> tuple[str, ...]:
    """Ids of the runs that are compared: those of the address, changed by the checkboxes; without any, the newest.

    The address is read when the page is opened or its history is gone through. A tick's address can be older than the
    checkboxes, for the browser learns late what they wrote there: ticks only write it.
    """
    state = st.session_state
    address = st.query_params.get("runs")
    if state.pop("compare-opened", False) and address != state.get("compare-told", ""):
        state["compare-told"] = address
        state.pop("compare-automatic", None)
        if address is not None:
            reselect(RUNS_KEY, [] if address == NOTHING else [each for each in address.split(",") if each.isalnum()])
    if state.get("compare-told") is None:
        automatic = _automatic(page, text)
        if state.get("compare-automatic") != automatic:
            state["compare-automatic"] = automatic
            reselect(RUNS_KEY, automatic)
        if selected(RUNS_KEY) == automatic:
            return automatic
    ids = selected(RUNS_KEY)
    now = ",".join(ids) or NOTHING
    state["compare-told"] = now
    if now != address:
        st.query_params["runs"] = now
    return ids


def _automatic(page: RunPage, text: str) -> tuple[str, ...]:
    """What is compared until somebody chooses: what the filter lets through, or the newest experiment with a curve."""
    started = [run for run in page.items if run.progress.step]
    if not text and started:
        started = [run for run in started if run.experiment_id == started[0].experiment_id]
    return tuple(run.id for run in reversed(started[:AUTOMATIC]))


def _controls() -> tuple[export.View, Size, Options, st.delta_generator.DeltaGenerator]:
    """What is drawn and how, in the address; and the place for what can be done with it."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            view = cast("export.View", _choice("View", "show", VIEWS))
            x, size = cast("XKind", _remembered("x", XS)), cast("Size", _remembered("size", tuple(SIZES)))
            if view == "scaling":
                size = cast("Size", _choice("Size", "size", tuple(SIZES)))
            else:
                x = cast("XKind", _choice("Horizontal axis", "x", XS))
        places = st.container(horizontal=True, vertical_alignment="center", width="content")
    with st.container(horizontal=True, vertical_alignment="center"):
        unit = _choice("Unit", "unit", ("nats", "bits"))
        raw, log, band = "noise-free", True, True
        if view != "scaling":
            log = st.toggle("log axes", value=True, key="log", bind="query-params")
            band = st.toggle("± std over seeds", value=True, key="band", bind="query-params")
        fit = view != "small multiples" and st.toggle("power-law fit", value=True, key="fit", bind="query-params")
        if view == "curves":
            raw = _choice("Loss", "loss", ("noise-free", "raw batches"))
    options = Options(x, bool(log), unit == "bits", bool(band), bool(fit), raw == "raw batches")
    return view, size, options, places


def _choice(label: str, key: str, options: tuple[str, ...]) -> str:
    chosen = st.segmented_control(
        label, options, default=options[0], required=True, key=key, bind="query-params", label_visibility="collapsed"
    )
    return chosen or options[0]


def _remembered(key: str, options: tuple[str, ...]) -> str:
    """What was chosen in a control that this view does not show."""
    value = st.query_params.get(key, "")
    return value if value in options else options[0]


def _window(options: Options) -> Window:
    """The part of the axis that is zoomed in on in any of the curves."""
    parts = [part for name in ("loss", "excess") if (part := zoom(_key(name, options))) is not None]
    return (min(low for low, _ in parts), max(high for _, high in parts)) if parts else None


def _key(name: str, options: Options) -> str:
    return f"{name}-against-{options.x}" + ("" if options.log else "-linear")


def _varying(entries: Sequence[Entry]) -> list[str]:
    """Keys that differ between runs, seeds left out; those that matter first."""
    keys = [key for key in varying([e.config for e in entries]) if not is_seed(key)]
    return sorted(keys, key=lambda key: not matters(key))


def _grouping(entries: Sequence[Entry], place: st.delta_generator.DeltaGenerator) -> list[str]:
    """The keys to group by; without any, everything that varies but the seeds."""
    keys = once(("varying", tuple(e.run.id for e in entries)), (entries,), lambda: _varying(entries))
    wanted = [key for key in st.query_params.get_all("by") if key not in (*keys, EACH_RUN)]
    if len(entries) < 2 and not wanted:
        return []
    with place:
        chosen = st.multiselect(
            "Group by",
            [*keys, *wanted, EACH_RUN],
            key="by",
            bind="query-params",
            placeholder="Grouped by everything that varies but the seeds",
            label_visibility="collapsed",
        )
    return list(chosen)


def _baseline(entries: Sequence[Entry]) -> str:
    """Id of the run that the others are measured against: the pinned one, or the first."""
    pinned = st.query_params.get("base", "")
    ids = [e.run.id for e in entries]
    return pinned if pinned in ids else ids[0] if ids else ""


def _head(snap: Snapshot, groups: Sequence[Group], at: datetime) -> None:
    base = next((g.label for g in groups if g.baseline), "")
    names = {e.run.experiment for e in snap.entries}
    of = f"{names.pop()} · " if len(names) == 1 and "" not in names else ""
    crumb = f"{of}{plural(len(groups), 'group')}, baseline {base}" if base else ""
    counts = {state: sum(e.run.state is state for e in snap.entries) for state in RunState}
    chips = [
        Chip(str(count), unit=state.value.lower(), glyph=STATES[state][0], tone=STATES[state][1])
        for state, count in counts.items()
        if count
    ]
    header("Compare", crumb=crumb[:200], chips=[*chips, Chip(f"{at:%H:%M:%S}", label="updated", title="UTC")])


def _count(page: RunPage, groups: Sequence[Group], entries: Sequence[Entry]) -> str:
    total = sum(page.counts.values())
    listed = f"newest {len(page.items)} of {total:,}" if total > len(page.items) else plural(total, "run")
    return f"{listed} · {len(entries)} chosen, {plural(len(groups), 'group')}" if groups else listed


def _runs(snap: Snapshot, groups: Sequence[Group], options: Options, ids: Sequence[str]) -> None:
    listed = {run.id for run in snap.page.items}
    elsewhere = [e.run for e in snap.entries if e.run.id not in listed]
    rows = [*elsewhere, *snap.page.items]
    if rows:
        reply = runs_table(rows, groups, snap.standings, snap.sparks, options)
        if reply.opened:
            st.switch_page("views/run.py", query_params={"run": reply.opened})
        if reply.acted and reply.acted[1] == PIN:
            st.query_params["base"] = reply.acted[0]
            st.rerun(scope="fragment")
    if len(ids) > MOST:
        note(f"{len(ids):,} runs are chosen; the first {MOST} of them are drawn.", tone="warn")
    if snap.gone:
        note(f"Not known to {data.client().url}: {', '.join(snap.gone[:10])}.", title="Runs are missing", tone="warn")


def _diff(groups: Sequence[Group]) -> None:
    if len(groups) > 1:
        section("Config diff", "keys that differ · baseline first")
        diff_table(groups)


def _charts(
    what: Hashable, groups: tuple[Group, ...], view: export.View, size: Size, options: Options
) -> list[tuple[str, str]]:
    """Draw the view; names and titles of its charts. `what` tells the groups from others."""
    unit = options.unit

    def made(name: str, build: Callable[[], T]) -> T:
        return once((name, what), (groups,), build)

    if view == "small multiples":
        name = f"panels-{options.x}"
        section("Small multiples", f"excess, {unit}, of each group · grey: the baseline")
        plot(made(name, lambda: panels_chart(groups, options)), name)
        return [(name, "Small multiples")]
    if view == "scaling":
        name = f"excess-against-{size}"
        laws = made(f"laws {size}", lambda: scaling_laws(groups, size))
        section("Scaling", f"excess at the end against {SIZES[size]} · log–log · dashed: the Pareto front")
        plot(made(name, lambda: scaling_chart(groups, size, options, laws)), name)
        if options.fit:
            st.html(f"<div class='n2n-under'>{_scaling_words(laws, size)}</div>")
        return [(name, "Scaling")]
    bounded = any(e.curve is not None for g in groups for e in g.entries)
    what = "loss of each batch" if options.raw or not bounded else "entropy + paired excess"
    section("Loss", f"{unit} · {what}" + (" · dashed: entropy of the data, the exact floor" if bounded else ""))
    loss_name, excess_name = _key("loss", options), _key("excess", options)
    plot(made(loss_name, lambda: loss_chart(groups, options)), loss_name, listen=True)
    drawn = [(loss_name, "Loss")]
    section("Excess", "loss − bound on the same tokens" + (" · log–log" if options.log else ""))
    if not bounded:
        note("Nothing to subtract: the data of these runs has no exact bound.", title="No excess")
        return drawn
    fits = made("fits", lambda: fits_of(groups, options)) if options.fit else []
    plot(made(excess_name, lambda: excess_chart(groups, options, fits)), excess_name, listen=True)
    if fits:
        _explain(fits, options)
    return [*drawn, (excess_name, "Excess")]


def _explain(fits: Sequence[Fitted], options: Options) -> None:
    """In words what is fitted, and the exponents with their intervals."""
    st.html(
        f"<div class='n2n-under'>Dotted: excess = A · {AXIS_TITLES[options.x]}<sup>−α</sup>, by weighted least squares "
        "on logarithms over the second half of the axis in log. The floor is fixed at zero: the bound is known. Fitted "
        "to evaluations on held-out sequences where a run has four or more there, else to means of its batches over "
        "bins even in log. 95 % intervals: over seeds from three runs on, else from the scatter of the points.</div>"
    )
    fits_table(fits, options)


def _scaling_words(laws: Sequence[Law], size: Size) -> str:
    if not laws:
        return f"No fit: that takes three groups on the same data with different {SIZES[size]}."
    told = "; ".join(f"α = {law_words(each.law)} over {len(each.groups)} groups" for each in laws)
    return (
        f"Dotted: excess = A · {SIZES[size]}<sup>−α</sup> by least squares on logarithms, floor zero, one law for each "
        f"data: {told}. The band is the 95 % interval of the line. Bars: standard errors, over seeds where there are "
        "several."
    )


def _export(
    groups: Sequence[Group], view: export.View, size: Size, options: Options, charts: Sequence[tuple[str, str]]
) -> None:
    def rows() -> export.Rows:
        return export.scaling_rows(groups, options) if view == "scaling" else export.curve_rows(groups, options)

    def code() -> bytes:
        fits = fits_of(groups, options) if options.fit and view == "curves" else []
        return export.program(groups, options, view, size, url=data.client().url, fits=fits).encode()

    files = [File("CSV", "comparison.csv", "text/csv", lambda: export.as_csv(rows()).encode())]
    if export.has_parquet():
        mime = "application/vnd.apache.parquet"
        files.append(File("Parquet", "comparison.parquet", mime, lambda: export.as_parquet(rows())))
    files.append(File("Python", "comparison.py", "text/x-python", code))
    with st.popover("Export", icon=":material/download:"):
        exporter(charts, files, "compare-export")


def page() -> None:
    """The comparison that the address names, live."""
    st.session_state["compare-opened"] = True
    expect_plots()
    live(body)


page()
