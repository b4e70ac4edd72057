"""Many jobs and workers at once, on two services of one database: no job is claimed twice and none is lost.

Each worker and each service is a process of its own, so that nothing but the database tells them apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nanollama.api.client import Client
from nanollama.api.status import RunState
from tests.support.crashing import ServerProcess
from tests.support.ports import free_ports
from tests.support.service import SPEC_YAML

ROOT = Path(__file__).parents[2]
WORKERS, SLOTS = 8, 25


def claims_of_workers(urls: list[str]) -> list[list[str]]:
    """What workers that begin together have claimed, by worker."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.claiming", url, f"w{i}", str(SLOTS)],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for i, url in enumerate(urls)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=1800)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def check_load(database_url: str, folder: Path, jobs: int) -> None:
    servers = [ServerProcess(database_url, folder, port) for port in free_ports(2)]
    started: list[ServerProcess] = []
    try:
        for server in servers:
            server.start()
            started.append(server)
        with Client(servers[0].url, timeout=300) as client:
            grid = f"grid:\n  orchestration.utils.seed: range(0, {jobs})\n"
            experiment = client.submit(yaml=SPEC_YAML + grid)
            claims = claims_of_workers([servers[i % 2].url for i in range(WORKERS)])
            counts = Counter(attempt_id for claimed in claims for attempt_id in claimed)
            assert set(counts.values()) == {1}
            assert len(counts) == jobs
            assert sum(1 for claimed in claims if claimed) > 1, "one worker did everything"
            assert client.experiment(experiment.id).counts == {RunState.SUCCEEDED: jobs}
    finally:
        for server in started:
            server.kill()


def test_eight_workers_claim_each_of_300_jobs_once(database_url: str, tmp_path: Path) -> None:
    check_load(database_url, tmp_path, 300)


@pytest.mark.slow
def test_eight_workers_claim_each_of_10_000_jobs_once(database_url: str, tmp_path: Path) -> None:
    check_load(database_url, tmp_path, 10_000)
