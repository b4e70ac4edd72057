"""The entropy of a config's data as a job: progress as metrics, a result.json at the end, and a stop on request."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from nanollama.apps.gssm.estimate import estimate_entropy
from nanollama.apps.gssm.options import read_source
from nanollama.monitor.attempt import claim_attempt, write_stopped
from nanollama.monitor.logger import JsonLines
from nanollama.monitor.preemption import StopSignals, stop_requested
from nanollama.spec.base import SpecError
from nanollama.spec.rundir import (
    EVENTS,
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    RESULT,
    Stopped,
    metrics_file,
    write_atomic,
)

MAX_POSITIONS = 1024
"""Positions of which a result has the entropy; of longer sequences a choice, closer to each other early on."""


class _Asked(Exception):
    """Somebody wants the job to stop."""


def run_job(attempt_dir: Path, arguments: Sequence[str]) -> int:
    """Score in an attempt directory that the caller has chosen; returns the exit code: 0, or 75 when asked to stop.

    A step is a sequence. There is nothing to continue: the next attempt begins anew.

    Raises:
        SpecError: bad input; it is also recorded in the attempt directory.
    """
    claim_attempt(attempt_dir)
    events, metrics = JsonLines(attempt_dir / EVENTS), JsonLines(metrics_file(attempt_dir, 0))
    scored = 0

    def happened(kind: str, message: str | None = None) -> None:
        events.write({"kind": kind, "step": scored, "time": time.time(), "message": message})

    def stopped(kind: str, code: int, message: str) -> int:
        happened(kind, message)
        write_stopped(attempt_dir, Stopped(exit_code=code, step=scored, message=message))
        return code

    with StopSignals() as signals, closing(events), closing(metrics):

        def after_batch(count: int, values: dict[str, float]) -> None:
            nonlocal scored
            scored = count
            metrics.write({"step": count, "tokens": count * (source.seq_len - 1), "time": time.time(), **values})
            asked = signals.received() or ("the file stop_requested" if stop_requested(attempt_dir) else None)
            if asked:
                raise _Asked(f"stopped by {asked} after {count:,} sequences")

        happened("started")
        try:
            source = read_source(arguments)
            with source.placing():
                found = estimate_entropy(source.kernels(), source, after_batch=after_batch)
        except _Asked as asked:
            return stopped("preempted", EXIT_INTERRUPTED, str(asked))
        except SpecError as error:
            stopped("failed", EXIT_BAD_INPUT, str(error))
            raise
        happened("finished")
    tokens = found["num_sequences"] * (found["seq_len"] - 1)
    result = {"step": found["num_sequences"], "tokens": tokens, **found, "by_position": _chosen(found["by_position"])}
    write_atomic(attempt_dir / RESULT, json.dumps(result, allow_nan=False).encode())
    print(f"{found['nats_per_token']:.4f} nats/token over {found['num_sequences']:,} sequences, {found['method']}")
    return 0


def _chosen(by_position: dict[str, Any] | None) -> dict[str, Any] | None:
    """The curves at up to MAX_POSITIONS `positions`, the first and the last among them."""
    if by_position is None:
        return None
    last = len(by_position["mean"])
    positions = list(range(1, last + 1))
    if last > MAX_POSITIONS:
        half = MAX_POSITIONS // 2
        spread = (round(last ** (k / (half - 1))) for k in range(half))
        positions = sorted({*spread, *(round(1 + k * (last - 1) / (half - 1)) for k in range(half))})
    return {
        "positions": positions,
        **{name: [values[t - 1] for t in positions] for name, values in by_position.items()},
    }
