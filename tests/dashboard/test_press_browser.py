"""Presses on live pages in a real browser: none is lost while a run draws, whatever kind of control it is on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, WebSocketRoute, expect
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from nanollama.api.client import Client
from tests.support.browser import PATIENCE, Visitor, visitor
from tests.support.fake_compare import report_sweep
from tests.support.service import SPEC_YAML
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("dashboard-press")]
expect.set_options(timeout=PATIENCE)

# How far a button moves when it takes the focus from the one that it replaces, in pixels.
MOVED = """(button) => {
  const before = button.getBoundingClientRect();
  button.focus();
  const after = button.getBoundingClientRect();
  return Math.hypot(after.x - before.x, after.y - before.y);
}"""


@pytest.fixture(scope="module", autouse=True)
def sweep(api: Client) -> list[str]:
    """A sweep of twelve runs, and jobs that wait."""
    ids = [run.lease.run_id for run in report_sweep(api)]
    for i in range(4):
        api.submit(yaml=SPEC_YAML, name=f"waits-{i}")
    return ids


def jobs(page: Page) -> Locator:
    return page.get_by_role("table", name="Jobs that wait")


def compared(page: Page) -> Locator:
    return page.get_by_role("table", name="Runs to compare").locator("tbody")


def in_address(page: Page) -> set[str]:
    found: str | None = page.evaluate("() => new URLSearchParams(location.search).get('runs')")
    return set(found.split(",")) if found else set()


class Lag:
    """What the page's server says, held back from the page on demand."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.on = False
        self.waits_for: bytes | None = None  # holds back from the end of the run that says this
        self.held: list[bytes | str] = []
        self.finished = 0  # runs of the script, while it holds back
        page.route_web_socket("**/_stcore/stream", self._route)

    def _route(self, route: WebSocketRoute) -> None:
        server = route.connect_to_server()
        server.on_message(lambda message: self._hear(route, message))

    def _hear(self, route: WebSocketRoute, message: bytes | str) -> None:
        assert isinstance(message, bytes)
        ends = ForwardMsg.FromString(message).WhichOneof("type") == "script_finished"
        if self.waits_for is not None and self.waits_for in message:
            self.waits_for = b""  # said: any message that ends a run is the end of this one
        if self.waits_for == b"" and ends:
            self.waits_for, self.on = None, True
        if not self.on:
            route.send(message)
            return
        self.route = route
        self.held.append(message)
        self.finished += ends

    def another_run(self) -> None:
        """Wait until the server has run the script once more."""
        before = self.finished

        def probe() -> bool:
            self.page.wait_for_timeout(20)  # messages are heard while playwright works
            return self.finished > before

        eventually(probe, what="a run of the script")

    def release(self) -> None:
        """Let the page hear everything."""
        self.on = False
        for message in self.held:
            self.route.send(message)
        self.held.clear()


@pytest.fixture
def slow_window(browser: Browser, base: str) -> Iterator[tuple[Visitor, Lag]]:
    with visitor(browser, base) as opened:
        yield opened, Lag(opened.page)
        assert opened.complaints() == []


def test_a_button_stays_under_the_pointer_when_it_has_replaced_another(slow_window: tuple[Visitor, Lag]) -> None:
    window, lag = slow_window
    page = window.open("/workers")
    resume = page.get_by_role("button", name="Resume the queue")
    lag.waits_for = b"Resume the queue"  # a button that is replaced is kept for its focus until its run has ended
    page.get_by_role("button", name="Pause the queue").click()
    expect(resume).to_be_visible()
    expect(page.locator("[data-retained] > .stButton")).to_have_count(1)
    assert resume.evaluate(MOVED) == 0
    lag.release()
    resume.click()
    expect(page.get_by_role("button", name="Pause the queue")).to_be_visible()


def test_buttons_that_take_turns_hear_every_press(window: Visitor, api: Client) -> None:
    page = window.open("/workers")
    experiments = page.get_by_role("table", name="Experiments in the queue")
    for _ in range(4):
        page.get_by_role("button", name="Pause the queue").click()
        expect(jobs(page)).to_contain_text("the queue is paused")
        page.get_by_role("button", name="Resume the queue").click()
        expect(page.get_by_role("button", name="Pause the queue")).to_be_visible()
        assert api.queue().paused_since is None
        experiments.get_by_role("button", name="pause").first.click()
        experiments.get_by_role("button", name="resume").click()
        expect(experiments.get_by_role("button", name="resume")).to_have_count(0)
    assert not any(experiment.paused_since for experiment in api.experiments().items)


def test_the_press_that_ends_an_edit_counts_too(window: Visitor, api: Client) -> None:
    page = window.open("/workers")
    run = jobs(page).locator("tbody tr").first.get_attribute("data-id") or ""
    row = jobs(page).locator(f"tr[data-id={run}]")
    box = jobs(page).locator(f"tbody tr:not([data-id={run}]) input.one").first

    def edit(text: str) -> None:
        row.hover()
        row.get_by_role("button", name="Edit priority").click()
        page.keyboard.press("Control+a")
        page.keyboard.type(text)

    edit("7")
    box.click()
    eventually(lambda: api.run(run).priority == 7, what="the priority")
    expect(box).to_be_checked()
    edit("-7")
    page.get_by_role("button", name="Pause the queue").click()
    expect(jobs(page)).to_contain_text("the queue is paused")
    eventually(lambda: api.run(run).priority == -7, what="the priority")
    page.get_by_role("button", name="Resume the queue").click()
    expect(page.get_by_role("button", name="Pause the queue")).to_be_visible()
    expect(row).to_contain_text("-7")


def test_a_popover_that_is_opened_right_after_checkboxes_stays_open(window: Visitor, api: Client) -> None:
    waiting = api.queue().waiting
    page = window.open("/workers")
    for i in range(3):
        jobs(page).locator("tbody input.one").nth(i).click()
    page.get_by_role("button", name="Cancel jobs").click()
    page.get_by_role("button", name="Yes, cancel 3").click()
    expect(page.get_by_text("3 jobs cancelled.")).to_be_visible()
    assert api.queue().waiting == waiting - 3


def test_checkboxes_are_newer_than_the_address_that_the_browser_sends(
    slow_window: tuple[Visitor, Lag], sweep: list[str]
) -> None:
    window, lag = slow_window
    page = window.open("/compare")
    boxes = [compared(page).locator(f"tr[data-id={run}] input.one") for run in sweep]
    expect(boxes[0]).to_be_checked()
    expect(page.locator(".js-plotly-plot .annotation").first).to_be_visible()
    lag.on = True  # the browser learns late what the server writes into the address
    for box in boxes[:3]:
        box.click()
        lag.another_run()
    lag.another_run()
    lag.release()
    eventually(lambda: in_address(page) == set(sweep[3:]), what="the choice in the address")
    assert [box.is_checked() for box in boxes] == [False] * 3 + [True] * 9
    page.go_back()  # through the history, the address is what the user wants
    eventually(lambda: len(in_address(page)) != 9, what="the address before")
    wanted = in_address(page) or set(sweep)
    eventually(lambda: {r for r, b in zip(sweep, boxes, strict=True) if b.is_checked()} == wanted, what="what it names")


def test_fields_and_switches_hear_every_press(window: Visitor, sweep: list[str]) -> None:
    page = window.open("/")
    rows = page.locator("tbody tr[data-id]")
    field = page.get_by_label("Filter", exact=True)
    for _ in range(2):
        field.fill("widths")
        field.press("Enter")
        expect(rows).to_have_count(len(sweep))
        page.get_by_test_id("stButtonGroup").get_by_text("succeeded").click()
        expect(rows).to_have_count(len(sweep) - 1)
        for i in range(3):
            rows.nth(i).locator("input.one").click()
        expect(page.get_by_text("3 selected")).to_be_visible()
        page.get_by_role("button", name="Tag", exact=True).click()
        page.get_by_label("Add").fill("pressed")
        page.get_by_role("button", name="Change tags").click()
        expect(page.get_by_text("none selected")).to_be_visible()
        page.get_by_test_id("stButtonGroup").get_by_text("succeeded").click()
        expect(rows).to_have_count(len(sweep))
        field.fill("")
        field.press("Enter")
        expect(rows).not_to_have_count(len(sweep))
    page.goto(window.base + "/compare")
    axes = page.get_by_test_id("stButtonGroup")
    for axis in ("tokens", "flops", "tokens"):
        axes.get_by_text(axis, exact=True).click()
        page.wait_for_url(f"**/compare?*x={axis}*")
        expect(page.locator(f".n2n-plot[data-name='loss-against-{axis}']")).to_be_visible()
