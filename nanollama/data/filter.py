"""Exact inference: the forward filter over the product of the latents, and the backward pass that smooths it.

Shapes: B sequences, T tokens, V symbols, S joint states of the latents. What a graph's step costs, and how it is
done, is decided in plan.py; the compiled loops are in steps.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanollama.data.gssm import Array, Kernels, relevant_latents
from nanollama.data.jit import default_threads, share_out
from nanollama.data.plan import Plan
from nanollama.data.program import build_emission, build_program
from nanollama.data.recursion import backward, forward
from nanollama.data.steps import WIDTH, Floats, Program, Work, padded
from nanollama.spec.base import Problem, SpecError

MEMORY_BUDGET = 2**30
"""Default limit of what a filter holds at a time, in bytes."""

MAX_OPERATIONS = 2**28
"""Default limit of the multiplications that one token of one sequence may cost: about 10 ms of a core."""

_TILE_BYTES = 2**19  # of the joint distribution that several steps treat before the next part
_GRAIN = 2**21  # multiplications that a thread is worth
_LISTED = 16  # latents whose sizes an error lists

SCALES = {8: 1.0, 4: 2.0**60}
"""What a joint distribution sums to, by the bytes of a number; in float32 it keeps products of floors normal."""

Tokens = NDArray[np.int32]
FloatType = type[np.floating[Any]] | np.dtype[np.floating[Any]]


class ImpossibleSequence(ValueError):
    """A sequence to which the model gives probability zero.

    Attributes:
        sequence: its row in the batch.
        position: the position of the first impossible token.
    """

    def __init__(self, sequence: int, position: int, token: int) -> None:
        self.sequence = sequence
        self.position = position
        super().__init__(
            f"sequence {sequence} has probability zero at position {position} (token {token}): it does not come from "
            "this model, or the numbers underflow; check the kernels, and use float64"
        )


class Filter:
    """Exact p(x_t | x_<t) of a GSSM, and what the tokens tell about its latents.

    The joint distribution of the latents is kept in linear space and normalised at every step; latents that do not
    reach the observed node are left out. Rows of the result do not depend on the batch, beyond rounding.
    """

    def __init__(
        self,
        kernels: Kernels,
        *,
        dtype: FloatType = np.float64,
        memory_budget: int = MEMORY_BUDGET,
        max_operations: int = MAX_OPERATIONS,
        threads: int | None = None,
        method: str = "auto",
    ) -> None:
        """Choose the steps and compute their tables.

        Args:
            kernels: the true model.
            dtype: float64 or float32, of the probabilities; log-likelihoods are always summed in float64.
            memory_budget: limit in bytes of tables and working memory; a batch is split to keep it.
            max_operations: limit of the multiplications that one token of one sequence costs.
            threads: sequences are shared out among them; None for as many as the process may use.
            method: one of plan.METHODS, to force a way to do the steps.

        Raises:
            SpecError: a graph that cannot be scored exactly: nodes in context mode, or a cost over a limit.
        """
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float64, np.float32):
            raise ValueError(f"probabilities can be float64 or float32, not {self.dtype}")
        self.kernels = kernels
        self.vocab_size = kernels.vocab_size
        self._threads = threads or default_threads()
        self._scale = SCALES[self.dtype.itemsize]
        check_size(kernels, self.dtype.itemsize, memory_budget, max_operations)
        self.plan = Plan(kernels, method=method, item=self.dtype.itemsize, table_bytes=memory_budget // 2)
        self._each = self._bytes_of_a_sequence()
        self._batch = affordable_batch(self.plan, self._each, memory_budget, max_operations)
        self._threads = max(1, min(self._threads, self._batch))
        self._lanes = max(1, min(self.plan.lanes, self._batch // self._threads))
        self._budget = memory_budget
        self._emission = build_emission(self.plan, self.dtype)
        self._program = build_program(self.plan, self.dtype)
        self._transposed: Program | None = None
        sizes = [(math.prod(self.plan.dims[:i]), size) for i, size in enumerate(self.plan.dims)]
        rows = [(before, size, self.plan.states // (before * size)) for before, size in sizes]
        self._latents = np.array(rows, dtype=np.int64).reshape(len(rows), 3)

    def explain(self) -> str:
        """The ways that were weighed for each latent with their costs, the choice, and the memory."""
        together = f"{self._lanes} sequences together, {self._threads} threads"
        working = f"{self._each * self._lanes * self._threads:,} bytes at work ({together}), {self.dtype}"
        return f"{self.plan.explain()}\n{working}"

    def log_likelihood(self, tokens: ArrayLike) -> Array:
        """Log-likelihoods log p(x_t | x_<t) in nats of tokens [B, T]: float64 of shape [B, T - 1], for t = 1 .. T-1.

        Raises:
            ValueError: tokens that are no symbols of the model.
            ImpossibleSequence: a sequence of probability zero.
        """
        checked = check_tokens(tokens, self.vocab_size)
        norms = self._norms(checked)
        self._share(checked, lambda start, stop: self._score(checked, start, stop, norms))
        return _logs(norms, checked)

    def predictive(self, tokens: ArrayLike) -> Floats:
        """The distributions p(x_t | x_<t) of tokens [B, T]: shape [B, T - 1, V], for t = 1 .. T-1.

        Raises:
            ValueError: tokens that are no symbols of the model.
            ImpossibleSequence: a sequence of probability zero.
        """
        checked = check_tokens(tokens, self.vocab_size)
        norms = self._norms(checked)
        result = np.empty((*norms.shape, self.vocab_size), dtype=self.dtype)
        self._share(checked, lambda start, stop: self._score(checked, start, stop, norms, predictive=result))
        _logs(norms, checked)
        return result

    def posterior(self, tokens: ArrayLike, *, smoothed: bool = False) -> dict[str, Array]:
        """What tokens [B, T] tell about each latent that they depend on: {name: float64 [B, T, its states]}.

        At position t it is p(z_t | x_1 .. x_t), or given the whole sequence where `smoothed`; at t = 0 every latent
        is in state 0. Smoothing keeps checkpoints, so that its memory grows with the root of T.

        Raises:
            ValueError: tokens that are no symbols of the model.
            ImpossibleSequence: a sequence of probability zero.
        """
        checked = check_tokens(tokens, self.vocab_size)
        norms = self._norms(checked)
        marginals = np.empty((*checked.shape, int(self._latents[:, 1].sum())))
        if smoothed and self._transposed is None:
            self._transposed = build_program(self.plan, self.dtype, transposed=True)
        work = self._smooth if smoothed else self._filtered
        self._share(checked, lambda start, stop: work(checked, start, stop, norms, marginals))
        _logs(norms, checked)
        found = np.isfinite(marginals).all(axis=2)
        if not found.all():  # the two directions meet in numbers too small to represent
            row, t = (int(i) for i in np.argwhere(~found)[0])
            raise ImpossibleSequence(row, t, int(checked[row, t]))
        edges = np.cumsum(self._latents[:, 1])[:-1]
        parts = np.split(marginals, edges, axis=2) if len(self._latents) else []
        result = {node.name: part for node, part in zip(self.plan.latents, parts, strict=True)}
        for name in self.plan.constant:
            result[name] = np.ones((*checked.shape, 1))
        return result

    # ---- running ----

    def _share(self, tokens: Tokens, work: Callable[[int, int], None]) -> None:
        """Call work on ranges of sequences, on as many threads as they are worth."""
        worth = _GRAIN // max(1, self.plan.multiplications * tokens.shape[1])
        together = min(self._lanes, -(-len(tokens) // self._threads))
        share_out(work, len(tokens), threads=self._threads, grain=max(together, worth, 1))

    def _norms(self, tokens: Tokens) -> Array:
        return np.ones((len(tokens), tokens.shape[1] - 1))

    def _parts(self, start: int, stop: int) -> Iterator[slice]:
        """Sequences that are treated together."""
        for first in range(start, stop, self._lanes):
            yield slice(first, min(first + self._lanes, stop))

    def _score(self, tokens: Tokens, start: int, stop: int, norms: Array, predictive: Floats | None = None) -> None:
        for part in self._parts(start, stop):
            wanted = None if predictive is None else predictive[part]
            self._forward(tokens[part], norms[part], self._initial(part), predictive=wanted)

    def _filtered(self, tokens: Tokens, start: int, stop: int, norms: Array, marginals: Array) -> None:
        for part in self._parts(start, stop):
            self._forward(tokens[part], norms[part], self._initial(part), marginals=marginals[part])
        self._begin(marginals[start:stop])

    def _begin(self, marginals: Array) -> None:
        """At position 0 every latent is in state 0."""
        marginals[:, 0] = 0
        marginals[:, 0, np.concatenate([[0], np.cumsum(self._latents[:, 1])])[: len(self._latents)]] = 1

    def _initial(self, part: slice) -> Floats:
        lanes = part.stop - part.start
        joint = np.zeros(self.plan.states * lanes, dtype=self.dtype)
        joint[:lanes] = self._scale
        return joint

    def _forward(
        self,
        tokens: Tokens,
        norms: Array,
        joint: Floats,
        *,
        first: int = 1,
        last: int | None = None,
        predictive: Floats | None = None,
        marginals: Array | None = None,
        every: int = 0,
        kept: Floats | None = None,
    ) -> None:
        lanes = len(tokens)
        forward(
            self._program,
            self._split(lanes),
            self._emission,
            self._scale,
            joint,
            tokens,
            first,
            tokens.shape[1] if last is None else last,
            self._work(lanes),
            norms,
            np.empty((0, 0, 0), dtype=self.dtype) if predictive is None else predictive,
            self._latents,
            np.empty((0, 0, 0)) if marginals is None else marginals,
            (every, np.empty((0, 0), dtype=self.dtype) if kept is None else kept),
        )

    def _smooth(self, tokens: Tokens, start: int, stop: int, norms: Array, marginals: Array) -> None:
        """Forward with a checkpoint at the head of each segment, then segment by segment backwards."""
        assert self._transposed is not None
        length = tokens.shape[1]
        size = self.plan.states * self.dtype.itemsize
        lanes = max(1, min(self._lanes, self._budget // (4 * self._threads * size * (2 * math.isqrt(length) + 2))))
        for begin in range(start, stop, lanes):
            part = slice(begin, min(begin + lanes, stop))
            count = part.stop - part.start
            fits = length * size * count <= self._budget // (4 * self._threads)
            segment = length if fits else math.isqrt(length) + 1
            heads = np.empty((-(-length // segment), self.plan.states * count), dtype=self.dtype)
            joint = self._initial(part)
            heads[0] = joint
            if length > segment:
                self._forward(tokens[part], norms[part], joint, every=segment, kept=heads)
            message = np.full(self.plan.states * count, self._scale, dtype=self.dtype)
            kept = np.empty((min(segment, length), self.plan.states * count), dtype=self.dtype)
            for i in range(len(heads) - 1, -1, -1):
                first, last = i * segment, min((i + 1) * segment, length)
                kept[0] = heads[i]
                self._forward(tokens[part], norms[part], heads[i], first=first + 1, last=last, every=1, kept=kept[1:])
                backward(
                    self._transposed,
                    self._split(count),
                    self._emission,
                    self._scale,
                    message,
                    tokens[part],
                    first,
                    last,
                    self._work(count),
                    self._latents,
                    marginals[part],
                    kept,
                )

    def _work(self, lanes: int) -> Work:
        count = self.plan.observation.num_parents
        scratch = self._scratch(lanes)
        seen = count * lanes if self.plan.observation.parents is not None else 0
        seen += count if self.plan.observation.factored else 0
        return Work(*(np.empty(size, dtype=self.dtype) for size in (scratch, scratch, count * lanes, seen)))

    def _scratch(self, lanes: int) -> int:
        """Numbers of the largest block of columns that a step multiplies."""
        states = self.plan.states
        blocks = (step.states * min(WIDTH, padded(states // step.states * lanes)) for step in self.plan.steps)
        return max(blocks, default=0)

    def _split(self, lanes: int) -> tuple[int, int]:
        """How many steps run over the whole distribution, and how many tiles the others work on one by one."""
        steps = self.plan.steps
        size = self.plan.states * lanes * self.dtype.itemsize
        lead = 0
        while lead < len(steps) - 1 and size // steps[lead].before > _TILE_BYTES:
            lead += 1
        return lead, steps[lead].before if steps else 1

    def _bytes_of_a_sequence(self) -> int:
        """Working memory of one sequence: its joint distribution, its weights and the scratch of a step."""
        states, observation = self.plan.states, self.plan.observation
        scratch = self._scratch(1)
        weights = observation.num_parents * (1 + (observation.parents is not None) + observation.factored)
        return self.dtype.itemsize * (states + weights + 2 * scratch)


def check_tokens(tokens: ArrayLike, vocab_size: int) -> Tokens:
    """Tokens [B, T] as int32, all of them symbols and the first of each sequence 0.

    Raises:
        ValueError: anything else, naming the first sequence and position at fault.
        ImpossibleSequence: a sequence that does not begin with 0.
    """
    given = np.asarray(tokens)
    if given.ndim != 2 or given.shape[1] < 1 or given.dtype.kind not in "iu":
        raise ValueError(f"expected integer tokens of shape [B, T], found {given.dtype} {list(given.shape)}")
    outside = (given < 0) | (given >= vocab_size)
    if outside.any():
        row, t = (int(i) for i in np.argwhere(outside)[0])
        found = f"sequence {row} holds {int(given[row, t])} at position {t}"
        raise ValueError(f"{found}; the model's symbols go from 0 to {vocab_size - 1}")
    started = given[:, 0] != 0
    if started.any():
        row = int(np.argmax(started))
        raise ImpossibleSequence(row, 0, int(given[row, 0]))
    return np.ascontiguousarray(given, dtype=np.int32)


def _logs(norms: Array, tokens: Tokens) -> Array:
    """Logarithms of p(x_t | x_<t) [B, T - 1]; refuses a sequence that has probability zero."""
    possible = (norms > 0) & np.isfinite(norms)
    if not possible.all():
        row, column = (int(i) for i in np.argwhere(~possible)[0])
        raise ImpossibleSequence(row, column + 1, int(tokens[row, column + 1]))
    return np.minimum(np.log(norms), 0)  # a sum of probabilities may round to more than 1


def check_size(kernels: Kernels, item: int, memory_budget: int, max_operations: int) -> None:
    """Refuse what is out of reach whatever the method, before anything of the size of the state space is made."""
    dims = [node.state_dim for node in relevant_latents(kernels.spec) if node.state_dim > 1]
    states = math.prod(dims)
    least = states * (2 * len(dims) + 1)
    _refuse(dims, ("at least ", least, max_operations), ("at least ", 2 * item * states, memory_budget))


def affordable_batch(plan: Plan, each: int, memory_budget: int, max_operations: int) -> int:
    """Sequences that can be held at a time; refuses a graph whose costs are over a limit."""
    needed = plan.fixed_bytes + each
    _refuse(plan.dims, ("", plan.multiplications, max_operations), ("", needed, memory_budget))
    return (memory_budget - plan.fixed_bytes) // each


def _product(dims: Sequence[int]) -> str:
    """`8 x 8 = 64`, in short where there are very many."""
    states = math.prod(dims)
    if len(dims) > _LISTED:
        return f"{len(dims)} latents = {_count(states)}"
    return f"{' x '.join(map(str, dims)) or 1} = {_count(states)}"


def _count(number: int) -> str:
    return f"{number:,}" if number < 2**63 else f"about 10^{math.log10(number):.0f}"


def _refuse(dims: Sequence[int], operations: tuple[str, int, int], size: tuple[str, int, int]) -> None:
    problems = []
    if operations[1] > operations[2]:
        problems.append(f"cost {operations[0]}{_count(operations[1])} multiplications a token, over {operations[2]:,}")
    if size[1] > size[2]:
        problems.append(f"need {size[0]}{_count(size[1])} bytes for a single sequence, over {size[2]:,}")
    if problems:
        cost = f"{_product(dims)} joint states"
        message = f"the exact bound is out of reach: {cost} {' and '.join(problems)}"
        remedy = "use fewer or smaller latents, or fewer parents"
        raise SpecError([Problem(path="gssm.nodes", message=message, remedy=remedy)])
