"""The pictures of docs/dashboard.md: every page in both themes, over a sweep that was really trained."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from nanollama.api.client import Client
from nanollama.api.schemas import Run, RunPatch
from nanollama.api.status import RunState
from tests.support.browser import PATIENCE, visitor
from tests.support.laboratory import SWEEP_YAML, Laboratory, laboratory
from tests.support.page import chart
from tests.support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("page-pictures")]
expect.set_options(timeout=PATIENCE)

MAX_BYTES = 300_000
Ready = Callable[[Page], None]
AGAIN = SWEEP_YAML.replace("name: width", "name: rate").partition("grid:")[0] + "grid: {optim.lr: [1e-3, 1e-2, 3e-2]}\n"
LINES = "() => document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures go: into $N2N_SCREENSHOTS when that is set."""
    return Path(os.environ.get("N2N_SCREENSHOTS", tmp_path_factory.mktemp("pictures"))).absolute()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Laboratory, Client]]:
    with laboratory(tmp_path_factory.mktemp("laboratory")) as (running, client):
        running.start_worker()
        yield running, client


class Camera:
    """Takes a page in both themes, and on a narrow screen where it is wanted."""

    def __init__(self, browser: Browser, base: str, folder: Path) -> None:
        self.browser, self.base, self.folder = browser, base, folder

    def take(self, name: str, path: str, ready: Ready, *, height: int = 900, narrow: bool = False) -> None:
        """Open a page, wait until `ready(page)` says that all is drawn, and keep what is seen."""
        kinds = {"": (1400, height, False), "-dark": (1400, height, True)}
        if narrow:
            kinds["-narrow"] = (420, height, False)
        for suffix, (width, high, dark) in kinds.items():
            with visitor(self.browser, self.base, width=width, height=high, dark=dark) as window:
                page = window.open(path)
                ready(page)
                file = self.folder / f"page-{name}{suffix}.png"
                page.screenshot(path=file, animations="disabled")
                assert file.stat().st_size < MAX_BYTES, f"{file} has {file.stat().st_size:,} bytes"
                assert not window.complaints()
                assert not window.strangers


def rows(page: Page) -> None:
    expect(page.locator("tbody tr[data-id]").first).to_be_visible()


def curves(num_lines: int) -> Ready:
    def ready(page: Page) -> None:
        eventually(lambda: page.evaluate(LINES) >= num_lines, within=PATIENCE / 1000, what="the curves")

    return ready


def one_run(page: Page) -> None:
    chart(page, points=30)
    expect(page.locator(".js-plotly-plot")).to_have_count(8)


def draft(page: Page) -> None:
    status = page.locator(".n2n-editor .state")
    expect(status).to_have_text(re.compile("^Valid"))
    page.get_by_label("Config (YAML)").fill(SWEEP_YAML)
    expect(status).to_have_text(re.compile("^Valid · 12 runs"))
    expect(page.locator(".n2n-drawing svg")).to_be_visible()
    expect(page.get_by_role("table", name="Runs of the sweep")).to_contain_text("emb_dim=64")


def graph(page: Page) -> None:
    expect(page.locator(".n2n-drawing svg")).to_be_visible()
    curves(1)(page)


def finish(lab: Laboratory, client: Client, experiment: str) -> list[Run]:
    found = lab.wait_for_end(client, experiment)
    assert {run.state for run in found} == {RunState.SUCCEEDED}
    return found


def test_every_page_is_taken(browser: Browser, lab: tuple[Laboratory, Client], folder: Path) -> None:
    running, client = lab
    camera = Camera(browser, running.page_url, folder)
    sweep = client.submit(yaml=SWEEP_YAML, tags=["paper"]).id
    eventually(lambda: client.runs(state=["RUNNING"]).items, within=120, what="a run that runs")
    camera.take("workers", "/workers", rows, height=760)
    widths = finish(running, client, sweep)
    client.change_run(widths[0].id, RunPatch(notes="narrow, to see where it saturates"))
    (known,) = client.gssms().items
    client.compute_bound(known.hash)
    eventually(lambda: client.gssm(known.hash).bound.state == "done", within=240, what="the bound")
    camera.take("data", "/data", graph)
    camera.take("launch", "/launch?template=debug", draft, height=1000)
    camera.take("run", f"/run?run={widths[-1].id}", one_run, height=1100, narrow=True)
    camera.take("compare", f"/compare?q=experiment:{sweep}", curves(8), height=980, narrow=True)
    camera.take("scaling", f"/compare?q=experiment:{sweep}&show=scaling", curves(3), height=760)
    camera.take("multiples", f"/compare?q=experiment:{sweep}&show=small+multiples", curves(7), height=760)
    client.cancel(client.submit(yaml=SWEEP_YAML.partition("grid:")[0], name="by mistake").runs[0].id)
    client.submit(yaml=AGAIN, tags=["paper", "rate"])
    eventually(
        lambda: any(run.progress.step > 20 for run in client.runs(state=["RUNNING"]).items), what="some progress"
    )
    camera.take("runs", "/", rows, height=760)
