from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nanollama.api.schemas import Lease, TransitionRequest
from nanollama.api.status import AttemptState
from nanollama.spec.base import SpecError
from worker.journal import Journal, Record
from worker.shipping import Splice


def record(attempt_id: str = "a1", epoch: int = 1) -> Record:
    lease = Lease(
        attempt_id=attempt_id,
        run_id="r1",
        run_name="run",
        number=1,
        epoch=epoch,
        state=AttemptState.LEASED,
        app="gssm.train",
        config={"optim": {"lr": 1e-3}},
    )
    return Record(lease, Path("/runs/r1/1"), lease.state)


def report(to: AttemptState, epoch: int = 1, name: str = "t") -> TransitionRequest:
    return TransitionRequest(transition_id=f"{name}-{to}-{epoch}", epoch=epoch, to=to)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "worker.sqlite")) as journal:
        yield journal


def reopened(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "worker.sqlite")


def test_everything_survives_a_restart(journal: Journal, tmp_path: Path) -> None:
    held = record()
    journal.hold(held)
    held = journal.end(held, "interrupt")
    requests = [report(AttemptState.RUNNING), report(AttemptState.SUCCEEDED)]
    for request in requests:
        journal.intend(held, request)
    with closing(reopened(tmp_path)) as later:  # the first is not closed, as after a SIGKILL
        assert later.worker_id == journal.worker_id
        assert later.held() == [held]
        assert later.pending(held) == requests


def test_an_acknowledged_report_is_not_sent_again(journal: Journal) -> None:
    held = record()
    journal.hold(held)
    journal.intend(held, report(AttemptState.RUNNING))
    held = journal.acknowledge(held, report(AttemptState.RUNNING))
    assert held.state is AttemptState.RUNNING
    assert journal.held() == [held]
    assert journal.pending(held) == []


def test_a_later_lease_replaces_the_earlier_one(journal: Journal) -> None:
    first, second = record(epoch=1), record(epoch=2)
    journal.hold(first)
    journal.intend(first, report(AttemptState.RUNNING))
    journal.hold(second)
    journal.forget(first)  # late: the job of the first lease has only now noticed
    assert journal.held() == [second]
    assert journal.pending(first) == journal.pending(second) == []


def test_forgetting_leaves_the_others(journal: Journal) -> None:
    journal.hold(record("a1"))
    journal.hold(record("a2"))
    journal.forget(record("a1"))
    assert journal.held() == [record("a2")]


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "worker.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(SpecError, match=r"worker\.sqlite.*choose another --home"):
        Journal(path)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "worker.sqlite")) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(SpecError, match="of version 7"):
        reopened(tmp_path)


@pytest.mark.parametrize(("version", "newer"), [(1, ["devices", "splices", "roots"]), (2, ["roots"])])
def test_the_journal_of_an_older_version_keeps_what_it_holds(
    journal: Journal, tmp_path: Path, version: int, newer: list[str]
) -> None:
    held = record()
    journal.hold(held)
    journal.intend(held, report(AttemptState.RUNNING))
    worker_id = journal.worker_id
    journal.close()
    with closing(sqlite3.connect(tmp_path / "worker.sqlite")) as db:  # as that version wrote it
        for table in newer:
            db.execute(f"DROP TABLE {table}")
        db.execute(f"PRAGMA user_version = {version}")
    with closing(reopened(tmp_path)) as later:
        assert (later.worker_id, later.held()) == (worker_id, [held])
        assert later.pending(held) == [report(AttemptState.RUNNING)]
        later.assign("a1", ["0", "GPU-1"])
        assert later.assigned() == {"a1": ("0", "GPU-1")}
        assert not later.knows_root(tmp_path)


def test_splices_go_with_the_attempt(journal: Journal, tmp_path: Path) -> None:
    held, splice = record(), Splice(7, "[n2n] stdout.log was cut\n", 3)
    journal.hold(held)
    journal.splice("a1", "stdout.log", splice)
    with closing(reopened(tmp_path)) as later:
        assert later.splices("a1") == {"stdout.log": splice}
    journal.forget(held)
    assert journal.splices("a1") == {}
