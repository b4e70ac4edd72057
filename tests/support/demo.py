"""`n2n demo`, started as a user starts it, from an installed wheel."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.installation import Installation
from tests.support.ports import free_ports
from tests.support.waiting import eventually


@dataclass
class Demo:
    """The running command. Its output is collected in a file."""

    process: subprocess.Popen[bytes]
    output: Path
    api_url: str
    page_url: str
    run_id: str = ""

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def wait_until_finished(self) -> None:
        """Wait for the final lines and remember the run's id."""
        what = "the end of the demo's run"
        eventually(lambda: self.page_line() or self.process.poll() is not None, within=240, what=what)
        assert self.process.poll() is None, self.text
        self.run_id = self.page_line().rpartition("=")[2]

    def page_line(self) -> str:
        """The URL on the last line that starts with `page`."""
        lines = [line.split() for line in self.text.splitlines()]
        return next((words[1] for words in reversed(lines) if len(words) == 2 and words[0] == "page"), "")

    def children(self) -> list[psutil.Process]:
        """Every process that descends from the command."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def start_demo(installation: Installation, folder: Path, *arguments: str) -> Demo:
    """Start `n2n demo` on free ports with everything it keeps under `folder`."""
    api_port, page_port = free_ports(2)
    output = folder / "demo.txt"
    ports = ["--api-port", str(api_port), "--page-port", str(page_port)]
    command = [str(installation.n2n), "demo", "--home", str(folder / "home"), *ports, *arguments]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=installation.cwd,
            env=installation.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Demo(process, output, f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{page_port}")
