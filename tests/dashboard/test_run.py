"""The page of a run over a service in memory: what can be done with it, its checkpoints, evaluations and history."""

from __future__ import annotations

from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard.charts import curves
from dashboard.charts.curves import Chart
from dashboard.data import editing
from dashboard.panels import run_charts
from dashboard.panels.run_log import matching
from nanollama.api import schemas
from nanollama.api.errors import Conflict
from nanollama.api.status import AttemptState, RunState
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_client import NOW, FakeClient, checkpoint, evaluation, learning

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** [link](http://example.com) 🎉 שלום"


def press(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click().run()
    assert not page.exception
    return page


def keys(page: AppTest) -> set[str | None]:
    return {b.key for b in page.button}


def on_checkpoint(page: AppTest, run_id: str, step: int) -> AppTest:
    """Choose a checkpoint, as a click on its row or its mark does."""
    page.session_state[f"checkpoint-of {run_id}"] = step
    return page.run()


# -- what can be done ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(RunState))
def test_only_what_is_possible_is_offered(client: FakeClient, visit: Open, state: RunState) -> None:
    client.add("a1", state, step=100)
    found = keys(visit("run", run="a1"))
    assert ("retry" in found) is (state in (RunState.FAILED, RunState.CANCELLED))
    assert ("archive" in found) is state.terminal
    assert ("confirm-cancel" in found) is not state.terminal
    assert "clone" in found


def test_a_retried_run_is_queued_and_watched_again(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.FAILED, step=100, reason="exit code 1")
    page = press(visit("run", run="a1"), "retry")
    assert client.stored["a1"].state is RunState.QUEUED
    assert "Queued again" in text(page)
    assert "Waiting to start" in text(page)
    assert "retry" not in keys(page)


def test_a_retry_that_is_refused_says_why(client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a1", RunState.FAILED, step=100)

    def refuse(_: str) -> None:
        raise Conflict("its experiment is gone")

    page = visit("run", run="a1")
    monkeypatch.setattr(client, "retry", refuse)
    press(page, "retry")
    assert "Retrying failed: its experiment is gone" in text(page)


def test_tags_notes_and_priority_are_edited(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100, tags=["old"])
    page = visit("run", run="a1")
    page.text_input(key="tags-a1").set_value("exp2, paper")
    page.text_area(key="notes-a1").set_value(HOSTILE)
    page.number_input(key="priority-a1").set_value(7)
    next(b for b in page.button if b.label == "Keep").click().run()
    run = client.stored["a1"]
    assert (run.tags, run.notes, run.priority) == (["exp2", "paper"], HOSTILE, 7)
    assert "Changed: tags, notes, priority" in text(page)
    assert "#exp2 · #paper" in text(page)
    assert "&lt;script&gt;" in text(page)
    assert "<script" not in text(page)


def test_an_edit_sends_only_what_was_changed(client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a1", RunState.SUCCEEDED, step=100, tags=["old"], notes="seen")
    seen: list[schemas.RunPatch] = []
    change = client.change_run
    monkeypatch.setattr(client, "change_run", lambda i, patch: seen.append(patch) or change(i, patch))
    page = visit("run", run="a1")
    page.text_area(key="notes-a1").set_value("seen twice")
    next(b for b in page.button if b.label == "Keep").click().run()
    assert [patch.model_dump(exclude_unset=True) for patch in seen] == [{"notes": "seen twice"}]
    assert not page.number_input, "a run that has ended has no use for a priority"


def test_long_notes_are_cut_in_the_head_and_whole_where_they_are_edited(client: FakeClient, visit: Open) -> None:
    notes = "note " * 2000
    client.add("a1", RunState.SUCCEEDED, step=100, notes=notes)
    page = visit("run", run="a1")
    assert "(Edit shows all of it)" in text(page)
    assert notes not in text(page)
    assert page.text_area(key="notes-a1").value == notes


def test_archiving_is_undone_from_the_same_place(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=100)
    page = press(visit("run", run="a1"), "archive")
    assert client.stored["a1"].archived
    assert page.button(key="archive").label == "Restore"
    press(page, "archive")
    assert not client.stored["a1"].archived


@pytest.mark.parametrize(("to", "state"), [("INTERRUPTED", RunState.QUEUED), ("FAILED", RunState.FAILED)])
def test_a_lost_run_is_resolved_by_a_person(client: FakeClient, visit: Open, to: str, state: RunState) -> None:
    client.add("a1", RunState.RUNNING, step=100, unknown_since=NOW)
    page = visit("run", run="a1")
    assert "two runs would write to the same place" in text(page)
    press(page, f"confirm-resolve-{to}")
    assert client.stored["a1"].state is state
    assert "Nothing heard since" not in text(page)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_say_what_they_are_worth_and_whether_they_are_kept(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100)
    worth = {"evaluation_loss": 1.95, "evaluation_excess": 0.0316}
    client.saved["a1"] = [
        checkpoint(25, removed=True),
        checkpoint(50).model_copy(update=worth),
        checkpoint(75).model_copy(update={"pinned": True}),
        checkpoint(100).model_copy(update={"pending": "delete"}),
    ]
    page = visit("run", run="a1")
    found = cells(page, "checkpoints-a1")
    assert [(c["step"], c["loss"], c["excess"], c["kept"]) for c in found] == [
        ("100", "", "", "to be deleted"),
        ("75", "", "", "pinned"),
        ("50", "1.9500", "31.6", ""),
        ("25", "", "", "removed"),
    ]
    assert "3 on disk" in text(page)
    marks = next(t for t in sent(page, "loss-a1")["figure"]["data"] if t.get("name") == "checkpoints")
    assert marks["ids"] == ["50", "75", "100"]
    assert "evaluation: loss 1.9500, excess 31.6 mnat" in marks["customdata"][0]


def test_a_chosen_checkpoint_is_marked_in_table_and_curve(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    page = on_checkpoint(visit("run", run="a1"), "a1", 250)
    assert [row["marked"] for row in sent(page, "checkpoints-a1")["rows"]] == [False, True]
    for key in ("loss-a1", "excess-a1"):
        marks = next(t for t in sent(page, key)["figure"]["data"] if t.get("name") == "checkpoints")
        assert marks["marker"]["color"] == ["@series", "@bg"]
    assert {"pin", "continue-250", "confirm-delete"} <= keys(page)
    press(page, "let-go")
    assert not any(row["marked"] for row in sent(page, "checkpoints-a1")["rows"])
    assert "pin" not in keys(page)


def test_a_checkpoint_is_pinned_and_unpinned(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    page = press(on_checkpoint(visit("run", run="a1"), "a1", 250), "pin")
    assert client.saved["a1"][0].pinned
    assert "Pinned." in text(page)
    assert page.button(key="pin").label == "Unpin"
    press(page, "pin")
    assert not client.saved["a1"][0].pinned


def test_what_a_worker_has_to_do_is_said(client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    away = client.saved["a1"][0].model_copy(update={"pending": "pin"})
    monkeypatch.setattr(client, "pin_checkpoint", lambda *_, **__: away)
    page = press(on_checkpoint(visit("run", run="a1"), "a1", 250), "pin")
    assert "A worker of the run&#x27;s pool does it at its next report" in text(page)


def test_deleting_a_checkpoint_asks_first(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    page = on_checkpoint(visit("run", run="a1"), "a1", 250)
    assert "for good? This can't be undone" in text(page)
    press(page, "confirm-delete")
    assert client.saved["a1"][0].removed
    assert "Deleted." in text(page)
    assert "confirm-delete" not in keys(page), "nothing is chosen any more"


def test_training_goes_on_from_a_checkpoint_in_a_new_run(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, name="base", step=1000)
    page = on_checkpoint(visit("run", run="a1"), "a1", 1000)
    assert page.number_input(key="steps-1000").value == 2000, "there is nothing left to do of the planned steps"
    page.number_input(key="steps-1000").set_value(3000)
    press(page, "continue-1000")
    (clone,) = client.clones
    assert (clone.from_checkpoint, clone.overrides, clone.name) == (1000, {"optim.steps": 3000}, "base-from-1000")
    assert page.query_params["run"] == "clone1"


def test_going_on_to_the_planned_end_changes_no_config(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.CANCELLED, name="base", step=600)
    press(on_checkpoint(visit("run", run="a1"), "a1", 250), "continue-250")
    (clone,) = client.clones
    assert (clone.from_checkpoint, clone.overrides) == (250, {})


def test_a_large_checkpoint_is_fetched_from_the_service(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    client.saved["a1"] = [checkpoint(250).model_copy(update={"size_bytes": 10**10})]
    page = on_checkpoint(visit("run", run="a1"), "a1", 250)
    command = "curl -o a1-250.tar http://127.0.0.1:8420/api/v1/runs/a1/checkpoints/250/archive"
    assert sent(page, "fetch-a1")["text"] == command
    assert not [b for b in page.get("download_button") if b.proto.label == "Download"]


def test_a_checkpoint_is_downloaded_as_one_file(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    page = on_checkpoint(visit("run", run="a1"), "a1", 250)
    assert "Download" in [b.proto.label for b in page.get("download_button")]
    assert "download_checkpoint" not in client.calls, "nothing is read before somebody asks for it"
    assert editing.checkpoint_archive("a1", 250) == b"tar of a1 250"


def test_a_run_is_taken_elsewhere_as_one_archive(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    page = visit("run", run="a1")
    assert "Download everything" in [b.proto.label for b in page.get("download_button")]
    assert "export_run" not in client.calls
    assert editing.run_archive("a1") == b"archive of a1"


# -- evaluations -----------------------------------------------------------------------------------------------------


def test_evaluations_are_drawn_with_their_law_positions_and_probes(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=600)
    client.evaluated["a1"] = [evaluation(step) for step in (50, 100, 200, 300, 400, 600)]
    page = visit("run", run="a1")
    chart = sent(page, "excess-a1")
    named = {t.get("name"): t for t in chart["figure"]["data"]}
    assert named["evaluations"]["x"] == [50, 100, 200, 300, 400, 600]
    assert named["power law"]["x"][1] == 1000, "it is drawn to where the run will end"
    assert "6 evaluations on held-out sequences; dotted: power law in step, α = 0.7" in text(page)
    assert "floor zero" in chart["alt"]
    assert "nats" in sent(page, "position-a1")["figure"]["layout"]["yaxis"]["title"]["text"]
    assert {t.get("name") for t in sent(page, "probes-a1")["figure"]["data"]} == {"Z", "C"}


def test_without_evaluations_there_is_no_place_for_them(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=600)
    page = visit("run", run="a1")
    assert sent(page, "position-a1") is None
    assert "evaluations" not in {t.get("name") for t in sent(page, "excess-a1")["figure"]["data"]}


def test_zooming_in_reads_finer_points(client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("a1", RunState.SUCCEEDED, step=600)
    client.finer = {
        key: series for key, series in learning(300, period=2).items() if key in ("loss", "bound", "excess")
    }
    monkeypatch.setattr("dashboard.panels.run_charts.zoom", lambda key: (1.0, 300.0) if key == "loss-a1" else None)
    page = visit("run", run="a1")
    curve = next(t for t in sent(page, "loss-a1")["figure"]["data"] if t.get("name") == "loss")
    assert curve["x"] == [1, *range(2, 301, 2), *range(310, 601, 10)]
    coarse = next(t for t in sent(page, "excess-a1")["figure"]["data"] if t.get("name") == "excess")
    assert len(coarse["x"]) == 61


# -- history and log -------------------------------------------------------------------------------------------------


def attempt(number: int, state: AttemptState, **fields: Any) -> schemas.Attempt:
    return schemas.Attempt(id=f"t{number}", run_id="a1", number=number, state=state, epoch=1, created_at=NOW, **fields)


def test_attempts_tell_where_and_with_which_code_they_ran(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=600, attempt=2)
    seen = {"host": "node7", "git_sha": "ab" * 20, "git_diff_sha256": "cd" * 32, "python": "3.11.2", "version": "0.1"}
    client.tries["a1"] = [
        attempt(1, AttemptState.INTERRUPTED, reason=HOSTILE, exit_code=75, started_at=NOW, finished_at=NOW),
        attempt(2, AttemptState.RUNNING, provenance={**seen, "packages": {"torch": "2.9"}}, attempt_dir="/r/a1/2"),
    ]
    second, first = cells(visit("run", run="a1"), "attempts-a1")
    assert (second["host"], second["commit"], second["folder"]) == ("node7", "abababababab+", "…/a1/2")
    assert second["versions"] == "Python 3.11.2, nodes-to-narratives 0.1, torch 2.9"
    assert (first["state"], first["exit"], first["reason"]) == ("interrupted", "75", HOSTILE)


def test_the_log_is_searched(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.RUNNING, step=100)
    client.text["a1"] = {"logs/rank0.log": "start\nWarning: <b>slow</b>\nstep 1\nwarning again\n"}
    page = visit("run", run="a1")
    page.text_input(key="sought").set_value("warning").run()
    assert sent(page, "log-a1")["text"] == "2  Warning: <b>slow</b>\n4  warning again"
    assert "2 lines with it" in text(page)
    page.text_input(key="sought").set_value("$^[").run()
    assert "0 lines with it" in text(page)


def test_lines_keep_their_numbers() -> None:
    assert matching("a\nB\nab", "b") == ("2  B\n3  ab", 2)
    assert matching("", "x") == ("", 0)


def test_the_graph_of_the_data_is_drawn(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, step=100)
    page = visit("run", run="a1")
    assert sent(page, "graph-a1")["svg"].startswith("<svg")
    client.add("b1", RunState.SUCCEEDED, step=100)
    client.stored["b1"].config["data"].pop("gssm")
    client.stored["b1"].config["data"]["path"] = "x.h5"
    assert sent(visit("run", run="b1"), "graph-b1") is None


def test_a_run_that_is_opened_again_elsewhere_is_polled_again(client: FakeClient, visit: Open) -> None:
    client.add("a1", RunState.FAILED, step=100)
    page = visit("run", run="a1")
    client.stored["a1"] = client.stored["a1"].model_copy(update={"state": RunState.QUEUED})
    st.cache_data.clear()
    page.run()
    assert "Waiting to start" in text(page)


# -- what is kept between ticks ------------------------------------------------------------------------------------


def test_a_figure_is_made_once_while_nothing_is_new(
    client: FakeClient, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Chart] = []

    def loss_chart(*arguments: Any, **options: Any) -> Chart:
        made.append(curves.loss_chart(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(run_charts, "loss_chart", loss_chart)
    client.add("a1", RunState.RUNNING, step=600)
    for _ in range(2):
        st.cache_data.clear()
        visit("run", run="a1")
    assert len(made) == 1
    client.add("a1", RunState.RUNNING, step=700)
    st.cache_data.clear()
    page = visit("run", run="a1")
    assert len(made) == 2
    line = next(t for t in sent(page, "loss-a1")["figure"]["data"] if t.get("name") == "loss")
    assert line["x"][-1] == 700
