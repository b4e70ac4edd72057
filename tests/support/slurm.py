"""A real Slurm of three nodes on this machine, for tests: its crashes, and programs of Slurm that misbehave."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nanollama.cluster.slurm import QUEUE_FORMAT, JobState, parse_queue
from tests.support.waiting import eventually

TESTBED = Path(__file__).with_name("slurm_testbed.sh")
PROGRAMS = ("sbatch", "squeue", "scancel", "sacct", "scontrol")

_WRAPPER = """\
#!/bin/bash
# Notes the call, then does what the mode says: real, fail, refuse, empty, hang, late (the real thing, and then no
# answer), slow (the real thing, once the mode is another).
here={folder}
echo "$(date +%s.%N) $*" >> "$here/{name}.calls"
case "$(cat "$here/{name}.mode" 2>/dev/null)" in
  fail) echo "{name}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
  empty) exit 0 ;;
  refuse) echo "{name}: error: Batch job submission failed: Invalid account" >&2; exit 1 ;;
  hang) exec sleep 600 ;;
  slow) while [ "$(cat "$here/{name}.mode")" = slow ]; do sleep 0.2; done ;;
  late) {path} "$@" >/dev/null; exec sleep 600 ;;
esac
exec {path} "$@"
"""


class SlurmCluster:
    """A cluster with the nodes n1, n2 and n3, of four CPUs each. No accounting."""

    def __init__(self, *, extra: Mapping[str, str] | None = None) -> None:
        # short: sockets lie in it
        self.folder = Path(tempfile.mkdtemp(prefix="n2n-slurm-", dir="/tmp"))
        # ended jobs are asked for at the end of a test: on a busy machine, later than the five minutes of Slurm
        # a job on several nodes meets at a port that follows from its number (nanollama.cluster.slurm): two clusters on
        # this machine must not have the same numbers; these give ports between those of the testbed and passing ones
        first = random.randrange(12_000, 12_600)
        given = {"MinJobAge": "3600", "FirstJobId": str(first), **(extra or {})}
        self._settings = {f"TESTBED_{key}": value for key, value in given.items()}
        try:
            self._testbed("start")
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which Slurm's programs talk to this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def isolated(self) -> bool:
        """Whether each node has a host name and processes of its own."""
        return "isolate=1" in (self.folder / "env").read_text()

    def crash_node(self, name: str) -> None:
        """Take the power from a node."""
        self._testbed("crash-node", name)

    def start_node(self, name: str) -> None:
        """Start a node again, and wait until it takes jobs."""
        self._testbed("start-node", name)
        eventually(lambda: self.node_state(name) in ("idle", "mixed", "allocated"), what=f"the return of {name}")

    def stop_controller(self) -> None:
        """Stop slurmctld: no program of Slurm gets an answer."""
        self._testbed("stop-ctld")

    def kill_controller(self) -> None:
        """SIGKILL of slurmctld: it forgets what it has not written down yet, some seconds' news."""
        self._testbed("kill-ctld")

    def has_written_down(self, marker: str, since: float) -> bool:
        """Whether slurmctld knows, also after a crash, what it knew of a job at a time."""
        state = self.folder / "state" / "job_state"
        return state.exists() and state.stat().st_mtime > since and marker.encode() in state.read_bytes()

    def start_controller(self) -> None:
        """Start slurmctld again, and wait for its answers."""
        self._testbed("start-ctld")
        eventually(lambda: self.run("squeue", check=False).returncode == 0, what="the controller")

    def mark_down(self, name: str) -> None:
        """Let Slurm learn at once that a node has crashed."""
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def node_state(self, name: str) -> str:
        """The short name of a node's state."""
        return self.run("sinfo", "-h", "-n", name, "-p", "batch", "-o", "%T").stdout.strip().rstrip("*")

    def jobs(self, marker: str) -> list[JobState]:
        """Every job of a name that Slurm remembers."""
        text = self.run("squeue", "-h", "-t", "all", "-n", marker, "-o", QUEUE_FORMAT).stdout
        return [state for state in parse_queue(text) if state.name == marker]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of Slurm."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=check, cwd="/"
        )

    def close(self) -> None:
        """Stop everything and remove it."""
        try:
            if (self.folder / "slurm.conf").exists():
                self._testbed("stop")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _testbed(self, *words: str) -> None:
        command, *rest = words
        # output into a file: the daemons inherit it, and a pipe would not end before they do
        with (self.folder / "testbed.log").open("a+") as log:
            done = subprocess.run(
                ["bash", str(TESTBED), command, str(self.folder), *rest],
                env={**os.environ, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=120,
                check=False,
            )
            log.seek(0)
            assert done.returncode == 0, log.read()[-3000:]


class Programs:
    """Slurm's programs as a worker finds them first on its path: they count calls, and misbehave when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in PROGRAMS:
            path = shutil.which(name)
            assert path is not None
            wrapper = folder / name
            wrapper.write_text(_WRAPPER.format(folder=folder, name=name, path=path))
            wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)

    @property
    def path(self) -> str:
        """PATH with the programs first."""
        return f"{self.folder}:{os.environ['PATH']}"

    def set(self, name: str, mode: str) -> None:
        """How a program behaves from now on: real, fail, refuse, empty, hang, late, or slow."""
        temporary = self.folder / f"{name}.mode.new"
        temporary.write_text(mode)
        temporary.replace(self.folder / f"{name}.mode")

    def calls(self, name: str) -> list[str]:
        """The calls of a program so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


def start_or_skip() -> SlurmCluster:
    """A cluster; without the programs the test is skipped, or fails under CI=true."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=path) is None]
    if missing:
        packages = "slurmctld slurmd slurm-client munge"
        reason = f"no {', '.join(missing)}; on Debian: apt-get install --no-install-recommends {packages}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return SlurmCluster()


_shared: list[SlurmCluster] = []  # once for each module that has imported the fixture and uses it


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """One cluster for the tests of this process. Each module that imports it has a fixture of its own: they share."""
    cluster = _shared[0] if _shared else start_or_skip()
    _shared.append(cluster)
    try:
        yield cluster
    finally:
        _shared.pop()
        if not _shared:
            cluster.close()
