"""The page in a real Chromium over a real service: how soon something is drawn, what is sent, and what is kept."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from nanollama.api.client import Client
from nanollama.api.schemas import SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState
from tests.bench.lists import RUNS, _fill
from tests.bench.page_viewers import Viewer, watch
from tests.bench.service import _resident_mb, _ship
from tests.bench.timing import Row
from tests.bench.worker import _cpu_seconds, _p95
from tests.support.acting_worker import ActingRun, ActingWorker
from tests.support.browser import chromium, visitor
from tests.support.fake_compare import SWEEP_YAML, lines
from tests.support.laboratory import Laboratory, laboratory

ROUNDS, TICKS, SERIES, POINTS = 5, 10, 50, 10_000
VIEWERS, SECONDS = 20, 30.0
PATIENCE = 120_000  # milliseconds

CHART = "() => document.querySelector('.js-plotly-plot .scatterlayer .trace') !== null"
LIST = "() => document.querySelectorAll('tbody tr[data-id]').length >= 50"
CURVES = f"""() => document.querySelectorAll('.n2n-plot[data-name="loss-against-step"] .scatterlayer .trace').length
  >= {SERIES}"""
LOSS_AT = """(step) => [...document.querySelectorAll('.js-plotly-plot')].some(plot =>
  plot.data?.some(t => t.name === 'loss' && t.x.at(-1) >= step))"""
# a comparison while it is live: what is zoomed, hidden, ticked and scrolled to, and what each frame shows of the chart
PLOT = "document.querySelector('.n2n-plot[data-name=\"loss-against-step-linear\"]')"
KEPT = f"""() => ({{
  range: {PLOT}._fullLayout.xaxis.range.join(), hidden: {PLOT}.data.filter(t => t.visible === 'legendonly').length,
  ticked: document.querySelectorAll('input.one:checked').length,
  scroll: document.querySelector('[data-testid=stMain]').scrollTop, same: {PLOT}.dataset.same,
}})"""
END = f"""(x) => Math.max(...({PLOT}?.data ?? []).filter(t => t.meta?.label).map(t => t.x.at(-1))) >= x"""
FILM = f"""() => {{
  {PLOT}.dataset.same = 'yes';
  window.film = [];
  const frame = () => {{
    const plot = {PLOT};
    const box = plot?.getBoundingClientRect();
    film.push([plot?.querySelectorAll('.scatterlayer .trace').length ?? 0, box?.top, box?.height,
      plot?.closest('[data-stale=true]') ? getComputedStyle(plot.closest('[data-stale=true]')).opacity : '1'].join());
    requestAnimationFrame(frame);
  }};
  frame();
}}"""


def bench_page() -> list[Row]:
    """First page, long lists, large comparisons, live points, what outlives ticks, and twenty viewers; on SQLite."""
    with tempfile.TemporaryDirectory() as folder, laboratory(Path(folder)) as (lab, client):
        _fill(lab.database_url)
        ids = _curves(client)
        live = _live(client)
        with chromium() as browser:
            first = f"/run?run={ids[0]}"
            rows = [
                _opened(browser, lab, f"first page, Run with {POINTS:,} points: to the chart", first, CHART),
                _opened(browser, lab, f"Runs, {RUNS:,} in the database: to the list", "/", LIST),
                *_compared(browser, lab, ids),
                _point(browser, lab, live),
                *_kept(browser, lab, ids[0], live),
            ]
        return [*rows, *_viewers(lab, ids, live)]


def _curves(client: Client) -> list[str]:
    """A sweep of runs that are under way, each with 10,000 points of loss, bound and excess; their ids."""
    rates = [round(1e-4 * 1.1**i, 7) for i in range(SERIES)]
    yaml = SWEEP_YAML.partition("grid:")[0].replace("steps: 1000", f"steps: {POINTS}") + f"grid:\n  optim.lr: {rates}\n"
    client.submit(yaml=yaml, name="fifty")
    registration = WorkerRegistration(
        name="b", pool="b", executor="local", host="h", user="u", run_root="/r", slots=SERIES, version="1"
    )
    client.register("bench-worker", registration)
    leases = client.sync("bench-worker", SyncRequest(free_slots=SERIES)).leases
    data = lines(64, 0, 0, POINTS, period=1)
    for number, lease in enumerate(leases):
        running = TransitionRequest(transition_id=f"running-{number:04}", epoch=lease.epoch, to=AttemptState.RUNNING)
        client.transition(lease.attempt_id, running)
        _ship(client, lease, data)
    return [lease.run_id for lease in leases]


def _live(client: Client) -> ActingRun:
    """A run that reports."""
    client.submit(yaml=SWEEP_YAML.partition("grid:")[0], name="live")
    run = ActingWorker(client).start()
    run.train(300, period=1)
    return run


def _opened(browser: Browser, lab: Laboratory, what: str, path: str, drawn: str) -> Row:
    """Seconds from navigation, in a window that knows nothing yet, to the moment when something is drawn."""
    found = [_open(browser, lab, path, drawn)[0] for _ in range(ROUNDS + 1)][1:]
    return Row(what, f"{statistics.median(found):.2f} s", f"{min(found):.2f} to {max(found):.2f} s", goal="2.0 s")


def _compared(browser: Browser, lab: Laboratory, ids: list[str]) -> list[Row]:
    found = [_open(browser, lab, f"/compare?runs={','.join(ids)}", CURVES) for _ in range(ROUNDS + 1)][1:]
    seconds, sent, static = ([each[i] for each in found] for i in range(3))
    what, spread = f"Compare, {SERIES} series of {POINTS:,} points", f"{min(seconds):.2f} to {max(seconds):.2f} s"
    return [
        Row(f"{what}: to the chart", f"{statistics.median(seconds):.2f} s", spread, goal="2.5 s"),
        Row(f"{what}: sent until then", f"{statistics.median(sent) / 1e6:.2f} MB",
            f"and {statistics.median(static) / 1e6:.2f} MB of program, once", goal="1.5 MB"),
    ]  # fmt: skip


def _open(browser: Browser, lab: Laboratory, path: str, drawn: str) -> tuple[float, float, float]:
    """Seconds until something is drawn; bytes of what was shown, and of the program that shows it."""
    with visitor(browser, lab.page_url) as window:
        page = window.page
        sizes = {"frames": 0.0, "files": 0.0}
        network = page.context.new_cdp_session(page)

        def frame(event: dict[str, Any]) -> None:
            response = event["response"]
            sizes["frames"] += len(response["payloadData"]) * (0.75 if response["opcode"] == 2 else 1)

        def loaded(event: dict[str, Any]) -> None:
            sizes["files"] += event["encodedDataLength"]

        network.on("Network.webSocketFrameReceived", frame)
        network.on("Network.loadingFinished", loaded)
        network.send("Network.enable")
        start = time.perf_counter()
        page.goto(lab.page_url + path, wait_until="commit")
        page.wait_for_function(drawn, polling="raf", timeout=PATIENCE)
        seconds = time.perf_counter() - start
        return seconds, sizes["frames"], sizes["files"]


def _point(browser: Browser, lab: Laboratory, live: ActingRun) -> Row:
    """From a point in the API to the open chart."""
    found = []
    with visitor(browser, lab.page_url) as window:
        page = window.open(f"/run?run={live.lease.run_id}")
        page.wait_for_function(LOSS_AT, arg=live.step, timeout=PATIENCE)
        for i in range(ROUNDS):
            page.wait_for_timeout(370.0 * i)  # not in step with the ticks
            start = time.perf_counter()
            live.train(live.step + 1, period=1)
            page.wait_for_function(LOSS_AT, arg=live.step, polling="raf", timeout=PATIENCE)
            found.append(time.perf_counter() - start)
    work = "a new point: from the API to the open chart"
    return Row(work, f"{statistics.median(found):.2f} s", f"{min(found):.2f} to {max(found):.2f} s", goal="3 s")


def _kept(browser: Browser, lab: Laboratory, other: str, live: ActingRun) -> list[Row]:
    """Zoom, a hidden line, ticks and scroll over live ticks; and how many frames showed anything but the chart."""
    with visitor(browser, lab.page_url, height=700) as window:
        page = window.open(f"/compare?runs={live.lease.run_id},{other}&log=false&by=optim.lr")
        page.wait_for_function(END, arg=live.step, timeout=PATIENCE)
        _zoom(page)
        page.locator(".n2n-plot .annotation").first.click()
        page.locator("input.one").nth(5).click()
        page.wait_for_function(f"() => {PLOT}.querySelectorAll('.scatterlayer .trace').length > 0", timeout=PATIENCE)
        page.locator("[data-testid=stMain]").evaluate("main => { main.scrollTop = 60 }")
        page.wait_for_timeout(5000)  # finer points of the zoomed part, and the third run, are there
        before = page.evaluate(KEPT) | {"same": "yes"}
        page.evaluate(FILM)
        for _ in range(TICKS):
            live.train(live.step + 1, period=1)
            page.wait_for_function(END, arg=live.step, timeout=PATIENCE)
        after, film = page.evaluate(KEPT), page.evaluate("() => film")
    usual = statistics.mode(film)
    kept, lost = "all kept", ", ".join(key for key in before if before[key] != after[key])
    told = f"lost: {lost}" if lost else kept
    return [
        Row(f"zoom, hidden line, selection, scroll over {TICKS} live ticks", told, goal=kept),
        Row("the same: frames without the chart, or with it elsewhere", f"{sum(each != usual for each in film)}",
            f"of {len(film):,}", goal="0"),
    ]  # fmt: skip


def _zoom(page: Page) -> None:
    box = page.locator(".n2n-plot .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.9 * box["height"], steps=6)
    page.mouse.up()
    page.wait_for_timeout(500)


def _viewers(lab: Laboratory, ids: list[str], live: ActingRun) -> list[Row]:
    """Viewers of a list, of live runs and of comparisons at once, while points come in."""
    runs = [Viewer("run", f"run={i}") for i in (live.lease.run_id, *ids[:3], live.lease.run_id, *ids[3:6])]
    lists = [Viewer("") for _ in range(6)]
    compared = [Viewer("compare", f"runs={','.join(ids[:12])}") for _ in range(VIEWERS - len(runs) - len(lists))]
    pids = [lab.pid(name) for name in ("page", "service")]
    with _reporting(live):
        cpu, start = [_cpu_seconds(pid) for pid in pids], time.monotonic()
        watch(lab.page_url, [*runs, *lists, *compared], SECONDS)
        share = [(_cpu_seconds(pid) - used) / (time.monotonic() - start) for pid, used in zip(pids, cpu, strict=True)]
    memory = [_resident_mb(pid) for pid in pids]
    updates = [seconds for viewer in [*runs, *lists, *compared] for seconds in viewer.updates]
    what, median = f"{VIEWERS} viewers of live pages", f"median {statistics.median(updates):.2f} s of {len(updates):,}"
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    return [
        Row(f"{what}: p95 of an update", f"{_p95(updates):.2f} s", median, goal="2 s"),
        Row(f"{what}: part of a core of the page", f"{share[0]:.0%}", f"service {share[1]:.0%}", goal="100%"),
        Row(f"{what}: memory of the page", f"{memory[0]:.0f} MB", f"service {memory[1]:.0f} MB", goal="600 MB"),
        Row("load of the machine in that minute, for each of its cores; from 1 on something waits", f"{waiting:.1f}"),
    ]  # fmt: skip


@contextlib.contextmanager
def _reporting(live: ActingRun) -> Iterator[None]:
    """A line a second of a run."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(1.0):
            live.train(live.step + 1, period=1)

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
