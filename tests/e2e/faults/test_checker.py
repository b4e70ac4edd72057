"""The checker of the promises finds each of them broken."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from backend.database import Database
from nanollama.api.status import RunState
from nanollama.spec.rundir import EXIT, RESULT, START_CLAIM
from tests.support.faults import FaultWorld
from tests.support.invariants import check_invariants
from tests.support.small_training import STARTS, TWICE
from worker.executors.processes import MARK

pytestmark = pytest.mark.xdist_group("faults")


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with other content, or without the file."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


@contextmanager
def left_running(attempt_id: str) -> Iterator[None]:
    program = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    environment = {**os.environ, MARK: attempt_id}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_each_broken_promise_is_found(shared_world: FaultWorld) -> None:
    world = shared_world
    run_id = world.submit()
    world.wait_for_steps(run_id)
    world.tell(run_id, "finish")
    world.wait_for(run_id, RunState.SUCCEEDED)
    run, attempt = world.run_dir(run_id), world.run_dir(run_id) / "1"
    (attempt_id,) = (known.id for known in world.attempts(run_id))
    metrics = (attempt / "metrics" / "rank0.jsonl").read_bytes()
    first = metrics.splitlines(keepends=True)[0]

    def check(database_url: str = world.database_url) -> None:
        check_invariants(database_url, world.root, world.client, run_ids=[run_id])

    check()
    broken = [
        (left_running(attempt_id), "it has ended, and process .* goes on"),
        (changed(attempt / EXIT, None), "succeeded without exit code 0"),
        (changed(attempt / RESULT, b"{}"), "its result is not that of"),
        (changed(attempt / START_CLAIM, b'{"holder": "void"}'), "it has made steps, and the claim is held by void"),
        (changed(attempt / "metrics" / "rank0.jsonl", metrics + first), "was written by more than one process"),
        (changed(attempt / "metrics" / "rank0.jsonl", metrics + first), "bytes of .* are stored"),
        (changed(attempt / "stdout.log", b"other words\n"), "no prefix of the file"),
        (changed(run / TWICE, b"two at once\n"), "two at once"),
        (changed(run / STARTS, b"1 1 here\n1 2 here\n"), "it was started 2 times"),
    ]
    for change, words in broken:
        with change, pytest.raises(AssertionError, match=words):
            check()
    check()
    copy = world.folder / "copy.db"
    with closing(sqlite3.connect(world.folder / "n2n.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    for statement, words in (
        ("UPDATE runs SET state = 'FAILED' WHERE id = :run", "the log gives"),
        ("UPDATE attempts SET epoch = 7 WHERE run_id = :run", "the log gives .*, the row is .*7"),
        ("UPDATE attempts SET exit_code = 3 WHERE run_id = :run", "succeeded without exit code 0"),
    ):
        database = Database(f"sqlite:///{copy}")
        with database.write() as session:
            session.execute(text(statement), {"run": run_id})
        database.dispose()
        with pytest.raises(AssertionError, match=re.compile(words)):
            check(f"sqlite:///{copy}")
