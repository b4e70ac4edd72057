"""`python -m dashboard` as a process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from dashboard.__main__ import main
from nanollama.spec.base import SpecError
from tests.support.page import serve_page


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_page("http://127.0.0.1:9", tmp_path_factory.mktemp("page")) as address:
        yield address


def test_it_serves_its_own_copy_of_plotly(url: str) -> None:
    reply = httpx.get(f"{url}/app/static/plotly-basic.min.js", trust_env=False, timeout=30)
    assert reply.status_code == 200
    assert "javascript" in reply.headers["content-type"]
    assert "plotly.js (basic - minified)" in reply.text[:200]
    licence = httpx.get(f"{url}/app/static/plotly-basic.LICENSE", trust_env=False, timeout=30)
    assert licence.text.startswith("MIT License")


def test_it_sends_nothing_about_its_users(url: str) -> None:
    page = httpx.get(url, trust_env=False, timeout=30).text
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_port_in_use_is_one_line_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = subprocess.run(
            [sys.executable, "-m", "dashboard", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert f"127.0.0.1:{port}: address already in use" in answer.stderr
    assert "choose another port with --port" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is not a loopback address"),
        (["--host", "lab.example.com"], "ssh -L"),
        (["--port", "70000"], "use 1 to 65535"),
        (["--api-url", "lab"], "'lab' is not the address of a service"),
    ],
)
def test_bad_arguments_are_told_with_the_remedy(arguments: list[str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        main(arguments)
