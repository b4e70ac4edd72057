"""The main job from one command: a config goes in, loss against its bound comes out, nothing stays behind."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from nanollama.api.client import Client
from nanollama.api.status import RunState
from tests.support.browser import chromium, visitor
from tests.support.demo import Demo, start_demo
from tests.support.installation import Installation
from tests.support.page import chart
from tests.support.waiting import eventually

pytestmark = pytest.mark.xdist_group("wheel")


def test_it_prints_loss_bound_excess_and_the_page(demo: Demo) -> None:
    found = {key: float(value) for key, value in re.findall(r"^(loss|bound|excess) +(-?\d+\.\d+)", demo.text, re.M)}
    assert found["excess"] == pytest.approx(found["loss"] - found["bound"], abs=2e-4)
    assert demo.page_line() == f"{demo.page_url}/run?run={demo.run_id}"


def test_the_excess_is_positive_within_noise_and_falls_by_half(demo: Demo) -> None:
    with Client(demo.api_url) as client:
        run = client.run(demo.run_id)
        series = client.metrics(demo.run_id, ["loss", "bound", "excess"], max_points=10_000).series
        checkpoints = client.checkpoints(demo.run_id)
    assert run.state is RunState.SUCCEEDED
    excess = series["excess"].value
    for e, loss, bound in zip(excess, series["loss"].value, series["bound"].value, strict=True):
        assert e == pytest.approx(loss - bound, abs=1e-5)
    assert min(excess) > -0.01
    assert sum(excess[-5:]) / 5 < excess[0] / 2
    assert series["excess"].step == sorted(set(series["excess"].step))
    assert series["excess"].step[-1] == run.progress.total_steps
    assert checkpoints
    assert all(Path(c.path).is_dir() for c in checkpoints)


@pytest.mark.browser
def test_the_page_shows_the_curve_a_dashed_bound_and_checkpoints(demo: Demo) -> None:
    with chromium() as browser:
        for dark in (False, True):
            with visitor(browser, demo.page_url, width=1400, height=1000, dark=dark) as window:
                page = window.open(f"/run?run={demo.run_id}")
                seen = chart(page, points=50)
                assert len(seen["saved"]) == 3
                assert seen["marks"] >= 3
                assert "," in seen["dash"], seen["dash"]
                assert any(re.fullmatch(r"H = \d\.\d{4}", re.sub("<[^>]*>", "", text)) for text in seen["labels"])
                assert not window.complaints()
                assert not window.strangers


def test_exit_ends_by_itself_with_success_and_leaves_no_process(installation: Installation, tmp_path: Path) -> None:
    with installation.with_short_demo():
        running = start_demo(installation, tmp_path, "--exit")
        eventually(lambda: "watch it on" in running.text or running.process.poll() is not None, within=120)
    children = running.children()
    assert len(children) >= 3, running.text
    assert running.process.wait(240) == 0, running.text
    eventually(lambda: not [c for c in children if c.is_running()], what="the end of every child")


def test_ctrl_c_in_the_middle_of_the_run_leaves_no_process(installation: Installation, tmp_path: Path) -> None:
    running = start_demo(installation, tmp_path)
    eventually(lambda: "step" in running.text or running.process.poll() is not None, within=120)
    eventually(
        lambda: any("nanollama.apps.gssm.train" in " ".join(c.cmdline()) for c in _alive(running)),
        within=120,
        what="the training process",
    )
    # supervisors of runs detach themselves, so they are looked for by the folder that they work in
    assert running.interrupt() == 130, running.text
    eventually(lambda: not _working_in(tmp_path), what="the end of every process")


def _alive(running: Demo) -> list[psutil.Process]:
    assert running.process.poll() is None, running.text
    return _working_in(running.output.parent)


def _working_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
