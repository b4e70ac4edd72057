"""Launch, Data and Workers & queue in a real browser, over a real service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from nanollama.api.client import Client
from nanollama.api.status import AttemptState
from tests.support.accessibility import violations
from tests.support.acting_worker import ActingWorker
from tests.support.browser import PATIENCE, Visitor, visitor
from tests.support.service import SPEC_YAML
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("dashboard-launch")]
expect.set_options(timeout=PATIENCE)

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> $\\LaTeX$ **bold** 🎉"
OVERFLOW = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  return Math.max(document.documentElement.scrollWidth - innerWidth, main.scrollWidth - main.clientWidth);
}"""
SELECT = "(area, word) => { const i = area.value.indexOf(word); area.setSelectionRange(i, i + word.length); }"


def area(page: Page) -> Locator:
    return page.get_by_label("Config (YAML)")


def status(page: Page) -> Locator:
    return page.locator(".n2n-editor .state")


def overwrite(page: Page, word: str, by: str) -> None:
    """Select a word in the editor and type another in its place."""
    area(page).focus()
    area(page).evaluate(SELECT, word)
    page.keyboard.type(by)


def test_from_an_empty_laboratory_to_a_sweep_its_graph_and_its_queue(window: Visitor, api: Client) -> None:
    page = window.open("/data")
    expect(page.get_by_text("No graph is known yet")).to_be_visible()
    page.get_by_role("button", name="Write a config and launch it").click()
    page.wait_for_url("**/launch?template=debug")
    expect(status(page)).to_have_text(re.compile("^Valid · 1 run · hash [0-9a-f]{12}$"))
    expect(page.locator(".n2n-drawing svg")).to_be_visible()
    expect(page.get_by_text("Nobody to run it yet")).to_be_visible()

    area(page).focus()
    page.keyboard.press("Control+End")
    page.keyboard.type("grid:\noptim.lr: [1e-3, 1e-2]\n")  # the second line is indented by the editor
    expect(status(page)).to_have_text(re.compile("^Valid · 2 runs"))
    expect(page.get_by_role("table", name="Runs of the sweep")).to_contain_text("lr=0.01")
    expect(page.get_by_role("table", name="Changes to the config")).to_contain_text("grid.optim.lr")
    page.get_by_label("Name").fill(HOSTILE)
    page.get_by_label("Name").press("Enter")
    page.get_by_role("button", name="Submit 2 runs").click()
    page.wait_for_url("**/?q=experiment*")
    expect(page.locator("tbody tr")).to_have_count(2)
    (experiment,) = api.experiments().items
    assert (experiment.name, experiment.num_runs) == (HOSTILE, 2)

    page.get_by_role("link", name="Data").click()
    page.get_by_role("button", name="Compute the bound").click()
    expect(page.get_by_role("table", name="Graphs, newest first")).to_contain_text("queued")
    (gssm,) = api.gssms().items
    assert gssm.bound.state == "queued"
    expect(page.locator(".n2n-drawing svg")).to_be_visible()

    page.get_by_role("link", name="Workers & queue").click()
    queue = page.get_by_role("table", name="Jobs that wait")
    expect(queue.locator("tbody tr")).to_have_count(3)
    expect(queue).to_contain_text("no worker is alive")
    expect(page.get_by_text("No worker has ever registered")).to_be_visible()
    page.get_by_role("button", name="Pause the queue").click()
    expect(page.get_by_text("The queue has been paused since")).to_be_visible()
    expect(queue).to_contain_text("the queue is paused")
    page.get_by_role("button", name="Resume the queue").click()
    expect(page.get_by_role("button", name="Pause the queue")).to_be_visible()
    assert api.queue().paused_since is None
    for box in queue.locator("tbody input[type=checkbox]").all():
        box.check()
    page.get_by_role("button", name="Cancel jobs").click()
    page.get_by_role("button", name="Yes, cancel 3").click()
    expect(page.get_by_text("Nothing waits", exact=True)).to_be_visible()
    assert api.queue().waiting == 0
    assert page.evaluate("() => window.hacked") is None


def test_problems_are_marked_while_typing_and_lead_to_their_line(window: Visitor) -> None:
    page = window.open("/launch?template=debug")
    expect(status(page)).to_have_text(re.compile("^Valid"))
    overwrite(page, "emb_dim", "embdim")
    expect(status(page)).to_contain_text("problem")
    problem = page.locator(".n2n-editor li", has_text="did you mean 'emb_dim'?")
    expect(problem).to_contain_text("model.embdim")
    expect(page.locator(".n2n-editor .gutter .bad").first).to_be_visible()
    expect(page.locator(".n2n-editor .gutter .changed")).to_have_count(1)
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    area(page).evaluate("area => area.setSelectionRange(0, 0)")
    problem.get_by_role("button").click()
    assert area(page).evaluate("area => area.value.slice(area.selectionStart).startsWith('embdim')")
    for _ in "embdim":
        page.keyboard.press("Control+z")
    assert "emb_dim" in area(page).input_value(), "the browser's own undo"
    expect(status(page)).to_have_text(re.compile("^Valid"))
    overwrite(page, "0.1", HOSTILE.split(" ", maxsplit=1)[0])
    expect(page.locator(".n2n-editor li").first).to_contain_text("<script>")
    assert page.evaluate("() => window.hacked") is None


def test_what_is_typed_survives_a_reload_and_another_template(window: Visitor) -> None:
    page = window.open("/launch?template=debug")
    expect(status(page)).to_have_text(re.compile("^Valid"))
    overwrite(page, "steps: 300", "steps: 301")
    expect(page.get_by_role("table", name="Changes to the config")).to_contain_text("301")
    page.reload()
    expect(page.get_by_role("table", name="Changes to the config")).to_contain_text("301")
    assert "steps: 301" in area(page).input_value()
    page.goto(window.base + "/launch")
    expect(page.get_by_role("table", name="Changes to the config")).to_contain_text("301")
    page.wait_for_url("**/launch?template=debug")
    page.get_by_role("combobox", name="Template").click()
    page.get_by_role("option", name=re.compile("^dense")).click()
    eventually(lambda: "301" not in area(page).input_value(), what="another template")
    page.wait_for_url("**/launch?template=dense")
    page.get_by_role("button", name="Bring back what I had").click()
    eventually(lambda: "steps: 301" in area(page).input_value(), what="the text of before")
    page.get_by_role("button", name="Reset").click()
    eventually(lambda: "steps: 300" in area(page).input_value(), what="the template as it was")


def test_the_form_is_in_the_address(window: Visitor, browser: Browser, base: str) -> None:
    page = window.open("/launch?template=debug")
    expect(status(page)).to_have_text(re.compile("^Valid"))
    page.get_by_label("Tags").fill("exp2, paper")
    page.get_by_label("Tags").press("Enter")
    page.wait_for_url("**tags=exp2**")
    with visitor(browser, base) as other:
        other.page.goto(page.url)
        expect(other.page.get_by_label("Tags")).to_have_value("exp2, paper")
        expect(status(other.page)).to_have_text(re.compile("^Valid"))


def test_a_double_click_right_after_typing_submits_what_was_typed_once(window: Visitor, api: Client) -> None:
    page = window.open("/launch?template=debug")
    expect(page.get_by_role("button", name="Submit 1 run")).to_be_enabled()
    overwrite(page, "name: debug", "name: typed-last")
    page.get_by_role("button", name="Submit 1 run").dblclick()
    page.wait_for_url("**/run?run=*")
    expect(page.locator("h1")).to_have_text("typed-last")
    (run,) = api.runs(filter="name~typed-last").items
    assert page.url.endswith(run.id)
    api.cancel(run.id)


def test_a_worker_is_seen_with_what_it_holds_and_can_be_drained(window: Visitor, api: Client) -> None:
    worker = ActingWorker(api)
    experiment = api.submit(yaml=SPEC_YAML, name="held")
    waiting = api.submit(yaml=SPEC_YAML, name="waits", priority=-3).runs[0].id
    run = worker.start()
    page = window.open(f"/workers?worker={worker.id}")
    held = page.get_by_role("table", name="Runs that it holds")
    expect(held).to_contain_text("held")
    run.train(50)
    expect(held).to_contain_text("50%")
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_role("table", name="Workers")).to_contain_text("draining")
    assert any(w.id == worker.id and w.drain_requested for w in api.workers())
    page.get_by_role("button", name="Let it take jobs again").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()
    row = page.get_by_role("table", name="Jobs that wait").locator(f"tr[data-id={waiting}]")
    expect(row).to_contain_text("-3")
    held.get_by_role("link").click()
    page.wait_for_url(f"**/run?run={experiment.runs[0].id}")
    run.report(AttemptState.CANCELLED, reason="the test is over")
    api.cancel(waiting)


@pytest.mark.slow
def test_a_text_of_five_megabytes_is_a_problem_and_the_editor_stays_usable(window: Visitor) -> None:
    page = window.open("/launch?template=debug")
    expect(status(page)).to_have_text(re.compile("^Valid"))
    area(page).evaluate(
        """area => {
          area.value = ('# ' + 'long '.repeat(20) + '\\n').repeat(49000);
          area.dispatchEvent(new Event('input', { bubbles: true }));
        }"""
    )
    expect(page.locator(".n2n-editor li")).to_contain_text("bytes; the limit is 1,048,576")
    page.get_by_role("button", name="Reset").click()
    expect(status(page)).to_have_text(re.compile("^Valid"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", ["launch?template=debug", "launch", "data", "workers"])
def test_it_is_accessible_and_a_narrow_screen_needs_no_sideways_scrolling(
    browser: Browser, base: str, api: Client, view: str, *, dark: bool
) -> None:
    api.add_gssm(yaml=SPEC_YAML)
    with visitor(browser, base, width=420, dark=dark) as window:
        page = window.open(f"/{view}")
        if view == "launch?template=debug":
            expect(status(page)).to_have_text(re.compile("^Valid"))
            overwrite(page, "emb_dim", "embdim")
            expect(status(page)).to_contain_text("problem")
        elif view == "data":
            expect(page.locator(".n2n-drawing svg")).to_be_visible()
        assert page.evaluate(OVERFLOW) <= 0
        assert violations(page) == []


def test_a_picture_with_scripts_is_cleaned(browser: Browser) -> None:
    script = (Path(__file__).parents[2] / "dashboard" / "components" / "drawing.js").read_text(encoding="utf-8")
    svg = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10" onload="window.hacked=1">
      <script>window.hacked=1</script><a href="javascript:window.hacked=1"><rect width="9" height="9"/></a>
      <foreignObject><img src="x" onerror="window.hacked=1"/></foreignObject>
      <style>@import url(http://example.com/x.css);</style>
      <rect id="kept" width="9" height="9" onclick="window.hacked=1" style="fill:url(http://example.com/y)"/></svg>"""
    page = browser.new_page()
    try:
        page.set_content('<div id="parent"><div class="n2n-drawing"></div></div>')
        left = page.evaluate(
            """async ([script, svg]) => {
              const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
              const { default: draw } = await import(url);
              draw({ data: { svg, label: "x", height: 100 }, parentElement: document.querySelector("#parent") });
              return document.querySelector(".n2n-drawing").innerHTML;
            }""",
            [script, svg],
        )
        assert 'id="kept"' in left
        for banned in ("script", "onload", "onclick", "foreignObject", "href", "example.com"):
            assert banned not in left, banned
        assert page.evaluate("() => window.hacked") is None
    finally:
        page.close()
