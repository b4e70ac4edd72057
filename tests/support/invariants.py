"""What the protocol promises, whatever crashed: read from the database, the file system and the process table."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select
from sqlalchemy.orm import undefer

from backend.database import Database
from backend.tables import Attempt, Event, Run
from nanollama.api.client import Client
from nanollama.api.status import AttemptState, RunState
from nanollama.spec.rundir import EXIT, METRICS, RESULT, Exit
from tests.support.small_training import STARTS, TWICE
from tests.support.waiting import eventually
from worker.executors.claim import Claim, read_claim
from worker.executors.processes import MARK
from worker.shipping import find_streams

SUPERVISORS = ("worker.executors.supervisor", "worker.executors.slurm_job")

Executing = Callable[[str, int], list[str]]
"""What a scheduler still executes of an attempt, by run and number."""


def nothing(_run_id: str, _attempt: int) -> list[str]:
    """There is no scheduler."""
    return []


def check_invariants(
    database_url: str,
    root: Path,
    client: Client,
    *,
    run_ids: Iterable[str] | None = None,
    executing: Executing = nothing,
) -> None:
    """Wait until every run has ended, then check what must hold.

    Args:
        database_url: the service's database.
        root: the run root.
        client: connection to the service.
        run_ids: the runs in question; all when absent.
        executing: asks a scheduler.

    Raises:
        AssertionError: with every promise that is broken.
    """
    wanted = None if run_ids is None else set(run_ids)
    database = Database(database_url)
    try:
        history = eventually(lambda: _ended(_History(database, wanted)), within=120, what="the end of every run")  # 8
    finally:
        database.dispose()
    broken = list(check_log(history.runs, history.attempts, history.events))
    marked = find_marked()
    for run in history.runs:
        attempts = [attempt for attempt in history.attempts if attempt.run_id == run.id]
        evidence = [_Evidence(root / run.id / str(attempt.number), attempt) for attempt in attempts]
        resolved = {event.attempt for event in history.events if event.run_id == run.id and event.kind == "resolved"}
        for one in evidence:
            found = [*marked.get(one.attempt.id, []), *executing(run.id, one.attempt.number)]
            broken += [f"{one}: it has ended, and {what} goes on" for what in found]  # 2
            by_hand = one.attempt.number in resolved
            broken += _check_attempt(one, run, by_hand=by_hand)
            broken += _check_streams(one, client, whole=not by_hand)
        broken += _check_order(run, evidence, root / run.id)
        broken += _check_metrics(run, evidence, client)
    assert not broken, "\n".join(broken)
    ours = {attempt.id for attempt in history.attempts}
    eventually(lambda: not find_supervisors(ours), what="the end of every supervisor")


class _History:
    """Rows of the database, of the runs in question."""

    def __init__(self, database: Database, run_ids: set[str] | None) -> None:
        with database.read() as session:
            ordered = select(Run).options(undefer(Run.result)).order_by(Run.id)
            self.runs = [r for r in session.scalars(ordered) if run_ids is None or r.id in run_ids]
            known = {run.id for run in self.runs}
            numbered = select(Attempt).order_by(Attempt.run_id, Attempt.number)
            self.attempts = [a for a in session.scalars(numbered) if a.run_id in known]
            self.events = [e for e in session.scalars(select(Event).order_by(Event.id)) if e.run_id in known]
            session.expunge_all()


class _Evidence:
    """What lies in the directory of an attempt."""

    def __init__(self, directory: Path, attempt: Attempt) -> None:
        self.directory, self.attempt = directory, attempt
        self.claim: Claim | None = read_claim(directory)
        exit_file = directory / EXIT
        self.exit = Exit.model_validate_json(exit_file.read_bytes()) if exit_file.exists() else None
        streams = (directory / METRICS).glob("rank*.jsonl")
        self.lines = {path.name: [json.loads(line) for line in _whole_lines(path.read_bytes())] for path in streams}
        self.steps: list[int] = [line["step"] for line in self.lines.get("rank0.jsonl", []) if "loss" in line]

    def __str__(self) -> str:
        return f"{self.attempt.run_id}/{self.attempt.number} ({self.attempt.state}: {self.attempt.reason})"


def _ended(history: _History) -> _History | None:
    return history if all(run.state.terminal for run in history.runs) else None


def _whole_lines(data: bytes) -> list[bytes]:
    return data[: data.rfind(b"\n") + 1].splitlines()


def find_marked() -> dict[str, list[str]]:
    """Live processes that belong to attempts, in words, by attempt."""
    found: dict[str, list[str]] = {}
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            if mark is not None and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                found.setdefault(mark, []).append(f"process {process.pid} {' '.join(process.cmdline())[:200]}")
        except (psutil.Error, OSError):
            continue
    return found


def find_supervisors(attempt_ids: Collection[str]) -> list[psutil.Process]:
    """Live supervisors of attempts, those in jobs of Slurm on this machine too."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.Error, OSError):
            continue
        if any(module in words[:4] for module in SUPERVISORS) and any(word in attempt_ids for word in words):
            found.append(process)
    return found


def _check_attempt(one: _Evidence, run: Run, *, by_hand: bool) -> Iterator[str]:
    """Of invariants 5 and 6: an attempt has ended by evidence, or can never have begun."""
    state = one.attempt.state
    holder = one.claim.holder if one.claim is not None else None
    if not state.terminal:
        yield f"{one}: it has not ended, its run has"
    if state is AttemptState.SUCCEEDED:
        if one.exit is None or one.exit.exit_code != 0 or one.attempt.exit_code != 0:
            yield f"{one}: succeeded without exit code 0: {one.exit}"
        result = one.directory / RESULT
        if not result.exists() or json.loads(result.read_bytes()) != run.result:
            yield f"{one}: succeeded, and its result is not that of {result}"
    if state is AttemptState.VOID and holder != "void":
        yield f"{one}: void, and the claim is held by {holder}"
    if holder != "job" and one.lines:
        yield f"{one}: it has made steps, and the claim is held by {holder}"
    if holder == "job" and one.exit is None and state in (AttemptState.SUCCEEDED, AttemptState.VOID) and not by_hand:
        yield f"{one}: it was started and has left no account"
    for name, lines in one.lines.items():
        if [line["seq"] for line in lines] != list(range(len(lines))):
            yield f"{one}: {name} was written by more than one process"
    if one.steps != sorted(set(one.steps)):
        yield f"{one}: it has made steps twice"


def _check_streams(one: _Evidence, client: Client, *, whole: bool) -> Iterator[str]:
    """Invariant 7: what is stored is the file; a torn last record is not stored."""
    stored = {info.name for info in client.streams(one.attempt.id)}
    files = set(find_streams(one.directory)) if one.directory.is_dir() else set()
    if stored - files:
        yield f"{one}: stored, and not in its directory: {sorted(stored - files)}"
    for name in sorted(files):
        data = (one.directory / name).read_bytes()
        expected = data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data
        found = b"".join(client.read_stream(one.attempt.id, name)) if name in stored else b""
        if not expected.startswith(found):
            yield f"{one}: what is stored of {name} is no prefix of the file"
        elif whole and found != expected and not _slurm_spoke_last(name, expected[len(found) :]):
            yield f"{one}: of {name} {len(found):,} bytes of {len(expected):,} are stored"


def _slurm_spoke_last(name: str, rest: bytes) -> bool:
    """Whether all that is missing in a log is what Slurm itself has added after the end."""
    return not name.endswith(".jsonl") and all(line.startswith(b"slurmstepd:") for line in rest.splitlines())


def _check_order(run: Run, evidence: Sequence[_Evidence], directory: Path) -> Iterator[str]:
    """Invariant 1: one after the other, each attempt at most once."""
    if (directory / TWICE).exists():
        yield f"{run.id}: {(directory / TWICE).read_text()}"
    ledger = directory / STARTS
    starts = Counter(int(line.split()[0]) for line in ledger.read_text().splitlines()) if ledger.exists() else {}
    for one in evidence:
        count = starts.get(one.attempt.number, 0)
        if count > 1 or (count and (one.claim is None or one.claim.holder != "job")):
            yield f"{one}: it was started {count} times; its claim is {one.claim}"
    times = [[line["time"] for line in itertools.chain(*one.lines.values())] for one in evidence]
    for (before, first), (after, second) in itertools.pairwise(zip(evidence, times, strict=True)):
        if first and second and max(first) > min(second):
            yield f"{before} was still at work when {after} began"


def _check_metrics(run: Run, evidence: Sequence[_Evidence], client: Client) -> Iterator[str]:
    """What is shown is what was written: of steps that were made again, the newest."""
    expected: list[int] = []
    for one in evidence:
        if one.steps:
            expected = [step for step in expected if step < one.steps[0]] + one.steps
    series = client.metrics(run.id, ["loss"], max_points=100_000).series
    shown = list(series["loss"].step) if "loss" in series else []
    if shown != expected:
        yield f"{run.id}: {len(shown)} steps are shown, {len(expected)} were made"
    if run.state is RunState.SUCCEEDED and expected != list(range(1, len(expected) + 1)):
        yield f"{run.id}: its curve has gaps"


# -- the event log -----------------------------------------------------------------------------------------------------


def check_log(runs: Sequence[Run], attempts: Sequence[Attempt], events: Sequence[Event]) -> Iterator[str]:
    """Invariant 3 (and 4, for no step of the replay may pass over an epoch): the log gives the rows."""
    ended: set[str] = set()
    for event in events:
        if event.kind == "reopened":
            ended.discard(event.run_id)
        elif event.kind == "transition" and event.run_id in ended:
            yield f"{event.run_id}: {event.from_state} -> {event.to_state} after its end"
        if event.kind == "transition" and event.to_state in ("SUCCEEDED", "CANCELLED"):
            ended.add(event.run_id)
    replayed_runs, replayed_attempts = replay(events)
    for run in runs:
        row = {
            "state": run.state.value,
            "attempt": run.attempt,
            "cancel_requested": run.cancel_requested,
            "unknown": run.unknown_since is not None,
        }
        if replayed_runs.get(run.id) != row:
            yield f"{run.id}: the log gives {replayed_runs.get(run.id)}, the row is {row}"
    for attempt in attempts:
        found, stands = replayed_attempts.get((attempt.run_id, attempt.number)), (attempt.state.value, attempt.epoch)
        if found != stands:
            yield f"{attempt.run_id}/{attempt.number}: the log gives {found}, the row is {stands}"


def replay(events: Sequence[Event]) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, int], tuple[str, int]]]:
    """State and newest attempt of each run, state and epoch of each attempt, from nothing but the log."""
    runs: dict[str, dict[str, Any]] = {}
    attempts: dict[tuple[str, int], tuple[str, int]] = {}
    for event in events:
        new = {"state": None, "attempt": 0, "cancel_requested": False, "unknown": False}
        run = runs.setdefault(event.run_id, new)
        if event.kind == "cancel_requested":
            run["cancel_requested"] = True
        elif event.kind == "reopened":
            assert run["state"] in ("FAILED", "CANCELLED")
            run["cancel_requested"] = False
        elif event.kind in ("unknown", "found"):
            run["unknown"] = event.kind == "unknown"
        elif event.kind in ("adopted", "redelivered"):
            assert event.attempt is not None
            assert event.epoch is not None
            state, epoch = attempts[event.run_id, event.attempt]
            assert event.epoch == epoch + 1
            attempts[event.run_id, event.attempt] = (state, event.epoch)
        elif event.kind == "transition":
            if event.attempt is not None:
                assert event.epoch is not None
                assert event.to_state is not None
                before = attempts.get((event.run_id, event.attempt))
                assert event.from_state == (None if before is None else before[0])
                attempts[event.run_id, event.attempt] = (event.to_state, event.epoch)
                run["unknown"] = run["unknown"] and event.to_state == "LEASED"
                run["attempt"] = max(run["attempt"], event.attempt)
            if event.to_state not in ("INTERRUPTED", "VOID"):
                run["state"] = event.to_state
    return runs, attempts
