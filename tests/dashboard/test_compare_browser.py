"""The Compare page in a real browser, over a real service with a sweep of twelve runs."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from dashboard.comparison import grouped
from dashboard.data.compare import entries
from nanollama.api.client import Client
from tests.support.accessibility import violations
from tests.support.acting_worker import ActingRun
from tests.support.browser import PATIENCE, Visitor, visitor
from tests.support.fake_compare import report_sweep, send, width_and_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("dashboard-browser")]
expect.set_options(timeout=PATIENCE)

# A chart by its name: labels with their heights in pixels, ends of the lines, hidden ones, and the range of x.
CHART = """(name) => {
  const plot = document.querySelector(`.n2n-plot[data-name="${name}"]`);
  if (!plot?._fullLayout?.annotations?.length) return null;
  return {
    labels: Object.fromEntries([...plot.querySelectorAll('.annotation')].map(e => {
      const box = e.querySelector('.annotation-text').getBoundingClientRect();
      return [e.querySelector('.annotation-text').textContent, [box.top, box.bottom]];
    })),
    ends: Object.fromEntries(plot.data.filter(t => t.meta?.label).map(t => [t.meta.label, t.x.at(-1)])),
    points: Object.fromEntries(plot.data.filter(t => t.meta?.label).map(t => [t.meta.label, t.x.length])),
    hidden: plot.data.filter(t => t.meta?.label && t.visible === 'legendonly').map(t => t.meta.label),
    range: plot._fullLayout.xaxis.range,
    colors: Object.fromEntries(plot.data.filter(t => t.meta?.label).map(t => [t.meta.label, t.line.color])),
    rings: plot.data.filter(t => t.name === 'now').length,
    bounds: plot._fullLayout.meta.bounds.map(b => b.label),
  };
}"""
LOSS, EXCESS = "loss-against-step", "excess-against-step"


@pytest.fixture(scope="module", autouse=True)
def sweep(api: Client) -> list[ActingRun]:
    """Four widths by three seeds, the last run under way."""
    return report_sweep(api)


def chart(page: Page, name: str = LOSS, *, groups: int = 4) -> Any:
    """A chart, once it shows so many groups."""

    def probe() -> Any:
        seen = page.evaluate(CHART, name)
        return seen if seen and len(seen["ends"]) == groups else None

    return eventually(probe, within=PATIENCE / 1000, what=f"{groups} groups in {name}")


def compare(window: Visitor, query: str = "") -> Page:
    return window.open(f"/compare{query}")


def row(page: Page, run: ActingRun) -> Any:
    return page.get_by_role("table", name="Runs to compare").locator(f"tr[data-id={run.lease.run_id}]")


def drag(page: Page, name: str, start: float, end: float) -> None:
    box = page.locator(f'.n2n-plot[data-name="{name}"] .nsewdrag').bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], box["y"] + 0.95 * box["height"], steps=6)
    page.mouse.up()


def test_a_sweep_is_drawn_with_one_label_a_group_its_bound_and_a_ring(browser: Browser, base: str) -> None:
    with visitor(browser, base) as window:
        page = compare(window)
        seen = chart(page)
        assert re.fullmatch(r"H = 1\.91\d\d", "".join(seen["bounds"]))
        assert set(seen["labels"]) == {*seen["ends"], *seen["bounds"]}
        heights = sorted(seen["labels"].values())
        assert all(upper[1] <= lower[0] + 4 for upper, lower in itertools.pairwise(heights)), "labels overlap"
        assert seen["rings"] == 1
        assert all("α=" in label for label in chart(page, EXCESS)["ends"])
        expect(page.get_by_role("table", name="Power laws of the excess")).to_contain_text("0.2")
        expect(page.get_by_role("table", name="Config keys that differ, baseline first")).to_contain_text(
            "model.emb_dim"
        )
        assert window.strangers == []
        assert window.complaints() == []


def test_what_is_chosen_is_a_link_that_shows_the_same_to_somebody_else(
    browser: Browser, base: str, sweep: list[ActingRun]
) -> None:
    with visitor(browser, base) as window:
        page = compare(window)
        chart(page)
        for run in sweep[:3]:
            row(page, run).locator("input.one").click()
        chart(page, groups=3)
        row(page, sweep[6]).hover()
        row(page, sweep[6]).get_by_role("button", name="pin").click()
        expect(row(page, sweep[6])).to_contain_text("baseline")
        expect(row(page, sweep[3])).to_contain_text("+")
        page.get_by_role("radio", name="tokens").or_(page.get_by_role("button", name="tokens")).first.click()
        seen = chart(page, "loss-against-tokens", groups=3)
        page.wait_for_url("**/compare?*x=tokens*")
        address = page.url
    assert f"base={sweep[6].lease.run_id}" in address
    with visitor(browser, base) as window:
        page = window.open(address.removeprefix(base))
        again = chart(page, "loss-against-tokens", groups=3)
        assert again["colors"] == seen["colors"]
        assert set(again["labels"]) == set(seen["labels"])
        expect(row(page, sweep[6])).to_contain_text("baseline")
        expect(row(page, sweep[0]).locator("input.one")).not_to_be_checked()
        page.reload()
        assert chart(page, "loss-against-tokens", groups=3)["colors"] == seen["colors"]
        assert page.url == address


def test_zoom_and_hidden_lines_survive_live_points_and_labels_follow(
    browser: Browser, base: str, api: Client, sweep: list[ActingRun]
) -> None:
    live = sweep[-1]
    with visitor(browser, base) as window:
        page = compare(window, f"?runs={sweep[0].lease.run_id},{live.lease.run_id}&log=false")
        name = f"{LOSS}-linear"
        before = chart(page, name, groups=2)
        page.evaluate("(n) => { document.querySelector(`.n2n-plot[data-name='${n}']`).dataset.same = 'yes' }", name)
        drag(page, name, 0.05, 0.6)
        eventually(lambda: chart(page, name, groups=2)["range"] != before["range"], what="the zoom")
        zoomed = chart(page, name, groups=2)
        assert set(zoomed["labels"]) != set()
        assert zoomed["labels"] != before["labels"]
        page.locator(f'.n2n-plot[data-name="{name}"] .annotation', has_text="emb_dim 16").click()
        eventually(lambda: chart(page, name, groups=2)["hidden"] == ["emb_dim 16"], what="the hidden line")
        end = before["ends"]["emb_dim 128"]
        width, seed = width_and_seed(api.run(live.lease.run_id).config)
        send(live, width, seed, 800)
        eventually(lambda: chart(page, name, groups=2)["ends"]["emb_dim 128"] > end, within=60, what="the new points")
        after = chart(page, name, groups=2)
        assert after["range"] == zoomed["range"]
        assert after["hidden"] == ["emb_dim 16"]
        same = "(n) => document.querySelector(`.n2n-plot[data-name='${n}']`).dataset.same"
        assert page.evaluate(same, name) == "yes", "it was remounted"
        assert window.complaints() == []


def test_figures_data_and_program_are_exported(browser: Browser, base: str, service: str, tmp_path: Path) -> None:
    with visitor(browser, base, dark=True) as window:
        page = compare(window)
        chart(page)
        chart(page, EXCESS)
        page.get_by_role("button", name="Export").click()

        def saved(button: str) -> bytes:
            with page.expect_download(timeout=40_000) as download:
                page.get_by_role("button", name=button, exact=True).click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            return path.read_bytes()

        svg = saved("Excess as SVG").decode()
        assert "rgb(23, 98, 160)" in svg, "paper has the colours of the light theme"
        assert "emb_dim 128" in svg
        pdf = saved("Excess as PDF")
        assert pdf.startswith(b"%PDF-1.4")
        assert b"/MediaBox [0 0 482.25 247.5]" in pdf, "170 mm wide"
        content = zlib.decompress(pdf[pdf.index(b"stream\n") + 7 : pdf.index(b"\nendstream")])
        assert content.count(b" l") > 100
        assert b"(emb_dim 128 )" in content
        assert int(pdf[: pdf.rindex(b"\n%%EOF")].rsplit(b"\n", 1)[1]) == pdf.index(b"\nxref\n") + 1
        png = saved("Loss as PNG")
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == pytest.approx(643 * 300 / 96, abs=2)
        table = list(csv.DictReader(io.StringIO(saved("CSV").decode())))
        assert {r["group"] for r in table} == {f"emb_dim {w}" for w in (16, 32, 64, 128)}
        assert {r["chart"] for r in table} == {"loss", "excess"}
        assert saved("Parquet").startswith(b"PAR1")
        saved("Python")
        assert window.complaints() == []
    done = run_program(tmp_path / "comparison.py", tmp_path / "again.pdf", service)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("view", "size"), [("small multiples", "parameters"), ("scaling", "parameters")])
def test_programs_of_the_other_views_run_as_they_stand(
    api: Client,
    service: str,
    sweep: list[ActingRun],
    tmp_path: Path,
    view: Any,
    size: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dashboard import data, export  # noqa: PLC0415
    from dashboard.charts.compare import Options  # noqa: PLC0415

    monkeypatch.setattr(data, "client", lambda: api)
    runs = [api.run(run.lease.run_id) for run in sweep]
    groups = grouped(entries(runs, "step", log_x=True))
    assert [g.size("parameters") for g in groups] == sorted(g.size("parameters") or 0 for g in groups)
    path = tmp_path / "comparison.py"
    path.write_text(export.program(groups, Options(bits=True), view, size, url=service))
    done = run_program(path, tmp_path / "again.png", service)
    assert done.returncode == 0, done.stderr
    rows = export.scaling_rows(groups, Options())
    assert len(rows) == 12
    assert all(r["excess"] > 0 and r["parameters"] > 1000 for r in rows)


def run_program(path: Path, figure: Path, service: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "N2N_URL": service, "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, str(path), str(figure)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("query", ["", "?show=scaling&size=flops", "?show=small+multiples"])
@pytest.mark.parametrize("dark", [False, True])
def test_every_view_is_accessible_in_both_themes(browser: Browser, base: str, query: str, dark: bool) -> None:
    with visitor(browser, base, dark=dark) as window:
        page = compare(window, query)
        page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length > 3")
        assert violations(page) == []


def test_a_narrow_screen_shows_charts_first_with_labels_below_and_needs_no_sideways_scrolling(
    browser: Browser, base: str
) -> None:
    with visitor(browser, base, width=420) as window:
        page = compare(window)
        seen = chart(page)
        plot = page.locator(f'.n2n-plot[data-name="{LOSS}"] .nsewdrag').bounding_box()
        assert plot is not None
        assert min(top for top, _ in seen["labels"].values()) > plot["y"] + plot["height"]
        listed = page.get_by_role("table", name="Runs to compare").bounding_box()
        assert listed is not None
        assert listed["y"] > plot["y"] + plot["height"]
        inner = "() => document.querySelector('[data-testid=stMain]')"
        assert page.evaluate(f"{inner}.scrollWidth") <= page.evaluate(f"{inner}.clientWidth")


def test_it_can_be_used_by_keyboard_alone(browser: Browser, base: str, sweep: list[ActingRun]) -> None:
    with visitor(browser, base) as window:
        page = compare(window)
        chart(page)
        row(page, sweep[11]).locator("input.one").focus()
        for run in (sweep[11], sweep[10], sweep[9]):
            row(page, run).locator("input.one").press("Space")
        chart(page, groups=3)
        pin = row(page, sweep[4]).get_by_role("button", name="pin")
        pin.focus()
        pin.press("Enter")
        expect(row(page, sweep[4])).to_contain_text("baseline")
        page.wait_for_url(f"**/compare?*base={sweep[4].lease.run_id}*")


# the last one: from here on its run is the newest, which the page compares by itself
def test_zoom_reads_finer_points(browser: Browser, base: str, api: Client) -> None:
    yaml = "\n".join(
        line
        for line in (Path(__file__).parents[2] / "configs/gssm/debug.yaml").read_text().splitlines()
        if not line.startswith("grid")
    )
    (long,) = report_sweep(api, yaml=yaml, name="long", leave_running=1)
    send(long, 64, 0, 5000, period=1)
    with visitor(browser, base) as window:
        page = compare(window, f"?runs={long.lease.run_id}&log=false")
        name = f"{LOSS}-linear"
        before = next(iter(chart(page, name, groups=1)["points"].values()))
        drag(page, name, 0.4, 0.5)
        eventually(
            lambda: next(iter(chart(page, name, groups=1)["points"].values())) > before, within=30, what="finer points"
        )
