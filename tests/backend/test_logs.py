"""What the service logs: for people, or for programs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from backend.logs import JsonLines, TextLines, request_id
from tests.backend.test_process import SECONDS, environment


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("backend.errors", logging.ERROR, "file.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_lines_know_their_request() -> None:
    token = request_id.set("r-1")
    try:
        line = json.loads(JsonLines().format(record("lost %d\n“x”", 3, fields={"status": 500})))
        assert line.pop("time").endswith("+00:00")
        assert line == {"level": "error", "logger": "backend.errors", "message": "lost 3\n“x”", "request_id": "r-1",
                        "status": 500}  # fmt: skip
        assert TextLines().format(record("lost")).endswith("backend.errors ERROR lost request_id=r-1")
    finally:
        request_id.reset(token)
    assert "request_id" not in json.loads(JsonLines().format(record("lost")))


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    text = JsonLines().format(made)
    assert "\n" not in text
    assert json.loads(text)["traceback"].endswith("ValueError: no")


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_everything_that_a_service_logs_is_json(given: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backend", "serve", "--migrate", "--port", "0", "--log-level", "info"]
    variables = {"N2N_LOG_FORMAT": "json"} if given == "environment" else {}
    command += ["--log-format", "json"] if given == "argument" else []
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(**variables), stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("serving ").strip()
        headers = {"X-Request-ID": "find-me"}
        assert httpx.get(f"{url}/api/v1/runs", headers=headers, trust_env=False, timeout=SECONDS).status_code == 200
        process.terminate()
        process.communicate(timeout=SECONDS)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (answered,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert (answered["path"], answered["status"], answered["logger"]) == ("/api/v1/runs", 200, "backend.access")
