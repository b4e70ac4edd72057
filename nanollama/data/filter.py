"""Exact inference: the forward filter over the product of the latents, one node at a time.

Shapes: B sequences, T tokens, V symbols, S joint states of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nanollama.data.gssm import (
    Kernels,
    context_problem,
    input_sizes,
    joint_table,
    relevant_latents,
)
from nanollama.spec.base import Problem, SpecError
from nanollama.spec.gssm import GSSMSpec, NodeSpec

MEMORY_BUDGET = 2**30
"""Default limit of what a filter holds at a time, in bytes."""

MAX_OPERATIONS = 2**28
"""Default limit of the multiplications that one token of one sequence may cost."""

_PARALLEL_WORK = 2**25  # multiplications of a product from which on it is shared out among threads
_JOINT_COPIES = 4  # joint distributions alive within a step: before, after, and two permuted for the multiplication


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


@dataclass(frozen=True)
class _Transition:
    """One latent's move from t-1 to t.

    Without feedback `table` is P(new | old, parents) of shape [each axis before the latent's: its size where that
    latent is a parent, else 1; new; old]: a batched matrix product with the joint distribution. With feedback it is
    [V, old, parents, new], contracted by einsum along the listed axes once the row of x(t-1) is taken.
    """

    table: torch.Tensor
    axis: int
    feedback: bool
    einsum_axes: list[int]


class Filter:
    """Exact p(x_t | x_<t) of a GSSM.

    The joint distribution of the latents is kept in linear space and normalised at every step. A step treats one
    latent after the other, so that it costs S * sum of the latents' sizes; latents that do not reach the observed
    node are left out.
    """

    def __init__(
        self,
        kernels: Kernels,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        memory_budget: int = MEMORY_BUDGET,
        max_operations: int = MAX_OPERATIONS,
    ) -> None:
        """Precompute the tables.

        Args:
            kernels: the true model.
            device: where to compute.
            dtype: float64 or float32, of the probabilities; log-likelihoods are always summed in float64.
            memory_budget: limit in bytes of tables and working memory; a batch is split to keep it.
            max_operations: limit of the multiplications that one token of one sequence costs.

        Raises:
            SpecError: a graph that cannot be scored exactly: nodes in context mode, or a cost over a limit.
        """
        assert dtype in (torch.float64, torch.float32), dtype
        self.kernels = kernels
        self.device = torch.device(device)
        self.dtype = dtype
        self.vocab_size = kernels.vocab_size
        observed = kernels.spec.observed
        latents = relevant_latents(kernels.spec)
        context = [node.name for node in (*latents, observed) if node.mode == "context"]
        if context:
            raise SpecError([context_problem(context)])
        # a latent with a single state needs no axis: all its tables are indexed at 0
        self._axes = {node.name: i for i, node in enumerate(n for n in latents if n.state_dim > 1)}
        self._dims = tuple(node.state_dim for node in latents if node.state_dim > 1)
        self._batch = self._affordable_batch(memory_budget, max_operations)
        self._transitions = [self._transition(node) for node in latents if node.name in self._axes]
        self._emission, self._parent_axes = self._observation(observed)

    def log_likelihood(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-likelihoods log p(x_t | x_<t) in nats of tokens [B, T]: float64 of shape [B, T - 1], for t = 1 .. T-1.

        Raises:
            ValueError: tokens that are no symbols of the model.
            ImpossibleSequence: a sequence of probability zero.
        """
        tokens = self._checked(tokens)
        starts = range(0, max(1, len(tokens)), self._batch)
        return torch.cat([self._forward(tokens[start : start + self._batch], None, start) for start in starts])

    def predictive(self, tokens: torch.Tensor) -> torch.Tensor:
        """The distributions p(x_t | x_<t) of tokens [B, T]: shape [B, T - 1, V], for t = 1 .. T-1.

        Raises:
            ValueError: tokens that are no symbols of the model.
            ImpossibleSequence: a sequence of probability zero.
        """
        tokens = self._checked(tokens)
        shape = (len(tokens), tokens.shape[1] - 1, self.vocab_size)
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(tokens), self._batch):
            part = slice(start, start + self._batch)
            self._forward(tokens[part], result[part], start)
        return result

    @torch.no_grad()
    def _forward(self, tokens: torch.Tensor, predictive: torch.Tensor | None, first: int) -> torch.Tensor:
        work = len(tokens) * math.prod(self._dims) * max(self._dims, default=1)
        with _threads_for(work):
            return self._run(tokens, predictive, first)

    def _run(self, tokens: torch.Tensor, predictive: torch.Tensor | None, first: int) -> torch.Tensor:
        """Log-likelihoods of one chunk; fills `predictive` when given. `first` is the chunk's first row."""
        batch, length = tokens.shape
        tokens_TB = tokens.T.contiguous()
        # the sequences are the last axis, so that every product runs over contiguous memory
        joint = torch.zeros(math.prod(self._dims), batch, dtype=self.dtype, device=self.device)  # p(z_t-1 | x_<t)
        joint[0] = 1
        unseen = [i for i in range(len(self._dims)) if i not in self._parent_axes]
        weight_shape = (*(d if i in self._parent_axes else 1 for i, d in enumerate(self._dims)), batch)
        normalisers = torch.empty(length - 1, batch, dtype=self.dtype, device=self.device)
        for t in range(1, length):
            for transition in self._transitions:
                joint = self._move(joint, transition, tokens_TB[t - 1])
            joint = joint.view(*self._dims, batch)  # p(z_t | x_<t)
            if predictive is not None:
                parents = joint.sum(dim=unseen) if unseen else joint
                predictive[:, t - 1] = (self._emission.T @ parents.reshape(len(self._emission), batch)).T
            joint = joint * self._emission[:, tokens_TB[t]].view(weight_shape)
            joint = joint.view(math.prod(self._dims), batch)
            norm = joint.sum(dim=0)
            normalisers[t - 1] = norm
            joint = joint / norm
        normalisers = normalisers.T
        impossible = ~(normalisers > 0)
        if impossible.any():
            row, column = (int(i) for i in impossible.nonzero()[0])
            raise ImpossibleSequence(first + row, column + 1, int(tokens[row, column + 1]))
        return normalisers.double().log()

    def _checked(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype.is_floating_point:
            raise ValueError(f"expected integer tokens of shape [B, T], found {tokens.dtype} {list(tokens.shape)}")
        tokens = tokens.to(self.device, torch.long)
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if outside.any():
            row, t = (int(i) for i in outside.nonzero()[0])
            found = f"sequence {row} holds {int(tokens[row, t])} at position {t}"
            raise ValueError(f"{found}; the model's symbols go from 0 to {self.vocab_size - 1}")
        started = tokens[:, 0] != 0
        if started.any():
            row = int(started.nonzero()[0])
            raise ImpossibleSequence(row, 0, int(tokens[row, 0]))
        return tokens

    def _tensor(self, node: NodeSpec) -> tuple[torch.Tensor, list[str]]:
        """A node's table without the axes of single-state inputs, and the names of the inputs that are left."""
        table = joint_table(self.kernels, node.name)
        names = [n for n, size in zip(self.kernels.spec.inputs(node), table.shape, strict=False) if size > 1]
        sizes = [size for size in table.shape[:-1] if size > 1]
        return torch.from_numpy(table.reshape(*sizes, node.state_dim)).to(self.device, self.dtype), names

    def _transition(self, node: NodeSpec) -> _Transition:
        table, inputs = self._tensor(node)
        axis, batch = self._axes[node.name], len(self._dims)
        new = batch + 1
        feedback = self.kernels.spec.observed.name
        if feedback in inputs:
            axes = [self._axes[name] for name in inputs if name != feedback]
            table = table.movedim(inputs.index(feedback), 0).contiguous()
            return _Transition(table=table, axis=axis, feedback=True, einsum_axes=[batch, *axes, new])
        # parents come before their children in the order of the axes
        order = sorted(range(1, len(inputs)), key=lambda j: self._axes[inputs[j]])
        present = {self._axes[name] for name in inputs[1:]}
        shape = [self._dims[i] if i in present else 1 for i in range(axis)] if present else []
        table = table.permute(*order, -1, 0).reshape(*shape, node.state_dim, node.state_dim).contiguous()
        return _Transition(table=table, axis=axis, feedback=False, einsum_axes=[])

    def _move(self, joint: torch.Tensor, transition: _Transition, previous: torch.Tensor) -> torch.Tensor:
        """Replace one latent's state at t-1 by its state at t in the joint distribution [S, B].

        Its parents hold their states at t already.
        """
        axis, batch = transition.axis, joint.shape[-1]
        if not transition.feedback:
            before = self._dims[:axis] if transition.table.ndim > 2 else (math.prod(self._dims[:axis]),)
            after = math.prod(self._dims[axis + 1 :]) * batch
            moved: torch.Tensor = transition.table @ joint.view(*before, self._dims[axis], after)
            return moved.reshape(joint.shape).contiguous()
        axes = list(range(len(self._dims) + 1))
        result = [len(axes) if i == axis else i for i in axes]
        rows = transition.table[previous]
        moved = torch.einsum(joint.view(*self._dims, batch), axes, rows, transition.einsum_axes, result)
        return moved.reshape(joint.shape).contiguous()

    def _observation(self, node: NodeSpec) -> tuple[torch.Tensor, tuple[int, ...]]:
        """P(x | parents) of shape [product of the parents' sizes, V], and the parents' axes in ascending order."""
        table, inputs = self._tensor(node)
        axes = [self._axes[name] for name in inputs]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        return table.permute(*order, len(axes)).reshape(-1, node.state_dim), tuple(sorted(axes))

    def _affordable_batch(self, memory_budget: int, max_operations: int) -> int:
        """Sequences that are scored at a time; refuses what does not fit, before any table is computed."""
        spec = self.kernels.spec
        states = math.prod(self._dims)
        operations = states * sum(self._dims)
        entries = {name: _joint_entries(spec, spec.node(name)) for name in (*self._axes, spec.observed.name)}
        emission = entries.pop(spec.observed.name)
        feedback = [
            n // self.vocab_size for name, n in entries.items() if spec.observed.name in spec.node(name).parents
        ]
        item = torch.finfo(self.dtype).bits // 8
        # a table is repeated along the axes before its own where a latent has parents
        repeated = [
            math.prod(self._dims[: i + 1]) * self._dims[i] for n, i in self._axes.items() if spec.node(n).parents
        ]
        fixed = item * (sum(entries.values()) + emission + max(repeated, default=0))
        each = item * (_JOINT_COPIES * states + max(feedback, default=0) + emission // self.vocab_size)
        cost = f"{' x '.join(map(str, self._dims)) or 1} = {states:,} joint states"
        problems = []
        if operations > max_operations:
            problems.append(f"cost {operations:,} multiplications a token, over {max_operations:,}")
        if fixed + each > memory_budget:
            problems.append(f"need {fixed + each:,} bytes for a single sequence, over {memory_budget:,}")
        if problems:
            message = f"the exact bound is out of reach: {cost} {' and '.join(problems)}"
            remedy = "use fewer or smaller latents, or fewer parents"
            raise SpecError([Problem(path="gssm.nodes", message=message, remedy=remedy)])
        return (memory_budget - fixed) // each


@contextmanager
def _threads_for(work: int) -> Iterator[None]:
    """One thread for small products: a step is a chain of them, and on a busy machine each waits for every thread."""
    before = torch.get_num_threads()
    if work >= _PARALLEL_WORK or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _joint_entries(spec: GSSMSpec, node: NodeSpec) -> int:
    return math.prod((*input_sizes(spec, node), node.state_dim))
