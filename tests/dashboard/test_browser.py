"""The page in a real browser, over a real service to which an acting worker reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from backend.app import create_app
from backend.database import Database
from backend.migrate import migrate
from backend.settings import Settings
from nanollama.api.client import Client
from nanollama.api.status import AttemptState
from tests.support.acting_worker import ActingRun, ActingWorker
from tests.support.browser import PATIENCE, visitor
from tests.support.fake_client import CONFIG_YAML
from tests.support.page import CHART, chart, serve_page
from tests.support.service import serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("dashboard-browser")]
expect.set_options(timeout=PATIENCE)

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> $\\LaTeX$ **bold** 🎉"
OVERFLOW = "() => document.documentElement.scrollWidth - innerWidth"


def begin(api: Client, worker: ActingWorker, name: str = "acted") -> ActingRun:
    """A run that is at step 300 of 1000, with two checkpoints."""
    api.submit(yaml=CONFIG_YAML, name=name, tags=["exp2"])
    run = worker.start()
    run.train(300, checkpoint_period=150)
    return run


@pytest.fixture
def run(api: Client, worker: ActingWorker) -> Iterator[ActingRun]:
    started = begin(api, worker)
    yield started
    if not api.run(started.lease.run_id).state.terminal:
        started.report(AttemptState.FAILED, reason="the test is over")


def test_the_curve_is_drawn_with_a_dashed_bound_and_checkpoint_marks(
    browser: Browser, base: str, run: ActingRun
) -> None:
    with visitor(browser, base) as window:
        page = window.open(f"/run?run={run.lease.run_id}")
        seen = chart(page)
        assert seen["points"] == 30
        assert seen["saved"] == [150, 300]
        assert seen["marks"] >= 3  # two checkpoints and the ring of a running run
        assert re.fullmatch(r"6px,\s*4px", seen["dash"])
        assert re.fullmatch(r"H = 1\.9\d{3}", seen["labels"][0])
        assert seen["labels"][1].startswith("loss ")
        expect(page.get_by_role("figure", name=re.compile("^Loss against step.*the bound is 1.9"))).to_be_visible()
        expect(page.locator(".js-plotly-plot")).to_have_count(6)
        expect(page.locator("pre.n2n-log")).to_contain_text("step 300 loss")
        assert window.strangers == []
        assert window.complaints() == []


def test_zoom_survives_live_ticks_and_polling_ends_with_the_run(browser: Browser, base: str, run: ActingRun) -> None:
    with visitor(browser, base) as window:
        page = window.open(f"/run?run={run.lease.run_id}")
        before = chart(page)
        box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 180, steps=6)
        page.mouse.up()
        eventually(lambda: page.evaluate(CHART)["range"] != before["range"], what="the zoom")
        zoomed = page.evaluate(CHART)["range"]
        page.evaluate("() => { document.querySelector('.js-plotly-plot').dataset.same = 'yes' }")
        run.train(400)
        after = chart(page, points=40)
        assert after["range"] == zoomed
        assert page.evaluate("() => document.querySelector('.js-plotly-plot').dataset.same") == "yes", (
            "it was remounted"
        )
        run.train(1000)
        run.report(AttemptState.SUCCEEDED, result=True)
        expect(page.locator(".n2n-state.pill")).to_contain_text("succeeded")
        expect(page.get_by_text("excess 0.0500 ± 0.0010")).to_be_visible()
        expect(page.get_by_role("button", name="Cancel run")).to_have_count(0)
        assert chart(page, points=100)["range"] == zoomed
        assert window.complaints() == []


def test_runs_are_listed_live_and_lead_to_their_page(
    browser: Browser, base: str, api: Client, worker: ActingWorker, run: ActingRun
) -> None:
    with visitor(browser, base) as window:
        page = window.open("/")
        row = page.locator(f"tr[data-id={run.lease.run_id}]")
        expect(row).to_contain_text("running")
        expect(row).to_contain_text("30%")
        row.locator("a").first.focus()
        run.train(500)
        expect(row).to_contain_text("50%")
        assert page.evaluate("() => document.activeElement.closest('tr')?.dataset.id") == run.lease.run_id
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/run?run={run.lease.run_id}")
        chart(page, points=50)
        page.go_back()
        expect(row).to_be_visible()
        assert window.strangers == []


def test_search_and_state_are_in_the_address(browser: Browser, base: str, api: Client, run: ActingRun) -> None:
    api.submit(yaml=CONFIG_YAML, name="needle")
    with visitor(browser, base) as window:
        page = window.open("/")
        page.get_by_label("Filter", exact=True).fill("needle")
        page.get_by_label("Filter", exact=True).press("Enter")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("button", name="queued").click()
        page.wait_for_url("**/?*state=queued*")
        address = page.url
        assert "q=needle" in address
        page.goto(address)
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.get_by_label("Filter", exact=True)).to_have_value("needle")
        page.get_by_role("button", name="queued").click()
        page.get_by_role("button", name="failed").click()
        expect(page.get_by_text("No run matches")).to_be_visible()
    api.cancel(api.runs(search="needle").items[0].id)


def test_cancelling_a_running_run_waits_for_its_worker(browser: Browser, base: str, run: ActingRun) -> None:
    with visitor(browser, base) as window:
        page = window.open(f"/run?run={run.lease.run_id}")
        page.get_by_role("button", name="Cancel run").click()
        page.get_by_role("button", name="Yes, cancel it").click()
        expect(page.get_by_text("Cancel requested", exact=True)).to_be_visible()
        run.report(AttemptState.CANCELLED, reason="cancelled on request")
        expect(page.locator(".n2n-state.pill")).to_contain_text("cancelled")
        expect(page.get_by_text("cancelled on request").first).to_be_visible()


def test_both_themes_are_drawn_in_their_own_colours_live(browser: Browser, base: str, run: ActingRun) -> None:
    with visitor(browser, base) as window:
        page = window.open(f"/run?run={run.lease.run_id}")
        assert chart(page)["color"] == "rgb(23, 98, 160)"
        page.emulate_media(color_scheme="dark")
        eventually(lambda: page.evaluate(CHART)["color"] == "rgb(90, 163, 236)", what="the dark theme")
    with visitor(browser, base, dark=True) as window:
        assert chart(window.open(f"/run?run={run.lease.run_id}"))["color"] == "rgb(90, 163, 236)"


@pytest.mark.parametrize("view", ["runs", "run", "launch"])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Browser, base: str, run: ActingRun, view: str) -> None:
    path = {"runs": "/", "run": f"/run?run={run.lease.run_id}", "launch": "/launch"}[view]
    with visitor(browser, base, width=420) as window:
        page = window.open(path)
        if view == "run":
            chart(page)
            expect(page.locator(".js-plotly-plot")).to_have_count(6)
        if view == "runs":
            expect(page.locator("tbody tr").first).to_be_visible()
        assert page.evaluate(OVERFLOW) <= 0
        inner = "() => document.querySelector('[data-testid=stMain]')"
        assert page.evaluate(f"{inner}.scrollWidth") <= page.evaluate(f"{inner}.clientWidth")


def test_the_page_recovers_when_the_service_comes_back(browser: Browser, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path / 'n2n.db'}"
    database = Database(database_url)
    migrate(database)
    database.dispose()
    with serve(create_app(Settings(database_url=database_url))) as first:
        port = int(first.rpartition(":")[2])
        with Client(first) as connection:
            connection.submit(yaml=CONFIG_YAML, name="stays")
    with serve_page(first, tmp_path) as base, visitor(browser, base) as window:
        window.page.goto(base)
        expect(window.page.get_by_text(f"No answer from {first}", exact=True)).to_be_visible()
        expect(window.page.get_by_text("n2n up", exact=True)).to_be_visible()
        with serve(create_app(Settings(database_url=database_url)), port=port):
            expect(window.page.locator("tbody tr")).to_contain_text("stays")
            expect(window.page.get_by_text(f"No answer from {first}", exact=True)).to_have_count(0)
        expect(window.page.get_by_text(f"No answer from {first}", exact=True)).to_be_visible()
        expect(window.page.locator("tbody tr")).to_contain_text("stays")
