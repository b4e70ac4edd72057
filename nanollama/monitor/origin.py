"""The checkpoint of another run that a run starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nanollama.monitor.checkpoint import verified, visible
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.experiment import ExperimentSpec
from nanollama.spec.load import load_config
from nanollama.spec.rundir import CHECKPOINTS, CONFIG, MANIFEST

KEY = "orchestration.checkpoint.start_from"
_COUNTED = ("batch_size", "seq_len")
"""Keys of `data` by which steps are turned into tokens."""


def find_origin(spec: ExperimentSpec, run_dir: Path) -> Path | None:
    """The checkpoint that a run starts from, every byte verified; None for fresh weights, or checkpoints of its own.

    Raises:
        SpecError: it is not whole, not the one that is meant, or of a step at which this run cannot go on.
    """
    given = spec.orchestration.checkpoint
    if given.start_from is None or visible(run_dir / CHECKPOINTS):
        return None
    path = Path(given.start_from)
    manifest = verified(path, KEY)
    found = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    problems = []
    if given.start_digest not in (None, found):
        message = f"{path} has the digest {found}, and start_digest asks for {given.start_digest}"
        problems.append(Problem(path=KEY, message=message, remedy="name the checkpoint that is meant"))
    if manifest.step >= spec.optim.steps:
        message = f"{path} has done {manifest.step:,} steps, and this run is to end after {spec.optim.steps:,}"
        problems.append(Problem(path="optim.steps", message=message, remedy=f"use more than {manifest.step}"))
    problems += _count_problems(path, spec)
    if problems:
        raise SpecError(problems)
    return path


def _count_problems(checkpoint: Path, spec: ExperimentSpec) -> list[Problem]:
    """Why the steps of a checkpoint are not as many tokens here as they were there."""
    try:
        before = load_config(ExperimentSpec, [f"config={checkpoint / CONFIG}"])
    except SpecError:
        return []  # of another version: what it holds can be used all the same
    problems = []
    for key in _COUNTED:
        theirs, ours = getattr(before.data, key, None), getattr(spec.data, key, None)
        if None not in (theirs, ours) and theirs != ours:
            message = f"is {ours}, but {checkpoint} was trained with {theirs}: its position would be another"
            problems.append(Problem(path=f"data.{key}", message=message, remedy=f"use {theirs}"))
    return problems
