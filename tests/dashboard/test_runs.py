"""The list of runs over a service in memory: filter, order, actions on many."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard.components.table import reselect, selected
from dashboard.data import editing, sparks
from dashboard.panels.filter import LANGUAGE, PRESETS
from dashboard.panels.run_table import Scale
from nanollama.api import schemas
from nanollama.api.errors import InvalidRequest
from nanollama.api.filters import parse_filter
from nanollama.api.status import RunState
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_client import FakeClient, worker

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** [link](http://example.com) 🎉 שלום"


@pytest.fixture(autouse=True)
def _forget() -> None:
    sparks._kept.clear()


def names(page: AppTest) -> list[str]:
    return [row["name"] for row in cells(page, "runs")]


def choose(page: AppTest, *ids: str) -> AppTest:
    """Select rows, as clicks on their checkboxes do."""
    page.session_state["runs selection"] = (1, list(ids))
    return page.run()


def press(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click().run()
    assert not page.exception
    return page


@pytest.mark.parametrize(
    ("asked", "said", "marked"),
    [
        ("state:runing exp2", "at character 7: &#x27;runing&#x27; is not a state", "state:<mark>runing</mark> exp2"),
        ('base "open', "the quotation does not end", "base <mark>&quot;open</mark>"),
        ("lr>", "a value is missing", "lr&gt;<mark>&nbsp;</mark>"),
        ("a " * 40 + "state:<b>", "is not a state", "<mark>&lt;b&gt;</mark>"),
    ],
)
def test_a_filter_that_cannot_be_read_shows_the_place(
    client: FakeClient, visit: Open, asked: str, said: str, marked: str
) -> None:
    client.add("a1", RunState.RUNNING, step=10)
    page = visit(q=asked)
    assert said in text(page)
    assert marked in text(page)
    assert sent(page, "runs") is None
    assert "runs" not in client.calls
    page.text_input(key="q").set_value("").run()
    assert names(page) == ["small"]


def test_every_filter_that_the_page_offers_can_be_read() -> None:
    for _, example in PRESETS:
        assert parse_filter(example)
    for _, example, _ in LANGUAGE:
        assert parse_filter(example)


def test_a_run_names_its_experiment_and_leads_to_the_others_of_it(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="lr=0.01", step=10, experiment_id="e1", experiment=HOSTILE)
    client.add("b1", RunState.QUEUED, name="lr=0.01", experiment_id="e2")
    shown = {row["id"]: row["cells"]["experiment"] for row in sent(visit(), "runs")["rows"]}
    assert (shown["a1"]["text"], shown["a1"]["href"]) == (HOSTILE, "./?q=experiment:e1")
    assert shown["b1"]["text"] == "e2", "of a service that does not tell names"
    page = visit("run", run="a1")
    assert "<a class='n2n-of' href='./?q=experiment:e1' target='_self'>&lt;script&gt;" in text(page)


def test_a_named_filter_fills_the_box(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="goes", step=10)
    client.add("b1", RunState.QUEUED, name="waits")
    page = press(visit(cursor="1"), "preset Waiting to start")
    assert page.text_input(key="q").value == "state:queued,leased,submitted"
    assert names(page) == ["waits"]
    assert "cursor" not in page.query_params


def test_archived_runs_are_left_out_unless_asked_for(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, name="new", step=1000)
    client.add("b1", RunState.SUCCEEDED, name="old", step=1000, archived=True)
    page = visit()
    assert names(page) == ["new"]
    page.toggle(key="archived").set_value(True).run()
    assert names(page) == ["new", "old"]
    assert cells(page, "runs")[1]["remark"] == "archived"
    assert names(visit(archived="true", q="archived:true")) == ["old"]


def test_the_order_is_in_the_address(client: FakeClient, visit: Open) -> None:
    for i, step in enumerate((900, 100, 500)):
        client.add(f"r{i}", RunState.RUNNING, name=f"run {i}", step=step)
    page = visit(sort="-excess")
    assert names(page) == ["run 1", "run 2", "run 0"]
    assert sent(page, "runs")["sort"] == "-excess"
    assert sent(page, "runs")["label"] == "Runs, sorted by -excess"


def test_small_curves_share_one_scale_and_are_asked_for_together(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=1000)
    client.add("b1", RunState.RUNNING, step=100)
    client.add("c1", RunState.QUEUED)
    page = visit()
    long, short, none = (row["cells"]["spark"] for row in sent(page, "runs")["rows"])
    assert long["spark"][-1][0] == 1.0 > short["spark"][-1][0]
    assert short["spark"][-1][1] > long["spark"][-1][1] == pytest.approx(0, abs=0.1)
    assert long["text"].startswith("excess from ")
    assert none == {}
    assert client.calls.count("curves") == 1
    page.run()
    assert client.calls.count("curves") == 1, "nobody has come any further"


def test_a_scale_of_one_value_is_no_division_by_zero() -> None:
    assert Scale.of([((5.0, 0.1), (5.0, 0.1))]).place(5.0, 0.1) == (0.5, 0.5)
    assert Scale.of([]).place(1.0, 1.0) == (0.5, 0.5)


def test_actions_wait_for_a_selection_and_end_it(client: FakeClient, visit: Open) -> None:
    for i, state in enumerate((RunState.FAILED, RunState.FAILED, RunState.SUCCEEDED)):
        client.add(f"r{i}", state, step=10)
    page = visit()
    assert "3 runs · none selected" in text(page)
    assert page.button(key="bulk-retry").disabled
    choose(page, "r0", "r1", "r2")
    assert "<b>3</b> selected" in text(page)
    press(page, "bulk-retry")
    assert client.selections[0].ids == ["r0", "r1", "r2"]
    assert "2 runs queued again; 1 passed over" in text(page)
    assert "none selected" in text(page)
    assert sent(page, "runs")["selection"] == {"version": 2, "ids": []}


def test_cancelling_many_asks_first(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=10)
    page = choose(visit(), "a1")
    assert "a retry goes on from the newest one" in text(page)
    assert not client.selections
    press(page, "confirm-bulk")
    assert client.stored["a1"].cancel_requested
    assert "1 run asked to stop" in text(page)
    assert cells(page, "runs")[0]["remark"] == "cancel requested"


def test_all_that_match_are_meant_by_their_filter(client: FakeClient, visit: Open) -> None:
    for i in range(60):
        client.add(f"r{i}", RunState.SUCCEEDED, name=f"base {i}", step=1000)
    client.add("x1", RunState.FAILED, name="base x", step=10)
    page = choose(visit(q="base", state="succeeded"), "r0")
    page.toggle(key="everything").set_value(True).run()
    assert "<b>60</b> selected" in text(page)
    press(page, "bulk-archive")
    assert client.selections[0].filter == "base state:succeeded"
    assert not client.stored["x1"].archived
    assert sum(run.archived for run in client.stored.values()) == 60
    assert "No run matches" in text(page)


def test_tags_are_added_and_removed(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=10, tags=["old"])
    page = choose(visit(), "a1")
    page.text_input(key="tags-add").set_value("exp2, #paper,")
    page.text_input(key="tags-remove").set_value("old")
    press(page, "bulk-tag")
    assert client.stored["a1"].tags == ["exp2", "paper"]
    assert sent(page, "runs")["rows"][0]["cells"]["tags"] == {"chips": ["exp2", "paper"], "edit": "exp2, paper"}


@pytest.mark.parametrize("tags", ["x" * 65, "bell\x07", ", ".join(str(i) for i in range(40))])
def test_tags_that_cannot_be_are_refused_and_change_nothing(client: FakeClient, visit: Open, tags: str) -> None:
    client.add("a1", RunState.SUCCEEDED, step=10, tags=["old"])
    page = choose(visit(), "a1")
    page.text_input(key="tags-add").set_value(tags)
    press(page, "bulk-tag")
    assert "To tag failed" in text(page)
    assert client.stored["a1"].tags == ["old"]


def test_an_edit_names_the_value_that_is_refused(client: FakeClient) -> None:
    client.add("a1", RunState.SUCCEEDED, step=10)
    assert editing.change_run("a1", notes="seen").notes == "seen"
    with pytest.raises(InvalidRequest, match=r"notes"):
        editing.change_run("a1", notes="x" * 10_001)
    assert client.stored["a1"].notes == "seen"


@pytest.mark.parametrize(
    ("typed", "tags"),
    [("a, b ,a", ["a", "b"]), ("#exp2,, # ,", ["exp2"]), ("two words", ["two words"]), ("", [])],
)
def test_tags_are_words_between_commas(typed: str, tags: list[str]) -> None:
    assert editing.words(typed) == tags


def test_a_log_opens_under_its_run(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.FAILED, step=500, reason="exit code 1")
    client.text["a1"] = {"logs/rank0.log": "".join(f"line {i}\n" for i in range(100)) + HOSTILE + "\n"}
    page = visit()
    assert sent(page, "runs")["rows"][0]["detail"] == ""
    page.session_state["log-of"] = "a1"
    page.run()
    row = sent(page, "runs")["rows"][0]
    assert row["detail"].split("\n") == [*(f"line {i}" for i in range(76, 100)), HOSTILE]
    assert row["cells"]["remark"]["act"] == "hide log"


def test_runs_that_wait_for_a_worker_raise_a_banner(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.QUEUED)
    page = visit()
    assert "1 run waits, but no worker is alive" in text(page)
    assert "python -m worker" in text(page)
    client.known_workers = [worker()]
    st.cache_data.clear()
    assert "no worker is alive" not in text(visit())
    client.known_workers = [worker().model_copy(update={"draining": True})]
    st.cache_data.clear()
    assert "draining" in text(visit())


def test_the_demo_sweep_is_submitted_once_whatever_becomes_of_the_reply(
    client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit()
    with monkeypatch.context() as patch:
        patch.setattr(client, "add", lambda *_, **__: setattr(client, "away", True) or client._call("reply"))
        press(page, "demo")
    client.away = False
    press(page, "demo")
    assert len(client.submissions) == 2
    assert len(set(client.submissions)) == 1


def test_an_empty_filter_result_is_not_the_empty_service(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=10)
    page = visit(q="nothing")
    assert "No run matches" in text(page)
    assert not [b for b in page.button if b.key == "demo"]


def test_hostile_words_in_a_list_stay_words(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.FAILED, name=HOSTILE, step=10, reason=HOSTILE * 100, tags=[HOSTILE], notes=HOSTILE * 100)
    page = choose(visit(), "a1")
    assert "<script" not in text(page)
    assert not page.markdown
    row = sent(page, "runs")["rows"][0]["cells"]
    assert row["name"]["text"] == HOSTILE
    assert row["tags"]["chips"] == [HOSTILE]
    assert row["notes"]["edit"] == HOSTILE * 100
    assert len(row["notes"]["text"]) <= 200


def test_a_curve_that_is_not_finite_is_left_out(client: FakeClient) -> None:
    client.add("a1", RunState.RUNNING, step=50)
    series = client.series["a1"]["excess"]
    bad = [math.nan, math.inf, -0.1, 0.0, *series.value[4:]]
    client.series["a1"]["excess"] = series.model_copy(update={"value": bad})
    (curve,) = sparks.excesses([client.stored["a1"]]).values()
    assert len(curve) == len(series.value) - 4


def test_a_selection_made_by_the_page_replaces_the_one_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {"t": {"selected": {"version": 0, "ids": ["a"]}}}
    monkeypatch.setattr("dashboard.components.table.st.session_state", state)
    assert selected("t") == ("a",)
    reselect("t", ["b", "c"])
    assert selected("t") == ("b", "c")
    state["t"]["selected"] = {"version": 1, "ids": ["c"]}
    assert selected("t") == ("c",)


def test_good_news_goes_by_and_bad_news_stays_until_the_next_action(
    client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.add("a1", RunState.FAILED, step=10)
    page = press(choose(visit(), "a1"), "bulk-retry")
    page.run()
    assert "1 run queued again" in text(page), "the next tick is no reason to take it away"
    clock = time.monotonic()
    monkeypatch.setattr("dashboard.components.page.time.monotonic", lambda: clock + 60)
    page.run()
    assert "1 run queued again" not in text(page)
    page = choose(visit(), "a1")
    page.text_input(key="tags-add").set_value("x" * 65)
    press(page, "bulk-tag")
    monkeypatch.setattr("dashboard.components.page.time.monotonic", lambda: clock + 600)
    page.run()
    assert "To tag failed" in text(page)
    press(choose(page, "a1"), "bulk-archive")
    assert "To tag failed" not in text(page)


def test_what_stands_for_the_table_is_gone_once_it_is_there(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=10)
    assert "<div class='n2n-skeleton'" not in text(visit())
    assert "<div class='n2n-skeleton'" not in text(visit("run", run="a1"))


def test_a_refused_action_says_why(client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a1", RunState.RUNNING, step=10)

    def refuse(_: schemas.RunSelection) -> None:
        raise InvalidRequest("there is no run a1 any more")

    page = choose(visit(), "a1")
    monkeypatch.setattr(client, "cancel_runs", refuse)
    press(page, "confirm-bulk")
    assert "To cancel failed: there is no run a1 any more" in text(page)
