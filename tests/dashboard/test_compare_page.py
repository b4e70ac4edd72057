"""The Compare page over a service in memory. What components draw is read from what they are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard import data
from dashboard.data import compare as read
from dashboard.data import shared
from nanollama.api.status import RunState
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_compare import CompareClient

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** %{x} \u202eabc 🎉"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> CompareClient:
    fake = CompareClient()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
    st.cache_resource.clear()
    shared.forget()
    return fake


@pytest.fixture
def sweep(client: CompareClient) -> CompareClient:
    """Three widths by two seeds, the newest first; the last run is under way."""
    for i, (width, seed) in enumerate((w, s) for w in (64, 32, 16) for s in (1, 0)):
        client.add_run(f"r{i}", width=width, seed=seed, steps=400 if i == 0 else 1000)
    return client


def figure(page: AppTest, key: str) -> Any:
    return sent(page, key)["figure"]


def labels(page: AppTest, key: str) -> list[str]:
    return [t["meta"]["label"] for t in figure(page, key)["data"] if t.get("meta")]


def test_the_newest_sweep_is_compared_by_itself_with_seeds_as_one(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare")
    assert labels(page, "loss-against-step") == ["emb_dim 16", "emb_dim 32", "emb_dim 64"]
    assert "runs" not in page.query_params
    loss = figure(page, "loss-against-step")
    assert [b["label"] for b in loss["layout"]["meta"]["bounds"]] == ["H = 1.9183"]
    assert sum(t.get("fill") == "toself" for t in loss["data"]) == 3
    rings = [t for t in loss["data"] if t.get("name") == "now"]
    assert [ring["legendgroup"] for ring in rings] == ["r1"]
    rows = cells(page, "compare-runs")
    assert rows[0]["run"] == "widths/emb_dim=64,seed=1"
    assert rows[0]["state"] == "running 40%"
    assert [row["delta"] for row in rows][-2:] == ["baseline", "baseline"]
    assert rows[2]["delta"].startswith("−")
    assert len(sent(page, "compare-runs")["rows"][0]["cells"]["spark"]["spark"]) > 5
    assert sent(page, "compare-runs")["selection"]["ids"] == ["r5", "r4", "r3", "r2", "r1", "r0"]
    fits = cells(page, "compare-fits")
    assert [row["group"] for row in fits] == ["emb_dim 16", "emb_dim 32", "emb_dim 64"]
    assert "evaluations of 2 runs" in fits[0]["on"]
    assert "The floor is fixed at zero" in text(page)


def test_a_link_that_is_shared_names_the_runs_and_the_baseline_of_now(sweep: CompareClient, visit: Open) -> None:
    """Whoever opens it after the next sweep has begun sees these runs, not that sweep."""
    page = visit("compare")
    assert sent(page, "compare-share") == {"runs": "r5,r4,r3,r2,r1,r0", "base": "r5"}


def test_the_address_says_what_is_compared_and_how(sweep: CompareClient, visit: Open) -> None:
    page = visit(
        "compare", runs="r5,r1,gone", base="r1", x="flops", unit="bits", log="false", fit="false", band="false"
    )
    excess = figure(page, "excess-against-flops-linear")
    assert excess["layout"]["xaxis"]["title"]["text"] == "floating-point operations"
    assert excess["layout"]["yaxis"]["title"]["text"] == "excess, bits/token"
    assert excess["layout"]["yaxis"].get("type") is None
    strong = [t["meta"]["label"] for t in excess["data"] if t.get("meta", {}).get("strong")]
    assert strong == ["emb_dim 64"]
    assert sent(page, "compare-fits") is None
    assert "Not known to http://127.0.0.1:8420: gone." in text(page)
    assert page.query_params["runs"] in ("r5,r1,gone", ["r5,r1,gone"])
    diff = sent(page, "compare-diff")
    assert [c["title"] for c in diff["columns"]] == ["key", "emb_dim 64 ⚑", "emb_dim 16"]
    assert diff["rows"][0]["cells"]["key"] == {"text": "model.emb_dim", "glyph": "⌗"}
    assert diff["rows"][0]["cells"]["r5"]["tone"] == "changed"


def test_runs_can_be_grouped_by_any_key_or_not_at_all(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare")
    options = page.multiselect(key="by").options
    assert "model.emb_dim" in options
    assert not any(option.endswith("seed") for option in options)
    page.multiselect(key="by").set_value(["each run"]).run()
    assert len(labels(page, "loss-against-step")) == 6
    page.multiselect(key="by").set_value(["model.emb_dim"]).run()
    assert len(labels(page, "loss-against-step")) == 3


def test_the_other_views_show_the_same_groups(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare", show="small multiples")
    panels = figure(page, "panels-step")["layout"]
    assert panels["meta"]["panels"]["count"] == 3
    assert panels["xaxis3"]["matches"] == "x"
    page = visit("compare", show="scaling", size="tokens")
    assert set(labels(page, "excess-against-tokens")) >= {"emb_dim 16", "emb_dim 32", "emb_dim 64"}
    assert "No fit" in text(page)  # two of three have seen as many tokens
    page = visit("compare", show="scaling", size="flops")
    names = [t["name"] for t in figure(page, "excess-against-flops")["data"]]
    assert names[:3] == ["interval", "fit", "Pareto front"]
    assert "over 3 groups" in text(page)


def test_a_filter_chooses_until_somebody_does_and_its_errors_show_the_place(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare", q="emb_dim=32")
    assert labels(page, "loss-against-step") == ["widths/emb_dim=32,seed=0"]
    page = visit("compare", q="nothing-like-it")
    assert "No run matches" in text(page)
    page = visit("compare", q="optim.lr>fast")
    assert "fast" in text(page)
    assert "<mark>" in text(page)


def test_nothing_chosen_and_nothing_there_teach(client: CompareClient, visit: Open) -> None:
    page = visit("compare")
    assert "n2n submit" in text(page)
    client.add_run("r0", width=64, steps=0, state=RunState.QUEUED)
    client.add_run("r1")
    st.cache_data.clear()
    page = visit("compare", runs="none")
    assert "Tick runs in the list" in text(page)
    page = visit("compare", runs="r0,r1")
    assert "No points yet: widths/emb_dim=64,seed=0." in text(page)


def test_runs_without_a_bound_are_compared_by_their_loss_and_said(client: CompareClient, visit: Open) -> None:
    client.add_run("r0", width=16, bound=False)
    client.add_run("r1", width=32)
    page = visit("compare", runs="r0,r1")
    assert labels(page, "loss-against-step") == ["emb_dim 16", "emb_dim 32"]
    assert labels(page, "excess-against-step")[0].startswith("emb_dim 32")
    assert "No exact bound, so no excess: emb_dim 16." in text(page)
    page = visit("compare", runs="r0")
    assert "has no exact bound" in text(page)
    assert sent(page, "excess-against-step") is None


def test_more_than_six_groups_all_have_a_line_of_their_own(client: CompareClient, visit: Open) -> None:
    for i in range(50):
        client.add_run(f"r{i}", width=i + 16, steps=60)
    page = visit("compare", runs=",".join(f"r{i}" for i in range(50)))
    lines = [t for t in figure(page, "loss-against-step")["data"] if t.get("meta")]
    assert len(lines) == 50
    assert len({(t["line"]["color"], t["line"]["dash"]) for t in lines}) == 50
    assert len({t["line"]["color"] for t in lines}) == 6


def test_hostile_names_are_text(client: CompareClient, visit: Open) -> None:
    client.add_run("r0", name=HOSTILE)
    client.add_run("r1", name=HOSTILE + "2", width=64, params={})
    page = visit("compare", runs="r0,r1", by="each run")
    assert "<script>" not in text(page)
    for key in ("loss-against-step", "excess-against-step"):
        drawn = json.dumps([t.get("name", "") + t.get("hovertemplate", "") for t in figure(page, key)["data"]])
        assert "<script>" not in drawn
        assert "%{x}" not in drawn
    assert cells(page, "compare-runs")[0]["run"] == HOSTILE


def test_the_page_says_when_the_service_is_away_and_keeps_what_it_has(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare")
    sweep.away = True
    st.cache_data.clear()
    page.run()
    assert "No answer from http://127.0.0.1:8420" in text(page)
    assert labels(page, "loss-against-step") == ["emb_dim 16", "emb_dim 32", "emb_dim 64"]


def test_what_has_ended_is_read_once(sweep: CompareClient, visit: Open) -> None:
    visit("compare")
    asked = [q for q in sweep.queries if set(q.runs) == {"r1", "r2", "r3", "r4", "r5"} and q.keys == ["excess"]]
    assert len(asked) == 1
    read._live_curves.clear()
    visit("compare")
    again = [q for q in sweep.queries if set(q.runs) == {"r1", "r2", "r3", "r4", "r5"} and q.keys == ["excess"]]
    assert len(again) == 1
    assert sweep.calls.count("run") == 6


def test_data_and_program_can_be_saved(sweep: CompareClient, visit: Open) -> None:
    page = visit("compare")
    assert sent(page, "compare-export")["files"] == ["CSV", "Parquet", "Python"]
    assert sent(page, "compare-export")["file"] is None
    assert sent(page, "compare-export")["charts"] == [
        {"name": "loss-against-step", "title": "Loss"},
        {"name": "excess-against-step", "title": "Excess"},
    ]
