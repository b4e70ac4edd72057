"""Tells the service which files of sequences lie in the folders that this worker was given for it.

The files are HDF5, which takes libraries that the daemon does without: another process looks at them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from nanollama.api.errors import ApiError
from nanollama.api.schemas import MAX_DATASETS, DatasetReport

log = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
"""How often the folders are looked through."""

_AGAIN_SECONDS, _PATIENCE_SECONDS = 10.0, 300.0

Report = Callable[[list[DatasetReport]], object]


class Datasets:
    """A task that looks through folders now and then, and reports what it has found.

    Args:
        roots: the folders; those that are not there are passed over.
        report: tells the service. Raises ApiError while that is not to be had.
    """

    def __init__(self, roots: Sequence[Path], report: Report) -> None:
        self._roots = roots
        self._report = report
        self._found: list[DatasetReport] | None = None  # not reported yet
        self._said = ""

    def step(self) -> float:
        """Look, and report; the seconds until the next step."""
        if self._found is None:
            try:
                self._found = look(self._roots)
            except (OSError, subprocess.SubprocessError) as error:
                self._say(f"the sets of sequences cannot be looked at: {error}")
                return LOOK_SECONDS
        try:
            self._report(self._found)
        except ApiError as error:  # it is away, of an older version, or does not know this worker yet
            self._say(f"the sets of sequences are not reported: {error}")
            return _AGAIN_SECONDS
        self._found, self._said = None, ""
        return LOOK_SECONDS

    def _say(self, what: str) -> None:
        """Log a kind of trouble once."""
        if what != self._said:
            self._said = what
            log.warning("%s", what)


def look(roots: Sequence[Path]) -> list[DatasetReport]:
    """The sets in some folders.

    Raises:
        OSError: no process can be started.
        subprocess.SubprocessError: it has failed, or takes too long.
    """
    there = [str(root) for root in roots if root.is_dir()]
    if not there:
        return []
    command = [sys.executable, "-m", "nanollama.apps.gssm.describe", *there]
    environment = {name: value for name, value in os.environ.items() if name != "N2N_TOKEN"}
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        timeout=_PATIENCE_SECONDS,
        check=True,
    )
    found = []
    for line in ran.stdout.splitlines()[:MAX_DATASETS]:
        try:
            found.append(DatasetReport.model_validate_json(line))
        except ValidationError as error:
            log.warning("a set of sequences is passed over: %s", error)
    return found
