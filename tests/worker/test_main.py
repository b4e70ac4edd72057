"""The worker as a process: signals, crashes, outages; and how it refuses what it cannot use."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nanollama.api.status import AttemptState
from tests.support.examples import experiment
from tests.support.lease_service import LeaseService, StoredAttempt, serve
from tests.support.ports import free_ports
from tests.support.waiting import eventually
from worker.executors.processes import find_tree
from worker.main import main

ROOT = Path(__file__).resolve().parents[2]


class World:
    """A service, and a worker that can be started again and again."""

    def __init__(self, folder: Path, url: str, service: LeaseService) -> None:
        self.service = service
        self.url = url
        self.root = folder / "runs"
        self.root.mkdir()
        self.home = folder / "home"
        self.log = folder / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        module = [sys.executable, "-m", "tests.support.tiny_worker"]
        arguments = [
            "--url",
            self.url,
            "--run-root",
            str(self.root),
            "--home",
            str(self.home),
            "--grace",
            "1",
            *options,
        ]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*module, *arguments], cwd=ROOT, stderr=log)
        return self.process

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def add(self, attempt_id: str) -> StoredAttempt:
        return self.service.add(attempt_id, experiment())

    def directory(self, attempt_id: str) -> Path:
        return self.root / f"r-{attempt_id}" / "1"

    def wait(self, attempt_id: str, state: AttemptState) -> StoredAttempt:
        attempt = self.service.attempts[attempt_id]
        eventually(lambda: attempt.state is state, what=str(state))
        return attempt

    def wait_for_registrations(self, count: int) -> None:
        eventually(lambda: self.log.read_text().count("registered") >= count)

    def wait_for_metrics(self, attempt_id: str) -> None:
        """Until more has been shipped than now."""
        streams = self.service.attempts[attempt_id].streams
        before = len(streams.get("metrics/rank0.jsonl", b""))
        eventually(lambda: len(streams.get("metrics/rank0.jsonl", b"")) > before, what="a metric line")

    def finish(self, attempt_id: str) -> None:
        (self.directory(attempt_id) / "finish").touch()

    def close(self) -> None:
        for attempt_id in self.service.attempts:
            for process in find_tree(attempt_id):
                process.kill()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    service = LeaseService()
    with serve(service) as url, contextlib.closing(World(tmp_path, url, service)) as world:
        yield world


def check_complete(world: World, attempt: StoredAttempt) -> None:
    """Nothing is missing and nothing is twice."""
    directory = world.directory(attempt.lease.attempt_id)
    assert bytes(attempt.streams["metrics/rank0.jsonl"]) == (directory / "metrics/rank0.jsonl").read_bytes()
    lines = attempt.streams["metrics/rank0.jsonl"].decode().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(len(lines)))


def test_a_worker_killed_mid_run_takes_it_up_again(world: World) -> None:
    attempt_id = f"kill-{os.getpid()}"
    world.add(attempt_id)
    for life in range(3):
        process = world.start()
        world.wait(attempt_id, AttemptState.RUNNING)
        world.wait_for_registrations(life + 1)
        world.wait_for_metrics(attempt_id)
        process.kill()
        process.wait()
    assert len(list(find_tree(attempt_id))) == 1
    world.finish(attempt_id)  # while no worker looks
    world.service.away = True
    world.start()
    eventually(lambda: world.said("trying again"))
    world.service.away = False
    attempt = world.wait(attempt_id, AttemptState.SUCCEEDED)
    check_complete(world, attempt)
    assert attempt.streams["stdout.log"] == f'{{"steps": {attempt.ended.result["step"]}}}'.encode()
    assert [request.to for request in attempt.transitions] == ["RUNNING", "SUCCEEDED"]
    assert list(find_tree(attempt_id)) == []


def test_sigterm_leaves_the_runs_to_the_next_worker(world: World) -> None:
    attempt_id = f"drain-{os.getpid()}"
    world.add(attempt_id)
    process = world.start()
    world.wait(attempt_id, AttemptState.RUNNING)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert world.said("runs left to the next worker of this pool: 1")
    assert len(list(find_tree(attempt_id))) == 1
    world.start()
    world.wait_for_registrations(2)
    world.finish(attempt_id)
    check_complete(world, world.wait(attempt_id, AttemptState.SUCCEEDED))


def test_a_second_signal_cancels_the_runs(world: World) -> None:
    attempt_id = f"twice-{os.getpid()}"
    world.add(attempt_id)
    process = world.start()
    world.wait(attempt_id, AttemptState.RUNNING)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    world.wait(attempt_id, AttemptState.CANCELLED)
    assert list(find_tree(attempt_id)) == []


@pytest.mark.parametrize("stubborn", [False, True])
def test_with_stop_jobs_on_exit_one_signal_interrupts_the_runs(world: World, stubborn: bool) -> None:
    attempt_id = f"stop-{stubborn}-{os.getpid()}"
    if stubborn:
        world.directory(attempt_id).parent.mkdir()
        (world.directory(attempt_id).parent / "stubborn").touch()
    world.add(attempt_id)
    process = world.start("--stop-jobs-on-exit")
    world.wait(attempt_id, AttemptState.RUNNING)
    world.wait_for_metrics(attempt_id)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    attempt = world.wait(attempt_id, AttemptState.INTERRUPTED)
    assert attempt.ended.exit_code == (137 if stubborn else 75)
    check_complete(world, attempt)
    assert list(find_tree(attempt_id)) == []


def test_a_cancel_mid_run_leaves_no_process(world: World) -> None:
    attempt_id = f"cancel-{os.getpid()}"
    world.add(attempt_id)
    world.start()
    world.wait_for_metrics(attempt_id)
    world.service.cancel(attempt_id)
    check_complete(world, world.wait(attempt_id, AttemptState.CANCELLED))
    assert list(find_tree(attempt_id)) == []


def test_a_home_has_one_worker(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    process = world.start("--name", "first")
    eventually(lambda: world.said("registered"))
    arguments = ["--url", world.url, "--run-root", str(world.root), "--home", str(world.home)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"in use by worker first (process {process.pid} on " in error
    assert "choose another home" in error


def test_two_runs_go_at_once(world: World) -> None:
    names = [f"both{i}-{os.getpid()}" for i in range(2)]
    for name in names:
        world.add(name)
    world.start("--slots", "2")
    for name in names:
        world.wait_for_metrics(name)
    assert all(len(list(find_tree(name))) == 1 for name in names)
    for name in names:
        world.finish(name)
        check_complete(world, world.wait(name, AttemptState.SUCCEEDED))


def test_the_settings_can_come_from_a_file(world: World, tmp_path: Path) -> None:
    attempt_id = f"file-{os.getpid()}"
    file = tmp_path / "worker.yaml"
    file.write_text("name: filed\nslots: 1\nlabels: [here]\n")
    world.add(attempt_id)
    world.start("--config", str(file))
    world.wait(attempt_id, AttemptState.RUNNING)
    (registration,) = world.service.workers.values()
    assert (registration["name"], registration["labels"]) == ("filed", ["here"])


def test_a_run_that_a_lost_journal_does_not_know_is_told_and_left_alone(world: World) -> None:
    attempt_id = f"stray-{os.getpid()}"
    world.add(attempt_id)
    process = world.start()
    world.wait_for_metrics(attempt_id)
    process.kill()
    process.wait()
    shutil.rmtree(world.home)
    world.start()
    words = f"{world.directory(attempt_id)} is executed here by process "
    eventually(lambda: world.said(words))
    eventually(lambda: any(words in text for worker in world.service.workers.values() for text in worker["problems"]))
    assert len(list(find_tree(attempt_id))) == 1
    world.service.give_to(attempt_id, None)  # the lease of the first life has expired
    world.wait_for_metrics(attempt_id)
    world.finish(attempt_id)
    attempt = world.wait(attempt_id, AttemptState.SUCCEEDED)
    check_complete(world, attempt)
    assert [request.to for request in attempt.transitions] == ["RUNNING", "SUCCEEDED"]


# -- a service that does not accept the worker -------------------------------------------------------------------------


def test_a_token_that_is_not_accepted_ends_the_start_with_one_line_and_2(world: World) -> None:
    world.service.token = "good"
    assert world.start().wait(60) == 2
    (line,) = [line for line in world.log.read_text().splitlines() if "ERROR" in line]
    assert "the service does not accept this worker: the service does not accept this worker's token" in line
    assert "name a file with --token-file, or set $N2N_TOKEN" in line


def test_a_token_that_expires_is_renewed_from_its_file(world: World, tmp_path: Path) -> None:
    attempt_id, file = f"token-{os.getpid()}", tmp_path / "token"
    file.write_text("first\n")
    world.service.token = "first"
    world.add(attempt_id)
    process = world.start("--token-file", str(file))
    world.wait_for_metrics(attempt_id)
    world.service.token = "second"
    words = f"this worker's token (this token has expired) - put another into {file}; jobs go on"
    eventually(lambda: world.said(words))
    file.write_text("second\n")
    world.wait_for_metrics(attempt_id)
    world.finish(attempt_id)
    check_complete(world, world.wait(attempt_id, AttemptState.SUCCEEDED))
    assert process.poll() is None
    assert world.log.read_text().count(words) == 1


def test_a_service_that_takes_no_workers_is_called_so(world: World) -> None:
    world.service.takes_workers = False
    process = world.start()
    eventually(lambda: world.said("takes no workers: it is of an older version, or another service"))
    world.service.takes_workers = True
    world.wait_for_registrations(1)
    assert process.poll() is None
    assert world.log.read_text().count("takes no workers") == 1


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--run-root": "missing"}, "--run-root: {tmp}/missing does not exist"),
        ({"--run-root": "file"}, "--run-root: {tmp}/file is not a folder"),
        ({"--run-root": "/proc"}, "--run-root: cannot write in /proc"),
        ({"--home": "/proc/home"}, "--home: cannot make /proc/home"),
        ({"--home": "file"}, "--home: cannot make {tmp}/file"),
        ({"--slots": "0"}, "--slots: should be a number from 1 to 100,000, or auto, found 0"),
        ({"--slots": "many"}, "--slots: should be a number from 1 to 100,000, or auto, found 'many'"),
        ({"--url": "localhost:8420"}, "--url: 'localhost:8420' is not the address of a service"),
        ({"--url": "http://[oops"}, "--url: 'http://[oops' is not the address of a service"),
        ({"--grace": "-1"}, "--grace: should be greater than or equal to 0, found -1.0"),
        ({"--pool": "x" * 501}, "--pool: string should have at most 500 characters"),
        ({"--colour": "red"}, "unrecognized arguments: --colour red"),
    ],
)
def test_bad_arguments_end_in_one_line_and_2(
    change: dict[str, str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("runs").mkdir()
    given = {"--url": "http://127.0.0.1:9", "--run-root": "runs", "--home": "home"} | change
    assert main([text for pair in given.items() for text in pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words.format(tmp=tmp_path) in error


def test_a_service_that_is_not_up_yet_is_waited_for(world: World) -> None:
    (port,) = free_ports(1)
    served, world.url = world.url, f"http://127.0.0.1:{port}"
    process = world.start()
    eventually(lambda: world.said(f"no answer from {world.url}"))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert world.log.read_text().count("no answer from") == 1
    assert served != world.url


def test_a_server_that_is_not_ours_is_called_so(world: World) -> None:
    class Foreign(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        world.url = f"http://127.0.0.1:{server.server_address[1]}"
        world.start()
        eventually(lambda: world.said("answered 200, but not as this service does: <html>It works!</html>"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_starts_without_what_belongs_to_the_other_rooms() -> None:
    code = (
        "import sys, worker.main, worker.executors.supervisor; "
        "print([name for name in ('torch', 'numpy', 'backend', 'dashboard', 'sqlalchemy') if name in sys.modules])"
    )
    reply = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert reply.stdout == "[]\n"
