"""Workers & queue over a service in memory."""

from __future__ import annotations

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from backend.catalogue.repository import BOUNDS
from dashboard import data
from dashboard.panels import queue as panel
from nanollama.api import schemas
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_catalogue import FakeCatalogue, entry, filled

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** 🎉"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeCatalogue:
    """A laboratory in which something of everything is going on."""
    fake = filled()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
    return fake


def press(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click().run()
    assert not page.exception
    return page


def test_workers_are_listed_with_what_they_hold_and_have(client: FakeCatalogue, visit: Open) -> None:
    page = visit("workers")
    alive, away = cells(page, "workers")
    assert (alive["name"], alive["state"], alive["busy"], alive["holds"]) == ("gpu-1", "alive", "1/2", "width=64")
    assert alive["has"] == "2 accelerators · 16 CPUs · a100"
    assert (away["state"], away["holds"]) == ("away", "nothing")
    for chip in ("<b>1</b><span>alive", "<b>1/2</b><span>slots busy", "<b>2</b><span>waiting"):
        assert chip in text(page)


def test_the_queue_says_why_each_job_waits(client: FakeCatalogue, visit: Open) -> None:
    page = visit("workers")
    first, second = cells(page, "queue")
    assert (first["position"], first["name"], first["why"], first["priority"]) == (
        "1",
        "width=128",
        "because next",
        "5",
    )
    assert (second["needs"], second["experiment"]) == ("64 CPUs", "sweep e2")
    assert sent(page, "queue")["rows"][0]["cells"]["name"]["href"] == "run?run=q1"
    assert [c["key"] for c in sent(page, "queue")["columns"] if c["edit"]] == ["priority"]


def test_a_worker_can_be_linked_to_drained_and_resumed(client: FakeCatalogue, visit: Open) -> None:
    page = visit("workers", worker="igpu-1")
    assert sent(page, "workers")["rows"][0]["marked"]
    (held,) = cells(page, "held")
    assert (held["name"], held["progress"]) == ("width=64", "60%")
    press(page, "drain")
    assert "gpu-1 finishes what it holds" in text(page)
    assert cells(page, "workers")[0]["state"] == "draining"
    press(page, "undrain")
    assert cells(page, "workers")[0]["state"] == "alive"
    assert "There is no worker" in text(visit("workers", worker="nonesuch"))


def test_the_queue_can_be_paused_and_resumed(client: FakeCatalogue, visit: Open) -> None:
    page = press(visit("workers"), "pause")
    assert client.queue_paused
    assert "The queue has been paused since" in text(page)
    press(page, "resume")
    assert not client.queue_paused
    assert "The queue has been paused since" not in text(page)


def test_checked_jobs_are_cancelled_after_a_question(client: FakeCatalogue, visit: Open) -> None:
    page = visit("workers")
    page.session_state["queue selection"] = (1, ["q1", "q2", "gone"])
    page.run()
    press(page, "confirm-cancel")
    assert [selection.ids for selection in client.selections] == [["q1", "q2"]]
    assert "2 jobs cancelled." in text(page)
    assert "confirm-cancel" not in [b.key for b in page.button]


@pytest.mark.parametrize("typed", ["200", "high", "1.5", "", "<b>"])
def test_what_is_no_priority_changes_nothing(
    client: FakeCatalogue, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(panel, "say", lambda words, **_: said.append(words))
    panel.prioritise("q1", typed)
    assert said
    assert "write a whole number from -100 to 100" in said[0]
    assert "change_run" not in client.calls


def test_a_priority_is_changed_as_it_is_typed(client: FakeCatalogue) -> None:
    panel.prioritise("q1", " −7 ")
    assert client.stored["q1"].priority == -7


def test_an_experiment_is_paused_and_resumed(client: FakeCatalogue, visit: Open) -> None:
    assert [row["name"] for row in cells(visit("workers"), "experiments")] == ["sweep e1", "sweep e2"]
    panel.pause_experiment("e2", "pause")
    page = visit("workers")
    states = {row["name"]: row["state"] for row in cells(page, "experiments")}
    assert states == {"sweep e1": "open", "sweep e2": "paused"}
    assert [row["cells"]["state"]["act"] for row in sent(page, "experiments")["rows"]] == ["pause", "resume"]
    panel.pause_experiment("e2", "resume")
    assert client.held_back == set()


def test_an_experiment_leads_to_its_runs() -> None:
    assert panel.runs_filter("e1") == "experiment:e1"
    assert panel.runs_filter(BOUNDS) == f"experiment:{BOUNDS} app:gssm.entropy"
    assert panel.BOUNDS == BOUNDS, "as the service calls it"


def test_a_long_queue_is_shown_in_parts(client: FakeCatalogue, visit: Open) -> None:
    client.line = [entry(i, f"q{i}") for i in range(450)]
    page = visit("workers")
    assert (len(cells(page, "queue")), cells(page, "queue")[0]["position"]) == (200, "1")
    press(page, "after")
    assert page.query_params["from"] == "200"
    assert cells(page, "queue")[0]["position"] == "201"
    press(page, "after")
    assert len(cells(page, "queue")) == 50
    assert page.button(key="after").disabled
    press(page, "before")
    assert cells(page, "queue")[0]["position"] == "201"
    assert "Nothing waits that far back" in text(visit("workers", **{"from": "9000"}))
    assert len(cells(visit("workers", **{"from": "many"}), "queue")) == 200


def test_empty_states_teach(client: FakeCatalogue, visit: Open) -> None:
    client.known_workers, client.line = [], []
    page = visit("workers")
    assert "python -m worker --url http://127.0.0.1:8420" in text(page)
    assert "Nothing waits" in text(page)


def test_a_laboratory_without_living_workers_has_a_banner(client: FakeCatalogue, visit: Open) -> None:
    client.known_workers = [client.known_workers[1]]
    page = visit("workers")
    assert "No worker is alive" in text(page)
    assert "2 jobs waiting for one" in text(page)


def test_hostile_words_stay_words(client: FakeCatalogue, visit: Open) -> None:
    client.known_workers[0] = client.known_workers[0].model_copy(
        update={"name": HOSTILE, "host": HOSTILE, "labels": [HOSTILE], "run_root": HOSTILE}
    )
    client.line = [entry(0, "q1", run_name=HOSTILE, detail=HOSTILE, resources=schemas.Resources(labels=[HOSTILE]))]
    page = visit("workers", worker="igpu-1")
    assert "<script>" not in text(page)
    assert cells(page, "workers")[0]["name"] == HOSTILE
    assert cells(page, "queue")[0]["name"] == HOSTILE


def test_what_was_shown_stays_while_the_service_is_away(client: FakeCatalogue, visit: Open) -> None:
    page = visit("workers")
    client.away = True
    st.cache_data.clear()
    page.run()
    assert "No answer" in text(page)
    assert cells(page, "workers")[0]["name"] == "gpu-1"
