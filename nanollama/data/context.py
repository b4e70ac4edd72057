"""Context mode: bounds on log p(x) from both sides where the kernels are redrawn for every sequence.

The likelihood is an integral over the kernels of a sequence. Its lower side is the logarithm of an unbiased
estimate, below log p(x) in expectation by Jensen's inequality. Its upper side is minus the logarithm of an unbiased
estimate of 1 / p(x), for which one needs an exact draw from the posterior of kernels and paths: the ones that the
sequence was sampled with (bidirectional Monte Carlo, Grosse, Ghahramani, Adams 2015). `particles` has the algorithm
and the argument. More particles bring the two together.
"""

# ruff: noqa: PLR0917 - private functions that are called once

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.collapsed import Plan, plan
from nanollama.data.filter import ImpossibleSequence
from nanollama.data.gssm import Array, IntArray, Kernels
from nanollama.data.jit import default_threads, share_out
from nanollama.data.particles import bytes_needed, estimate, lineage
from nanollama.data.polya import CLOSED_FORM, ClosedForm, checked_tokens, closed_form_applies, floor_gap
from nanollama.data.sampler import Sampler
from nanollama.data.variates import stream
from nanollama.spec.base import Problem, SpecError

__all__ = [
    "ClosedForm",
    "ContextEntropy",
    "Truth",
    "TwoSided",
    "closed_form_applies",
    "entropy",
    "explain",
    "true_draws",
    "two_sided",
]

MEMORY_BUDGET = 2**30
"""Default limit of what the particles of all threads take at a time, in bytes."""

PARTICLES = 10_000
"""Default number of particles."""

MAX_LENGTH = 2**16
"""Tokens of a sequence: what the counts of an urn can hold."""

_LOWER, _UPPER, _LINEAGE, _UNFLOORED = range(4)  # what random numbers are for
_BATCH_OF_A_THREAD = 4  # sequences between two calls of `after_batch`
_PILOT_SEQUENCES = 16
_PILOT_SEED = 1  # the effort is chosen with other random numbers than the result
_LEAST_PARTICLES = 250


@dataclass(frozen=True, eq=False)
class Truth:
    """What a sequence was sampled with: an exact draw from its posterior.

    Attributes:
        tables: kernels of the nodes in context mode, as Sampler.context_tables.
        states: path [T] of each latent that the tokens depend on.
    """

    tables: Mapping[str, tuple[Array, ...]]
    states: Mapping[str, NDArray[np.integer]]


@dataclass(frozen=True, eq=False)
class TwoSided:
    """Stochastic bounds of log p(x_1 .. x_{T-1}), in nats.

    Attributes:
        lower: per sequence, [B]; in expectation at most log p(x).
        upper: per sequence, [B]; in expectation at least log p(x). None where no truth was given.
        particles: their number.
        seconds: time that all of it took.
    """

    lower: Array
    upper: Array | None
    particles: int
    seconds: float


@dataclass(frozen=True)
class ContextEntropy:
    """Bounds of the entropy in nats per token; standard errors are over sequences.

    Attributes:
        lower: from the upper bounds of log p(x).
        lower_stderr: of `lower`.
        upper: from the lower bounds of log p(x).
        upper_stderr: of `upper`.
        gap: mean difference of the two bounds of one sequence, in nats a sequence.
        gap_stderr: of `gap`.
        num_sequences: sequences that were sampled and scored.
        particles: used for each; 0 for the closed form.
        seconds: time that all of it took.
        method: what was done, in words.
    """

    lower: float
    lower_stderr: float
    upper: float
    upper_stderr: float
    gap: float
    gap_stderr: float
    num_sequences: int
    particles: int
    seconds: float
    method: str

    def __str__(self) -> str:
        return (
            f"{self.lower:.4f} ± {self.lower_stderr:.4f} to {self.upper:.4f} ± {self.upper_stderr:.4f} nats/token over "
            f"{self.num_sequences:,} sequences; gap {self.gap:.3f} ± {self.gap_stderr:.3f} nats a sequence"
        )


def true_draws(sampler: Sampler, indices: Sequence[int], seq_len: int) -> list[Truth]:
    """What the sampler's sequences of these indices are sampled with."""
    states = sampler.sample_states(indices, seq_len)
    return [
        Truth(sampler.context_tables(int(index)), {name: paths[row] for name, paths in states.items()})
        for row, index in enumerate(indices)
    ]


def two_sided(
    kernels: Kernels,
    tokens: ArrayLike,
    truths: Sequence[Truth] | None,
    *,
    particles: int = PARTICLES,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    threads: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> TwoSided:
    """Bound log p(x_1 .. x_{T-1}) of each sequence from both sides.

    The floor of the kernels is exact for product kernels with several inputs; for all others the bounds are widened
    by what it can mean (polya.floor_gap), about 1e-6 nats at alpha = 0.05.

    Args:
        kernels: the kernels that are fixed.
        tokens: integers [B, T].
        truths: for each sequence what it was sampled with; None for tokens from elsewhere, which get no upper side.
        particles: the effort; at least 2. Time and memory grow with it, the gap falls about in proportion.
        seed: of the random numbers, not negative.
        indices: for each sequence the number, not negative, that its random numbers depend on besides the seed;
            0 .. B-1 if not given. Batch size and threads change nothing.
        threads: sequences at a time; fewer where memory is short.
        memory_budget: limit in bytes.

    Raises:
        SpecError: a graph without context mode, one that is too large, or particles over the memory budget.
        ValueError: tokens that the model cannot have produced, or truths that do not belong to them.
    """
    if particles < 2:
        raise ValueError(f"particles must be at least 2, found {particles}")
    checked = checked_tokens(tokens, kernels.vocab_size)
    seq_len = checked.shape[1]
    if seq_len > MAX_LENGTH:
        raise ValueError(f"sequences of {seq_len:,} tokens are too long, the limit is {MAX_LENGTH:,}; cut them")
    numbers = range(len(checked)) if indices is None else indices
    for what, given in (("truths", truths), ("indices", numbers)):
        if given is not None and len(given) != len(checked):
            raise ValueError(f"expected {len(checked)} {what}, one for each sequence, found {len(given)}")
    began = time.perf_counter()
    model = plan(kernels)
    each = bytes_needed(particles, len(model.states), model.num_counts, model.num_weights)
    if each > memory_budget:
        message = f"{particles:,} particles take {each:,} bytes, over {memory_budget:,}"
        raise SpecError([Problem(path="gssm.nodes", message=message, remedy="use fewer particles or fewer states")])
    lower = np.empty(len(checked))
    upper = None if truths is None else np.empty(len(checked))

    def work(start: int, stop: int) -> None:
        for row in range(start, stop):
            key = (seed, int(numbers[row]))
            lower[row] = _lower(model, checked[row], particles, key, row)
            if truths is not None and upper is not None:
                upper[row] = _upper(model, checked[row], truths[row], particles, key, row)

    wanted = default_threads() if threads is None else threads
    share_out(work, len(checked), threads=max(1, min(wanted, memory_budget // each)))
    below, above = floor_gap(kernels.spec, seq_len - 1)
    return TwoSided(
        lower=lower - below,
        upper=None if upper is None else upper + above,
        particles=particles,
        seconds=time.perf_counter() - began,
    )


def _lower(model: Plan, tokens: IntArray, particles: int, key: tuple[int, int], row: int) -> float:
    state = stream(*key, _LOWER)
    nothing = np.zeros(len(tokens), dtype=np.int64), np.zeros((len(tokens) + 1, model.num_weights))
    log_w, stop = estimate(model.arrays, state, tokens, *nothing, False, particles, model.num_counts, model.num_weights)
    if stop:
        raise ImpossibleSequence(row, stop, int(tokens[stop]))
    return float(log_w)


def _upper(model: Plan, tokens: IntArray, truth: Truth, particles: int, key: tuple[int, int], row: int) -> float:
    try:
        path = model.joint_path(truth.states, len(tokens))
        logs = model.log_weights(truth.tables, np.random.default_rng([*key, _UNFLOORED]))
    except ValueError as error:
        raise ValueError(f"sequence {row}: {error}") from None
    trail = lineage(model.arrays, stream(*key, _LINEAGE), tokens, path, logs, model.num_counts)
    state = stream(*key, _UPPER)
    log_w, stop = estimate(
        model.arrays, state, tokens, path, trail, True, particles, model.num_counts, model.num_weights
    )
    if stop:
        raise ValueError(f"sequence {row}: its true path has probability zero at position {stop}; check the truths")
    return float(log_w)


def entropy(
    kernels: Kernels,
    seq_len: int,
    num_sequences: int,
    *,
    seed: int = 0,
    split: str = "entropy",
    particles: int | None = None,
    gap: float = 0.2,
    max_seconds: float = 2.0,
    threads: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    after_batch: Callable[[ContextEntropy], bool] | None = None,
) -> ContextEntropy:
    """Bounds of the entropy of sequences of `seq_len` tokens, the first of which is given; exact where a formula is.

    Args:
        kernels: the kernels that are fixed.
        seq_len: tokens per sequence, the start token included; at least 2.
        num_sequences: sequences that are sampled and scored; at least 2.
        seed: of the sequences and of the estimates.
        split: of the sequences; different splits are independent.
        particles: for each sequence; if not given, as many as bring the mean gap of a pilot run below `gap`. The
            pilot has random numbers of its own, so that the choice does not bias the bounds.
        gap: wanted mean gap in nats a sequence.
        max_seconds: limit of the time that one core takes for one sequence; the gap may then stay above the wanted.
        threads: sequences at a time.
        memory_budget: limit in bytes.
        after_batch: is told the bounds so far, every few sequences; True ends it there. It changes no figure.

    Raises:
        SpecError: a graph without context mode, or one that is too large.
        ValueError: too few tokens or sequences.
    """
    if seq_len < 2 or num_sequences < 2:
        raise ValueError(f"seq_len and num_sequences must be at least 2, found {seq_len} and {num_sequences}")
    began = time.perf_counter()
    sampler = Sampler(kernels, seed, split)
    if closed_form_applies(kernels.spec):
        exact = ClosedForm(kernels).log_likelihood(sampler.sample(range(num_sequences), seq_len)).sum(axis=1)
        return _summary(exact, exact, seq_len, 0, began, CLOSED_FORM)
    if particles is None:
        first = range(min(_PILOT_SEQUENCES, num_sequences))
        tokens, truths = sampler.sample(first, seq_len), true_draws(sampler, first, seq_len)
        particles = _effort(kernels, tokens, truths, seed, gap, max_seconds, memory_budget)
    method = f"bidirectional sequential Monte Carlo, {particles:,} particles, kernels integrated out where conjugate"
    lower, upper = np.empty(0), np.empty(0)
    size = num_sequences if after_batch is None else max(2, _BATCH_OF_A_THREAD * (threads or default_threads()))
    for start in range(0, num_sequences, size):
        indices = range(start, min(start + size, num_sequences))
        found = two_sided(
            kernels,
            sampler.sample(indices, seq_len),
            true_draws(sampler, indices, seq_len),
            particles=particles,
            seed=seed,
            indices=indices,
            threads=threads,
            memory_budget=memory_budget,
        )
        assert found.upper is not None
        lower, upper = np.concatenate([lower, found.lower]), np.concatenate([upper, found.upper])
        if after_batch is not None and after_batch(_summary(lower, upper, seq_len, particles, began, method)):
            break
    return _summary(lower, upper, seq_len, particles, began, method)


def explain(kernels: Kernels, particles: int = PARTICLES) -> str:
    """How sequences whose kernels are redrawn are scored, what a particle carries and costs.

    Raises:
        SpecError: a graph without context mode, or one that is too large.
    """
    if closed_form_applies(kernels.spec):
        return CLOSED_FORM
    model = plan(kernels)
    each = bytes_needed(particles, len(model.states), model.num_counts, model.num_weights)
    return f"{model.explain()}\n{particles:,} particles take {each:,} bytes a sequence"


def _effort(
    kernels: Kernels,
    tokens: NDArray[np.integer],
    truths: Sequence[Truth],
    seed: int,
    gap: float,
    max_seconds: float,
    memory_budget: int,
) -> int:
    """Particles that bring the mean gap of these sequences below the wanted one, within the limits."""
    model = plan(kernels)
    each = bytes_needed(1, len(model.states), model.num_counts, model.num_weights)
    affordable = max(2, memory_budget // each)
    two_sided(kernels, tokens[:1], truths[:1], particles=2, threads=1)  # compiled code is loaded before it is timed
    particles = min(_LEAST_PARTICLES, affordable)
    while True:
        found = two_sided(kernels, tokens, truths, particles=particles, seed=seed + _PILOT_SEED, threads=1)
        assert found.upper is not None
        if float((found.upper - found.lower).mean()) < gap:
            return particles
        longest = particles * max_seconds * len(tokens) / found.seconds
        largest = min(affordable, int(longest))
        if 2 * particles > largest:
            return max(particles, min(largest, affordable), 2)
        particles = min(4 * particles, largest)


def _summary(lower: Array, upper: Array, seq_len: int, particles: int, began: float, method: str) -> ContextEntropy:
    """An upper bound of log p(x) is a lower bound of the entropy."""
    steps, root = seq_len - 1, math.sqrt(len(lower))
    return ContextEntropy(
        lower=float(-upper.mean() / steps),
        lower_stderr=float(upper.std(ddof=1) / steps / root),
        upper=float(-lower.mean() / steps),
        upper_stderr=float(lower.std(ddof=1) / steps / root),
        gap=float((upper - lower).mean()),
        gap_stderr=float((upper - lower).std(ddof=1) / root),
        num_sequences=len(lower),
        particles=particles,
        seconds=time.perf_counter() - began,
        method=method,
    )
