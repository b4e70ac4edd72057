"""Runs and Run in a real browser, over a real service: what is done in tables and charts, while news comes in."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from nanollama.api.client import Client
from nanollama.api.schemas import RunPatch
from nanollama.api.status import AttemptState, RunState
from tests.support.accessibility import violations
from tests.support.acting_worker import ActingRun, ActingWorker
from tests.support.browser import PATIENCE, Visitor, visitor
from tests.support.fake_client import CONFIG_YAML
from tests.support.page import CHART, chart
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("dashboard-runs")]
expect.set_options(timeout=PATIENCE)

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> $\\LaTeX$ **bold** 🎉 שלום"
LATER = "([...document.querySelectorAll('.n2n-chip')].at(-1)?.textContent ?? '')"


def begin(api: Client, worker: ActingWorker, name: str = "acted") -> ActingRun:
    """A run that is at step 300 of 1000, with two checkpoints and four evaluations."""
    api.submit(yaml=CONFIG_YAML, name=name, tags=["exp2"])
    run = worker.start()
    run.train(300, checkpoint_period=150)
    for step in (50, 100, 150, 300):
        run.evaluate(step)
    return run


@pytest.fixture
def run(api: Client, worker: ActingWorker) -> Iterator[ActingRun]:
    started = begin(api, worker)
    yield started
    if not api.run(started.lease.run_id).state.terminal:
        started.report(AttemptState.FAILED, reason="the test is over")
    api.change_run(started.lease.run_id, RunPatch(archived=True))


def ticks(page: Page, count: int = 2) -> None:
    """Wait until the list has been drawn anew so many times."""
    for _ in range(count):
        before = page.evaluate(f"() => {LATER}")
        eventually(lambda before=before: page.evaluate(f"() => {LATER}") != before, what="a tick")  # type: ignore[misc]


def drag(page: Page) -> None:
    """Zoom in on the later part of the first chart, where its points lie closest."""
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 150, steps=6)
    page.mouse.up()


def test_selection_and_an_open_log_survive_ticks_and_many_are_retried_at_once(
    window: Visitor, api: Client, worker: ActingWorker
) -> None:
    ids = []
    for i in range(3):
        failed = begin(api, worker, f"batch {i}")
        failed.report(AttemptState.FAILED, reason=f"exit code 1: no memory {HOSTILE}")
        ids.append(failed.lease.run_id)
    page = window.open("/?q=batch")
    first, second, third = (page.locator(f"tr[data-id={i}]") for i in ids)
    first.locator("input.one").click()
    second.locator("input.one").click()
    expect(page.get_by_text("2 selected")).to_be_visible()
    third.get_by_role("button", name="log").click()
    expect(page.locator("tr.detail pre")).to_contain_text("step 300 loss")
    ticks(page)
    expect(first.locator("input.one")).to_be_checked()
    expect(third.locator("input.one")).not_to_be_checked()
    expect(page.locator("tr.detail pre")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("2 runs queued again")).to_be_visible()
    expect(first).to_contain_text("queued")
    expect(third).to_contain_text("failed")
    expect(page.get_by_text("none selected")).to_be_visible()
    page.get_by_label("Select all that are shown").click()
    expect(page.get_by_text("3 selected")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Yes, cancel 3").click()
    expect(page.get_by_text("2 runs asked to stop; 1 passed over")).to_be_visible()
    assert [api.run(i).state for i in ids] == [RunState.CANCELLED, RunState.CANCELLED, RunState.FAILED]
    page.get_by_label("Select all that are shown").click()
    expect(page.get_by_text("3 selected")).to_be_visible()
    page.get_by_role("button", name="Archive").click()
    expect(page.get_by_text("No run matches")).to_be_visible()
    assert all(api.run(i).archived for i in ids)


def test_tags_and_notes_are_edited_in_place(window: Visitor, api: Client, run: ActingRun) -> None:
    run_id = run.lease.run_id
    page = window.open("/")
    row = page.locator(f"tr[data-id={run_id}]")
    row.get_by_role("button", name="Edit tags").click()
    field = page.get_by_label(re.compile("^tags, Enter to keep"))
    expect(field).to_be_focused()
    field.fill(f"exp2, {HOSTILE[:40]}")
    ticks(page)
    expect(field).to_have_value(f"exp2, {HOSTILE[:40]}")
    field.press("Enter")
    expect(row.locator(".chip")).to_have_text(["exp2", HOSTILE[:40]])
    assert api.run(run_id).tags == ["exp2", HOSTILE[:40]]
    row.get_by_role("button", name="Edit notes").click()
    field = page.get_by_label(re.compile("^notes, Enter to keep"))
    field.fill("thrown away")
    field.press("Escape")
    row.get_by_role("button", name="Edit notes").click()
    field = page.get_by_label(re.compile("^notes, Enter to keep"))
    expect(field).to_have_value("")
    field.fill(HOSTILE)
    field.press("Enter")
    eventually(lambda: api.run(run_id).notes == HOSTILE, what="the note")
    expect(row).to_contain_text(HOSTILE)
    row.get_by_role("button", name="Edit tags").click()
    field = page.get_by_label(re.compile("^tags, Enter to keep"))
    field.fill("x" * 65)
    field.press("Enter")
    expect(page.get_by_text("Changing the run failed")).to_be_visible()
    assert api.run(run_id).tags == ["exp2", HOSTILE[:40]]


def test_the_order_is_chosen_by_the_titles_and_kept_in_the_address(
    window: Visitor, api: Client, run: ActingRun, worker: ActingWorker
) -> None:
    other = begin(api, worker, "further on")
    other.train(800)
    page = window.open("/?state=running")
    rows = page.locator("tbody tr[data-id]")
    for address, first in (("sort=-step", other), ("sort=step", run)):
        page.get_by_role("button", name="progress").click()
        page.wait_for_url(f"**{address}*")
        expect(rows.first).to_have_attribute("data-id", first.lease.run_id)
    expect(page.get_by_role("columnheader", name="progress")).to_have_attribute("aria-sort", "ascending")
    page.reload()
    expect(rows.first).to_have_attribute("data-id", run.lease.run_id)
    other.report(AttemptState.FAILED, reason="the test is over")


def test_keys_lead_through_the_list_and_can_be_turned_off(window: Visitor, run: ActingRun) -> None:
    page = window.open("/")
    row = page.locator(f"tr[data-id={run.lease.run_id}]")
    expect(row).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("tbody tr[data-id] a").first).to_be_focused()
    page.keyboard.press("x")
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("Filter", exact=True)).to_be_focused()
    page.keyboard.type("jx")
    expect(page.get_by_label("Filter", exact=True)).to_have_value("jx")
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.get_by_label("Filter", exact=True).fill("")
    page.get_by_role("button", name="Keys ?").focus()
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("compare the selected ones")
    keys.get_by_label("Keys act on the page").uncheck()
    page.keyboard.press("Escape")
    expect(keys).not_to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_role("button", name="Keys ?")).to_be_focused()


def test_a_mark_on_the_curve_leads_to_its_row_and_zoom_reads_finer_points(
    window: Visitor, api: Client, run: ActingRun
) -> None:
    run.train(900, period=1)
    page = window.open(f"/run?run={run.lease.run_id}")
    coarse = chart(page, points=60)
    table = page.get_by_role("table", name="Checkpoints, newest first")
    mark = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path").first.bounding_box()
    assert mark is not None
    x, y = mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2
    page.mouse.move(x, y - 20)
    page.mouse.move(x, y, steps=4)
    expect(page.locator(".js-plotly-plot").first.locator(".hoverlayer")).to_contain_text("checkpoint at step 150")
    expect(page.locator(".js-plotly-plot").first.locator(".hoverlayer")).to_contain_text("evaluation: loss")
    page.mouse.click(x, y)
    expect(table.locator("tr.marked")).to_contain_text("150")
    expect(page.get_by_role("button", name="Continue from here")).to_be_visible()
    drag(page)
    eventually(lambda: page.evaluate(CHART)["range"] != coarse["range"], what="the zoom")
    zoomed = page.evaluate(CHART)["range"]
    eventually(lambda: page.evaluate(CHART)["points"] != coarse["points"], what="finer points")
    page.evaluate("() => { document.querySelector('.js-plotly-plot').dataset.same = 'yes' }")
    run.train(1000)
    expect(page.get_by_text("step1,000/ 1,000")).to_be_visible()
    assert page.evaluate(CHART)["range"] == zoomed
    assert page.evaluate("() => document.querySelector('.js-plotly-plot').dataset.same") == "yes"
    expect(table.locator("tr.marked")).to_contain_text("150")


def test_a_reader_who_has_scrolled_a_table_stays_there(window: Visitor, api: Client, worker: ActingWorker) -> None:
    api.submit(yaml=CONFIG_YAML, name="many checkpoints")
    run = worker.start()
    run.train(400, checkpoint_period=20)
    page = window.open(f"/run?run={run.lease.run_id}")
    box = page.locator(".n2n-table", has=page.get_by_role("table", name="Events, newest first"))
    expect(box.locator("tbody tr").nth(15)).to_be_attached()
    box.evaluate("box => { box.scrollTop = 150 }")
    before = page.locator(".n2n-chips").inner_text()
    run.train(500)
    expect(page.locator(".n2n-chips")).not_to_have_text(before)
    expect(page.get_by_text("step500/ 1,000")).to_be_visible()
    assert box.evaluate("box => box.scrollTop") == 150
    run.report(AttemptState.FAILED, reason="the test is over")


def test_training_goes_on_from_a_checkpoint_as_a_new_run(window: Visitor, api: Client, run: ActingRun) -> None:
    page = window.open(f"/run?run={run.lease.run_id}")
    table = page.get_by_role("table", name="Checkpoints, newest first")
    table.get_by_role("button", name="300").click()
    page.get_by_role("button", name="Continue from here").click()
    page.get_by_role("button", name="Start it").click()
    page.wait_for_url(lambda url: run.lease.run_id not in url)
    expect(page.locator("h1")).to_have_text("acted-from-300")
    clone = api.run(page.url.rpartition("=")[2])
    assert clone.state is RunState.QUEUED
    api.cancel(clone.id)


def test_evaluations_positions_probes_and_the_graph_are_drawn(window: Visitor, run: ActingRun) -> None:
    page = window.open(f"/run?run={run.lease.run_id}")
    expect(page.get_by_role("figure", name=re.compile("4 evaluations on held-out sequences"))).to_be_visible()
    expect(page.get_by_text(re.compile(r"dotted: power law in step, α = 0\.\d\d \(95 %"))).to_be_visible()
    expect(page.get_by_role("figure", name=re.compile("^Excess and KL by position"))).to_be_visible()
    expect(page.get_by_role("figure", name=re.compile("^R² of the belief state by layer"))).to_be_visible()
    expect(page.locator(".n2n-drawing svg").first).to_be_visible()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("view", ["runs", "run", "filter"])
def test_both_pages_are_accessible(browser: Browser, base: str, run: ActingRun, view: str, dark: bool) -> None:
    run.client.change_run(run.lease.run_id, RunPatch(notes=HOSTILE))
    path = {"runs": "/", "run": f"/run?run={run.lease.run_id}", "filter": "/?q=state:runing"}[view]
    with visitor(browser, base, dark=dark) as window:
        page = window.open(path)
        if view == "run":
            chart(page)
            page.get_by_role("table", name="Checkpoints, newest first").get_by_role("button", name="300").click()
            expect(page.get_by_role("button", name="Continue from here")).to_be_visible()
        elif view == "runs":
            page.locator("tbody input.one").first.click()
            expect(page.get_by_text("1 selected")).to_be_visible()
        assert violations(page) == []
