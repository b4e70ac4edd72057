"""Requests to stop: a file, because torchrun swallows the signals that Slurm and people send."""

from __future__ import annotations

from pathlib import Path

from nanollama.spec.rundir import STOP_REQUESTED


def stop_requested(attempt_dir: Path) -> bool:
    """Whether this attempt is asked to save and end. Only rank 0 looks; the ranks then agree in a collective."""
    return (attempt_dir / STOP_REQUESTED).exists()
