"""Launch over a service in memory: where a draft comes from, what is said of it, and its submission."""

from __future__ import annotations

import json
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from backend.queue.needs import Offer
from backend.tables import Worker as WorkerRow
from dashboard import data
from dashboard.components.editor import Draft
from dashboard.drafts import Change, changed_lines, changes
from dashboard.placement import needs, place, why_never
from dashboard.planning import bound_facts, facts
from nanollama.api import schemas
from nanollama.api.status import RunState
from nanollama.spec.yaml_text import MAX_BYTES
from tests.dashboard.conftest import Open
from tests.support.components import cells, sent, text
from tests.support.fake_catalogue import HASH, SWEEP_YAML, FakeCatalogue, computed, filled
from tests.support.fake_client import CONFIG_YAML, worker

HOSTILE = "<script>alert(1)</script> $\\LaTeX$ **bold** 🎉"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeCatalogue:
    """The service that the page sees."""
    fake = FakeCatalogue()
    monkeypatch.setattr(data, "client", lambda: fake)
    st.cache_data.clear()
    return fake


def type_in(page: AppTest, yaml: str) -> AppTest:
    """What the browser does: AppTest can't type into a component."""
    known = page.session_state["launch draft"] if "launch draft" in page.session_state else Draft("")
    page.session_state["launch draft"] = Draft(yaml, known.source, known.version)
    page.run()
    assert not page.exception
    return page


def written(page: AppTest) -> str:
    """The draft, as the page knows it."""
    draft: Draft = page.session_state["launch draft"]
    return draft.text


def press(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click().run()
    assert not page.exception
    return page


def problems(page: AppTest) -> dict[str, Any]:
    return {problem["path"]: problem for problem in sent(page, "editor")["problems"]}


# -- where a draft comes from ----------------------------------------------------------------------------------------


def test_a_template_fills_the_editor_and_the_text_survives_other_pages(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch")
    page.selectbox(key="pick template").set_value("debug").run()
    assert written(page) == CONFIG_YAML
    assert page.query_params["template"] == "debug"
    assert sent(page, "editor")["text"] == CONFIG_YAML
    type_in(page, CONFIG_YAML + "# mine\n")
    page.switch_page("views/runs.py").run()
    page.switch_page("views/launch.py").run()
    assert written(page) == CONFIG_YAML + "# mine\n"
    assert page.query_params["template"] == "debug"


def test_a_template_can_be_linked_to(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="sweep")
    assert written(page) == SWEEP_YAML
    assert page.selectbox(key="pick template").value == "sweep"
    assert "pick run" not in [box.key for box in page.selectbox], "there is no past run to choose"


@pytest.mark.parametrize("params", [{"template": "nonesuch"}, {"clone": "nonesuch"}, {"clone": HOSTILE}])
def test_a_link_to_nothing_says_so(client: FakeCatalogue, visit: Open, params: dict[str, str]) -> None:
    page = visit("launch", **params)
    assert "Nothing to start from" in text(page)
    assert "<script>" not in text(page)
    assert not page.button(key="submit").value


def test_a_past_run_brings_its_config_tags_and_resources(client: FakeCatalogue, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, name="old", step=1000, tags=["exp2", "paper"], priority=7, retries=2)
    page = visit("launch", clone="a1")
    assert "state_dim: 8" in written(page)
    assert page.text_input(key="tags").value == "exp2, paper"
    assert (page.number_input(key="priority").value, page.number_input(key="retries").value) == (7, 2)
    assert page.number_input(key="cpus").value == 4
    assert page.selectbox(key="pick run").value == "a1"


def test_what_differs_from_a_past_run_is_listed_and_can_be_undone(client: FakeCatalogue, visit: Open) -> None:
    client.add("a1", RunState.SUCCEEDED, name="old", step=1000)
    page = visit("launch", clone="a1")
    before = written(page)
    assert sent(page, "changes") is None
    assert sent(page, "editor")["changed"] == []
    type_in(page, before.replace("emb_dim: 32", "emb_dim: 64"))
    (change,) = cells(page, "changes")
    assert change == {"path": "model.emb_dim", "before": "32", "after": "64"}
    assert len(sent(page, "editor")["changed"]) == 1
    assert "1 key not as in run a1" in text(page)
    press(page, "reset")
    assert written(page) == before
    press(page, "put back")
    assert "emb_dim: 64" in written(page)


def test_another_source_can_be_taken_back(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="debug")
    type_in(page, CONFIG_YAML + "# hours of work\n")
    page.selectbox(key="pick template").set_value("sweep").run()
    assert written(page) == SWEEP_YAML
    press(page, "put back")
    assert written(page) == CONFIG_YAML + "# hours of work\n"
    assert page.query_params["template"] == "debug"


def test_changes_are_found_by_key_and_by_line() -> None:
    old = "a: {b: 1, c: [1, 2]}\nd: x\n"
    new = "a: {b: 2, c: [1, 2]}\n# why\ne: {f: [{g: 1}]}\n"
    assert changes(old, new) == [Change("a.b", "1", "2"), Change("e.f.0.g", None, "1"), Change("d", "x", None)]
    assert changed_lines(old, new) == {1, 2, 3}
    assert changes(old, "a: [") is None
    assert changes(old, old + "# only a comment\n") == []


# -- what is said of a draft -----------------------------------------------------------------------------------------


def test_a_plan_is_shown_before_anything_is_spent(client: FakeCatalogue, visit: Open) -> None:
    client.estimate = filled().estimate
    client.graphs = [computed()]
    page = visit("launch", template="sweep")
    shown = text(page)
    for said in ("lr=0.001,seed=0 … lr=0.01,seed=2", "7 past runs", "41.3k", "24.2M", "1.5906 ± 0.0014", "7 min 12 s"):
        assert said in shown, said
    assert [row["name"] for row in cells(page, "names")][::5] == ["lr=0.001,seed=0", "lr=0.01,seed=2"]
    assert "<svg" in sent(page, "draft graph")["svg"]
    assert page.button(key="submit").label == "Submit 6 runs"
    assert "submit" not in client.calls


def test_costs_that_nobody_knows_are_called_unknown() -> None:
    known = filled().estimate
    assert known is not None
    estimate = known.model_copy(update={"hours_per_run": None, "total_hours": None, "based_on": 0})
    validation = schemas.Validation(valid=True, num_runs=1, first_run="a", last_run="a", estimate=estimate)
    (time,) = (fact for fact in facts(validation) if fact.name == "Time")
    assert (time.value, time.why) == ("unknown", "no past run tells how fast such a learner trains")
    (unknown,) = (fact for fact in facts(validation.model_copy(update={"estimate": None})) if fact.name == "Time")
    assert unknown.why == "the file of the data is not known to the service yet"


def test_a_sweep_over_sizes_tells_their_range_and_means() -> None:
    known = filled().estimate
    assert known is not None
    estimate = known.model_copy(
        update={"parameters_min": 1830, "parameters_max": 100_600, "total_hours": 0.5, "hours_per_run": 0.01}
    )
    validation = schemas.Validation(valid=True, num_runs=6, first_run="a", last_run="f", estimate=estimate)
    told = {fact.name: (fact.value, fact.why) for fact in facts(validation)}
    assert told["Parameters"][0] == "1.83k to 101k"
    assert told["Parameters"][1].endswith(" FLOPs a token in the first run")
    assert told["Device time"] == ("30 min 00 s", "5 min 00 s a run; from the speed of 7 past runs")
    alike = estimate.model_copy(update={"parameters_min": 41_300, "parameters_max": 41_300})
    (same,) = (f for f in facts(validation.model_copy(update={"estimate": alike})) if f.name == "Parameters")
    assert (same.value, "first run" in same.why) == ("41.3k", False)


def test_what_the_grid_varies_is_told_of_the_first_run() -> None:
    config = {"optim": {"steps": 1000}, "data": {"batch_size": 8, "gssm": {}}, "model": {"implementation": "hawk"}}
    varied = ["optim.steps", "data.gssm.nodes.0.alpha"]
    validation = schemas.Validation(valid=True, config=config, varied=varied, estimate=filled().estimate)
    told = {fact.name: fact.why for fact in [*facts(validation), *bound_facts(validation, computed().bound)]}
    assert told["Steps"] == told["Sequences"] == "in the first run; optim.steps varies"
    assert told["Learner"] == told["Data"] == ""
    assert told["Entropy"].endswith(", in the first run; data.gssm.nodes.0.alpha varies")
    assert told["Bound"].endswith(" a run, in the first run; optim.steps, data.gssm.nodes.0.alpha vary")


def test_what_the_bound_costs_is_told_beside_the_entropy() -> None:
    estimate = filled().estimate
    assert estimate is not None
    validation = schemas.Validation(valid=True, config={"optim": {"steps": 1000}}, estimate=estimate)
    (cost,) = bound_facts(validation, schemas.Bound(state="queued"))
    assert (cost.value, cost.why) == ("exact filter, 8 joint states", "costs 4 ms of one core a batch, 4 s a run")
    unscored = estimate.model_copy(update={"bound_method": None, "bound_reason": "too many states"})
    (cost,) = bound_facts(validation.model_copy(update={"estimate": unscored}), None)
    assert (cost.value, cost.why) == ("not scored", "too many states")
    entropy, _ = bound_facts(validation, schemas.Bound(state="inexact", entropy=1.5, lower=1.4, upper=1.6))
    assert entropy.value == "1.4000 to 1.6000"
    (entropy,) = bound_facts(validation.model_copy(update={"estimate": None}), computed().bound)
    assert (entropy.value, entropy.tone) == ("1.5906 ± 0.0014", "good")
    longer = validation.model_copy(update={"config": {"data": {"seq_len": 256}}, "estimate": None})
    (entropy,) = bound_facts(longer, computed().bound)
    assert (entropy.why, entropy.tone) == (
        "nats per token, computed before for sequences of 64 tokens, not 256",
        "warn",
    )


def test_every_problem_is_marked_at_its_line_and_nothing_can_be_submitted(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch")
    type_in(page, CONFIG_YAML.replace("batch_size", "batchsize").replace("0.2", "<b>"))
    found = problems(page)
    assert (found["data.batchsize"]["line"], found["data.batchsize"]["remedy"]) == (4, "did you mean 'batch_size'?")
    assert "<b>" in found["data.gssm.nodes.1.alpha"]["message"]
    assert sent(page, "editor")["status"] == "3 problems · nothing was created"
    assert page.button(key="submit").disabled
    assert client.stored == {}


def test_broken_yaml_names_its_line(client: FakeCatalogue, visit: Open) -> None:
    page = type_in(visit("launch"), "data:\n  seq_len: [1\n")
    (problem,) = sent(page, "editor")["problems"]
    assert problem["line"]
    assert "broken YAML" in problem["message"]


@pytest.mark.parametrize("num_bytes", [MAX_BYTES + 1, 5_000_000])
def test_a_text_that_is_too_large_is_a_problem(client: FakeCatalogue, visit: Open, num_bytes: int) -> None:
    page = type_in(visit("launch"), "#" * num_bytes)
    assert "bytes" in json.dumps(sent(page, "editor")["problems"])
    assert client.stored == {}


def test_an_empty_editor_says_how_to_begin(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch")
    assert "Choose a template or a past run" in text(page)
    assert page.button(key="submit").disabled
    assert "validate" not in client.calls


# -- who could run it ------------------------------------------------------------------------------------------------


def test_the_page_says_which_workers_could_run_it(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="debug")
    assert "Nobody to run it yet" in text(page)
    client.known_workers = [worker("small", slots=2, busy=1), worker("gone", alive=False)]
    st.cache_data.clear()
    page.run()
    assert "1 worker can run this (small); 1 slot free now." in text(page)
    page.number_input(key="accelerators").set_value(8).run()
    assert "of small: it has not said how many accelerators it has" in text(page)


@pytest.mark.parametrize(
    ("need", "has"),
    [
        ({}, {}),
        ({"executor": "slurm"}, {}),
        ({"cpus": 4}, {}),
        ({"cpus": 4}, {"cpus": 3}),
        ({"cpus": 4}, {"cpus": 4}),
        ({"memory_gb": 1.5}, {"memory_gb": 1.0}),
        ({"accelerators": 1}, {"accelerators": 2, "labels": ["a100"]}),
        ({"labels": ["a100", "big"]}, {"labels": ["a100"]}),
    ],
)
def test_it_matches_workers_as_the_service_does(need: dict[str, Any], has: dict[str, Any]) -> None:
    seen = worker().model_copy(update=has)
    row = WorkerRow(name="w1", executor="local", **{"labels": []} | has)
    assert why_never(schemas.Resources(**need), seen) == Offer(row).why_never(need)


def test_needs_are_said_in_few_words() -> None:
    wanted = schemas.Resources(executor="slurm", accelerators=1, cpus=8, memory_gb=32, labels=["a100"])
    assert needs(wanted) == "slurm, 1 accelerator, 8 CPUs, 32 GB, label a100"
    assert place(wanted, []).sentence.startswith("No worker is alive")


# -- the submission --------------------------------------------------------------------------------------------------


def test_one_run_lands_on_its_page(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="debug")
    page.text_input(key="name").set_value("mine")
    page.text_input(key="tags").set_value("exp2, ,paper")
    page.text_area(key="notes").set_value(HOSTILE)
    page.number_input(key="priority").set_value(5)
    page.number_input(key="cpus").set_value(2)
    press(page, "submit")
    (order,) = client.orders
    assert (order["name"], order["tags"], order["priority"], order["notes"]) == ("mine", ["exp2", "paper"], 5, HOSTILE)
    assert order["resources"] == schemas.Resources(cpus=2)
    assert page.query_params["run"] == "new1"
    page.switch_page("views/launch.py").run()
    assert page.text_input(key="name").value == "mine"
    press(page, "submit")
    assert len(set(client.submissions)) == 2, "a second submission on purpose is a second run"


def test_a_sweep_lands_on_its_runs(client: FakeCatalogue, visit: Open) -> None:
    page = press(visit("launch", template="sweep"), "submit")
    assert page.query_params["q"] == "experiment:e1"
    assert len(client.stored) == 6


def test_a_submission_whose_reply_was_lost_is_repeated_under_its_key(
    client: FakeCatalogue, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit("launch", template="debug")
    with monkeypatch.context() as patch:
        patch.setattr(client, "add", lambda *_, **__: setattr(client, "away", True) or client._call("reply"))
        press(page, "submit")
    assert "Submitting failed" in text(page)
    assert written(page) == CONFIG_YAML
    client.away = False
    page.run()
    press(page, "submit")
    assert len(client.submissions) == 2
    assert len(set(client.submissions)) == 1


@pytest.mark.parametrize(("key", "reuse"), [("reuse", "always"), ("rerun", "never")])
def test_earlier_results_are_shown_and_can_be_used_or_not(
    client: FakeCatalogue, visit: Open, key: str, reuse: str
) -> None:
    client.learnt = {"lr=0.001,seed=0": "old1", "lr=0.001,seed=1": "old2"}
    page = press(visit("launch", template="sweep"), "submit")
    assert client.stored == {}
    assert cells(page, "earlier") == [
        {"name": "lr=0.001,seed=0", "run": "old1"},
        {"name": "lr=0.001,seed=1", "run": "old2"},
    ]
    assert sent(page, "earlier")["rows"][0]["cells"]["run"]["href"] == "run?run=old1"
    press(page, key)
    assert [order["reuse"] for order in client.orders] == ["ask", reuse]
    assert page.query_params["q"] == "experiment:e1"


def test_a_field_that_is_wrong_is_named_and_nothing_is_lost(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="debug")
    page.text_input(key="tags").set_value("x" * 100)
    press(page, "submit")
    assert "tags.0" in text(page)
    assert "Your text is kept" in text(page)
    assert client.stored == {}
    page.text_input(key="tags").set_value("x")
    press(page, "submit")
    assert len(client.stored) == 1


def test_what_is_typed_is_kept_while_the_service_is_away(client: FakeCatalogue, visit: Open) -> None:
    page = visit("launch", template="debug")
    client.away = True
    st.cache_data.clear()
    type_in(page, CONFIG_YAML + "# typed meanwhile\n")
    assert "No answer from" in text(page)
    assert written(page) == CONFIG_YAML + "# typed meanwhile\n"
    assert "Not checked" in sent(page, "editor")["status"]
    client.away = False
    page.run()
    assert not page.exception
    assert "No answer from" not in text(page)
    assert sent(page, "editor")["status"].startswith("Valid")
    assert page.button(key="submit").label == "Submit 1 run"


def test_a_known_bound_is_not_asked_for_without_a_graph(client: FakeCatalogue, visit: Open) -> None:
    estimate = filled().estimate
    assert estimate is not None
    assert estimate.gssm_hash == HASH
    client.estimate = estimate
    page = visit("launch", template="debug")
    assert "exact filter, 8 joint states" in text(page), "a graph that the service does not know yet has no entropy"
