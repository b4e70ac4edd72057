"""Data over a service in memory: graphs, entropies, sets."""

from __future__ import annotations

import math

import pytest
import streamlit as st

from dashboard import data
from dashboard.charts.catalogue import position_chart
from nanollama.api import schemas
from nanollama.api.status import RunState
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_catalogue import HASH, FakeCatalogue, computed, filled, gssm

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** 🎉"
OTHER = "cd34" * 16


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeCatalogue:
    """A laboratory in which something of everything is going on."""
    fake = filled()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
    return fake


def test_graphs_are_listed_with_their_entropies_and_the_newest_is_shown(client: FakeCatalogue, visit: Open) -> None:
    page = visit("data")
    first, second = cells(page, "gssms")
    assert (first["name"], first["entropy"], first["bound"]) == ("Z → X", "1.5906 ± 0.0014", "exact")
    assert (second["entropy"], second["bound"], second["states"]) == ("–", "not computed", "4.1k")
    assert [row["marked"] for row in sent(page, "gssms")["rows"]] == [True, False]
    assert "<svg" in sent(page, f"graph-{HASH}")["svg"]
    assert "over 10,000 sequences of 64 tokens" in text(page)
    figure = sent(page, f"position-{HASH}")["figure"]
    assert {"entropy", "lower", "upper"} == {trace["name"] for trace in figure["data"]}
    assert [row["name"] for row in cells(page, f"runs-{HASH}")] == ["width=64", "width=32"]
    (known,) = cells(page, "sets")
    assert (known["path"], known["sequences"], known["there"]) == ("/data/sets/debug.h5", "100,000", "yes")


def test_a_graph_can_be_linked_to_and_its_bound_asked_for(client: FakeCatalogue, visit: Open) -> None:
    page = visit("data", gssm=OTHER)
    assert [row["marked"] for row in sent(page, "gssms")["rows"]] == [False, True]
    assert "No run has sampled from it yet" in text(page)
    page.button(key="compute").click().run()
    assert not page.exception
    assert "compute_bound" in client.calls
    assert cells(page, "gssms")[1]["bound"] == "queued"
    assert "It waits for a worker" in text(page)
    assert not [b for b in page.button if b.key == "compute"]


def test_a_short_hash_is_enough_and_an_unknown_one_says_so(client: FakeCatalogue, visit: Open) -> None:
    assert sent(visit("data", gssm=OTHER[:12]), "gssms")["rows"][1]["marked"]
    page = visit("data", gssm=HOSTILE)
    assert "No such graph" in text(page)
    assert "<script>" not in text(page)
    assert cells(page, "gssms")


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (schemas.Bound(state="failed", run_id="b1", reason="killed: out of memory"), "killed: out of memory"),
        (schemas.Bound(state="running", run_id="b1"), "A worker is computing it"),
        (
            schemas.Bound(state="inexact", entropy=1.5, lower=1.4, upper=1.6, reason="kernels are redrawn"),
            "1.4000 to 1.6000",
        ),
    ],
)
def test_the_state_of_a_bound_is_told(client: FakeCatalogue, visit: Open, bound: schemas.Bound, said: str) -> None:
    client.graphs = [gssm(bound=bound)]
    page = visit("data")
    assert said in text(page)
    if bound.state == "failed":
        page.button(key="compute").click().run()
        assert "It waits for a worker" in text(page)


def test_a_bound_of_shorter_sequences_can_be_computed_anew(client: FakeCatalogue, visit: Open) -> None:
    client.graphs = [computed(seq_len=256)]
    page = visit("data")
    assert "It is known for 64 tokens" in text(page)
    assert page.button(key="compute").label == "Compute it for 256 tokens"
    page.button(key="compute").click().run()
    assert cells(page, "gssms")[0]["bound"] == "queued"


def test_an_empty_page_teaches_and_leads_to_launch(client: FakeCatalogue, visit: Open) -> None:
    client.graphs, client.sets = [], []
    page = visit("data")
    assert "n2n submit configs/gssm/debug.yaml" in text(page)
    page.button(key="launch").click().run()
    assert page.query_params["template"] == "debug"


def test_without_sets_it_says_how_to_write_one(client: FakeCatalogue, visit: Open) -> None:
    client.sets = []
    assert "python -m nanollama.apps.gssm.data config=configs/gssm/data.yaml" in text(visit("data"))


def test_hostile_words_stay_words(client: FakeCatalogue, visit: Open) -> None:
    client.add("x1", RunState.FAILED, name=HOSTILE)
    client.graphs = [computed(name=HOSTILE, runs=[client.stored["x1"]])]
    client.sets = [schemas.Dataset(path=HOSTILE, num_runs=0)]
    page = visit("data")
    assert "<script>" not in text(page)
    assert cells(page, "gssms")[0]["name"] == HOSTILE
    assert cells(page, "sets")[0]["path"] == HOSTILE


def test_what_was_shown_stays_while_the_service_is_away(client: FakeCatalogue, visit: Open) -> None:
    page = visit("data")
    client.away = True
    for cached in ("gssms", "datasets"):
        getattr(__import__("dashboard.data.catalogue", fromlist=[cached]), cached).clear()
    page.run()
    assert not page.exception
    assert "No answer" in text(page)
    assert cells(page, "gssms")[0]["name"] == "Z → X"


def test_the_curve_by_position_has_its_band_and_the_mean() -> None:
    chart = position_chart([1, 2, 3], [2.0, 1.8, 1.7], [0.01, 0.02, 0.01], 1.8333)
    traces = {trace["name"]: trace for trace in chart.figure["data"]}
    assert traces["entropy"]["y"] == [2.0, 1.8, 1.7]
    assert math.isclose(traces["upper"]["y"][1] - traces["lower"]["y"][1], 2 * 1.96 * 0.02)
    assert traces["upper"]["fill"] == "tonexty"
    (line,) = chart.figure["layout"]["shapes"]
    assert line["y0"] == 1.8333
    assert "H = 1.8333" in [note["text"] for note in chart.figure["layout"]["annotations"]]
    assert chart.alt.startswith("Entropy by position: 2.0000 nats at position 1, 1.7000 at position 3")
    assert position_chart([], [], [], None).figure["data"] == []
