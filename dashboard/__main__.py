"""`python -m dashboard`: serve the page on loopback."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from nanollama.api.client import server_url
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.command import run_command

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORT = 8421


def main(arguments: Sequence[str]) -> int:
    """Replace this process by Streamlit serving the page.

    Raises:
        SpecError: a host beyond loopback, or a port that cannot be had.
    """
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="Serve the page of the laboratory.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; loopback only (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen on (default: %(default)s)")
    parser.add_argument("--api-url", default=server_url(), help="the service to show (default: %(default)s)")
    options = parser.parse_args(arguments)
    _check_address(options.host, options.port)
    _check_url(options.api_url)
    command = [sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("app.py"))]
    command += ["--server.address", options.host, "--server.port", str(options.port)]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, "N2N_URL": options.api_url})  # noqa: S606 - no shell is the point


def _check_address(host: str, port: int) -> None:
    if host not in LOOPBACK:
        message = f"{host} is not a loopback address; without tokens the page would be open to everyone on the network"
        remedy = "use 127.0.0.1 and reach it from elsewhere through `ssh -L`"
        raise SpecError([Problem(path="--host", message=message, remedy=remedy)])
    if not 1 <= port <= 65535:
        raise SpecError([Problem(path="--port", message=f"{port} is not a port", remedy="use 1 to 65535")])
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}"
            remedy = "stop what listens there, or choose another port with --port"
            raise SpecError([Problem(path="--port", message=message, remedy=remedy)]) from None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        remedy = "give the root of the service, for example http://127.0.0.1:8420"
        raise SpecError([Problem(path="--api-url", message=f"'{url}' is not the address of a service", remedy=remedy)])


if __name__ == "__main__":
    sys.exit(run_command(main))
