"""Many jobs and workers at once, each with a client of its own: none is claimed twice and none is lost."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.app import create_app
from backend.settings import Settings
from nanollama.api.client import Client
from nanollama.api.schemas import Held, SyncRequest, TransitionRequest, WorkerRegistration
from nanollama.api.status import AttemptState, RunState
from tests.support.service import SPEC_YAML, serve

WORKERS, SLOTS = 8, 25


def work(url: str, name: str, barrier: threading.Barrier) -> list[str]:
    """Claim and finish jobs until none is left; the attempts, in the order in which they came."""
    done: list[str] = []
    held: list[Held] = []
    with Client(url, timeout=120) as client:
        registration = WorkerRegistration(
            name=name, pool=name, executor="fake", host="h", user="u", run_root="/r", slots=SLOTS, version="1"
        )
        client.register(name, registration)
        barrier.wait()
        while True:
            leases = client.sync(name, SyncRequest(held=held, free_slots=SLOTS)).leases
            if not leases:
                return done
            for lease in leases:
                assert lease.epoch == 1, "delivered again: an earlier reply was lost"
                done.append(lease.attempt_id)
                end = TransitionRequest(
                    transition_id=f"{name}-{len(done):08}", epoch=1, to=AttemptState.SUCCEEDED, exit_code=0, result={}
                )
                client.transition(lease.attempt_id, end)


def check_load(database_url: str, jobs: int) -> None:
    with serve(create_app(Settings(database_url=database_url))) as url, Client(url) as client:
        grid = f"grid:\n  orchestration.utils.seed: range(0, {jobs})\n"
        experiment = client.submit(yaml=SPEC_YAML + grid)
        barrier = threading.Barrier(WORKERS)
        with ThreadPoolExecutor(WORKERS) as pool:
            claims = list(pool.map(lambda i: work(url, f"w{i}", barrier), range(WORKERS)))
        counts = Counter(attempt_id for claimed in claims for attempt_id in claimed)
        assert set(counts.values()) == {1}
        assert len(counts) == jobs
        assert sum(1 for claimed in claims if claimed) > 1, "one worker did everything"
        assert client.experiment(experiment.id).counts == {RunState.SUCCEEDED: jobs}


def test_eight_workers_claim_each_of_500_jobs_once(database_url: str) -> None:
    check_load(database_url, 500)


@pytest.mark.slow
def test_eight_workers_claim_each_of_10_000_jobs_once(database_url: str) -> None:
    check_load(database_url, 10_000)
