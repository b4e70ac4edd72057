"""The page from an empty database to a comparison that is shared: a real browser, service and worker, real training."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from nanollama.api.client import Client
from nanollama.api.schemas import ExperimentPatch, Run
from nanollama.api.status import AttemptState, RunState
from tests.support.accessibility import violations
from tests.support.acting_worker import ActingWorker
from tests.support.browser import PATIENCE, Visitor, visitor
from tests.support.fake_client import CONFIG_YAML
from tests.support.laboratory import Laboratory, laboratory
from tests.support.page import chart
from tests.support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page")]
expect.set_options(timeout=PATIENCE)

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> $\\LaTeX$ **bold** 🎉 שלום \u202ertl"
LONG = "0123456789" * 1000
OVERFLOW = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  return Math.max(document.documentElement.scrollWidth - innerWidth, main.scrollWidth - main.clientWidth);
}"""
# what the charts of the Compare page show: colours and ends of their lines by label
COMPARED = """() => Object.fromEntries([...document.querySelectorAll('.n2n-plot')].map(plot => [plot.dataset.name,
  Object.fromEntries((plot.data ?? []).filter(t => t.meta?.label).map(t => [t.meta.label, [t.line.color, t.x.at(-1)]]))
]))"""
SELECT = "(area, word) => { const i = area.value.indexOf(word); area.setSelectionRange(i, i + word.length); }"
EDITS = {"steps: 300": "steps: 40", "warmup: 20": "warmup: 5", "period: 5": "period: 2"}
GRID = (
    "grid:\nmodel.emb_dim: [8, 32]\norchestration.utils.seed: [0, 1]\n"  # the editor indents the lines after the first
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Laboratory, Client]]:
    """A laboratory with an idle worker and an empty database."""
    with laboratory(tmp_path_factory.mktemp("laboratory")) as (running, client):
        running.start_worker()
        yield running, client


@pytest.fixture(scope="module")
def lab(started: tuple[Laboratory, Client]) -> Laboratory:
    return started[0]


@pytest.fixture(scope="module")
def client(started: tuple[Laboratory, Client]) -> Client:
    return started[1]


@pytest.fixture(scope="module")
def shared(browser: Browser, lab: Laboratory, client: Client) -> str:
    """The address of the comparison to which the journey of a new user leads, without the root of the page."""
    with visitor(browser, lab.page_url) as window:
        page = window.open("/")
        sweep = launch(page, client)
        watch(page, lab, client, sweep)
        address = compare(page, client, sweep)
        well(window)
    return address.removeprefix(lab.page_url)


@pytest.fixture(scope="module")
def runs(shared: str, client: Client) -> list[Run]:
    """The runs of the sweep, newest first."""
    return client.runs(filter=f"experiment:{client.experiments().items[-1].id}").items


def well(window: Visitor) -> None:
    """Nothing went wrong in the window, and it talked to the page's server alone."""
    assert window.complaints() == []
    assert window.strangers == []
    assert window.page.evaluate("() => window.hacked") is None


def launch(page: Page, client: Client) -> str:
    """From the empty list by way of a template, an edit and a preview to a sweep; its id."""
    expect(page.get_by_text("No runs yet")).to_be_visible()
    page.get_by_role("link", name="Launch").click()
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name=re.compile("^debug")).click()
    status = page.locator(".n2n-editor .state")
    expect(status).to_have_text(re.compile("^Valid · 1 run"))
    area = page.get_by_label("Config (YAML)")
    for word, by in EDITS.items():
        area.focus()
        area.evaluate(SELECT, word)
        page.keyboard.type(by)
    page.keyboard.press("Control+End")
    page.keyboard.type(GRID)
    expect(status).to_have_text(re.compile("^Valid · 4 runs"))
    names = page.get_by_role("table", name="Runs of the sweep")
    expect(names).to_contain_text("emb_dim=8,seed=0")
    expect(names).to_contain_text("emb_dim=32,seed=1")
    expect(page.locator(".n2n-drawing svg")).to_be_visible()
    page.get_by_label("Tags").fill("first")
    page.get_by_label("Tags").press("Enter")
    page.get_by_role("button", name="Submit 4 runs").click()
    page.wait_for_url("**/?q=experiment*")
    expect(page.locator("tbody tr[data-id]")).to_have_count(4)
    (experiment,) = client.experiments().items
    assert (experiment.num_runs, experiment.tags) == (4, ["first"])
    return experiment.id


def watch(page: Page, lab: Laboratory, client: Client, sweep: str) -> None:
    """One of the waiting runs is cancelled and taken back; all of them reach their end before the reader's eyes."""
    last = client.runs(filter=f"experiment:{sweep}").items[0]
    assert last.name == "emb_dim=32,seed=1"
    page.locator(f"tr[data-id={last.id}] a").first.click()  # the second leads to its experiment
    page.wait_for_url(f"**/run?run={last.id}")
    page.get_by_role("button", name="Cancel run").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.locator(".n2n-state.pill")).to_contain_text("cancelled")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".n2n-state.pill")).to_contain_text("succeeded", timeout=3 * PATIENCE)
    seen = chart(page, points=10)
    assert "," in seen["dash"], "the bound is dashed"
    expect(page.locator("pre.n2n-log")).to_contain_text("step 40 of 40")
    ended = lab.wait_for_end(client, sweep)
    assert [run.state for run in ended] == [RunState.SUCCEEDED] * 4
    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.locator("tbody tr", has_text="succeeded")).to_have_count(4)


def compare(page: Page, client: Client, sweep: str) -> str:
    """From ticks in the list to two groups over tokens, with a baseline of one's own; the address of it."""
    page.get_by_label("Select all that are shown").check()
    expect(page.get_by_text("4 selected")).to_be_visible()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?runs=*")
    page.get_by_role("radio", name="tokens").or_(page.get_by_role("button", name="tokens")).first.click()
    narrow = client.runs(filter=f"experiment:{sweep} model.emb_dim:8 orchestration.utils.seed:0").items[0]
    row = page.get_by_role("table", name="Runs to compare").locator(f"tr[data-id={narrow.id}]")
    row.hover()
    row.get_by_role("button", name="pin").click()
    expect(row).to_contain_text("baseline")
    page.wait_for_url(f"**base={narrow.id}*")
    page.wait_for_url("**x=tokens*")
    drawn(page)
    return page.url


def drawn(page: Page) -> Any:
    """What is compared, once both charts show both groups."""

    def probe() -> Any:
        seen = page.evaluate(COMPARED)
        wanted = {"loss-against-tokens", "excess-against-tokens"}
        return seen if wanted <= set(seen) and all(len(seen[name]) == 2 for name in wanted) else None

    return eventually(probe, within=PATIENCE / 1000, what="two groups in both charts")


def test_from_an_empty_database_to_a_comparison_that_somebody_else_sees_as_it_is(
    browser: Browser, lab: Laboratory, shared: str
) -> None:
    with visitor(browser, lab.page_url) as mine, visitor(browser, lab.page_url) as theirs:
        seen = drawn(mine.open(shared))
        assert drawn(theirs.open(shared)) == seen
        expect(theirs.page.get_by_text("baseline").first).to_be_visible()
        theirs.page.reload()
        assert drawn(theirs.page) == seen
        assert theirs.page.url == lab.page_url + shared
        well(mine)
        well(theirs)


def test_a_comparison_is_saved_as_figures_as_data_and_as_a_program(
    browser: Browser, lab: Laboratory, shared: str, tmp_path: Path
) -> None:
    with visitor(browser, lab.page_url) as window:
        page = window.open(shared)
        drawn(page)
        page.get_by_role("button", name="Export").click()

        def saved(button: str) -> bytes:
            with page.expect_download(timeout=PATIENCE) as download:
                page.get_by_role("button", name=button, exact=True).click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            return path.read_bytes()

        assert b"<svg" in saved("Loss as SVG")
        assert saved("Loss as PNG").startswith(b"\x89PNG")
        assert saved("Excess as PDF").startswith(b"%PDF-")
        table = list(csv.DictReader(io.StringIO(saved("CSV").decode())))
        assert {row["group"] for row in table} == {"emb_dim 8", "emb_dim 32"}
        assert all(float(row["tokens"]) > 0 for row in table)
        compile(saved("Python"), "comparison.py", "exec")
        well(window)


def test_what_the_address_says_outlives_the_server_of_the_page_and_the_service(
    browser: Browser, lab: Laboratory, shared: str
) -> None:
    with visitor(browser, lab.page_url) as window:
        page = window.open(shared)
        seen = drawn(page)
        for name, again in (("page", lab.start_page), ("service", lab.start_service)):
            lab.stop(name)
            again()
        page.reload()
        assert drawn(page) == seen
        assert page.url == lab.page_url + shared
        expect(page.get_by_text("No answer from")).to_have_count(0)


VIEWS = ("runs", "run", "compare", "launch", "data", "workers")


def shown(window: Visitor, view: str, runs: list[Run], shared: str) -> Page:
    """One of the six pages, with everything on it."""
    if view == "runs":
        page = window.open("/")
        expect(page.locator("tbody tr[data-id]").first).to_be_visible()
    elif view == "run":
        page = window.open(f"/run?run={runs[0].id}")
        chart(page, points=10)
        expect(page.locator("pre.n2n-log")).to_contain_text("step")
    elif view == "compare":
        page = window.open(shared)
        drawn(page)
    elif view == "launch":
        page = window.open("/launch?template=debug")
        expect(page.locator(".n2n-editor .state")).to_have_text(re.compile("^Valid"))
    elif view == "data":
        page = window.open("/data")
    else:
        page = window.open("/workers")
        expect(page.get_by_role("table", name="Workers")).to_be_visible()
    if view in ("run", "launch", "data"):
        expect(page.locator(".n2n-drawing svg").first).to_be_visible()
    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_page_is_accessible_on_a_screen_of_any_width_and_asks_nobody_but_its_server(
    browser: Browser, lab: Laboratory, runs: list[Run], shared: str, view: str, dark: bool
) -> None:
    with visitor(browser, lab.page_url, dark=dark) as window:
        page = shown(window, view, runs, shared)
        assert violations(page) == []
        page.set_viewport_size({"width": 420, "height": 900})
        eventually(lambda: page.evaluate(OVERFLOW) <= 0, what="a page that fits on 420 pixels")
        assert violations(page) == []
        well(window)


@pytest.fixture(scope="module")
def hostile(lab: Laboratory, client: Client, runs: list[Run]) -> Run:
    """A failed run whose words would do harm if they were anything but text: name, tags, notes, log, reason."""
    lab.stop("worker")
    name, tags, notes = f"{HOSTILE} {LONG}"[:200], [HOSTILE[:64], "\u202ertl", "🎉"], f"{HOSTILE}\n{LONG}"[:10_000]
    made = client.submit(yaml=CONFIG_YAML, name=name, tags=tags, notes=notes)
    acting = ActingWorker(client).start()
    acting.train(100)
    acting.send("logs/rank0.log", f"{HOSTILE}\n\x1b[31mred\x1b[0m {LONG}\n".encode())
    acting.report(AttemptState.FAILED, reason=f"exit code 1: {HOSTILE}")
    client.change_experiment(runs[0].experiment_id, ExperimentPatch(name=HOSTILE, notes=HOSTILE))
    client.submit(yaml=CONFIG_YAML, name=name, tags=tags)  # it waits
    return client.run(made.runs[0].id)


HOSTILE_AT = {
    "runs": "/",
    "run": "/run?run={0}",
    "compare": "/compare?runs={0},{1}",
    "launch": "/launch?clone={0}",
    "data": "/data",
    "workers": "/workers",
}


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_words_are_shown_as_text(
    browser: Browser, lab: Laboratory, runs: list[Run], hostile: Run, view: str
) -> None:
    with visitor(browser, lab.page_url, width=1000) as window:
        page = window.open(HOSTILE_AT[view].format(hostile.id, runs[0].id))
        if view == "launch":
            expect(page.get_by_text("Nothing to start from")).to_have_count(0)
            expect(page.locator(".n2n-editor .state")).to_have_text(re.compile("^Valid"))
        else:
            expect(page.get_by_text("<script>").first).to_be_visible()
        if view == "run":
            chart(page, points=10)
            expect(page.locator("pre.n2n-log")).to_contain_text("<script>")
            expect(page.locator("pre.n2n-log")).to_contain_text("red 0123")
        eventually(lambda: page.evaluate(OVERFLOW) <= 0, what="a page that needs no sideways scrolling")
        assert page.locator("img[src=x]").count() == 0
        well(window)
