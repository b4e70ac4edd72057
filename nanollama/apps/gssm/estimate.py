"""Entropy of the fresh sequences of a model: exact where it can be, bounded from both sides in context mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from nanollama.apps.gssm.options import Source
from nanollama.data.bounds import Entropy, Estimate, entropy
from nanollama.data.filter import MAX_OPERATIONS, MEMORY_BUDGET, check_size
from nanollama.data.gssm import Kernels
from nanollama.data.jit import default_threads
from nanollama.data.plan import Plan
from nanollama.data.polya import closed_form_applies, context_nodes
from nanollama.spec.base import Problem, SpecError

NUM_SEQUENCES, CONTEXT_SEQUENCES = 10_000, 100
"""Default number of fresh sequences that are scored, and bounded in context mode."""

_BATCH = 1024  # sequences, where nobody wants to know in between
_BATCH_SECONDS = 1.0  # about so often is told how far it is

AfterBatch = Callable[[int, dict[str, float]], None]
"""Is told how many sequences are scored and what they give so far, in nats per token."""


def estimate_entropy(
    kernels: Kernels,
    source: Source,
    *,
    num_sequences: int | None = None,
    dtype: Literal["float64", "float32"] = "float64",
    particles: int | None = None,
    after_batch: AfterBatch | None = None,
) -> dict[str, Any]:
    """Score sequences of `source.seq_len` tokens, no more once `source.max_seconds` have passed.

    Args:
        kernels: of the source.
        source: says the length, how many sequences unless `num_sequences` does, and how long it may take.
        num_sequences: how many; the source's or a default when absent.
        dtype: of the probabilities.
        particles: effort in context mode; chosen by a pilot run when absent.
        after_batch: called about every second.

    Returns:
        What is written: `nats_per_token`, `stderr`, in context mode `lower` and `upper`; `by_position` where exact.

    Raises:
        SpecError: a graph that cannot be scored.
    """
    count = num_sequences or source.num_sequences
    report = _Report(source.max_seconds, after_batch)
    if context_nodes(kernels.spec) and not closed_form_applies(kernels.spec):
        found = _bounds(kernels, source, count or CONTEXT_SEQUENCES, particles, report)
    else:
        found = _exact(kernels, source, count or NUM_SEQUENCES, dtype, report)
    return {**found, "seq_len": source.seq_len, "seed": source.seed, "kernels_hash": kernels.content_hash()}


class _Report:
    """Passes on how far it is, and ends it when the time is up."""

    def __init__(self, max_seconds: float | None, after_batch: AfterBatch | None) -> None:
        self.wanted = max_seconds is not None or after_batch is not None
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._after_batch = after_batch

    def __call__(self, count: int, values: dict[str, float]) -> bool:
        if self._after_batch is not None:
            self._after_batch(count, values)
        return self._end is not None and time.monotonic() >= self._end


def _exact(kernels: Kernels, source: Source, count: int, dtype: str, report: _Report) -> dict[str, Any]:
    def tell(so_far: Estimate) -> bool:
        return report(so_far.num_sequences, {"bound": so_far.mean, "bound_stderr": so_far.stderr})

    found = _entropy(kernels, source.seq_len, count, np.dtype(dtype), tell if report.wanted else None)
    return {
        "nats_per_token": found.mean,
        "stderr": found.stderr,
        "num_sequences": found.num_sequences,
        "by_position": {"mean": found.by_position.mean.tolist(), "stderr": found.by_position.stderr.tolist()},
        "method": found.method,
        "seconds": found.seconds,
    }


def _entropy(
    kernels: Kernels, seq_len: int, count: int, dtype: np.dtype[Any], tell: Callable[[Estimate], bool] | None
) -> Entropy:
    size = _BATCH if tell is None else _batch_size(kernels, seq_len, dtype.itemsize)
    try:
        return entropy(kernels, seq_len, count, dtype=dtype, batch_size=size, after_batch=tell)
    except SpecError:
        raise
    except ValueError as error:  # a formula that does not hold for alphas near the floor
        raise SpecError([Problem(path="gssm.nodes", message=str(error))]) from None


def _batch_size(kernels: Kernels, seq_len: int, item: int) -> int:
    """Sequences that take about as long as one waits for a sign of life, by the cost model."""
    if closed_form_applies(kernels.spec):
        return _BATCH
    check_size(kernels, item, MEMORY_BUDGET, MAX_OPERATIONS)
    seconds = Plan(kernels, item=item, table_bytes=MEMORY_BUDGET // 2).nanoseconds() * seq_len / 1e9
    return max(2, min(_BATCH, int(_BATCH_SECONDS * default_threads() / seconds)))


def _bounds(kernels: Kernels, source: Source, count: int, particles: int | None, report: _Report) -> dict[str, Any]:
    """Bounds from both sides, where kernels are redrawn for every sequence."""
    from nanollama.data import context  # noqa: PLC0415 - few need it, and it takes time to load

    def tell(so_far: context.ContextEntropy) -> bool:
        middle = (so_far.lower + so_far.upper) / 2
        return report(so_far.num_sequences, {"bound": middle, "lower": so_far.lower, "upper": so_far.upper})

    found = context.entropy(
        kernels, source.seq_len, count, particles=particles, after_batch=tell if report.wanted else None
    )
    return {
        "nats_per_token": (found.lower + found.upper) / 2,
        "stderr": max(found.lower_stderr, found.upper_stderr),
        **{key: getattr(found, key) for key in ("lower", "lower_stderr", "upper", "upper_stderr", "gap", "gap_stderr")},
        "num_sequences": found.num_sequences,
        "by_position": None,
        "method": found.method,
        "seconds": found.seconds,
    }
