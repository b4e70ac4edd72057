"""Runs of the small program, as a test sees them: through the service, and in their directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanollama.api.client import Client
from nanollama.api.errors import Unavailable
from nanollama.api.schemas import Attempt, Run
from nanollama.api.status import RunState
from tests.support.examples import experiment
from tests.support.invariants import Executing, check_invariants, nothing
from tests.support.small_training import STARTS
from tests.support.waiting import eventually

SECONDS = 120.0


class SmallRuns:
    """A service, and a run root whose worker executes the small program.

    Args:
        client: connection to the service.
        root: the run root.
        log: what the worker says.
    """

    def __init__(self, client: Client, root: Path, log: Path) -> None:
        self.client = client
        self.root = root
        self.log = log
        self._unchecked: list[str] = []

    def submit(self, **fields: Any) -> str:
        """Submit a run; its id."""
        run_id = self.client.submit(**{"config": experiment(), **fields}).runs[0].id
        self._unchecked.append(run_id)
        return run_id

    def check(self, database_url: str, executing: Executing = nothing) -> None:
        """The runs that were submitted since the last time end, and the protocol's promises hold for them."""
        run_ids, self._unchecked = self._unchecked, []
        check_invariants(database_url, self.root, self.client, run_ids=run_ids, executing=executing)

    def run_dir(self, run_id: str) -> Path:
        """The directory of a run."""
        return self.root / run_id

    def tell(self, run_id: str, what: str) -> None:
        """Put a file into the directory of a run, which its program looks for."""
        self.run_dir(run_id).mkdir(exist_ok=True)
        (self.run_dir(run_id) / what).touch()

    def starts(self, run_id: str) -> list[tuple[int, int, str]]:
        """Attempt, job (or process) and node of each start of the run's program."""
        path = self.run_dir(run_id) / STARTS
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(attempt), int(job), node) for attempt, job, node in (line.split() for line in lines)]

    def wait_for_start(self, run_id: str, attempt: int = 1) -> tuple[int, int, str]:
        """Wait until an attempt's program has started: attempt, job and node."""

        def started() -> tuple[int, int, str] | None:
            return next((start for start in self.starts(run_id) if start[0] == attempt), None)

        found = eventually(started, within=SECONDS, what=f"the start of attempt {attempt}")
        assert found is not None
        return found

    def wait_for(self, run_id: str, *states: RunState, within: float = SECONDS) -> Run:
        """Wait until a run is in one of the states; another end of it is an error."""
        last: Run | None = None

        def reached() -> Run | None:
            nonlocal last
            try:
                last = self.client.run(run_id)
            except Unavailable:
                return None
            assert last.state in states or not last.state.terminal, f"{last.state}: {last.reason}\n{self.log_tail()}"
            return last if last.state in states else None

        try:
            run = eventually(reached, within=within, what=f"{[str(state) for state in states]}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {last!r}\n{self.log_tail()}") from None
        assert run is not None
        return run

    def wait_for_attempt(self, run_id: str, number: int) -> None:
        """Wait until a run has got so many attempts."""
        eventually(lambda: self.client.run(run_id).attempt >= number, within=SECONDS, what=f"attempt {number}")

    def attempts(self, run_id: str) -> list[Attempt]:
        """The attempts of a run, in order."""
        return sorted(self.client.attempts(run_id), key=lambda attempt: attempt.number)

    def stored_steps(self, run_id: str) -> list[int]:
        """Steps of the stored loss."""
        series = self.client.metrics(run_id, ["loss"], max_points=100_000).series
        return series["loss"].step if "loss" in series else []

    def written_steps(self, run_id: str) -> list[int]:
        """Steps of all lines that the attempts of a run have written, in their order."""
        files = sorted(self.run_dir(run_id).glob("[0-9]*/metrics/rank0.jsonl"), key=lambda p: int(p.parts[-3]))
        return [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]

    def log_tail(self) -> str:
        """The end of the worker's log."""
        return self.log_text()[-3000:]

    def log_text(self) -> str:
        """All that the worker has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""
