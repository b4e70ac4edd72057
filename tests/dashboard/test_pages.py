"""The pages over a service in memory. What components draw is read from what they are sent."""

from __future__ import annotations

import pytest
import streamlit as st

from nanollama.api import schemas
from nanollama.api.status import RunState
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_client import NOW, FakeClient, checkpoint, learning, worker

pytestmark = pytest.mark.skipif(
    tuple(map(int, st.__version__.split(".")[:2])) < (1, 66),
    reason="AppTest of this Streamlit does not know components that a module registers; the browser tests do",
)

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** [link](http://example.com) 🎉"


# -- runs ----------------------------------------------------------------------------------------------------------


def test_runs_shows_state_progress_and_distance_from_the_bound(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="base", step=250, worker="w1")
    client.add("b1", RunState.FAILED, name="dense", step=100, reason="exit code 1:\n no memory", attempt=2)
    client.add("c1", RunState.QUEUED, name="sparse", tags=["exp2"])
    client.known_workers = [worker(slots=2, busy=1)]
    page = visit()
    base, dense, sparse = cells(page, "runs")
    excess = client.stored["a1"].progress.excess
    assert excess is not None
    assert base["name"] == "base"
    assert (base["state"], base["progress"], base["excess"]) == ("running", "25%", f"{excess * 1e3:.1f}")
    assert base["speed"].endswith("k")
    assert base["left"]
    assert dense["remark"] == "exit code 1: no memory"
    assert (dense["speed"], dense["left"]) == ("", "")
    assert sparse["excess"] == "–"
    first, second, third = (row["cells"] for row in sent(page, "runs")["rows"])
    assert first["name"]["href"] == "run?run=a1"
    assert first["state"]["glyph"] == "●"
    assert second["progress"]["title"].endswith("attempt 2")
    assert (second["remark"]["act"], "act" in first["remark"]) == ("log", False)
    assert third["tags"] == {"chips": ["exp2"], "edit": "exp2"}
    head = text(page)
    for chip in ("<b>1</b><span>running", "<b>1</b><span>failed", "<b>1</b><span>queued", "1/2 slots busy"):
        assert chip in head


def test_runs_can_be_searched_and_filtered_from_the_address(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="base", step=10)
    client.add("b1", RunState.SUCCEEDED, name="base-2", step=1000)
    client.add("c1", RunState.SUCCEEDED, name="other", step=1000)
    page = visit(q="base", state="succeeded")
    assert [row["name"] for row in cells(page, "runs")] == ["base-2"]
    page.text_input(key="q").set_value("nothing like it").run()
    assert "No run matches" in text(page)
    page.text_input(key="q").set_value("").run()
    assert [row["name"] for row in cells(page, "runs")] == ["base-2", "other"]


def test_runs_teaches_the_first_step_when_there_are_none(client: FakeClient, visit: Open) -> None:
    page = visit()
    assert "n2n submit configs/gssm/debug.yaml" in text(page)
    page.button(key="demo").click().run()
    assert client.stored["new1"].tags == ["demo"]
    assert client.stored["new1"].name == "first-sweep"
    assert "No runs yet" not in text(page)


def test_runs_turns_pages(client: FakeClient, visit: Open) -> None:
    for i in range(120):
        client.add(f"r{i}", RunState.SUCCEEDED, name=f"run {i}", step=1000)
    page = visit()

    def turn(label: str) -> tuple[str, int]:
        next(b for b in page.button if b.label == label).click().run()
        names = [row["name"] for row in cells(page, "runs")]
        return names[0], len(names)

    assert turn("Older →") == ("run 50", 50)
    assert turn("Older →") == ("run 100", 20)
    assert page.query_params["cursor"] == "100"
    assert turn("← Newer") == ("run 50", 50)
    assert turn("← Newer") == ("run 0", 50)
    assert "cursor" not in page.query_params


def test_an_older_page_opened_from_its_address_leads_back(client: FakeClient, visit: Open) -> None:
    for i in range(60):
        client.add(f"r{i}", RunState.SUCCEEDED, name=f"run {i}", step=1000)
    page = visit(cursor="50")
    assert cells(page, "runs")[0]["name"] == "run 50"
    next(b for b in page.button if b.label == "← Newer").click().run()
    assert cells(page, "runs")[0]["name"] == "run 0"


# -- run -----------------------------------------------------------------------------------------------------------


def test_a_running_run_shows_its_curves_checkpoints_log_and_config(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="base", step=600, worker="w1")
    page = visit("run", run="a1")
    figure = sent(page, "loss-a1")["figure"]
    assert {"loss", "checkpoints", "now"} <= {trace.get("name") for trace in figure["data"]}
    assert figure["layout"]["shapes"][0]["line"]["dash"]
    assert sent(page, "excess-a1")["figure"]["layout"]["yaxis"]["type"] == "log"
    for key in ("tokens_per_second", "lr", "grad_norm"):
        assert sent(page, f"{key}-a1")["figure"]["data"]
    assert [row["step"] for row in cells(page, "checkpoints-a1")] == ["500", "250"]
    assert cells(page, "events-a1")[0]["what"] == "queued → running"
    assert sent(page, "log-a1")["text"].endswith("step 590\n")
    assert "state_dim: 8" in sent(page, "config-a1")["text"]
    assert "n2n submit a1.yaml" in sent(page, "repeat-a1")["text"]
    for said in ("base", "running", "worker w1", "attempt 1", "<b>600</b><span>/ 1,000", "ETA", "mnat"):
        assert said in text(page)


def test_the_view_of_the_curves_is_in_the_address(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    raw = visit("run", run="a1", loss="raw batches", x="tokens", logx="false")
    layout = sent(raw, "loss-a1")["figure"]["layout"]
    assert layout["xaxis"]["title"]["text"] == "training tokens"
    assert layout["xaxis"]["range"] == [0, 4_032_000]
    assert "loss of each batch" in text(raw)
    assert "entropy + paired excess" in text(visit("run", run="a1"))


def test_a_run_without_a_bound_says_so(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=600)
    client.series["a1"] = learning(600, bound=False)
    page = visit("run", run="a1")
    assert "no exact bound" in text(page)
    assert sent(page, "loss-a1")["figure"]["layout"]["shapes"] == []
    assert sent(page, "excess-a1") is None


@pytest.mark.parametrize("running", [False, True])
def test_a_run_without_metrics_says_what_it_waits_for(client: FakeClient, visit: Open, running: bool) -> None:
    client.add("a1", RunState.RUNNING if running else RunState.QUEUED)
    page = visit("run", run="a1")
    assert ("No metrics yet" if running else "No worker is alive") in text(page)
    assert ("python -m worker" in text(page)) is not running
    assert sent(page, "loss-a1") is None
    assert "nothing written yet" in text(page)


@pytest.mark.parametrize(("state", "said"), [(RunState.FAILED, "Failed"), (RunState.CANCELLED, "Cancelled")])
def test_an_ended_run_says_why(client: FakeClient, visit: Open, state: RunState, said: str) -> None:
    client.add("a1", state, step=100, reason="exit code 1: <out> of memory")
    page = visit("run", run="a1")
    assert f"<strong>{said}</strong></p><p>exit code 1: &lt;out&gt; of memory" in text(page)
    assert not [b for b in page.button if b.key == "confirm-cancel"]


def test_a_succeeded_run_shows_its_result(client: FakeClient, visit: Open) -> None:
    result = {"loss": 1.95, "bound": 1.9, "excess": 0.05, "excess_stderr": 0.001, "num_points": 20}
    client.add("a1", RunState.SUCCEEDED, step=1000, result=result)
    assert "excess 0.0500 ± 0.0010" in text(visit("run", run="a1"))


def test_cancelling_asks_first_and_says_that_it_was_requested(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100)
    page = visit("run", run="a1")
    assert "cancel" not in client.calls
    page.button(key="confirm-cancel").click().run()
    assert client.calls.count("cancel") == 1
    assert "Cancel requested" in text(page)
    assert not [b for b in page.button if b.key == "confirm-cancel"]


def test_a_cancel_that_is_refused_says_so(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100)
    page = visit("run", run="a1")
    client.stored["a1"] = client.stored["a1"].model_copy(update={"state": RunState.SUCCEEDED})
    page.button(key="confirm-cancel").click().run()
    assert not page.exception


def test_a_silent_worker_is_told(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100, unknown_since=NOW)
    assert "Nothing heard since 2026-11-24 12:00:00 UTC" in text(visit("run", run="a1"))


@pytest.mark.parametrize("run_id", ["nope", "", "../../x", "a/b?c=d", "x" * 5000, "<b>"])
def test_an_unknown_run_leads_back_to_all_runs(client: FakeClient, visit: Open, run_id: str) -> None:
    page = visit("run", run=run_id)
    assert "No such run" in text(page)
    assert "<b>." not in text(page)
    assert page.get("page_link")


def test_streams_of_the_log_can_be_chosen(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100, attempt=2)
    client.text["a1"] = {"logs/rank0.log": "from rank 0\n", "stdout.log": "from torchrun\n"}
    page = visit("run", run="a1")
    assert sent(page, "log-a1")["text"] == "from rank 0\n"
    page.selectbox(key="stream").set_value("stdout.log").run()
    assert sent(page, "log-a1")["text"] == "from torchrun\n"
    assert list(page.selectbox(key="attempt").options) == ["attempt 2", "attempt 1"]


def test_removed_checkpoints_are_faded(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100)
    client.saved["a1"] = [checkpoint(50, removed=True), checkpoint(100)]
    page = visit("run", run="a1")
    assert [row["faded"] for row in sent(page, "checkpoints-a1")["rows"]] == [False, True]
    assert "1 on disk" in text(page)


def test_hostile_words_stay_words(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.FAILED, name=HOSTILE, step=100, reason=HOSTILE * 100, tags=[HOSTILE], worker=HOSTILE)
    client.text["a1"] = {"logs/rank0.log": "\x1b[31mred\x1b[0m " + HOSTILE * 200 + "\n10%\r100%\n"}
    client.happened["a1"] = [schemas.Event(id=1, attempt=1, kind="warning", at=NOW, message=HOSTILE)]
    for page in (visit(), visit("run", run="a1")):
        assert "<script" not in text(page)
        assert not page.markdown
    page = visit("run", run="a1")
    assert "&lt;script&gt;" in text(page)
    log = sent(page, "log-a1")["text"]
    assert log == "red " + HOSTILE * 200 + "\n100%\n"
    assert cells(page, "events-a1")[0]["message"] == HOSTILE


# -- the service is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["runs", "run", "launch"])
def test_a_service_that_is_away_is_named_with_the_remedy(client: FakeClient, visit: Open, view: str) -> None:
    st.cache_data.clear()
    client.away = True
    page = visit(view, run="a1")
    assert "No answer from http://127.0.0.1:8420" in text(page)
    assert "n2n up" in text(page)
    client.away = False
    client.add("a1", RunState.RUNNING, name="back again", step=10)
    page.run()
    assert not page.exception
    assert "No answer" not in text(page)


def test_what_was_shown_stays_while_the_service_is_away(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, name="base", step=10)
    page = visit()
    client.away = True
    st.cache_data.clear()
    page.run()
    assert "No answer" in text(page)
    assert "What is shown dates from" in text(page)
    assert cells(page, "runs")[0]["name"] == "base"
