"""Groups, tracks and figures of the Compare page, as plain data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st

from dashboard import data
from dashboard.charts.compare import (
    DASHES,
    HUES,
    Options,
    excess_chart,
    fits_of,
    loss_chart,
    plain,
    style,
)
from dashboard.charts.panels import panels_chart
from dashboard.charts.scaling import fronts, law_words, scaling_chart, scaling_laws
from dashboard.charts.tracks import GRID, Track, merge, positive
from dashboard.comparison import (
    EACH_RUN,
    Entry,
    Excess,
    Group,
    differences,
    entropies,
    flatten,
    grouped,
    relative,
    short_names,
    varying,
)
from dashboard.data import shared
from dashboard.data.compare import Window, entries
from tests.support.fake_client import ENTROPY
from tests.support.fake_compare import CompareClient, excess_at

values = st.floats(-1e3, 1e3)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> CompareClient:
    fake = CompareClient()
    monkeypatch.setattr(data, "client", lambda: fake)
    forget()
    return fake


def forget() -> None:
    """Forget what was read."""
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    shared.forget()


def made(client: CompareClient, x: Any = "step", window: Window = None) -> tuple[Entry, ...]:
    return entries(list(client.stored.values()), x, log_x=True, window=window)


# -- tracks --------------------------------------------------------------------------------------------------------


@given(
    curves=st.lists(
        st.lists(st.tuples(st.floats(0.1, 1e6), values), min_size=1, max_size=30).map(
            lambda points: tuple(zip(*sorted(points), strict=True))
        ),
        min_size=1,
        max_size=4,
    ),
    log_x=st.booleans(),
)
def test_a_mean_lies_between_its_curves_and_within_its_band(curves: Any, log_x: bool) -> None:
    track = merge(curves, log_x=log_x)
    low, high = min(min(y) for _, y in curves), max(max(y) for _, y in curves)
    assert track.x == sorted(track.x)
    for x, mean, below, above, count in zip(track.x, track.mean, track.low, track.high, track.count, strict=True):
        assert mean is not None
        assert low - 1e-6 <= mean <= high + 1e-6
        assert (below is None) == (above is None) == (count < 2)
        if below is not None and above is not None:
            assert below - 1e-9 <= mean <= above + 1e-9
        assert min(min(x) for x, _ in curves) * (1 - 1e-9) <= x <= max(max(x) for x, _ in curves) * (1 + 1e-9)


def test_one_curve_stays_as_it_is_with_its_gaps_and_its_spikes() -> None:
    track = merge([([0.0, 1.0, 2.0, 3.0], [5.0, math.nan, 99.0, 1.0])], log_x=False)
    assert track == Track([0, 1, 2, 3], [5, None, 99, 1], [None] * 4, [None] * 4, [1, 0, 1, 1])
    assert merge([([0.0, 1.0], [5.0, 4.0])], log_x=True).x == [1.0]


def test_runs_that_ended_earlier_count_as_far_as_they_came() -> None:
    track = merge([([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]), ([1.0, 2.0], [3.0, 3.0])], log_x=False)
    assert len(track.x) == GRID
    assert (track.mean[0], track.count[0]) == (2.0, 2)
    assert (track.mean[-1], track.count[-1], track.low[-1]) == (1.0, 1, None)
    assert track.end == (3.0, 1.0)


def test_a_log_axis_is_never_asked_to_show_what_it_cannot() -> None:
    track = positive(Track([1, 2, 3], [1.0, -0.5, 2.0], [-1.0, -2.0, 1.0], [3.0, 1.0, 3.0], [2, 2, 2]))
    assert track.mean == [1.0, None, 2.0]
    assert track.low == [0.1, None, 1.0]


# -- groups --------------------------------------------------------------------------------------------------------


def test_groups_are_by_all_that_is_learnt_but_not_by_seeds_names_or_machines(client: CompareClient) -> None:
    client.add_run("r0", width=16, seed=0)
    client.add_run("r1", width=16, seed=1)
    client.add_run("r2", width=32, seed=0)
    client.stored["r1"].config["cluster"]["device"] = "cuda"
    client.stored["r1"].config["data"]["prefetch"] = 3
    groups = grouped(made(client), baseline="r2")
    assert [[e.run.id for e in g.entries] for g in groups] == [["r0", "r1"], ["r2"]]
    assert [(g.label, g.baseline) for g in groups] == [("emb_dim 16", False), ("emb_dim 32", True)]
    assert len(grouped(made(client), [EACH_RUN])) == 3
    by_device = grouped(made(client), ["cluster.device"])
    assert [g.label for g in by_device] == ["device auto", "device cuda"]


def test_labels_fall_back_to_names_and_stay_apart(client: CompareClient) -> None:
    for i in range(3):
        client.add_run(f"r000{i}", name="same" if i else "other", width=16 + i, params={})
        settings = client.stored[f"r000{i}"].config
        settings["optim"]["lr"], settings["optim"]["beta1"], settings["optim"]["clip"] = 1e-3 * i, 0.1 * i, float(i)
    assert [g.label for g in grouped(made(client))] == ["other", "same 0001", "same 0002"]


def test_a_diff_has_keys_of_the_grid_first_and_marks_what_is_not_the_baselines(client: CompareClient) -> None:
    client.add_run("r0", width=16)
    client.add_run("r1", width=16, seed=1)
    client.add_run("r2", width=32)
    client.stored["r2"].config["optim"]["lr"] = 1e-3
    client.stored["r2"].config["cluster"]["device"] = "cuda"
    rows = differences(grouped(made(client)))
    assert [(r.key, r.swept) for r in rows] == [
        ("model.emb_dim", True),
        ("orchestration.utils.seed", True),
        ("optim.lr", False),
        ("cluster.device", False),
    ]
    assert (rows[0].values, rows[0].changed) == (("16", "32"), (False, True))
    assert rows[1].values == ("0, 1", "0")


def test_config_keys_are_named_as_the_filter_language_names_them() -> None:
    flat = flatten({"data": {"gssm": {"nodes": [{"alpha": 0.1, "parents": ["Z"]}], "empty": {}}}, "seeds": [1, 2]})
    assert flat == {
        "data.gssm.nodes.0.alpha": 0.1,
        "data.gssm.nodes.0.parents": ["Z"],
        "data.gssm.empty": {},
        "seeds": [1, 2],
    }
    names = short_names(["a.nodes.0.alpha", "a.nodes.1.alpha", "optim.lr"])
    assert names == {"a.nodes.0.alpha": "0.alpha", "a.nodes.1.alpha": "1.alpha", "optim.lr": "lr"}
    assert varying([{"x": 1, "orchestration.name": "a"}, {"x": 1.5, "orchestration.name": "b", "y": None}]) == ["x"]


def test_relative_excess_needs_something_to_be_relative_to() -> None:
    assert relative(Excess(0.2, None, "batches"), Excess(0.1, None, "batches")) == pytest.approx(1.0)
    assert relative(None, Excess(0.1, None, "batches")) is None
    assert relative(Excess(0.2, None, "batches"), Excess(-0.1, None, "batches")) is None


# -- figures -------------------------------------------------------------------------------------------------------


def sweep(client: CompareClient, widths: tuple[int, ...] = (16, 32, 64)) -> list[Group]:
    for width in widths:
        for seed in range(3):
            client.add_run(f"w{width}s{seed}", width=width, seed=seed)
    return grouped(made(client), baseline=f"w{widths[0]}s0")


def test_the_loss_is_the_entropy_plus_the_paired_excess(client: CompareClient) -> None:
    groups = sweep(client)
    entropy = entropies(e for g in groups for e in g.entries)
    assert list(entropy.values()) == [pytest.approx(ENTROPY, abs=1e-3)]
    line = next(t for t in loss_chart(groups, Options()).figure["data"] if t.get("meta"))
    at = line["x"].index(500)
    assert line["y"][at] - next(iter(entropy.values())) == pytest.approx(excess_at(500, 16), rel=0.08)
    raw = [t for t in loss_chart(groups, Options(raw=True)).figure["data"] if t.get("meta")]
    assert not raw  # the loss was not read
    bits = next(t for t in loss_chart(groups, Options(bits=True)).figure["data"] if t.get("meta"))
    assert bits["y"][at] == pytest.approx(line["y"][at] / math.log(2), rel=1e-4)


@pytest.mark.parametrize("x", ["step", "tokens", "flops", "time"])
def test_fits_find_the_exponent_on_evaluations_whatever_the_axis(client: CompareClient, x: Any) -> None:
    sweep(client)
    groups = grouped(made(client, x))
    options = Options(x=x)
    fits = fits_of(groups, options)
    assert [f.on for f in fits] == ["evaluations"] * 3
    assert fits[0].law.num_runs == 3
    for fitted, expected in zip(fits, (0.25, 0.31, 0.37), strict=True):
        assert fitted.law.exponent == pytest.approx(expected, abs=0.02)
        assert fitted.law.low <= fitted.law.exponent <= fitted.law.high
    figure = excess_chart(groups, options, fits).figure
    assert sum(t["line"].get("dash") == "dot" for t in figure["data"] if "line" in t) == 3
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert next(t["meta"]["label"] for t in figure["data"] if t.get("meta")) == "emb_dim 16 α=0.25"


def test_a_label_is_cut_nowhere_to_make_room_for_an_exponent(client: CompareClient) -> None:
    sweep(client)
    groups = [replace(group, label=f"{group.label}, lr 0.001") for group in grouped(made(client, "step"))]
    figure = excess_chart(groups, Options(), fits_of(groups, Options())).figure
    assert [t["meta"]["label"] for t in figure["data"] if t.get("meta")] == [group.label for group in groups]


def test_without_evaluations_the_batches_are_fitted(client: CompareClient) -> None:
    client.add_run("r0", width=64)
    client.series["r0"].pop("eval/excess")
    (fitted,) = fits_of(grouped(made(client)), Options())
    assert fitted.on == "batches"
    assert fitted.law.exponent == pytest.approx(0.37, abs=0.03)


def test_styles_are_six_hues_then_dashes() -> None:
    styles = [(style(i)[0], style(i)[2]) for i in range(HUES * len(DASHES))]
    assert len(set(styles)) == len(styles)
    assert {color for color, _ in styles} == {f"@c{i}" for i in range(6)}


def test_scaling_fits_each_data_by_itself_and_marks_who_is_not_beaten(client: CompareClient) -> None:
    groups = sweep(client, (16, 32, 64, 128))
    (law,) = scaling_laws(groups, "flops")
    assert len(law.groups) == 4
    assert law.law.exponent > 0
    chart = scaling_chart(groups, "flops", Options(), [law])
    names = [t["name"] for t in chart.figure["data"]]
    assert names[:3] == ["interval", "fit", "Pareto front"]
    assert names[3:] == [g.label for g in groups]
    assert [g.excess.value for g in groups if g.excess] == [y for _, y in fronts(groups, "flops")[0]]
    assert law_words(law.law).count(",") == 1
    assert scaling_laws(groups, "tokens") == []
    assert fronts(groups, "tokens")[0] == [(4_032_000.0, groups[-1].excess.value)]  # type: ignore[union-attr]
    assert groups[1].size("parameters") == 2 * 16 * 32 + 32 + 2 * 32 * (12 * 32 + 2)  # embeddings, norm, layers
    client.series["w16s0"].pop("flops")
    client.stored["w16s0"].config["optim"]["lr"] = 1.0
    forget()
    alone = scaling_chart(grouped(made(client)), "flops", Options())
    assert alone.notes == ["Not known to have logged floating-point operations: emb_dim 16, lr 1."]


def test_panels_share_their_axes_and_show_the_baseline(client: CompareClient) -> None:
    groups = sweep(client)
    chart = panels_chart(groups, Options())
    assert [t["xaxis"] for t in chart.figure["data"] if t.get("meta")] == ["x", "x2", "x3"]
    assert sum(t["name"].startswith("baseline") for t in chart.figure["data"] if "name" in t) == 2
    assert chart.figure["layout"]["yaxis2"]["matches"] == "y"


def test_figures_are_json_and_small(client: CompareClient) -> None:
    for i in range(50):
        client.add_run(f"r{i}", width=16 + i)
    groups = grouped(made(client))
    options = Options()
    charts = [loss_chart(groups, options), excess_chart(groups, options, fits_of(groups, options))]
    assert sum(len(json.dumps(chart.figure)) for chart in charts) < 1_500_000


def test_zoom_reads_the_window_finer_and_keeps_the_rest(client: CompareClient) -> None:
    client.add_run("r0")
    (entry,) = made(client, window=(95.0, 205.0))
    assert entry.curve is not None
    assert client.queries[1].x_min == 95.0
    assert entry.curve.step == client.series["r0"]["excess"].step
    assert len(entry.curve.value) == len(entry.curve.step) == len(entry.curve.tokens)


def test_names_are_never_markup() -> None:
    assert plain("<b>x</b> %{y}") == "&lt;b&gt;x&lt;/b&gt; %&#123;y}"
    assert len(plain("x" * 100)) == 26


# -- what is kept between ticks ------------------------------------------------------------------------------------


def test_entries_are_the_same_objects_until_a_run_goes_on(client: CompareClient) -> None:
    client.add_run("r0", width=16)
    client.add_run("r1", width=32, steps=400)
    before = made(client)
    streamlit.cache_data.clear()
    assert made(client) is before
    assert before[1].sizes["tokens"] == 400 * 4032
    client.add_run("r1", width=32, steps=600)
    streamlit.cache_data.clear()
    after = made(client)
    assert after[0] is before[0]
    assert after[1].sizes["tokens"] == 600 * 4032
    assert after[1].curve is not None
    assert after[1].curve.step[-1] == 600
